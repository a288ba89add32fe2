"""The reads of a vCPU's local APIC that this process answers itself.

What no other than an access or a command changes needs no conversation: the daemon keeps a copy of it in a page that
this process shares (irqchip.lapic_page). The daemon changes the copy within the operation that changes the register,
whoever asks for that: a reset, SetLapic, INIT, another client's access in this vCPU's name. So a read here is in order
with all that any process has done or learnt, also by way of the guest's memory, and no event has to be waited for. It
is what a processor does with a virtual-APIC page: such a read is no exit, and no entry into the guest.

It does not have what changes without one of those: ISR, TMR, IRR, the processor priority, and the timer's count.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from irqchip.lapic_page import (
    BASE_AT,
    COPIED,
    DFR,
    ICR,
    ICR2,
    ICR_HIGH,
    PAGE_SIZE,
    SEQUENCE_AT,
    TPR,
    can_be_shared,
)
from irqchip_client._errors import IrqchipError

if TYPE_CHECKING:
    from irqchip_client import Session

IA32_APIC_BASE: Final = 0x1B
X2APIC_MSRS: Final = 0x800
_X2APIC, _ENABLED, _ADDRESS = 1 << 10, 1 << 11, ~0xFFF  # of IA32_APIC_BASE
_NOWHERE: Final = -PAGE_SIZE  # the register page of an APIC that has none in memory
# The words of the page, by what is read: an offset in the register page, or a model-specific register.
_BY_OFFSET: Final = {offset: offset // 4 for offset in COPIED if offset != ICR_HIGH}
_BY_MSR: Final = {X2APIC_MSRS + (offset >> 4): offset // 4 for offset in COPIED if offset not in (ICR_HIGH, ICR2, DFR)}
_X2APIC_ICR: Final = X2APIC_MSRS + (ICR >> 4)
_SEQUENCE, _BASE = SEQUENCE_AT // 8, BASE_AT // 8


class LocalApic:
    """The local APIC of a vCPU, as far as it is known here. None is what the daemon has to be asked for."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._numbers = memoryview(page).cast("Q")
        self._words = memoryview(page).cast("I")
        self._base = 0
        self._address = _NOWHERE
        self._x2apic = False

    def read(self, address: int, size: int) -> int | None:
        """A load from memory."""
        numbers = self._numbers
        sequence = numbers[_SEQUENCE]
        if numbers[_BASE] != self._base:
            self._learn(numbers[_BASE])
        offset = address - self._address
        word = _BY_OFFSET.get(offset & ~3)
        if word is None or sequence & 1:
            return None
        value = self._words[word]
        if numbers[_SEQUENCE] != sequence:
            return None
        if size == 4 and not offset & 3:
            return value
        # One that leaves the word is the daemon's.
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1 if (offset & 3) + size <= 4 else None

    def read_msr(self, msr: int) -> int | None:
        """A RDMSR of IA32_APIC_BASE, or of an x2APIC's register. None also where that is a fault."""
        numbers = self._numbers
        sequence = numbers[_SEQUENCE]
        base = numbers[_BASE]
        if base != self._base:
            self._learn(base)
        if msr == IA32_APIC_BASE:
            value = base
        elif self._x2apic and msr in _BY_MSR:
            value = self._words[_BY_MSR[msr]]
            if msr == _X2APIC_ICR:
                value |= self._words[ICR_HIGH // 4] << 32
        else:
            return None
        return None if sequence & 1 or numbers[_SEQUENCE] != sequence else value

    def read_cr8(self) -> int | None:
        """A MOV from CR8: TPR's upper half."""
        sequence = self._numbers[_SEQUENCE]
        value = self._words[TPR // 4] >> 4 & 0xF
        return None if sequence & 1 or self._numbers[_SEQUENCE] != sequence else value

    def close(self) -> None:
        """Unmap the page. From now on the daemon has to be asked."""
        self._numbers.release()
        self._words.release()
        self._page.close()

    def _learn(self, base: int) -> None:
        """IA32_APIC_BASE is another one."""
        self._base = base
        self._x2apic = base & (_ENABLED | _X2APIC) == _ENABLED | _X2APIC
        self._address = base & _ADDRESS if base & (_ENABLED | _X2APIC) == _ENABLED else _NOWHERE


def share_local_apic(session: Session, vcpu: int) -> LocalApic:
    """The local APIC of a vCPU, which ends with the Session.

    Where the daemon can't share it, over gRPC for example, or has it shared with another process, each read is asked
    for.
    """
    if not can_be_shared():
        return LocalApic(_no_copy(-1))
    memory = os.memfd_create(f"irqchip vcpu {vcpu}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, PAGE_SIZE)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        local_apic = LocalApic(_no_copy(memory))
        with suppress(IrqchipError):
            session.share_lapic(vcpu, memory)
        return local_apic
    finally:
        os.close(memory)


def _no_copy(memory: int) -> mmap.mmap:
    """The page before the daemon has it: there is no copy in it."""
    page = mmap.mmap(memory, PAGE_SIZE)
    page[SEQUENCE_AT] = 1
    return page
