"""A board for the local APIC: a CPU that reads and writes its page, and wires that record its calls."""

from __future__ import annotations

from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import DEFAULT_BASE, Quirk, Reg
from irqchipd.chips.message import DeliveryMode, Message

ENABLED = 0x1FF


def fixed(vector: int, *, level_triggered: bool = False, asserted: bool = True) -> Message:
    return Message(vector, DeliveryMode.FIXED, 0, logical=False, level_triggered=level_triggered, asserted=asserted)


def mode(delivery_mode: int, *, vector: int = 0, level_triggered: bool = False, asserted: bool = True) -> Message:
    return Message(vector, delivery_mode, 0, logical=False, level_triggered=level_triggered, asserted=asserted)


class Board:
    """A local APIC's surroundings. Software has enabled the APIC, unless `enabled` is False."""

    def __init__(self, *, apic_id: int = 0, enabled: bool = True) -> None:
        self.ipis: list[tuple[int, Message]] = []
        self.ended: list[tuple[int, bool]] = []
        self.ended_in_vain = 0
        self.signals: list[tuple[int, int]] = []
        self.events: list[str] = []
        self.time = 1_000_000
        self.expires: int | None = None
        self.lazy = False
        self.quirks = Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE
        self.expirations: list[int] = []
        self.lapic = Lapic.at_reset(self, apic_id)
        if enabled:
            self.write(Reg.SVR, ENABLED)
            self.events.clear()

    # The wires.

    def send_ipi(self, icr: int, message: Message) -> None:
        self.ipis.append((icr, message))

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        if vector < 0:
            self.ended_in_vain += 1
        else:
            self.ended.append((vector, level_triggered))

    def addressing_changed(self) -> None:
        self.events.append("addressing")

    def scan_needed(self) -> None:
        self.events.append("scan")

    def priorities_changed(self) -> None:
        self.events.append("priorities")

    def local_interrupt(self, message: Message) -> None:
        self.lapic.accept(message)

    def now(self) -> int:
        return self.time

    def set_timer(self, expires: int | None) -> None:
        self.expires = expires

    def timer_expired(self) -> int:
        self.expirations.append(self.time)
        return self.lapic.deliver_timer()

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and the timer expire."""
        end = self.time + nanoseconds
        while self.expires is not None and self.expires <= end:
            self.time, self.expires = self.expires, None
            self.lapic.timer.expired()
        self.time = end

    def signal(self, delivery_mode: int, vector: int) -> None:
        self.signals.append((delivery_mode, vector))

    # The guest.

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.lapic.write(DEFAULT_BASE + register, size, value)

    def read(self, register: int, size: int = 4) -> int:
        return self.lapic.read(DEFAULT_BASE + register, size)

    def vectors(self, register: int) -> list[int]:
        """The vectors in ISR, TMR or IRR, as a guest reads them."""
        words = [self.read(register + 0x10 * word) for word in range(8)]
        return [32 * word + bit for word in range(8) for bit in range(32) if words[word] >> bit & 1]

    # The CPU.

    def accept(self, *vectors: int) -> None:
        for vector in vectors:
            assert self.lapic.accept(fixed(vector)) == 1

    def take(self) -> int | None:
        """Take the CPU's next interrupt; returns its vector, or None."""
        vector = self.lapic.acknowledge()
        return vector if vector >= 0 else None

    def eoi(self) -> None:
        self.write(Reg.EOI, 0)
