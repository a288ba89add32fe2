"""Firmware images: where they are in memory. tests/cli/test_run.py runs one."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from irqchip_client import InvalidArgument
from irqchip_client.vmm.firmware import LARGEST, firmware_files, load_firmware
from irqchip_client.vmm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(2 << 20) as memory:
        yield memory


def test_an_image_ends_at_4_gib_and_its_last_128_kib_at_1_mib(memory: GuestMemory) -> None:
    image = b"".join(struct.pack("<I", number) for number in range(1 << 16))
    load_firmware(memory, image)
    assert memory.read((1 << 32) - len(image), len(image)) == image
    assert memory.read(0xE0000, 0x20000) == image[-0x20000:]
    assert memory.read(0xDF000, 0x1000) == bytes(0x1000)
    memory.write(0xF0000, b"shadow")
    assert memory.read((1 << 32) - 0x10000, 6) == image[-0x10000:][:6]


def test_a_small_image_is_all_below_1_mib(memory: GuestMemory) -> None:
    load_firmware(memory, b"x" * 0x1000)
    assert memory.read(0xFE000, 0x2000) == bytes(0x1000) + b"x" * 0x1000


@pytest.mark.parametrize("size", [0, 1, 0x1001, LARGEST + 0x1000])
def test_an_image_of_another_size_is_refused(memory: GuestMemory, size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"this one has {size} bytes"):
        load_firmware(memory, bytes(size))
    assert memory.roms == []


def test_firmware_is_told_of_the_ram(memory: GuestMemory) -> None:
    assert firmware_files(memory) == {"etc/e820": struct.pack("<QQI", 0, 2 << 20, 1)}
