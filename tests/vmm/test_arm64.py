"""arm64's boot images, and memory that does not begin at 0."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator

import pytest

from examples.guest.build import ARM64, X86
from irqchip_client import InvalidArgument
from irqchip_client.devices.virtio.places import ARM64 as PLACES
from irqchip_client.vmm.arm64 import RAM, is_arm64, load_arm64
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Arm64Start

MIB = 1 << 20
TREE = RAM + 4 * MIB - 0x1_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(4 * MIB, start=RAM) as memory:
        yield memory


def image(text_offset: int = 0x8_0000, size: int = 0x2000, magic: bytes = b"ARM\x64") -> bytes:
    """Linux's header, and some code."""
    return struct.pack("<2I3Q24x4s4x", 0, 0, text_offset, size, 0, magic) + b"code"


def elf(address: int, entry: int, data: bytes = b"code", size: int = 0x2000) -> bytes:
    header = struct.pack("<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 2, 183, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<2I6Q", 1, 5, 120, address, address, len(data), size, 0x1000) + data


def test_an_elf_file_is_loaded_where_it_says(memory: GuestMemory) -> None:
    assert load_arm64(memory, elf(RAM + 0x8_0000, RAM + 0x8_0010)) == Arm64Start(RAM + 0x8_0010, x0=TREE)
    assert memory.read(RAM + 0x8_0000, 6) == b"code\0\0"


def test_linuxs_image_is_loaded_at_its_offset_from_the_beginning_of_ram(memory: GuestMemory) -> None:
    assert load_arm64(memory, image(0x20_0000)) == Arm64Start(RAM + 0x20_0000, x0=TREE)
    assert memory.read(RAM + 0x20_0040, 4) == b"code"


def test_the_demos_guest_is_one(memory: GuestMemory) -> None:
    assert load_arm64(memory, ARM64.binary.read_bytes()) == Arm64Start(RAM + 0x8_0000, x0=TREE)


def test_images_are_told_apart() -> None:
    assert is_arm64(image())
    assert is_arm64(ARM64.binary.read_bytes())
    assert not is_arm64(X86.binary.read_bytes())
    for other in (b"", b"\x7fELF", b"\xf4", image(magic=b"\0" * 4)):
        assert not is_arm64(other)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"\xf4", "it is neither an ELF file for arm64"),
        (X86.binary.read_bytes(), "it is neither an ELF file for arm64"),
        (elf(RAM, RAM)[:100], "it ends too early"),
        (elf(RAM, RAM)[:120], "a segment is not in the file"),
        (elf(RAM - 0x1000, RAM), "a part of it belongs at 0x3ffff000; memory begins at 0x40000000"),
        (elf(RAM + 4 * MIB - 0x1000, RAM), "it needs more memory than the machine's 0x400000 bytes"),
        (elf(RAM + 4 * MIB - 0x1_1000, RAM), "with 0x10000 for the device tree"),
        (image(4 * MIB), "it needs more memory"),
    ],
)
def test_other_images_are_refused(memory: GuestMemory, given: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        load_arm64(memory, given)
    assert memory.read(RAM, 4 * MIB) == bytes(4 * MIB)


def test_the_device_tree_says_what_the_machine_has(memory: GuestMemory) -> None:
    load_arm64(memory, image(), command_line="console=ttyS0", vcpus=2, gic=2)
    tree = read_tree(memory.read(TREE, 0x1_0000))
    assert tree["/chosen"]["bootargs"] == b"console=ttyS0\0"
    assert tree["/memory@40000000"]["reg"] == struct.pack(">2Q", RAM, 4 * MIB)
    assert tree["/cpus/cpu@1"]["reg"] == struct.pack(">I", 1)
    controller = tree["/interrupt-controller@8000000"]
    assert controller["compatible"] == b"arm,cortex-a15-gic\0"
    assert controller["reg"] == struct.pack(">4Q", 0x800_0000, 0x1_0000, 0x801_0000, 0x2000)
    assert tree["/"]["interrupt-parent"] == controller["phandle"]
    assert tree["/timer"]["interrupts"][24:36] == struct.pack(">3I", 1, 11, 4)  # PPI 11 is INTID 27
    assert tree["/serial@9000000"]["interrupts"] == struct.pack(">3I", 0, 1, 4)
    assert tree["/psci"]["method"] == b"hvc\0"


def test_the_device_tree_has_the_virtio_devices_that_are_there(memory: GuestMemory) -> None:
    load_arm64(memory, image(), virtio=[PLACES[0], PLACES[5]])
    tree = read_tree(memory.read(TREE, 0x1_0000))
    found = {name: node for name, node in tree.items() if name.startswith("/virtio")}
    assert list(found) == ["/virtio_mmio@a001000", "/virtio_mmio@a006000"]
    assert found["/virtio_mmio@a006000"]["compatible"] == b"virtio,mmio\0"
    assert found["/virtio_mmio@a006000"]["reg"] == struct.pack(">2Q", 0xA00_6000, 0x200)
    assert found["/virtio_mmio@a006000"]["interrupts"] == struct.pack(">3I", 0, 21, 4)


def test_a_gicv3_has_a_redistributor_for_each_vcpu(memory: GuestMemory) -> None:
    load_arm64(memory, image(), vcpus=3)
    controller = read_tree(memory.read(TREE, 0x1_0000))["/interrupt-controller@8000000"]
    assert controller["compatible"] == b"arm,gic-v3\0"
    assert controller["reg"] == struct.pack(">4Q", 0x800_0000, 0x1_0000, 0x80A_0000, 0x6_0000)


def test_an_initrd_is_before_the_device_tree_which_says_where(memory: GuestMemory) -> None:
    load_arm64(memory, image(), initrd=b"initrd")
    chosen = read_tree(memory.read(TREE, 0x1_0000))["/chosen"]
    first, last = (int.from_bytes(chosen[f"linux,initrd-{which}"], "big") for which in ("start", "end"))
    assert memory.read(first, last - first) == b"initrd"
    assert last <= TREE


def test_too_long_a_command_line_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(InvalidArgument, match="its command line is too long"):
        load_arm64(memory, image(), command_line="x" * 0x1_0000)


def read_tree(data: bytes) -> dict[str, dict[str, bytes]]:
    """The properties of a flattened device tree, by the nodes' paths: Devicetree Specification 0.4, 5.4."""
    magic, size, at, strings, _, version, _, _, _, _ = struct.unpack_from(">10I", data)
    assert (magic, version) == (0xD00D_FEED, 17)
    assert size <= len(data)
    nodes: dict[str, dict[str, bytes]] = {}
    path: list[str] = []
    while True:
        (token,) = struct.unpack_from(">I", data, at)
        at += 4
        if token == 1:
            end = data.index(b"\0", at)
            path.append(data[at:end].decode())
            nodes["/".join(path) or "/"] = {}
            at = end // 4 * 4 + 4
        elif token == 2:
            path.pop()
        elif token == 3:
            length, name = struct.unpack_from(">2I", data, at)
            key = data[strings + name : data.index(b"\0", strings + name)].decode()
            nodes["/".join(path) or "/"][key] = data[at + 8 : at + 8 + length]
            at += 8 + -(-length // 4) * 4
        else:
            assert token == 9
            return nodes


def test_memory_begins_where_it_is_told(memory: GuestMemory) -> None:
    memory.write(RAM + 0x1000, b"there")
    assert memory.read(RAM + 0x1000, 5) == b"there"
    assert (memory.start, memory.end) == (RAM, RAM + 4 * MIB)
    for address in (0, RAM - 1, RAM + 4 * MIB - 4):
        with pytest.raises(InvalidArgument, match="are not in a guest's memory from 0x40000000 to 0x40400000"):
            memory.read(address, 5)


@pytest.mark.parametrize("start", [-0x1000, 0x1001])
def test_memory_begins_at_a_page(start: int) -> None:
    with pytest.raises(InvalidArgument, match="a guest's memory begins at a multiple of 4096"):
        GuestMemory(0x1000, start=start)


def test_memory_in_a_file_is_shared() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(0x2000)
        with GuestMemory(0x2000, file=file.fileno()) as one, GuestMemory(0x2000, start=RAM, file=file.fileno()) as two:
            one.write(0x1234, b"shared")
            assert two.read(RAM + 0x1234, 6) == b"shared"
