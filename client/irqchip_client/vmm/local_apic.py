"""The reads of a local APIC that the vCPU's process answers itself.

The daemon keeps a copy of the registers that change only by an access or a command in a page that this process shares:
see irqchip.lapic_page. The daemon changes the copy within the operation that changes the registers, for any
operation: ResetVm, SetLapic, an INIT, another client's access in the vCPU's name. So the guest's next read comes after
everything that any process has done or learned before it, also through the guest's memory. No event could give that
order. A processor's virtual-APIC page works the same way: reading it is no exit, and no entry into the guest.

A read of ISR, TMR, IRR, the processor priority or the timer's current count always goes to the daemon.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from irqchip.lapic_page import (
    BASE_AT,
    CAN_BE_SHARED,
    COPIED,
    DFR,
    ICR,
    ICR2,
    ICR_HIGH,
    PAGE_SIZE,
    SEQUENCE_AT,
    TPR,
)
from irqchip_client._errors import IrqchipError

if TYPE_CHECKING:
    from irqchip_client import Session

IA32_APIC_BASE: Final = 0x1B
X2APIC_MSRS: Final = 0x800
_X2APIC, _ENABLED, _ADDRESS = 1 << 10, 1 << 11, ~0xFFF  # of IA32_APIC_BASE
_NOWHERE: Final = -PAGE_SIZE  # the register page of an APIC that has none in memory
# The words of the page: by an offset in the register page, or by a model-specific register.
_BY_OFFSET: Final = {offset: offset // 4 for offset in COPIED if offset != ICR_HIGH}
_BY_MSR: Final = {X2APIC_MSRS + (offset >> 4): offset // 4 for offset in COPIED if offset not in (ICR_HIGH, ICR2, DFR)}
_X2APIC_ICR: Final = X2APIC_MSRS + (ICR >> 4)
_SEQUENCE, _BASE = SEQUENCE_AT // 8, BASE_AT // 8


class LocalApic:
    """The shared registers of a vCPU's local APIC. A method returns None if the daemon has to answer.

    page     the memory: see irqchip.lapic_page
    base     the IA32_APIC_BASE of the last read
    address  of the register page, by `base`; a negative number while the registers are not in memory
    """

    def __init__(self, page: mmap.mmap) -> None:
        self.page = page
        self._numbers = memoryview(page).cast("Q")
        self._words = memoryview(page).cast("I")
        self.base = 0
        self.address = _NOWHERE
        self._x2apic = False

    def read(self, address: int, size: int) -> int | None:
        """A load from memory."""
        numbers = self._numbers
        sequence = numbers[_SEQUENCE]
        if numbers[_BASE] != self.base:
            self._learn(numbers[_BASE])
        offset = address - self.address
        word = _BY_OFFSET.get(offset & ~3)
        if word is None or sequence & 1:
            return None
        value = self._words[word]
        if numbers[_SEQUENCE] != sequence:
            return None
        if size == 4 and not offset & 3:
            return value
        # The daemon answers a read across words.
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1 if (offset & 3) + size <= 4 else None

    def read_msr(self, msr: int) -> int | None:
        """RDMSR of IA32_APIC_BASE or of an x2APIC's register. None also for a register whose read faults."""
        numbers = self._numbers
        sequence = numbers[_SEQUENCE]
        base = numbers[_BASE]
        if base != self.base:
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
        """Unmaps the page. No thread may read after this."""
        self._numbers.release()
        self._words.release()
        self.page.close()

    def _learn(self, base: int) -> None:
        """IA32_APIC_BASE has changed."""
        self.base = base
        self._x2apic = base & (_ENABLED | _X2APIC) == _ENABLED | _X2APIC
        self.address = base & _ADDRESS if base & (_ENABLED | _X2APIC) == _ENABLED else _NOWHERE


def share_local_apic(session: Session, vcpu: int, make: Callable[[mmap.mmap], LocalApic] = LocalApic) -> LocalApic:
    """Shares the registers of a vCPU's local APIC, until the Session ends.

    If the daemon cannot share them, for example over gRPC, or shares them with another process, every read goes to the
    daemon.

    make  makes the LocalApic from the page
    """
    if not CAN_BE_SHARED:
        return make(_no_copy(-1))
    memory = os.memfd_create(f"irqchip vcpu {vcpu}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, PAGE_SIZE)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        local_apic = make(_no_copy(memory))
        with suppress(IrqchipError):
            session.share_lapic(vcpu, memory)
        return local_apic
    finally:
        os.close(memory)


def _no_copy(memory: int) -> mmap.mmap:
    """A page without a copy, until the daemon has the page."""
    page = mmap.mmap(memory, PAGE_SIZE)
    page[SEQUENCE_AT] = 1
    return page
