"""The BIOS data area, as kernels read it."""

from __future__ import annotations

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.bios_data import write_bios_data


def word(memory: GuestMemory, address: int) -> int:
    return int.from_bytes(memory.read(address, 2), "little")


def test_kernels_find_the_serial_port_the_ebda_and_the_size_of_base_memory() -> None:
    with GuestMemory(1 << 20) as memory:
        write_bios_data(memory)
        assert [word(memory, address) for address in (0x400, 0x402, 0x408)] == [0x3F8, 0, 0]
        assert word(memory, 0x40E) << 4 == word(memory, 0x413) << 10 == 0x9FC00
        assert memory.read(word(memory, 0x40E) << 4, 1) == b"\1"  # KiB


def test_the_equipment_word_has_what_the_machine_has() -> None:
    with GuestMemory(1 << 20) as memory:
        write_bios_data(memory)
        equipment = word(memory, 0x410)
        assert equipment & 1 == 0  # no diskette drive
        assert equipment >> 9 & 7 == 1  # serial ports


def test_the_keyboards_buffer_is_empty() -> None:
    with GuestMemory(1 << 20) as memory:
        write_bios_data(memory)
        head, tail, start, end = (word(memory, address) for address in (0x41A, 0x41C, 0x480, 0x482))
        assert head == tail == start
        assert end - start == 32
