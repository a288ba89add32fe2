"""The board of a VM: chips wired together. It knows no lock, no names and no limits; those are the Vm's.

Everything here runs under the lock of the Vm that owns it, and calls nothing that waits.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from irqchipd.chips import i8254, i8259, ioapic
from irqchipd.chips.i8254 import Pit, Speaker
from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import Ioapic
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import Quirk
from irqchipd.chips.message import Message, from_msi
from irqchipd.observe.observer import Observer
from irqchipd.vm.apicbus import ApicBus
from irqchipd.vm.backlog import Telling
from irqchipd.vm.bus import Device, IoBus
from irqchipd.vm.clock import Alarm, Alarms, Clock
from irqchipd.vm.cpu import Cpu, Halt
from irqchipd.vm.events import Event, InterruptPending, Listener
from irqchipd.vm.notices import PIT_GSI, Notices
from irqchipd.vm.regions import Regions
from irqchipd.vm.routing import (
    DEFAULT_GSI_OF,
    DEFAULT_ROUTES,
    DEFAULT_TABLE,
    INPUTS,
    IOAPIC_INPUTS,
    ChipId,
    MsiRoute,
    Route,
    Table,
    gsi_of,
    table_of,
)
from irqchipd.vm.sources import PIT, LineSource
from irqchipd.vm.vcpu_state import MpState, Outcome


class Board:
    """PICs, IOAPIC and local APICs with what connects them. It is the PICs' and the IOAPIC's wires."""

    # The order in which alarms of one time ring: the PIT's, the IOAPIC's, the local APICs'.
    FIRST_CPU_RANK = 2

    def __init__(self, clock: Clock, tsc_khz: int) -> None:
        self.clock = clock
        self.now = clock.now  # see PitWires
        self.tsc_khz = tsc_khz
        self.pio = IoBus()
        self.mmio = IoBus()
        self.apics = ApicBus()
        self.cpus_matching = self.apics.matching_entry  # see IoapicWires
        self.cpus: list[Cpu] = []
        self.pic: PicPair | None = None
        self.ioapic: Ioapic | None = None
        self.pit: Pit | None = None
        self.speaker = False
        # With a split irqchip: how many GSIs, from 0, are routes of the VMM's IOAPIC. KVM: nr_reserved_ioapic_pins.
        self.split: int | None = None
        # What capabilities have changed: which of KVM's quirks there are, the boot CPU's id, and the APIC timers' bus.
        self.quirks = Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE
        self.boot_vcpu = 0
        self.max_vcpu_ids = 0  # 0 as long as nobody has said
        self.apic_bus_ns = 1
        self.routes: Sequence[Route] = ()
        self.gsi_of: dict[int, int] = {}
        self.notices = Notices(self)
        self.regions = Regions(self)
        # Called by a clock's thread, which holds no lock, with an owner of regions that may be late with an answer.
        self.look_at_overdue: Callable[[LineSource], None] = self.regions.look_at_overdue
        self.observer: Observer | None = None
        self.alarms = Alarms()
        self.delayed_eoi = Alarm(1, self._serve_ioapic)
        # Counts the requests to all CPUs to scan which EOIs concern the IOAPIC. KVM: kvm_make_scan_ioapic_request.
        self.generation = 0
        # Who listens to each vCPU. Tuples are replaced: what is to be told keeps the listeners of its time.
        self.listeners: dict[int, tuple[Listener, ...]] = {}
        # What is to be done when an operation is over, and whether there is anything: work that KVM leaves to a thread
        # of its own, CPUs that are watched and may have something new to take, and what is to be told.
        self.unsettled = False
        self._deferred: list[Callable[[], None]] = []
        self._touched: set[Cpu] = set()
        self._outbox: list[Telling] = []
        self.tellings = 0  # listeners in the outbox
        self.rung = 0  # alarms, since the board was made
        self._pit_alarm = Alarm(0, self._ring_pit)
        # Which line sources drive each input high: bit n is source n. KVM: irq_states of the PICs and the IOAPIC.
        self.sources = [0] * INPUTS
        self._table: Table = {}

    # Assembly.

    @property
    def has_irqchip(self) -> bool:
        """Whether there are local APICs, and perhaps the other chips. KVM: irq.h irqchip_in_kernel."""
        return self.pic is not None or self.split is not None

    def add_irqchip(self) -> None:
        """Put in the PICs, the IOAPIC and the default routing, or nothing: EEXIST where their addresses are claimed."""
        pic, io = PicPair.at_reset(self), Ioapic(self)
        self._register(
            (self.pio, i8259.Port.PRIMARY_COMMAND, 2, pic),
            (self.pio, i8259.Port.SECONDARY_COMMAND, 2, pic),
            (self.pio, i8259.Port.PRIMARY_ELCR, 2, pic),
            (self.mmio, ioapic.DEFAULT_BASE, ioapic.WINDOW, io),
        )
        self.pic, self.ioapic = pic, io
        self.routes, self._table, self.gsi_of = DEFAULT_ROUTES, DEFAULT_TABLE, DEFAULT_GSI_OF
        self.notices.update()

    def add_pit(self, speaker: bool) -> None:
        """Put in the PIT, or nothing: EEXIST where its ports are claimed."""
        pit = Pit.at_reset(self)
        self._register((self.pio, i8254.Port.CHANNEL_0, 4, pit))
        if speaker:
            try:
                # KVM: i8254.c has 61h to 64h, and claims 61h; the keyboard controller has 64h.
                self.pio.register(i8254.Port.SPEAKER, 1, Speaker(pit), reach=4)
            except BaseException:
                self.pio.unregister(i8254.Port.CHANNEL_0)
                raise
        self.pit, self.speaker = pit, speaker
        self.notices.changed()

    def _register(self, *places: tuple[IoBus, int, int, Device]) -> None:
        registered: list[tuple[IoBus, int]] = []
        try:
            for bus, start, length, device in places:
                bus.register(start, length, device)
                registered.append((bus, start))
        except BaseException:
            for bus, start in registered:
                bus.unregister(start)
            raise

    def add_cpu(self, vcpu_id: int) -> Cpu:
        """Put in a CPU, with a local APIC where there is an irqchip."""
        cpu = Cpu(self, vcpu_id, len(self.cpus))
        self.cpus.append(cpu)
        if self.has_irqchip:
            cpu.lapic = Lapic.at_reset(
                cpu,
                vcpu_id,
                self.tsc_khz,
                boot_cpu=vcpu_id == self.boot_vcpu,
                ioapic=self.ioapic is not None,
                bus_ns=self.apic_bus_ns,
            )
            if vcpu_id != self.boot_vcpu:
                cpu.mp_state = MpState.UNINITIALIZED
            self.apics.add(cpu.lapic)
            self.generation += 1
        return cpu

    def reset(self) -> None:
        """RESET of all chips; the levels that sources drive stay, and the chips see them anew."""
        if self.pic is not None and self.ioapic is not None:
            self.set_alarm(self.delayed_eoi, None)
            self.pic.reset()
            self.ioapic.reset()
        if self.pit is not None:
            self.pit.reset()
        for cpu in self.cpus:
            cpu.reset()
            self.touch(cpu)
        for pin, sources in enumerate(self.sources):
            if sources:
                self._drive(pin, 1, sources)

    def enable_x2apic_api(self, *, ids: bool, no_broadcast_quirk: bool) -> None:
        """APIC IDs have 32 bits where they had 8, and FFh is not all x2APICs any more."""
        self.apics.x2apic_format |= ids
        self.apics.no_broadcast_quirk |= no_broadcast_quirk
        self.apics.forget()

    # What is left for the end of an operation.

    def set_alarm(self, alarm: Alarm, deadline: int | None) -> None:
        """Ring an alarm at a time of the VM, or not at all."""
        self.alarms.set(alarm, deadline)
        self.unsettled = True

    def defer(self, work: Callable[[], None]) -> None:
        """Do something when the operation under way is done with the chips."""
        self._deferred.append(work)
        self.unsettled = True

    def touch(self, cpu: Cpu) -> None:
        """A CPU may have something new to take."""
        self._touched.add(cpu)
        self.unsettled = True

    def post(self, listener: Listener, event: Event) -> None:
        """Tell a listener when the lock is free."""
        self._tell((listener,), event)

    def call_later(self, call: Callable[[], None]) -> None:
        """Call something when the lock is free."""
        self._tell((lambda _: call(),), None)

    def tell(self, vcpu: int, event: Event) -> None:
        """Tell all who listen to a vCPU."""
        listeners = self.listeners.get(vcpu)
        if listeners is not None:
            self._tell(listeners, event)

    def _tell(self, listeners: Sequence[Callable[[Any], None]], event: object) -> None:
        self._outbox.append((listeners, event))
        self.tellings += len(listeners)
        self.unsettled = True

    def finish_halt(self, halt: Halt, outcome: Outcome) -> None:
        """A HLT is over."""
        halt.finish(outcome)
        self._tell((halt.done,), outcome)

    def settle(self) -> None:
        """An operation is done: do what it left, end the HLTs that have something to take, tell of what is pending."""
        while self._deferred or self._touched:
            if self._deferred:
                deferred, self._deferred = self._deferred, []
                for work in deferred:
                    work()
            # In the order of their making, not of a set's: a VM is to do the same each time.
            touched = list(self._touched)
            if len(touched) > 1:
                touched.sort(key=lambda cpu: cpu.index)
            self._touched.clear()
            for cpu in touched:
                self._look_at(cpu)
                self._touched.discard(cpu)  # by what it took itself

    def _look_at(self, cpu: Cpu) -> None:
        if cpu.halt is not None:
            cpu.try_wake()
        was_ready, cpu.ready = cpu.ready, cpu.has_interrupt()
        if cpu.ready and not was_ready:
            self.tell(cpu.id, InterruptPending(cpu.id))

    @property
    def work(self) -> int:
        """What the board has done, and has to tell, in pieces of some microseconds. It bounds turns."""
        return self.rung + self.apics.offered + self.tellings

    def take_outbox(self) -> list[Telling]:
        """What is to be told without the lock; nothing is left."""
        self.unsettled = False
        self.tellings = 0
        outbox, self._outbox = self._outbox, []
        return outbox

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routing; inputs that are high stay so. The routes have been checked."""
        self.routes, self._table, self.gsi_of = routes, table_of(routes), gsi_of(routes)
        self.notices.update()
        if self.split is not None:  # KVM: irq_comm.c kvm_arch_irq_routing_update
            self.generation += 1

    def set_irq(self, gsi: int, level: int, source: int, line_status: bool = True) -> int:
        """Drive a GSI from a source (one bit set) and return the statuses' sum over what it leads to.

        KVM: irqchip.c kvm_set_irq; negative statuses do not count, unless there are no others.
        """
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, level, source.bit_length() - 1)
        total = -1
        for end in self._table.get(gsi, ()):
            if isinstance(end, int):
                status = self._drive(end, level, source, line_status)
            else:  # KVM: irq_comm.c kvm_set_msi; a falling line sends nothing
                status = self.signal_msi(end.address, end.data) if level and self.can_send(end.address) else -1
            if status >= 0:
                total = status if total < 0 else total + status
        return total

    def _drive(self, pin: int, level: int, source: int, line_status: bool = True) -> int:
        """Set one source's level at an input, and drive it with the OR of all. KVM: __kvm_irq_line_state."""
        sources = self.sources[pin] | source if level else self.sources[pin] & ~source
        self.sources[pin] = sources
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
            status = self.ioapic.set_pin(pin, 1 if sources else 0, line_status)
            if self.observer is not None:
                self.observer.kvm_ioapic_set_irq(entry, pin, status == 0)
        return status

    def drop_source(self, source: int) -> None:
        """A source is no more: every input that it drives is driven by what is left of its OR."""
        for pin, sources in enumerate(self.sources):
            if sources & source:
                self._drive(pin, 0, source)

    def signal_msi(self, address: int, data: int) -> int:
        """Send an MSI and return how many local APICs took it, or -1 where nobody was addressed."""
        if not self.apics.x2apic_format:
            address &= 0xFFFF_FFFF
        if self.observer is not None:
            self.observer.kvm_msi_set_irq(address, data)
        return self.deliver(from_msi(address, data))

    def can_send(self, address: int) -> bool:
        """Whether an MSI can have an address. KVM: irq_comm.c kvm_msi_route_invalid."""
        return not (self.apics.x2apic_format and address >> 32 & 0xFF)

    def observe(self, observer: Observer | None) -> None:
        """Tell an observer, or nobody, of what happens from now on."""
        self.observer = observer
        self.wake_timers()
        self.apics.on_offer = None if observer is None else self._trace_offer

    def wake_timers(self) -> None:
        """Somebody is going to look at the timers."""
        for lapic in self.apics.lapics:
            lapic.timer.wake()

    def _trace_offer(self, index: int, message: Message) -> None:
        assert self.observer is not None
        self.observer.kvm_apic_accept_irq(
            self.cpus[index].id, message.delivery_mode, message.level_triggered, message.vector
        )

    # Guest accesses.

    def scan(self, cpu: Cpu) -> None:
        """A CPU that enters its guest learns which EOIs concern the IOAPIC. KVM: x86.c vcpu_scan_ioapic."""
        cpu.scanned = self.generation
        lapic = cpu.lapic
        if lapic is None or not lapic.hardware_enabled:
            return
        if self.ioapic is not None:
            cpu.handled, cpu.stale = self.ioapic.handled_vectors(cpu.index, lapic.irr | lapic.isr)
        elif self.split is not None:
            cpu.handled, cpu.stale = self._scan_routes(cpu, lapic.irr | lapic.isr)

    def _scan_routes(self, cpu: Cpu, pending: int) -> tuple[int, int]:
        """The vectors whose EOI the VMM's IOAPIC wants. KVM: irq_comm.c kvm_scan_ioapic_routes; see Ioapic."""
        assert self.split is not None
        handled, stale = 0, -1
        for route in self.routes:
            if route.gsi >= self.split or not isinstance(route, MsiRoute):
                continue
            address = route.address if self.apics.x2apic_format else route.address & 0xFFFF_FFFF
            message = from_msi(address, route.data)
            if not message.level_triggered:
                continue
            vector = message.vector
            if self.apics.matching(message.destination, message.logical) >> cpu.index & 1:
                handled |= 1 << vector
            elif pending >> vector & 1:
                handled |= 1 << vector
                stale = max(stale, vector)
        return handled, stale

    def enter(self, cpu: Cpu) -> None:
        """A CPU enters its guest."""
        if cpu.scanned != self.generation:
            self.scan(cpu)

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
        self.notices.acknowledged(line)

    def pic_masked(self, line: int, masked: bool) -> None:
        """See PicWires."""
        self.notices.masked(line, masked)

    def pic_output(self) -> None:
        """See PicWires."""
        for cpu in self.cpus:
            if cpu.watchers:
                self.touch(cpu)

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
        self.notices.acknowledged(IOAPIC_INPUTS + pin)

    def ioapic_masked(self, pin: int, masked: bool) -> None:
        """See IoapicWires."""
        self.notices.masked(IOAPIC_INPUTS + pin, masked)

    def resample(self, pin: int) -> bool:
        """See IoapicWires."""
        return self.notices.ask_resamplers(IOAPIC_INPUTS + pin)

    @property
    def ioapic_noticed(self) -> int:
        """See IoapicWires."""
        return self.notices.ioapic_noticed

    def serve_ioapic_later(self, nanoseconds: int) -> None:
        """See IoapicWires."""
        if self.delayed_eoi.deadline is None:
            self.set_alarm(self.delayed_eoi, self.clock.now() + nanoseconds)

    def _serve_ioapic(self) -> None:
        assert self.ioapic is not None
        self.ioapic.serve_delayed()

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

    # Wires of the PIT.

    def set_pit_alarm(self, deadline: int | None) -> None:
        """See PitWires."""
        self.set_alarm(self._pit_alarm, deadline)

    def _ring_pit(self) -> None:
        assert self.pit is not None
        self.pit.timer_expired()

    def deliver_later(self) -> None:
        """See PitWires."""
        assert self.pit is not None
        self.defer(self.pit.deliver)

    def deliver_tick(self) -> None:
        """See PitWires. KVM: i8254.c pit_do_work, with its NMI watchdog."""
        self.set_irq(PIT_GSI, 1, 1 << PIT, line_status=False)
        self.set_irq(PIT_GSI, 0, 1 << PIT, line_status=False)
        lapics = self.apics.lapics
        if any(lapic.nmi_watchdog for lapic in lapics):
            for lapic in lapics:
                lapic.deliver_local(lapic.lvt_lint0)
