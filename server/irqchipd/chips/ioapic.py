"""The 82093AA IOAPIC of a PC, as in Linux KVM (arch/x86/kvm/ioapic.c).

82093AA datasheet (290566): a guest selects a register at offset 00h and accesses it through the window at 10h. Pins
are 0 to 23.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol

from irqchipd.chips.message import Message, from_redirection
from irqchipd.chips.saved import check, in_range

PINS: Final = 24
VERSION: Final = 0x11
DEFAULT_BASE: Final = 0xFEC0_0000
WINDOW: Final = 0x100  # bytes of address space
RTC_PIN: Final = 8


class Offset:
    """Offsets in the window; the rest reads as 0 and ignores writes."""

    REGISTER_SELECT: Final = 0x00
    REGISTER_WINDOW: Final = 0x10


class Reg:
    """The indirect registers. From REDIRECTION on, two a pin: the low half, then the high half."""

    ID: Final = 0x00
    VERSION: Final = 0x01
    ARBITRATION: Final = 0x02
    REDIRECTION: Final = 0x10


# Redirection entry, 64 bits:
#
#   63:56        55:17     16    15     14          13        12       11       10:8      7:0
#   destination  reserved  mask  level  remote IRR  polarity  pending  logical  delivery  vector
#
# KVM stores the reserved bits, and stores but ignores the polarity.
MASKED: Final = 1 << 16
LEVEL: Final = 1 << 15
REMOTE_IRR: Final = 1 << 14
DELIVERY_STATUS: Final = 1 << 12
LOGICAL: Final = 1 << 11
DESTINATION_SHIFT: Final = 56
ADDRESS: Final = 0xFF << DESTINATION_SHIFT | LOGICAL
DELIVERY_MODE: Final = 7 << 8
READ_ONLY: Final = REMOTE_IRR | DELIVERY_STATUS
LOW_HALF: Final = 0xFFFF_FFFF
HIGH_HALF: Final = 0xFFFF_FFFF << 32

# KVM: ioapic.c kvm_ioapic_update_eoi_one; a level pin that is high at this many EOIs in a row is served after a delay,
# so that a guest that does not silence its device makes progress.
MAX_SUCCESSIVE_EOIS: Final = 10_000  # IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT
DELAYED_EOI: Final = 10_000_000  # nanoseconds

# The bits of a register that an access of some bytes reads.
SIZE_MASK: Final = {1: 0xFF, 2: 0xFFFF, 4: LOW_HALF, 8: LOW_HALF}

_STRUCT: Final = struct.Struct(f"<QIIII{PINS}Q")  # struct kvm_ioapic_state
STATE_SIZE: Final = _STRUCT.size


class IoapicWires(Protocol):
    """The calls of the IOAPIC to its VM. CPUs are named by their index, 0 for the first created."""

    def deliver(self, message: Message, accepted: MutableMapping[int, int] | None = None) -> int:
        """Send a message to the local APICs and return KVM's status; accepted gets the takers and the vector."""

    def ioapic_acked(self, pin: int) -> None:
        """A pin's interrupt was ended (the kernel's ack notifiers)."""

    def ioapic_masked(self, pin: int, masked: bool) -> None:
        """A pin's mask bit has changed (the kernel's mask notifiers)."""

    def resample(self, pin: int) -> bool:
        """Ask a pin's resamplers whether the pin should still be high; False without resamplers."""

    @property
    def ioapic_noticed(self) -> int:
        """The pins whose acknowledgements have subscribers, one bit each."""

    def serve_ioapic_later(self, pin: int, nanoseconds: int) -> None:
        """Call serve_delayed after a time, unless a call is due already."""

    def asserted_anew(self, pin: int, entry: int, status: int) -> None:
        """A restored pin was high; entry is its redirection entry, and status set_pin's."""

    def entry_changed(self, old: int, new: int) -> None:
        """A redirection entry was written: the CPUs it concerns must scan again which EOIs to report."""

    def entries_replaced(self) -> None:
        """All redirection entries were replaced."""

    @property
    def cpus_matching(self) -> Mapping[int, int]:
        """The CPUs, one bit each, that a redirection entry's ADDRESS bits name."""

    def cpus_pending(self, vector: int) -> int:
        """The CPUs that have a vector requested or in service, one bit each."""


@dataclass(slots=True)
class RtcTracking:
    """The CPUs that have not ended pin 8's interrupt yet. KVM: struct rtc_status.

    A guest keeps time by the RTC's ticks, so the status of raising GSI 8 says whether the last tick was ended.
    """

    pending_eoi: int = 0
    # CPU index to the vector it was sent.
    vectors: dict[int, int] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget."""
        self.pending_eoi = 0
        self.vectors.clear()


@dataclass(slots=True)
class IoapicState:
    """struct kvm_ioapic_state."""

    base_address: int = DEFAULT_BASE
    ioregsel: int = 0
    id: int = 0
    irr: int = 0
    pad: int = 0
    redirection: tuple[int, ...] = (MASKED,) * PINS

    def pack(self) -> bytes:
        """struct kvm_ioapic_state, 216 bytes."""
        return _STRUCT.pack(self.base_address, self.ioregsel, self.id, self.irr, self.pad, *self.redirection)

    @classmethod
    def unpack(cls, data: bytes) -> IoapicState:
        """From struct kvm_ioapic_state; any 216 bytes are valid, as in the kernel."""
        base_address, ioregsel, ioapic_id, irr, pad, *redirection = _STRUCT.unpack(data)
        return cls(base_address, ioregsel, ioapic_id, irr, pad, tuple(redirection))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedIoapic:
    """The chip in a snapshot. ioapic is struct kvm_ioapic_state, whose irr includes the delivered edges."""

    ioapic: bytes
    irr_delivered: int
    rtc_vectors: Mapping[int, int]
    rtc_pending_eoi: int
    successive_eois: tuple[int, ...]

    def check(self, cpus: int) -> None:
        """Refuse a state that no IOAPIC with this many CPUs can have."""
        check(len(self.ioapic) == STATE_SIZE, f"the IOAPIC's state has {len(self.ioapic)} bytes, not {STATE_SIZE}")
        irr = IoapicState.unpack(self.ioapic).irr
        check(not (irr | self.irr_delivered) >> PINS, f"irr has more than {PINS} pins")
        for cpu, vector in self.rtc_vectors.items():
            in_range(cpu, 0, cpus - 1, "a vCPU of rtc_vectors")
            in_range(vector, 0, 0xFF, "a vector of rtc_vectors")
        in_range(self.rtc_pending_eoi, 0, cpus, "rtc_pending_eoi")
        check(len(self.successive_eois) == PINS, f"{len(self.successive_eois)} successive_eois, not {PINS}")
        for count in self.successive_eois:
            in_range(count, 0, MAX_SUCCESSIVE_EOIS - 1, "one of successive_eois")


@dataclass(slots=True)
class Ioapic:
    """The chip. Its defaults are the reset state."""

    wires: IoapicWires
    base_address: int = DEFAULT_BASE
    # The selected register. KVM keeps 8 bits of a write, and all 32 of a restored state.
    ioregsel: int = 0
    id: int = 0
    # Pins asserted and not delivered yet, and delivered edges (see irr_delivered).
    irr: int = 0
    # The padding of the kernel's struct, which it restores like the rest.
    pad: int = 0
    redirection: list[int] = field(default_factory=lambda: [MASKED] * PINS)
    # KVM: delivered edges. They stay in irr, hidden from readers, so that a line still high is not a new edge.
    irr_delivered: int = 0
    rtc: RtcTracking = field(default_factory=RtcTracking)
    # For each pin: EOIs in a row that found it high.
    successive_eois: list[int] = field(default_factory=lambda: [0] * PINS)

    # Inputs.

    def set_pin(self, pin: int, level: int, line_status: bool = True) -> int:
        """Drive a pin and return KVM's status: -1 masked or not ended yet, 0 coalesced or not taken, or how many CPUs.

        KVM: ioapic.c ioapic_set_irq. line_status: the caller reads the status; the tracking of the RTC's ticks depends
        on this.
        """
        mask = 1 << pin
        if not level:
            self.irr &= ~mask  # also for an edge
            return 1
        if pin == RTC_PIN and line_status and self.rtc.pending_eoi > 0:
            return 0
        was_high = self.irr & mask
        self.irr |= mask
        if not self.redirection[pin] & LEVEL:
            self.irr_delivered &= ~mask
            if was_high:
                return 0
        return self._service(pin, line_status)

    def _service(self, pin: int, line_status: bool) -> int:
        """Deliver a pin's interrupt. KVM: ioapic.c ioapic_service; -1 under remote IRR, despite its comment."""
        entry = self.redirection[pin]
        if entry & MASKED or (entry & LEVEL and entry & REMOTE_IRR):
            return -1
        if not entry & LEVEL:
            self.irr_delivered |= 1 << pin
        if pin == RTC_PIN and line_status:
            status = self.wires.deliver(from_redirection(entry), self.rtc.vectors)
            self.rtc.pending_eoi = max(status, 0)
        else:
            status = self.wires.deliver(from_redirection(entry))
        if status and entry & LEVEL:
            self.redirection[pin] |= REMOTE_IRR
        return status

    # End of interrupt.

    def end_of_interrupt(self, cpu: int, vector: int, level_triggered: bool, directed_eoi: bool) -> None:
        """A CPU's EOI broadcast: every pin whose entry has the vector now is ended. KVM: kvm_ioapic_update_eoi.

        level_triggered is the local APIC's TMR bit, not the entry's; directed_eoi: the local APIC's SVR suppresses the
        broadcast.
        """
        rtc = self.rtc
        if rtc.vectors.get(cpu) == vector:
            del rtc.vectors[cpu]
            rtc.pending_eoi -= 1
            self._check_rtc()
        for pin, entry in enumerate(self.redirection):
            if entry & 0xFF != vector:
                continue
            self.wires.ioapic_acked(pin)
            if not level_triggered or directed_eoi:
                continue
            self.redirection[pin] &= ~REMOTE_IRR
            if self.redirection[pin] & MASKED or not self.irr >> pin & 1:
                self.successive_eois[pin] = 0
                continue
            self.successive_eois[pin] += 1
            if self.successive_eois[pin] == MAX_SUCCESSIVE_EOIS:
                self.successive_eois[pin] = 0
                self.wires.serve_ioapic_later(pin, DELAYED_EOI)
            else:
                self._service(pin, line_status=False)

    def serve_delayed(self) -> None:
        """Serve the level pins that are high. KVM: ioapic.c kvm_ioapic_eoi_inject_work."""
        for pin, entry in enumerate(self.redirection):
            if entry & LEVEL and self.irr >> pin & 1:
                self._service(pin, line_status=False)

    def handled_vectors(self, cpu: int, pending: int) -> tuple[int, int]:
        """The vectors whose EOI a CPU has to report here, one bit each. KVM: ioapic.c kvm_ioapic_scan_entry.

        pending has the vectors that the CPU has requested or in service. The second value is the highest vector that is
        reported only because it is pending, after its entry was changed to another CPU or vector; or -1.
        """
        handled, stale = 0, -1
        entries = [entry for entry in self.redirection if entry & LEVEL]
        entries.append(self.redirection[RTC_PIN])
        if noticed := self.wires.ioapic_noticed:
            entries += [entry for pin, entry in enumerate(self.redirection) if noticed >> pin & 1]
        if (tracked := self.rtc.vectors.get(cpu)) is not None:
            handled = 1 << tracked
        cpus_matching = self.wires.cpus_matching
        for entry in entries:
            vector = entry & 0xFF
            if cpus_matching[entry & ADDRESS] >> cpu & 1:
                handled |= 1 << vector
            elif pending >> vector & 1:
                handled |= 1 << vector
                stale = max(stale, vector)
        return handled, stale

    # RTC ticks.

    def retrack_rtc(self, cpu: int) -> None:
        """Compute again whether a CPU has an RTC tick to end. KVM: ioapic.c __rtc_irq_eoi_tracking_restore_one."""
        entry = self.redirection[RTC_PIN]
        if not self.wires.cpus_matching[entry & ADDRESS] >> cpu & 1:
            return
        rtc, vector = self.rtc, entry & 0xFF
        pending = bool(self.wires.cpus_pending(vector) >> cpu & 1)
        if pending == (cpu in rtc.vectors):
            return
        if pending:
            rtc.vectors[cpu] = vector
            rtc.pending_eoi += 1
        else:
            del rtc.vectors[cpu]
            rtc.pending_eoi -= 1
            self._check_rtc()

    def _check_rtc(self) -> None:
        # KVM: ioapic.c rtc_status_pending_eoi_check_valid
        if self.rtc.pending_eoi < 0:
            self._retrack_all()

    def _retrack_all(self) -> None:
        self.rtc.reset()
        entry = self.redirection[RTC_PIN]
        matching = self.wires.cpus_matching[entry & ADDRESS]
        for cpu in range(matching.bit_length()):
            self.retrack_rtc(cpu)

    # Memory-mapped registers.

    def claims(self, address: int) -> bool:
        """Whether an address is in the window. A restored base address moves the window away from the bus's address."""
        return self.base_address <= address < self.base_address + WINDOW

    def read(self, address: int, size: int) -> int:
        """A guest's load of 1, 2, 4 or 8 bytes: the low ones, zero-extended. KVM: ioapic.c ioapic_mmio_read."""
        match address & 0xFF:
            case Offset.REGISTER_SELECT:
                value = self.ioregsel
            case Offset.REGISTER_WINDOW:
                value = self._read_register()
            case _:
                return 0
        return value & SIZE_MASK[size]

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store. KVM: ioapic.c ioapic_mmio_write; a byte or word overwrites the whole register."""
        value &= SIZE_MASK[size]
        match address & 0xFF:
            case Offset.REGISTER_SELECT:
                self.ioregsel = value & 0xFF
            case Offset.REGISTER_WINDOW:
                self._write_register(value)
            case _:
                pass

    def _read_register(self) -> int:
        match self.ioregsel:
            case Reg.ID | Reg.ARBITRATION:
                return (self.id & 0xF) << 24
            case Reg.VERSION:
                return (PINS - 1) << 16 | VERSION
            case register:
                pin = (register - Reg.REDIRECTION) >> 1
                if not 0 <= pin < PINS:
                    return LOW_HALF
                entry = self.redirection[pin]
                return entry >> 32 if register & 1 else entry & LOW_HALF

    def _write_register(self, value: int) -> None:
        match self.ioregsel:
            case Reg.ID:
                self.id = value >> 24 & 0xF
            case Reg.VERSION | Reg.ARBITRATION:
                pass  # read-only
            case register:
                pin = (register - Reg.REDIRECTION) >> 1
                if 0 <= pin < PINS:
                    self._write_entry(pin, value, bool(register & 1))

    def _write_entry(self, pin: int, value: int, high: bool) -> None:
        """Write half of a redirection entry. KVM: ioapic.c ioapic_write_indirect."""
        old = self.redirection[pin]
        new = value << 32 | old & LOW_HALF if high else old & HIGH_HALF | value
        new = new & ~READ_ONLY | old & READ_ONLY
        if not new & LEVEL:
            # Operating systems end an interrupt of an IOAPIC that has no EOI register by making its pin edge and back.
            new &= ~REMOTE_IRR
        self.redirection[pin] = new
        if (old ^ new) & MASKED:
            self.wires.ioapic_masked(pin, bool(new & MASKED))
        if new & LEVEL and not new & (MASKED | REMOTE_IRR) and self.irr >> pin & 1:
            if self.wires.resample(pin):
                # The line may have fallen since; if not, it is raised again soon.
                self.irr &= ~(1 << pin)
            else:
                self._service(pin, line_status=False)
        self.wires.entry_changed(old, new)

    # State.

    def reset(self) -> None:
        """RESET: the state at power-on. KVM: ioapic.c kvm_ioapic_reset."""
        fresh = Ioapic(self.wires)
        for each in fields(Ioapic):
            setattr(self, each.name, getattr(fresh, each.name))
        self.wires.entries_replaced()

    def state(self) -> IoapicState:
        """The state for KVM_GET_IRQCHIP. KVM: ioapic.c kvm_get_ioapic."""
        return IoapicState(
            self.base_address,
            self.ioregsel,
            self.id,
            self.irr & ~self.irr_delivered,
            self.pad,
            tuple(self.redirection),
        )

    def restore(self, state: IoapicState) -> None:
        """KVM_SET_IRQCHIP. KVM: ioapic.c kvm_set_ioapic.

        A raw copy; then every pin in the saved irr is asserted anew, and unmasked interrupts are delivered at once.
        """
        self.base_address = state.base_address
        self.ioregsel = state.ioregsel
        self.id = state.id
        self.pad = state.pad
        self.redirection = list(state.redirection)
        self.irr = 0
        self.irr_delivered = 0
        self.wires.entries_replaced()
        self.rtc.reset()
        for pin in range(PINS):
            if state.irr >> pin & 1:
                entry = self.redirection[pin]
                self.wires.asserted_anew(pin, entry, self.set_pin(pin, 1))
        self._retrack_all()

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedIoapic."""
        state = self.state()
        state.irr = self.irr
        return {
            "ioapic": state.pack(),
            "irr_delivered": self.irr_delivered,
            "rtc_vectors": dict(self.rtc.vectors),
            "rtc_pending_eoi": self.rtc.pending_eoi,
            "successive_eois": tuple(self.successive_eois),
        }

    def resume(self, saved: SavedIoapic) -> None:
        """Resume from a checked snapshot; nothing is delivered."""
        state = IoapicState.unpack(saved.ioapic)
        self.base_address, self.ioregsel, self.id, self.pad = state.base_address, state.ioregsel, state.id, state.pad
        self.irr, self.irr_delivered = state.irr, saved.irr_delivered
        self.redirection = list(state.redirection)
        self.rtc = RtcTracking(saved.rtc_pending_eoi, dict(saved.rtc_vectors))
        self.successive_eois = list(saved.successive_eois)
