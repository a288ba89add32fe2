"""How often each interrupt came to each vCPU, and how long it took: what `irqchipctl interrupts` and `top` ask for."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from irqchipd.observe.histogram import Histogram
from irqchipd.observe.observer import Observer

MAX_LINES = 2048  # a VM; the counts of any more go to the one that is Kind.OTHER
MAX_SOURCES = 8  # a line
_PRIVATE = 32  # INTIDs below are a vCPU's own
_SPECIAL = 1020


class Kind(IntEnum):
    """What brought an interrupt; the contract's numbers."""

    OTHER = 1
    PIC = 2
    IOAPIC = 3
    MSI = 4
    IPI = 5
    LOCAL = 6  # a local APIC's own: its timer, for example
    GIC = 7
    S390 = 8


class Line:
    """An interrupt with its counts and times.

    gsi      the GSI, or -1
    number   the vector, the INTID, or the s390 type
    level    whether it is level-triggered
    counts   how often each vCPU took it
    accept   from the rise of its line, or from the message, to the vCPU that takes it
    eoi      from there to the end of interrupt
    """

    __slots__ = ("accept", "counts", "eoi", "gsi", "kind", "level", "number", "sources")

    def __init__(self, kind: Kind, gsi: int, number: int) -> None:
        self.kind = kind
        self.gsi = gsi
        self.number = number
        self.level = False
        self.counts: dict[int, int] = {}
        self.accept = Histogram()
        self.eoi = Histogram()
        self.sources: tuple[int, ...] = ()


class Wiring(Protocol):
    """What an architecture knows of its lines."""

    def pic_line(self, vector: int) -> int:
        """The line, 0 to 15, whose vector of the PICs this is, or -1."""

    def gsi_of_vector(self, vector: int) -> int:
        """The GSI of an IOAPIC's pin whose entry has a vector, or -1."""

    def gsi_of_intid(self, intid: int) -> int:
        """The GSI that leads to an INTID, or -1."""

    def is_level(self, vcpu: int, intid: int) -> bool:
        """Whether an INTID is level-triggered."""


_Began = tuple[Line, int]


class Latencies(Observer):
    """Counts from now on. The VM's lock guards this; at_the_end does some work at the end of a turn."""

    @property
    def sees_everything(self) -> bool:
        return False

    @property
    def sees_accesses(self) -> bool:
        return False

    def __init__(
        self, wiring: Wiring, now: Callable[[], int], at_the_end: Callable[[Callable[[], None]], None]
    ) -> None:
        self._wiring = wiring
        self._now = now
        self._at_the_end = at_the_end
        self.since = now()
        self.lines: dict[tuple[Kind, int, int], Line] = {}
        self._sources: dict[int, tuple[int, ...]] = {}  # that have driven each GSI
        # In this turn: what brings interrupts, of which GSI.
        self._kind = Kind.LOCAL
        self._gsi = -1
        self._level = 0
        # When GSIs rose whose interrupt no chip has accepted yet, and PICs' lines with their GSIs.
        self._risen: dict[int, int] = {}
        self._pic_risen: dict[int, tuple[int, int, bool]] = {}
        self._pic_gsi: dict[int, tuple[int, bool]] = {}
        # Pending and in service: by vCPU and vector, or INTID; of the PICs by line. A shared INTID has vCPU -1.
        self._pending: dict[tuple[int, int], _Began] = {}
        self._served: dict[tuple[int, int], _Began] = {}
        self._pic_served: dict[int, _Began] = {}
        self._gic_risen: dict[tuple[int, int], int] = {}
        self._s390_risen: dict[tuple[int, int], int] = {}  # by vCPU, or -1 of a floating one, and type

    def _line(self, kind: Kind, gsi: int, number: int) -> Line:
        key = kind, gsi, number
        line = self.lines.get(key)
        if line is None:
            if len(self.lines) >= MAX_LINES:
                key = kind, gsi, number = Kind.OTHER, -1, 0
            line = self.lines.setdefault(key, Line(kind, gsi, number))
        line.sources = self._sources.get(gsi, ())
        return line

    def _taken(self, line: Line, vcpu: int, risen: int | None) -> _Began:
        now = self._now()
        line.counts[vcpu] = line.counts.get(vcpu, 0) + 1
        if risen is not None:
            line.accept.add(now - risen)
        return line, now

    def _ended(self, began: _Began | None) -> None:
        if began is not None:
            began[0].eoi.add(self._now() - began[1])

    def _begin(self, kind: Kind) -> None:
        if self._kind is Kind.LOCAL:
            self._at_the_end(self._turn_over)
        self._kind = kind

    def _turn_over(self) -> None:
        self._kind, self._gsi = Kind.LOCAL, -1

    # x86.

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:
        self._begin(Kind.IOAPIC)
        self._gsi, self._level = gsi, level
        if level:
            self._risen.setdefault(gsi, self._now())
            sources = self._sources.get(gsi, ())
            if source not in sources and len(sources) < MAX_SOURCES:
                self._sources[gsi] = (*sources, source)
        else:  # what no chip has accepted by now is gone, but for the PICs' edges
            self._risen.pop(gsi, None)

    def kvm_pic_set_irq(self, chip: int, pin: int, elcr: int, imr: int, coalesced: bool) -> None:  # noqa: ARG002
        if self._level:
            line, level = 8 * chip + pin, bool(elcr >> pin & 1)
            self._pic_gsi[line] = self._gsi, level
            self._pic_risen.setdefault(line, (self._gsi, self._now(), level))
        elif elcr >> pin & 1:
            self._pic_risen.pop(8 * chip + pin, None)

    def kvm_msi_set_irq(self, address: int, data: int) -> None:  # noqa: ARG002
        self._begin(Kind.MSI)

    def kvm_apic_ipi(self, icr: int, destination: int, vcpu: int = 0) -> None:  # noqa: ARG002
        self._begin(Kind.IPI)
        self._gsi = -1

    def kvm_apic_accept_irq(self, vcpu: int, delivery_mode: int, level_triggered: bool, vector: int) -> None:
        if delivery_mode > 1:  # neither fixed nor lowest priority: not an interrupt with a vector
            return
        kind, gsi, now = self._kind, self._gsi, self._now()
        risen = now
        if kind is Kind.LOCAL:  # or an IOAPIC's pin that was unmasked, or whose last interrupt was ended
            gsi = self._wiring.gsi_of_vector(vector)
            if gsi >= 0:
                kind = Kind.IOAPIC
        if gsi >= 0:
            risen = self._risen.pop(gsi, now)
        line = self._line(kind, gsi, vector)
        line.level = level_triggered
        self._pending.setdefault((vcpu, vector), (line, risen))

    def kvm_inj_virq(self, vcpu: int, vector: int) -> None:
        pending = self._pending.pop((vcpu, vector), None)
        if pending is not None:
            self._served[vcpu, vector] = self._taken(pending[0], vcpu, pending[1])
            return
        pin = self._wiring.pic_line(vector)
        if pin < 0:  # accepted before the counting began
            self._served[vcpu, vector] = self._taken(self._line(Kind.OTHER, -1, vector), vcpu, None)
            return
        gsi, risen, level = self._pic_risen.pop(pin, (-1, None, False))
        if risen is None:  # the line is still high, or rose before the counting began
            gsi, level = self._pic_gsi.get(pin, (-1, False))
        self._risen.pop(gsi, None)
        line = self._line(Kind.PIC, gsi, vector)
        line.level = level
        self._pic_served[pin] = self._taken(line, vcpu, risen)

    def kvm_eoi(self, vcpu: int, vector: int) -> None:
        self._ended(self._served.pop((vcpu, vector), None))

    def pic_ended(self, line: int) -> None:
        self._ended(self._pic_served.pop(line, None))

    # arm64.

    def vgic_update_irq_pending(self, vcpu: int, intid: int, level: bool) -> None:
        if level:
            self._gic_risen.setdefault((vcpu if intid < _PRIVATE else -1, intid), self._now())

    def gic_acknowledged(self, vcpu: int, intid: int) -> None:
        if intid >= _SPECIAL:
            return
        gsi = self._wiring.gsi_of_intid(intid)
        line = self._line(Kind.GIC, gsi, intid)
        line.level = self._wiring.is_level(vcpu, intid)
        risen = self._gic_risen.pop((vcpu if intid < _PRIVATE else -1, intid), None)
        self._served[vcpu, intid] = self._taken(line, vcpu, risen)

    def gic_ended(self, vcpu: int, intid: int) -> None:
        self._ended(self._served.pop((vcpu, intid), None))

    # s390: an interrupt ends as it is taken. Of several of a type that wait, the first has a time.

    def kvm_s390_inject_vm(self, type: int, parm: int, parm64: int) -> None:  # noqa: A002, ARG002
        self._s390_injected(-1, type)

    def kvm_s390_inject_vcpu(self, vcpu: int, type: int, parm: int, parm64: int) -> None:  # noqa: A002, ARG002
        self._s390_injected(vcpu, type)

    def _s390_injected(self, vcpu: int, kind: int) -> None:
        if len(self._s390_risen) < MAX_LINES:  # a pending one can be cleared, and is never taken then
            self._s390_risen.setdefault((vcpu, kind), self._now())

    def kvm_s390_deliver_interrupt(self, vcpu: int, type: int, data0: int, data1: int) -> None:  # noqa: A002, ARG002
        risen = self._s390_risen.pop((vcpu, type), None)
        if risen is None:
            risen = self._s390_risen.pop((-1, type), None)
        self._taken(self._line(Kind.S390, -1, type), vcpu, risen)
