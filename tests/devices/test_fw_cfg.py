"""fw_cfg: items, files and DMA, as firmware and kernels use them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.devices import FwCfg
from irqchip_client.devices.fw_cfg import COMMAND, ERROR, FILES, MOST_ZEROS, READ, SELECT, SKIP, WRITE
from irqchip_client.vmm.memory import GuestMemory
from tests.devices.bench import Bench

SELECTOR, DATA, ADDRESS = 0x510, 0x511, 0x514
DIRECTORY = 0x19
FILE = bytes(range(1, 201))
TO, AT = 0x8000, 0x3000  # where DMA goes, and where its command is


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(2 << 20) as memory:
        yield memory


@pytest.fixture
def bench(memory: GuestMemory) -> Bench:
    return Bench(FwCfg(2, 1 << 30, {"opt/b": FILE, "etc/a": b"a"}, dma=True), ram=memory)


def read(bench: Bench, item: int, length: int) -> bytes:
    bench.write(SELECTOR, item, 2)
    return bytes(bench.read(DATA) for _ in range(length))


def transfer(bench: Bench, memory: GuestMemory, control: int, length: int, address: int = TO) -> int:
    """A DMA command; returns its control field afterwards."""
    memory.write(AT, COMMAND.pack(control, length, address))
    bench.write(ADDRESS + 4, int.from_bytes(AT.to_bytes(4, "big"), "little"), 4)
    return int.from_bytes(memory.read(AT, 4), "big")


def select(item: int) -> int:
    return item << 16 | SELECT


# Items.


def test_an_item_gives_its_bytes_and_then_zeros(bench: Bench) -> None:
    for _ in range(2):
        assert read(bench, 0, 6) == b"QEMU\0\0"
    assert read(bench, 3, 8) == struct.pack("<Q", 1 << 30)
    assert read(bench, 5, 2) == read(bench, 0x0F, 2) == b"\2\0"
    assert read(bench, 0x7777, 2) == b"\0\0"


def test_a_selector_with_the_write_channel_s_bit_selects_the_same_item(bench: Bench) -> None:
    assert read(bench, 0x4000, 4) == b"QEMU"


def test_the_selector_has_16_bits_and_the_data_port_8(bench: Bench) -> None:
    bench.write(SELECTOR, 0, 2)
    bench.write(SELECTOR, 5, 1)
    bench.write(DATA, 5, 1)
    assert bench.read(SELECTOR, 2) == 0
    assert bytes(bench.read(DATA) for _ in range(4)) == b"QEMU"


def test_the_directory_names_the_files_in_order(bench: Bench) -> None:
    assert struct.unpack(">I", read(bench, DIRECTORY, 4)) == (2,)
    entries = [struct.unpack(">IHH56s", bytes(bench.read(DATA) for _ in range(64))) for _ in range(2)]
    assert [(size, name.rstrip(b"\0")) for size, _, _, name in entries] == [(1, b"etc/a"), (len(FILE), b"opt/b")]
    assert [read(bench, item, size) for size, item, _, _ in entries] == [b"a", FILE]


@pytest.mark.parametrize("name", ["", "x" * 56, "é", "a\0b"])
def test_a_name_that_a_directory_can_not_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="use 1 to 55 ASCII characters"):
        FwCfg(1, 0, {name: b""})


def test_more_files_than_there_are_items_are_refused() -> None:
    FwCfg(1, 0, {str(number): b"" for number in range(FILES)})
    with pytest.raises(InvalidArgument, match="give it at most"):
        FwCfg(1, 0, {str(number): b"" for number in range(FILES + 1)})


# DMA.


def test_only_a_device_with_dma_uses_memory(bench: Bench) -> None:
    assert read(bench, 1, 4) == b"\3\0\0\0"
    assert bench.read(ADDRESS, 4).to_bytes(4, "little") + bench.read(ADDRESS + 4, 4).to_bytes(4, "little") == (
        b"QEMU CFG"
    )
    without = Bench(FwCfg(1, 0))
    assert read(without, 1, 4) == b"\1\0\0\0"
    assert [region.start for region in without.device.regions] == [SELECTOR]
    assert (bench.device.USES_MEMORY, without.device.USES_MEMORY) == (True, False)


def test_dma_selects_and_reads(bench: Bench, memory: GuestMemory) -> None:
    assert transfer(bench, memory, select(0x21) | READ, 100) == 0
    assert memory.read(TO, 101) == FILE[:100] + b"\0"
    assert transfer(bench, memory, READ, 100) == 0
    assert memory.read(TO, 100) == FILE[100:]


def test_dma_reads_zeros_behind_the_end(bench: Bench, memory: GuestMemory) -> None:
    memory.write(TO, b"\xff" * 256)
    assert transfer(bench, memory, select(0x21) | READ, len(FILE) + 8) == 0
    assert memory.read(TO, 256) == FILE + bytes(8) + b"\xff" * (256 - len(FILE) - 8)


def test_dma_and_the_data_port_have_one_position(bench: Bench, memory: GuestMemory) -> None:
    assert read(bench, 0x21, 10) == FILE[:10]
    assert transfer(bench, memory, SKIP, 5) == 0
    assert bench.read(DATA) == FILE[15]
    assert transfer(bench, memory, SKIP, 1 << 31) == 0
    assert bench.read(DATA) == 0


def test_a_command_above_4_gib_needs_the_upper_half_for_itself_alone(bench: Bench, memory: GuestMemory) -> None:
    bench.write(ADDRESS, 1 << 24, 4)  # 1
    assert transfer(bench, memory, select(0) | READ, 4) == select(0) | READ  # at 1_0000_3000h, where nothing is
    assert transfer(bench, memory, select(0) | READ, 4) == 0
    assert memory.read(TO, 4) == b"QEMU"


def test_an_item_can_not_be_written(bench: Bench, memory: GuestMemory) -> None:
    assert transfer(bench, memory, select(0x21) | WRITE, 4) == ERROR
    assert read(bench, 0x21, 4) == FILE[:4]


@pytest.mark.parametrize("address", [(2 << 20) - 10, 1 << 40, (1 << 64) - 1])
def test_a_transfer_to_where_there_is_no_memory_is_an_error(bench: Bench, memory: GuestMemory, address: int) -> None:
    assert transfer(bench, memory, select(0x21) | READ, 100, address) == ERROR


def test_a_transfer_far_behind_the_end_is_an_error_and_writes_nothing(bench: Bench, memory: GuestMemory) -> None:
    memory.write(TO, b"\xff" * 256)
    assert transfer(bench, memory, select(0x21) | READ, len(FILE) + MOST_ZEROS + 1) == ERROR
    assert transfer(bench, memory, select(0x21) | READ, 0xFFFF_FFFF) == ERROR
    assert memory.read(TO, 256) == b"\xff" * 256
    assert transfer(bench, memory, select(0x21) | READ, len(FILE) + MOST_ZEROS) == 0


def test_a_command_in_rom_leaves_it_as_it_is(memory: GuestMemory) -> None:
    rom = COMMAND.pack(select(0) | READ, 4, TO).ljust(0x1000, b"\0")
    memory.add_rom(0xFFFF_F000, rom)
    bench = Bench(FwCfg(1, 0, dma=True), ram=memory)
    bench.write(ADDRESS + 4, 0x00F0_FFFF, 4)
    assert memory.read(TO, 4) == b"QEMU"
    assert memory.read(0xFFFF_F000, 0x1000) == rom


def test_other_accesses_to_the_address_do_nothing(bench: Bench, memory: GuestMemory) -> None:
    memory.write(AT, COMMAND.pack(select(0) | READ, 4, TO))
    for offset, size in ((4, 1), (4, 2), (6, 2)):
        bench.write(ADDRESS + offset, 0x0030, size)
    assert memory.read(TO, 4) == bytes(4)


def test_a_reset_selects_the_signature(bench: Bench, memory: GuestMemory) -> None:
    assert read(bench, 0x21, 2) == FILE[:2]
    bench.write(ADDRESS, 1, 4)
    bench.device.reset()
    assert bench.read(DATA) == ord("Q")
    assert transfer(bench, memory, READ, 3) == 0
    assert memory.read(TO, 3) == b"EMU"
