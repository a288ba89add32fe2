"""The board of a VM: chips wired together. It knows no lock, no names and no limits; those are the Vm's.

Everything here runs under the lock of the Vm that owns it, and calls nothing that waits.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from irqchipd.chips import i8259, ioapic
from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import Ioapic
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.message import Message, from_msi
from irqchipd.observe.observer import Observer
from irqchipd.vm.apicbus import ApicBus
from irqchipd.vm.bus import Device, IoBus
from irqchipd.vm.routing import (
    DEFAULT_ROUTES,
    DEFAULT_TABLE,
    INPUTS,
    IOAPIC_INPUTS,
    ChipId,
    Route,
    Table,
    table_of,
)


class Cpu:
    """A vCPU: its local APIC, where the VM has an irqchip, and what the board keeps of it.

    It is its local APIC's wires.
    """

    __slots__ = ("board", "handled", "id", "index", "lapic", "ready", "scanned", "stale", "watchers")

    def __init__(self, board: Board, vcpu_id: int, index: int) -> None:
        self.board = board
        self.id = vcpu_id
        self.index = index
        self.lapic: Lapic | None = None
        # The vectors whose EOI goes to the IOAPIC, one bit each, as of the last entry into the guest that scanned;
        # the highest of them that no entry sends here any more; and the board's generation of that scan.
        self.handled = 0
        self.stale = -1
        self.scanned = -1
        # How many want to know when there is an interrupt to take, and whether they have been told.
        self.watchers = 0
        self.ready = False

    def send_ipi(self, icr: int, message: Message) -> None:
        """See LapicWires."""
        board = self.board
        if board.observer is not None:
            board.observer.kvm_apic_ipi(icr, message.destination)
        board.apics.deliver(message, source=self.index)

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        """See LapicWires. KVM: lapic.c kvm_ioapic_send_eoi; only what the last scan found concerns the IOAPIC."""
        board = self.board
        if board.observer is not None:
            board.observer.kvm_eoi(self.id, vector)
        if not self.handled >> vector & 1:
            return
        if vector == self.stale:
            self.scanned = -1
        if board.ioapic is not None and self.lapic is not None:
            # KVM does not let a guest set SVR's bit while its IOAPIC is there, but a restored one counts.
            board.ioapic.end_of_interrupt(self.index, vector, level_triggered, self.lapic.directed_eoi)

    def addressing_changed(self) -> None:
        """See LapicWires."""
        self.board.apics.invalidate()
        self.board.generation += 1

    def scan_needed(self) -> None:
        """See LapicWires."""
        self.board.apics.admit()
        self.board.generation += 1

    def priorities_changed(self) -> None:
        """See LapicWires."""
        if self.watchers:
            self.board.touched.add(self)

    def signal(self, delivery_mode: int, vector: int) -> None:
        """See LapicWires."""
        if self.watchers:
            self.board.signals.append((self, delivery_mode, vector))

    def has_interrupt(self) -> bool:
        """Whether there is something to acknowledge. KVM: irq.c kvm_cpu_has_interrupt."""
        return self.has_extint() or (self.lapic is not None and self.lapic.deliverable() >= 0)

    def has_extint(self) -> bool:
        """Whether the PIC asks this CPU. KVM: irq.c kvm_cpu_has_extint."""
        pic = self.board.pic
        return pic is not None and pic.output and self.lapic is not None and self.lapic.passes_extint


class Board:
    """PICs, IOAPIC and local APICs with what connects them. It is the PICs' and the IOAPIC's wires."""

    def __init__(self) -> None:
        self.pio = IoBus()
        self.mmio = IoBus()
        self.apics = ApicBus()
        self.cpus_matching = self.apics.matching_entry  # see IoapicWires
        self.cpus: list[Cpu] = []
        self.pic: PicPair | None = None
        self.ioapic: Ioapic | None = None
        self.routes: Sequence[Route] = ()
        self.observer: Observer | None = None
        # CPUs that are watched and may have something new to take, and messages that went past their IRRs.
        self.touched: set[Cpu] = set()
        self.signals: list[tuple[Cpu, int, int]] = []
        # Counts the requests to all CPUs to scan which EOIs concern the IOAPIC. KVM: kvm_make_scan_ioapic_request.
        self.generation = 0
        # Which line sources drive each input high: bit n is source n. KVM: irq_states of the PICs and the IOAPIC.
        self._sources = [0] * INPUTS
        self._table: Table = {}

    # Assembly.

    def add_irqchip(self) -> None:
        """Put in the PICs, the IOAPIC and the default routing, or nothing: EEXIST where their addresses are claimed."""
        pic, io = PicPair.at_reset(self), Ioapic(self)
        places: list[tuple[IoBus, int, int, Device]] = [
            (self.pio, i8259.Port.PRIMARY_COMMAND, 2, pic),
            (self.pio, i8259.Port.SECONDARY_COMMAND, 2, pic),
            (self.pio, i8259.Port.PRIMARY_ELCR, 2, pic),
            (self.mmio, ioapic.DEFAULT_BASE, ioapic.WINDOW, io),
        ]
        registered: list[tuple[IoBus, int]] = []
        try:
            for bus, start, length, device in places:
                bus.register(start, length, device)
                registered.append((bus, start))
        except BaseException:
            for bus, start in registered:
                bus.unregister(start)
            raise
        self.pic, self.ioapic = pic, io
        self.routes, self._table = DEFAULT_ROUTES, DEFAULT_TABLE

    def add_cpu(self, vcpu_id: int) -> Cpu:
        """Put in a CPU, with a local APIC where there is an irqchip."""
        cpu = Cpu(self, vcpu_id, len(self.cpus))
        self.cpus.append(cpu)
        if self.pic is not None:
            cpu.lapic = Lapic.at_reset(cpu, vcpu_id)
            self.apics.add(cpu.lapic)
            self.generation += 1
        return cpu

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routing; inputs that are high stay so. The routes have been checked."""
        self.routes, self._table = routes, table_of(routes)

    def set_irq(self, gsi: int, level: int, source: int) -> int:
        """Drive a GSI from a source (one bit set) and return the statuses' sum over what it leads to.

        KVM: irqchip.c kvm_set_irq; negative statuses do not count, unless there are no others.
        """
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, level, source.bit_length() - 1)
        total = -1
        for end in self._table.get(gsi, ()):
            if isinstance(end, int):
                status = self._drive(end, level, source)
            else:  # KVM: irq_comm.c kvm_set_msi; a falling line sends nothing
                status = self.signal_msi(end.address & 0xFFFF_FFFF, end.data) if level else -1
            if status >= 0:
                total = status if total < 0 else total + status
        return total

    def _drive(self, pin: int, level: int, source: int) -> int:
        """Set one source's level at an input, and drive it with the OR of all. KVM: __kvm_irq_line_state."""
        sources = self._sources[pin] | source if level else self._sources[pin] & ~source
        self._sources[pin] = sources
        assert self.pic is not None
        assert self.ioapic is not None
        if pin < IOAPIC_INPUTS:
            status = self.pic.set_line(pin, 1 if sources else 0)
            if self.observer is not None:
                chip = self.pic.secondary if pin >= 8 else self.pic.primary
                self.observer.kvm_pic_set_irq(pin >> 3, pin & 7, chip.elcr, chip.imr, status == 0)
        else:
            pin -= IOAPIC_INPUTS
            entry = self.ioapic.redirection[pin]
            status = self.ioapic.set_pin(pin, 1 if sources else 0)
            if self.observer is not None:
                self.observer.kvm_ioapic_set_irq(entry, pin, status == 0)
        return status

    def drop_source(self, source: int) -> None:
        """A source is no more: every input that it drives is driven by what is left of its OR."""
        for pin, sources in enumerate(self._sources):
            if sources & source:
                self._drive(pin, 0, source)

    def signal_msi(self, address: int, data: int) -> int:
        """Send an MSI and return how many local APICs took it, or -1 where nobody was addressed."""
        if self.observer is not None:
            self.observer.kvm_msi_set_irq(address, data)
        return self.deliver(from_msi(address, data))

    def observe(self, observer: Observer | None) -> None:
        """Tell an observer, or nobody, of what happens from now on."""
        self.observer = observer
        self.apics.on_offer = None if observer is None else self._trace_offer

    def _trace_offer(self, index: int, message: Message) -> None:
        assert self.observer is not None
        self.observer.kvm_apic_accept_irq(
            self.cpus[index].id, message.delivery_mode, message.level_triggered, message.vector
        )

    # Guest accesses.

    def scan(self, cpu: Cpu) -> None:
        """A CPU that enters its guest learns which EOIs concern the IOAPIC. KVM: x86.c vcpu_scan_ioapic."""
        cpu.scanned = self.generation
        if self.ioapic is not None and cpu.lapic is not None:
            cpu.handled, cpu.stale = self.ioapic.handled_vectors(cpu.index, cpu.lapic.irr | cpu.lapic.isr)

    def find_mmio(self, cpu: Cpu, address: int, size: int) -> Device | None:
        """Who claims an access to memory: a CPU's local APIC comes before the bus. KVM: x86.c vcpu_mmio_read."""
        lapic = cpu.lapic
        if lapic is not None and lapic.claims(address):
            return lapic
        return self.mmio.find(address, size)

    # Wires of the PICs.

    def pic_acked(self, line: int) -> None:
        """See PicWires."""
        if self.observer is not None:
            self.observer.kvm_ack_irq(line >> 3, line)  # KVM: i8259.c pic_clear_isr; the secondary's from 8

    def pic_output(self) -> None:
        """See PicWires."""
        self.touched.update(cpu for cpu in self.cpus if cpu.watchers)

    def takes_pic_interrupts(self) -> bool:
        """See PicWires."""
        return any(lapic.passes_extint for lapic in self.apics.lapics)

    # Wires of the IOAPIC.

    def deliver(self, message: Message, accepted: MutableMapping[int, int] | None = None) -> int:
        """See IoapicWires."""
        return self.apics.deliver(message, accepted)

    def ioapic_acked(self, pin: int) -> None:
        """See IoapicWires."""
        if self.observer is not None:
            self.observer.kvm_ack_irq(ChipId.IOAPIC, pin)

    def entry_changed(self, old: int, new: int) -> None:
        """See IoapicWires. KVM: ioapic.c ioapic_write_indirect."""
        if new & ioapic.DELIVERY_MODE:  # not fixed
            self.generation += 1
            return
        addressed = self.apics.addressed_by_entry
        cpus = addressed[new & ioapic.ADDRESS]
        if (old ^ new) & ioapic.ADDRESS:
            # KVM looks the old destination up in the new mode.
            cpus |= addressed[old & ioapic.ADDRESS & ~ioapic.LOGICAL | new & ioapic.LOGICAL]
        for cpu in self.cpus:
            if cpus >> cpu.index & 1:
                cpu.scanned = -1

    def entries_replaced(self) -> None:
        """See IoapicWires."""
        self.generation += 1

    def cpus_pending(self, vector: int) -> int:
        """See IoapicWires."""
        return sum(1 << cpu for cpu, lapic in enumerate(self.apics.lapics) if (lapic.irr | lapic.isr) >> vector & 1)
