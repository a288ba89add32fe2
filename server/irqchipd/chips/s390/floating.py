"""A VM's floating interrupts, which any vCPU may take. KVM: struct kvm_s390_float_interrupt.

On a machine with the AIV facility, KVM collapses adapter interrupts in a bit per subclass (the GISA). This module
follows KVM on a machine without AIV: every interrupt is in a list.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.irq import (
    EXTERNAL_SIZE,
    IO_SIZE,
    IRQ_SIZE,
    MAX_ISC,
    External,
    Io,
    Irq,
    Kind,
    MachineCheck,
    is_io,
    isc_of,
    kinds_of,
    not_floating,
    pack,
    padded,
    short,
    unpack,
)
from irqchipd.chips.s390.pending import CR14_CHANNEL_REPORT, Pend, of_isc
from irqchipd.chips.saved import StateError, check, in_range

# The lists: one for each interruption subclass, and then these. KVM: FIRQ_LIST_*.
PFAULT_LIST: Final = MAX_ISC + 1
VIRTIO_LIST: Final = MAX_ISC + 2
LISTS: Final = MAX_ISC + 3
_PEND_OF_LIST: Final = (*(of_isc(isc) for isc in range(MAX_ISC + 1)), Pend.PFAULT_DONE, Pend.VIRTIO)

MAX_IO: Final = 266_250  # KVM_S390_MAX_FLOAT_IRQS, of all subclasses together
MAX_VIRTIO: Final = 87_381  # KVM_S390_MAX_VIRTIO_IRQS
MAX_PFAULT: Final = 64 * 255  # ASYNC_PF_PER_VCPU * KVM_MAX_VCPUS

# A service signal's parameter: the address of an SCCB, and two bits for events.
SCCB_MASK: Final = 0xFFFF_FFF8
SCCB_EVENT: Final = 3

_SERVICES: Final = 1 << Pend.SERVICE | 1 << Pend.SERVICE_EVENT
_ONCE: Final = _SERVICES | 1 << Pend.REPRESSIBLE


@dataclass(frozen=True, slots=True)
class SavedFloating:
    """The floating interrupts in a snapshot: the lists in order, and the interrupts that are kept once.

    pending has only the bits of the latter: the lists' bits follow from the lists.
    """

    interrupts: tuple[bytes, ...] = ()
    pending: int = 0
    service: int = 0
    cr14: int = 0
    mcic: int = 0


class FloatingInterrupts:
    """The lists, and the interrupts that are kept once: the service signal and the machine check."""

    def __init__(self) -> None:
        # Each interrupt in its short form, as there may be hundreds of thousands.
        self._lists: tuple[deque[bytes], ...] = tuple(deque[bytes]() for _ in range(LISTS))
        self._ios = 0
        self.pending = 0  # one bit each: Pend
        self._service = 0  # struct kvm_s390_ext_info ext_params
        self._mcic = 0
        self.cr14 = 0  # the subclasses of the machine check

    def __len__(self) -> int:
        """The number of structures that all() returns."""
        once = (_SERVICES, 1 << Pend.REPRESSIBLE)
        return sum(map(len, self._lists)) + sum(1 for bits in once if self.pending & bits)

    # Adding.

    def check(self, kinds: Sequence[int]) -> None:
        """Refuse interrupts that can't all be added: EINVAL for a type, EBUSY when a list is full. KVM: __inject_vm."""
        ios = virtios = pfaults = 0
        for kind in kinds:
            if kind <= Kind.IO_MAX:
                ios += 1
            elif kind == Kind.VIRTIO:
                virtios += 1
            elif kind == Kind.PFAULT_DONE:
                pfaults += 1
            elif kind not in (Kind.SERVICE, Kind.MACHINE_CHECK):
                raise not_floating(kind)
        _check_room("I/O", self._ios, ios, MAX_IO)
        _check_room("virtio", len(self._lists[VIRTIO_LIST]), virtios, MAX_VIRTIO)
        _check_room("pfault done", len(self._lists[PFAULT_LIST]), pfaults, MAX_PFAULT)

    def add(self, irq: Irq) -> None:
        """Add an interrupt, or refuse it. KVM: __inject_vm."""
        self.check((irq.kind,))
        self._add(irq)

    def add_all(self, data: bytes) -> None:
        """Add the interrupts of an array of struct kvm_s390_irq, or none of them. There may be tens of thousands."""
        kinds = kinds_of(data)
        self.check(kinds)
        at = 0
        for kind in kinds:
            if kind <= Kind.IO_MAX:
                self._append(isc_of(data, at), data[at : at + IO_SIZE])
            else:
                self._add(unpack(data[at : at + IRQ_SIZE]))
            at += IRQ_SIZE

    def _add(self, irq: Irq) -> None:
        """Add a checked interrupt."""
        info = irq.info
        if isinstance(info, Io):
            self._append(info.isc, short(irq))
        elif isinstance(info, MachineCheck):
            # KVM: __inject_float_mchk; only the subclass of channel reports is kept.
            self.cr14 |= info.cr14 & CR14_CHANNEL_REPORT
            self._mcic |= info.mcic
            self.pending |= 1 << Pend.REPRESSIBLE
        elif isinstance(info, External):
            if irq.kind == Kind.SERVICE:
                self._add_service(info.parameter)
            else:
                self._append(VIRTIO_LIST if irq.kind == Kind.VIRTIO else PFAULT_LIST, short(irq))

    def _append(self, number: int, packed: bytes) -> None:
        self._lists[number].append(packed)
        if number <= MAX_ISC:
            self._ios += 1
        self.pending |= 1 << _PEND_OF_LIST[number]

    def _add_service(self, parameter: int) -> None:
        """KVM: __inject_service; events are always taken, and an SCCB only when none is pending."""
        self._service |= parameter & SCCB_EVENT
        if self._service & SCCB_EVENT:
            self.pending |= 1 << Pend.SERVICE_EVENT
        if not self._service & SCCB_MASK:
            self._service |= parameter & SCCB_MASK
            self.pending |= 1 << Pend.SERVICE

    # Taking.

    def take_io(self, isc: int) -> Irq:
        """The first I/O interrupt of a subclass that has one. KVM: __deliver_io."""
        irq = self._take_first(isc)
        self._ios -= 1
        return irq

    def take_virtio(self) -> Irq:
        """The first virtio interrupt, if one is pending. KVM: __deliver_virtio."""
        return self._take_first(VIRTIO_LIST)

    def take_pfault_done(self) -> Irq:
        """The first completion of a page fault, if one is pending. KVM: __deliver_pfault_done."""
        return self._take_first(PFAULT_LIST)

    def _take_first(self, number: int) -> Irq:
        irq = unpack(self._lists[number].popleft())
        self._emptied(number)
        return irq

    def _emptied(self, number: int) -> None:
        if not self._lists[number]:
            self.pending &= ~(1 << _PEND_OF_LIST[number])

    def take_service(self) -> Irq:
        """The service signal, and its events with it. KVM: __deliver_service."""
        parameter, self._service = self._service, 0
        self.pending &= ~_SERVICES
        return Irq(Kind.SERVICE, External(parameter))

    def take_service_event(self) -> Irq:
        """Only the service signal's events; the guest gets a parameter of 3. KVM: __deliver_service_ev."""
        self._service &= ~SCCB_EVENT
        self.pending &= ~(1 << Pend.SERVICE_EVENT)
        return Irq(Kind.SERVICE, External(SCCB_EVENT))

    def take_machine_check(self) -> MachineCheck:
        """The pending machine check, or all zeros. KVM: __deliver_machine_check, its second half."""
        if not self.pending & 1 << Pend.REPRESSIBLE:
            return MachineCheck()
        taken = MachineCheck(cr14=self.cr14, mcic=self._mcic)
        self.cr14 = self._mcic = 0
        self.pending &= ~(1 << Pend.REPRESSIBLE)
        return taken

    def remove_io(self, cr6: int, subchannel: int) -> Irq | None:
        """Take the first I/O interrupt that a mask of subclasses allows. KVM: kvm_s390_get_io_int, without the GISA.

        subchannel is a subsystem identification word, or 0 for any. A guest's TPI and CLEAR_IO_IRQ call this.
        """
        for isc in range(MAX_ISC + 1):
            if not cr6 & 0x80 >> isc << 24:
                continue
            for at, packed in enumerate(self._lists[isc]):
                irq = unpack(packed)
                info = irq.info
                assert isinstance(info, Io)
                if not subchannel or subchannel == info.subchannel_id << 16 | info.subchannel_number:
                    del self._lists[isc][at]
                    self._ios -= 1
                    self._emptied(isc)
                    return irq
        return None

    def clear(self) -> None:
        """Remove all. KVM: kvm_s390_clear_float_irqs."""
        for queue in self._lists:
            queue.clear()
        self._ios = self.pending = self._service = self._mcic = self.cr14 = 0

    # Reading and saving.

    def all(self) -> bytes:
        """An array of struct kvm_s390_irq, in KVM's order; nothing is removed. KVM: get_all_floating_irqs."""
        parts = [padded(packed) for queue in self._lists for packed in queue]
        if self.pending & _SERVICES:
            parts.append(pack(Irq(Kind.SERVICE, External(self._service))))
        if self.pending & 1 << Pend.REPRESSIBLE:
            parts.append(pack(Irq(Kind.MACHINE_CHECK, MachineCheck(cr14=self.cr14, mcic=self._mcic))))
        return b"".join(parts)

    def save(self) -> SavedFloating:
        """The state, for resume()."""
        interrupts = tuple(packed for queue in self._lists for packed in queue)
        return SavedFloating(interrupts, self.pending & _ONCE, self._service, self.cr14, self._mcic)

    def resume(self, saved: SavedFloating) -> None:
        """Take a saved state, which check_saved has accepted."""
        self.clear()
        for packed in saved.interrupts:
            self.add(unpack(packed))
        self.pending |= saved.pending
        self._service, self.cr14, self._mcic = saved.service, saved.cr14, saved.mcic


def check_saved(saved: SavedFloating) -> None:
    """Refuse a state that no VM can have."""
    check(not saved.pending & ~_ONCE, f"pending is {saved.pending:#x}; use a subset of {_ONCE:#x}")
    in_range(saved.service, 0, 0xFFFF_FFFF, "a service signal's parameter")
    events = bool(saved.pending & 1 << Pend.SERVICE_EVENT)
    check(events == bool(saved.service & SCCB_EVENT), "a service signal's pending bit contradicts its events")
    held = saved.pending & 1 << Pend.SERVICE or not saved.service & SCCB_MASK
    check(held, "a service signal's SCCB is kept only while the signal is pending")
    check(saved.cr14 in (0, CR14_CHANNEL_REPORT), f"a floating machine check's subclasses are {saved.cr14:#x}")
    in_range(saved.mcic, 0, (1 << 64) - 1, "a machine check's interruption code")
    found = saved.pending & 1 << Pend.REPRESSIBLE or not (saved.cr14 or saved.mcic)
    check(found, "a machine check's contents are kept only while it is pending")
    for packed in saved.interrupts:
        check(len(packed) in (IO_SIZE, EXTERNAL_SIZE), f"a queued interrupt has {len(packed)} bytes")
        irq = _unpacked(packed)
        check(short(irq) == packed, "a queued interrupt has the wrong length for its type")
        queues = is_io(irq.kind) or irq.kind in (Kind.VIRTIO, Kind.PFAULT_DONE)
        check(queues, f"an interrupt of type {irq.kind:#x} is not queued")
    try:
        FloatingInterrupts().check([unpack(packed).kind for packed in saved.interrupts])
    except RefusedError as error:
        raise StateError(error.message) from None


def _unpacked(packed: bytes) -> Irq:
    try:
        return unpack(padded(packed))
    except RefusedError as error:
        raise StateError(error.message) from None


def _check_room(what: str, present: int, more: int, most: int) -> None:
    if present + more > most:
        raise RefusedError(
            errno.EBUSY,
            f"{present} {what} interrupts are pending and {more} more are too many: at most {most} may be; "
            "let a vCPU take some, or clear them",
        )
