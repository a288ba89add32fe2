"""A guest's RAM and ROM."""

from __future__ import annotations

import ctypes

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.vmm.memory import GuestMemory


def test_memory_is_zero_at_first_and_keeps_what_is_written() -> None:
    with GuestMemory(8192) as memory:
        assert memory.read(0, 8192) == bytes(8192)
        memory.write(8190, b"ab")
        assert memory.read(8189, 3) == b"\0ab"
        assert ctypes.string_at(memory.host_address + 8190, 2) == b"ab"


@pytest.mark.parametrize("size", [0, -4096, 100])
def test_its_size_is_in_pages(size: int) -> None:
    with pytest.raises(InvalidArgument, match="multiple of 4096"):
        GuestMemory(size)


@pytest.mark.parametrize(("address", "length"), [(4096, 1), (4095, 2), (-1, 1), (0, -1)])
def test_accesses_beyond_the_memory_are_refused(address: int, length: int) -> None:
    with GuestMemory(4096) as memory:
        with pytest.raises(InvalidArgument, match="not in a guest's memory"):
            memory.read(address, length)
        if length >= 0:
            with pytest.raises(InvalidArgument, match="not in a guest's memory"):
                memory.write(address, bytes(length))


def test_watchers_are_notified_of_writes_and_flushes() -> None:
    heard: list[tuple[int, int]] = []

    def written(address: int, length: int) -> None:
        heard.append((address, length))

    with GuestMemory(4096) as memory:
        memory.write(0, b"a")
        memory.watch(written)
        memory.write(5, b"abc")
        memory.flush(7, 9)
        with pytest.raises(InvalidArgument):
            memory.write(4095, b"ab")
        with pytest.raises(InvalidArgument):
            memory.flush(4095, 2)
        memory.unwatch(written)
        memory.write(1, b"a")
    assert heard == [(5, 3), (7, 9)]


def test_rom_can_be_read_and_not_written() -> None:
    with GuestMemory(4096) as memory:
        memory.add_rom(0x8000, b"rom!" * 2048)
        assert memory.read(0x8000, 8) == b"rom!rom!"
        assert memory.read(0x9FFC, 4) == b"rom!"
        assert ctypes.string_at(memory.roms[0].host_address + 4, 4) == b"rom!"
        with pytest.raises(InvalidArgument, match="not in a guest's memory"):
            memory.write(0x8000, b"x")
        for address, length in ((0x7FFF, 2), (0x9FFF, 2), (0xA000, 1)):
            with pytest.raises(InvalidArgument, match="not in a guest's memory"):
                memory.read(address, length)


@pytest.mark.parametrize(
    ("address", "size", "why"),
    [
        (0x8000, 0, "multiple of 4096"),
        (0x8000, 100, "multiple of 4096"),
        (0x8800, 4096, "multiple of 4096"),
        (0x1000, 4096, "where the guest has memory"),
        (0, 0x4000, "where the guest has memory"),
        (0x8000, 8192, "where the guest has memory"),
    ],
)
def test_rom_that_can_not_be_there_is_refused(address: int, size: int, why: str) -> None:
    with GuestMemory(8192) as memory:
        memory.add_rom(0x9000, bytes(4096))
        with pytest.raises(InvalidArgument, match=why):
            memory.add_rom(address, bytes(size))
        assert [rom.address for rom in memory.roms] == [0x9000]
