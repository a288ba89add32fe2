"""What Unicorn is given of a guest of any architecture: memory, and the addresses where there is none."""

from __future__ import annotations

import ctypes
from typing import Protocol

from unicorn.unicorn_const import UC_PROT_ALL
from unicorn.unicorn_py3.unicorn import Uc, uclib

from irqchip_client.vmm.memory import GuestMemory


class Unsupported(Exception):  # noqa: N818 - the fact, not an error of ours
    """Something that this adapter can't do, as the message says."""


class MemoryBus(Protocol):
    """Takes the accesses outside of RAM. Its methods must not raise: C code calls them."""

    def mmio_read(self, address: int, size: int) -> int: ...
    def mmio_write(self, address: int, value: int, size: int) -> None: ...


def map_guest(uc: Uc, memory: GuestMemory, end: int, bus: MemoryBus) -> None:
    """Maps a guest's RAM, and all other addresses below `end` to the bus. Only uc_emu_stop() ends the emulation."""
    uc.mem_map_ptr(memory.start, memory.size, UC_PROT_ALL, memory.host_address)
    for first, last in ((0, memory.start), (memory.end, end)):
        if first < last:
            _map_mmio(uc, first, last, bus)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])


def _map_mmio(uc: Uc, start: int, end: int, bus: MemoryBus) -> None:
    def read(_uc: Uc, offset: int, size: int, _data: object) -> int:
        return bus.mmio_read(start + offset, size)

    def write(_uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
        bus.mmio_write(start + offset, value, size)

    uc.mmio_map(start, end - start, read, None, write, None)


class Register:
    """A register, read and written the short way: the binding's takes several microseconds."""

    def __init__(self, uc: Uc, number: int) -> None:
        self._value = ctypes.c_uint64()
        self._arguments = (uc._uch, number, ctypes.byref(self._value))

    def read(self) -> int:
        uclib.uc_reg_read(*self._arguments)
        return self._value.value

    def write(self, value: int) -> None:
        self._value.value = value
        uclib.uc_reg_write(*self._arguments)
