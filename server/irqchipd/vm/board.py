"""The board of a VM: chips wired together. The names and limits are the Vm's.

Everything here runs under the lock of the agenda, and calls nothing that waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from irqchipd.chips import i8254, i8259, ioapic
from irqchipd.chips.i8254 import Pit, Speaker
from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import Ioapic
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.message import from_msi
from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.apicbus import ApicBus
from irqchipd.vm.bus import Device, IoBus
from irqchipd.vm.clock import Alarm
from irqchipd.vm.cpu import Cpu
from irqchipd.vm.notices import PIT_GSI, Notices
from irqchipd.vm.regions import Regions
from irqchipd.vm.routing import (
    DEFAULT_GSI_OF,
    DEFAULT_ROUTES,
    DEFAULT_TABLE,
    INPUTS,
    IOAPIC_INPUTS,
    ChipId,
    Route,
    Table,
    gsi_of,
    table_of,
)
from irqchipd.vm.sources import PIT, RESAMPLERS
from irqchipd.vm.vcpu_state import MpState


class Board:
    """PICs, IOAPIC and local APICs with what connects them. It is the wires of the PICs, the IOAPIC and the PIT."""

    def __init__(self, agenda: Agenda, tsc_khz: int) -> None:
        self.agenda = agenda
        self.now = agenda.clock.now
        self.tsc_khz = tsc_khz
        self.observer: Observer | None = None
        self.pio = IoBus()
        self.mmio = IoBus()
        self.apics = apics = ApicBus(agenda)
        self.deliver, self.cpus_matching, self.cpus_pending = apics.deliver, apics.matching_entry, apics.pending
        self.cpus: list[Cpu] = []
        self.pic: PicPair | None = None
        self.ioapic: Ioapic | None = None
        self.pit: Pit | None = None
        self.speaker = False
        self.has_irqchip = False  # local APICs, and perhaps the other chips. KVM: irq.h irqchip_in_kernel
        # What capabilities have changed.
        self.boot_vcpu = 0
        self.max_vcpu_ids = 0  # 0 as long as no operation has set the number
        self.apic_bus_ns = 1
        self.routes: Sequence[Route] = ()
        self._table: Table = {}
        self.notices = Notices(agenda, apics, self._lower_resampled)
        self.regions = Regions(agenda, self.pio, self.mmio)
        # The ranks are the order in which alarms of one time ring; the local APICs' come behind these.
        self._pit_alarm: Alarm
        self.delayed_eoi: Alarm
        # Which line sources drive each input high: bit n is source n. KVM: irq_states of the PICs and the IOAPIC.
        self.sources = [0] * INPUTS

    # Assembly.

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
        self.delayed_eoi = Alarm(1, io.serve_delayed)
        self.apics.ioapic = io
        self.has_irqchip = self.regions.apic_page_taken = True
        self.routes, self._table = DEFAULT_ROUTES, DEFAULT_TABLE
        self.notices.set_routes(DEFAULT_GSI_OF)

    def split_irqchip(self, reserved: int) -> None:
        """Put in local APICs alone, and reserve GSIs for the VMM's IOAPIC."""
        self.apics.split = reserved
        self.has_irqchip = self.regions.apic_page_taken = True

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
        self._pit_alarm = Alarm(0, pit.timer_expired)
        self.notices.pit = pit
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
        cpu = Cpu(self.agenda, self.apics, self.pic, vcpu_id, len(self.cpus))
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
        return cpu

    def reset(self) -> None:
        """RESET of all chips; the levels that sources drive stay, and the chips see them anew."""
        if self.pic is not None and self.ioapic is not None:
            self.agenda.set_alarm(self.delayed_eoi, None)
            self.pic.reset()
            self.ioapic.reset()
        if self.pit is not None:
            self.pit.reset()
        for cpu in self.cpus:
            cpu.reset()
        for pin, sources in enumerate(self.sources):
            if sources:
                self._drive(pin, 1, sources)

    def enable_x2apic_api(self, *, ids: bool, no_broadcast_quirk: bool) -> None:
        """APIC IDs have 32 bits where they had 8, and FFh is not all x2APICs any more."""
        self.apics.x2apic_format |= ids
        self.apics.no_broadcast_quirk |= no_broadcast_quirk
        self.apics.forget()

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routing; inputs that are high stay so. The routes have been checked."""
        self.routes, self._table = routes, table_of(routes)
        self.apics.routes = routes
        self.notices.set_routes(gsi_of(routes))
        if self.apics.split is not None:  # KVM: irq_comm.c kvm_arch_irq_routing_update
            self.apics.scans += 1

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
                can_send = level and self.apics.can_send(end.address)
                status = self.signal_msi(end.address, end.data) if can_send else -1
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
        """Drop a source: every input that it drives is driven by the OR of the others."""
        for pin, sources in enumerate(self.sources):
            if sources & source:
                self._drive(pin, 0, source)

    def _lower_resampled(self, gsi: int) -> None:
        self.set_irq(gsi, 0, 1 << RESAMPLERS, line_status=False)

    def signal_msi(self, address: int, data: int) -> int:
        """Send an MSI and return how many local APICs took the message, or -1 where none is addressed."""
        if not self.apics.x2apic_format:
            address &= 0xFFFF_FFFF
        if self.observer is not None:
            self.observer.kvm_msi_set_irq(address, data)
        return self.apics.deliver(from_msi(address, data))

    def observe(self, observer: Observer | None) -> None:
        """Report to an observer what happens from now on."""
        self.observer = self.apics.observer = self.regions.observer = observer
        self.wake_timers()
        for cpu in self.cpus:
            cpu.publish()

    def wake_timers(self) -> None:
        """Before something looks at the timers: see ApicTimer.dormant."""
        for lapic in self.apics.lapics:
            lapic.timer.wake()

    # Guest accesses.

    def find_mmio(self, cpu: Cpu, address: int, size: int) -> Device | None:
        """The device that an access to memory is for: the CPU's local APIC, or one of the bus. KVM: vcpu_mmio_read."""
        lapic = cpu.lapic
        if lapic is not None and lapic.claims(address):
            return lapic
        if self.ioapic is not None and self.ioapic.base_address != ioapic.DEFAULT_BASE:
            device = self.mmio.find(address, size)
            return None if device is self.ioapic and not self.ioapic.claims(address) else device
        return self.mmio.find(address, size)

    # Wires of the PICs, as their PicWires describe them.

    def pic_acked(self, line: int) -> None:
        if self.observer is not None:
            self.observer.kvm_ack_irq(line >> 3, line)  # KVM: i8259.c pic_clear_isr; the secondary's from 8
        self.notices.acknowledged(line)

    def pic_masked(self, line: int, masked: bool) -> None:
        self.notices.masked(line, masked)

    def pic_output(self) -> None:
        for cpu in self.cpus:
            cpu.priorities_changed()

    def takes_pic_interrupts(self) -> bool:
        return any(lapic.passes_extint for lapic in self.apics.lapics)

    # Wires of the IOAPIC, as its IoapicWires describe them; the first are the APIC bus's methods: see __init__.

    def ioapic_acked(self, pin: int) -> None:
        if self.observer is not None:
            self.observer.kvm_ack_irq(ChipId.IOAPIC, pin)
        self.notices.acknowledged(IOAPIC_INPUTS + pin)

    def ioapic_masked(self, pin: int, masked: bool) -> None:
        self.notices.masked(IOAPIC_INPUTS + pin, masked)

    def resample(self, pin: int) -> bool:
        return self.notices.ask_resamplers(IOAPIC_INPUTS + pin)

    @property
    def ioapic_noticed(self) -> int:
        return self.notices.ioapic_noticed

    def serve_ioapic_later(self, nanoseconds: int) -> None:
        if self.delayed_eoi.deadline is None:
            self.agenda.set_alarm(self.delayed_eoi, self.now() + nanoseconds)

    def entry_changed(self, old: int, new: int) -> None:
        """KVM: ioapic.c ioapic_write_indirect."""
        apics = self.apics
        if new & ioapic.DELIVERY_MODE:  # not fixed
            apics.scans += 1
            return
        cpus = apics.addressed_by_entry[new & ioapic.ADDRESS]
        if (old ^ new) & ioapic.ADDRESS:
            # KVM looks the old destination up in the new mode.
            cpus |= apics.addressed_by_entry[old & ioapic.ADDRESS & ~ioapic.LOGICAL | new & ioapic.LOGICAL]
        for cpu in self.cpus:
            if cpus >> cpu.index & 1:
                cpu.scanned = -1

    def entries_replaced(self) -> None:
        self.apics.scans += 1

    # Wires of the PIT, as its PitWires describe them.

    def set_pit_alarm(self, deadline: int | None) -> None:
        self.agenda.set_alarm(self._pit_alarm, deadline)

    def deliver_later(self) -> None:
        assert self.pit is not None
        self.agenda.defer(self.pit.deliver)

    def deliver_tick(self) -> None:
        """KVM: i8254.c pit_do_work, with its NMI watchdog."""
        self.set_irq(PIT_GSI, 1, 1 << PIT, line_status=False)
        self.set_irq(PIT_GSI, 0, 1 << PIT, line_status=False)
        lapics = self.apics.lapics
        if any(lapic.nmi_watchdog for lapic in lapics):
            for lapic in lapics:
                lapic.deliver_local(lapic.lvt_lint0)
