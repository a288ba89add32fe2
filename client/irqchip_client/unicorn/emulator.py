"""Maps a guest's memory into Unicorn, and all other addresses to a bus. For all architectures."""

from __future__ import annotations

import ctypes
from typing import Protocol

from unicorn.unicorn_const import UC_HOOK_MEM_WRITE_PROT, UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ
from unicorn.unicorn_py3.unicorn import Uc, uclib

from irqchip_client.vmm.memory import GuestMemory


class Unsupported(Exception):  # noqa: N818 - the fact, not an error of ours
    """The guest needs something that this adapter can't do; the message names it."""


class MemoryBus(Protocol):
    """Takes the accesses outside of RAM. Its methods must not raise: C code calls them."""

    def mmio_read(self, address: int, size: int) -> int: ...
    def mmio_write(self, address: int, value: int, size: int) -> None: ...


def map_guest(uc: Uc, memory: GuestMemory, end: int, bus: MemoryBus) -> None:
    """Maps a guest's RAM and ROM, and all other addresses below `end` to the bus.

    Only uc_emu_stop() ends the emulation.
    """
    uc.mem_map_ptr(memory.start, memory.size, UC_PROT_ALL, memory.host_address)
    for rom in memory.roms:
        # A copy in Unicorn's own memory: Unicorn stores into memory of ours in spite of the protection.
        uc.mem_map(rom.address, rom.size, UC_PROT_READ | UC_PROT_EXEC)
        uc.mem_write(rom.address, rom.read(rom.address, rom.size))
    if memory.roms:
        uc.hook_add(UC_HOOK_MEM_WRITE_PROT, lambda *_: True)  # The store is lost, and the guest goes on.
    first = 0
    for start, behind in sorted([(memory.start, memory.end), *((rom.address, rom.end) for rom in memory.roms)]):
        if first < start:
            _map_mmio(uc, first, start, bus)
        first = behind
    _map_mmio(uc, first, end, bus)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])


def _map_mmio(uc: Uc, start: int, end: int, bus: MemoryBus) -> None:
    def read(_uc: Uc, offset: int, size: int, _data: object) -> int:
        return bus.mmio_read(start + offset, size)

    def write(_uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
        bus.mmio_write(start + offset, value, size)

    uc.mmio_map(start, end - start, read, None, write, None)


class Register:
    """A register, read and written without the binding, which takes several microseconds."""

    def __init__(self, uc: Uc, number: int) -> None:
        self._value = ctypes.c_uint64()
        self._arguments = (uc._uch, number, ctypes.byref(self._value))

    def read(self) -> int:
        uclib.uc_reg_read(*self._arguments)
        return self._value.value

    def write(self, value: int) -> None:
        self._value.value = value
        uclib.uc_reg_write(*self._arguments)
