"""The board of an x86 VM: a PC's chips wired together. The names and limits are the Vm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from irqchipd.chips import i8254, i8259, ioapic
from irqchipd.chips.i8254 import Pit, Speaker
from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.ioapic import MASKED, Ioapic
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import DEFAULT_BASE, WINDOW
from irqchipd.chips.message import from_msi
from irqchipd.observe.counters import Counters
from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.board import Board, Probes, RawProbes
from irqchipd.vm.bus import Device, IoBus
from irqchipd.vm.clock import Alarm
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.regions import Reserved
from irqchipd.vm.routing import MsiRoute, Route
from irqchipd.vm.sources import PIT, RESAMPLERS
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.apicbus import ApicBus
from irqchipd.vm.x86.cpu import Cpu
from irqchipd.vm.x86.notices import PIT_GSI, PinNotices
from irqchipd.vm.x86.probes import named_probes, raw_probes
from irqchipd.vm.x86.routing import (
    DEFAULT_GSI_OF,
    DEFAULT_ROUTES,
    DEFAULT_TABLE,
    INPUTS,
    IOAPIC_INPUTS,
    ChipId,
    Table,
    gsi_of,
    table_of,
)

# Where local APICs are, unless their guest moves them.
APIC_PAGE: Final = Reserved(DEFAULT_BASE, WINDOW, "the local APICs'")


class PcBoard(Board):
    """PICs, IOAPIC and local APICs, wired together. The board implements PicWires, IoapicWires and PitWires."""

    def __init__(self, agenda: Agenda, tsc_khz: int) -> None:
        super().__init__(agenda)
        self.now = agenda.clock.now
        self.tsc_khz = tsc_khz
        self.apics = apics = ApicBus(agenda)
        self.deliver, self.cpus_matching, self.cpus_pending = apics.deliver, apics.matching_entry, apics.pending
        # In the order of creation, and by id.
        self.cpus: list[Cpu] = []
        self.cpu_of: dict[int, Cpu] = {}
        self.pic: PicPair | None = None
        self.ioapic: Ioapic | None = None
        self.pit: Pit | None = None
        self.speaker = False
        # Set by capabilities.
        self.boot_vcpu = 0
        self.max_vcpu_ids = 0  # 0 until an operation sets the number
        self.apic_bus_ns = 1
        self._table: Table = {}
        self.notices = self.pins = PinNotices(agenda, apics, self.lower_resampled)
        # The ranks order alarms of the same time; the local APICs' alarms come after these.
        self._pit_alarm: Alarm
        self.delayed_eoi: Alarm
        # The line sources that drive each input high: bit n is source n. KVM: irq_states of the PICs and the IOAPIC.
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
        self._add_apics()
        self.can_resample = True
        self.routes, self._table = DEFAULT_ROUTES, DEFAULT_TABLE
        self.pins.set_routes(DEFAULT_GSI_OF)

    def split_irqchip(self, reserved: int) -> None:
        """Put in only local APICs, and reserve GSIs for the VMM's IOAPIC."""
        self.apics.split = reserved
        self._add_apics()

    def _add_apics(self) -> None:
        self.has_irqchip = True
        self.regions.reserve(APIC_PAGE)

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
        self.pins.pit = pit
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
        self.cpu_of[vcpu_id] = cpu
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
                self._drive_observed(pin, 1, sources)

    def enable_x2apic_api(self, *, ids: bool, no_broadcast_quirk: bool) -> None:
        """Give APIC IDs 32 bits instead of 8, and stop destination FFh from meaning all x2APICs."""
        self.apics.x2apic_format |= ids
        self.apics.no_broadcast_quirk |= no_broadcast_quirk
        self.apics.forget()

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        self.routes, self._table = routes, table_of(routes)
        self.apics.routes = routes
        self.pins.set_routes(gsi_of(routes))
        if self.apics.split is not None:  # KVM: irq_comm.c kvm_arch_irq_routing_update
            self.apics.scans += 1

    def set_irq(self, gsi: int, level: int, source: int, line_status: bool = True) -> int:
        observer = self.observer
        if observer is not None:
            if isinstance(observer, Counters):
                return self._set_irq_counted(observer, gsi, level, source, line_status)
            return self._set_irq_traced(observer, gsi, level, source, line_status)
        total = -1
        for end in self._table.get(gsi, ()):
            status = self._drive(end, level, source, line_status) if isinstance(end, int) else self._send(end, level)
            if status >= 0:
                total = status if total < 0 else total + status
        return total

    def _set_irq_traced(self, observer: Observer, gsi: int, level: int, source: int, line_status: bool) -> int:
        """As set_irq, and report to the observer."""
        observer.kvm_set_irq(gsi, level, source.bit_length() - 1)
        total = -1
        for end in self._table.get(gsi, ()):
            if isinstance(end, int):
                status = self._drive_observed(end, level, source, line_status, rises=level)
            else:
                status = self._send(end, level)
            if status >= 0:
                total = status if total < 0 else total + status
        return total

    def _set_irq_counted(self, counters: Counters, gsi: int, level: int, source: int, line_status: bool) -> int:
        """As set_irq, and count: where the counters are the only observer, no change needs a call of theirs."""
        if level:
            counters.raised += 1
        else:
            counters.lowered += 1
        total = -1
        for end in self._table.get(gsi, ()):
            if not isinstance(end, int):
                status = self._send(end, level)
            elif level:
                masked = self._is_masked(end)
                status = self._drive(end, 1, source, line_status)
                if masked:
                    counters.masked += 1
                elif not status:
                    counters.coalesced += 1
            else:
                status = self._drive(end, 0, source, line_status)
            if status >= 0:
                total = status if total < 0 else total + status
        return total

    def _send(self, end: MsiRoute, level: int) -> int:
        """Send a GSI's MSI. KVM: irq_comm.c kvm_set_msi; a falling line sends nothing."""
        can_send = level and self.apics.can_send(end.address)
        return self.signal_msi(end.address, end.data) if can_send else -1

    def _is_masked(self, pin: int) -> bool:
        """Whether an input is masked at its chip."""
        assert self.pic is not None
        assert self.ioapic is not None
        if pin >= IOAPIC_INPUTS:
            return bool(self.ioapic.redirection[pin - IOAPIC_INPUTS] & MASKED)
        chip = self.pic.secondary if pin >= 8 else self.pic.primary
        return bool(chip.imr >> (pin & 7) & 1)

    def _drive(self, pin: int, level: int, source: int, line_status: bool = True) -> int:
        """Set one source's level at an input, and drive it with the OR of all. KVM: __kvm_irq_line_state."""
        sources = self.sources[pin] | source if level else self.sources[pin] & ~source
        self.sources[pin] = sources
        assert self.pic is not None
        assert self.ioapic is not None
        if pin < IOAPIC_INPUTS:
            return self.pic.set_line(pin, 1 if sources else 0)
        return self.ioapic.set_pin(pin - IOAPIC_INPUTS, 1 if sources else 0, line_status)

    def _drive_observed(self, pin: int, level: int, source: int, line_status: bool = True, *, rises: int = 0) -> int:
        """As _drive, and report to the observer, if any; rises is whether this is a rise of a GSI."""
        pic, ioapic, observer = self.pic, self.ioapic, self.observer
        assert pic is not None
        assert ioapic is not None
        masked = bool(rises) and self._is_masked(pin)
        entry = ioapic.redirection[pin - IOAPIC_INPUTS] if pin >= IOAPIC_INPUTS else 0
        status = self._drive(pin, level, source, line_status)
        if observer is None:
            return status
        if pin < IOAPIC_INPUTS:
            chip = pic.secondary if pin >= 8 else pic.primary
            observer.kvm_pic_set_irq(pin >> 3, pin & 7, chip.elcr, chip.imr, status == 0)
        else:
            observer.kvm_ioapic_set_irq(entry, pin - IOAPIC_INPUTS, status == 0)
        if rises and (masked or not status):
            observer.line_raised(not status, masked)
        return status

    def drop_source(self, source: int) -> None:
        for pin, sources in enumerate(self.sources):
            if sources & source:
                self._drive_observed(pin, 0, source)

    def signal_msi(self, address: int, data: int) -> int:
        if not self.apics.x2apic_format:
            address &= 0xFFFF_FFFF
        if self.observer is not None:
            self.observer.kvm_msi_set_irq(address, data)
        return self.apics.deliver(from_msi(address, data))

    def observe(self, observer: Observer | None) -> None:
        super().observe(observer)
        self.apics.observer = observer
        self.wake_timers()
        for cpu in self.cpus:
            cpu.publish()

    def raw_probes(self) -> list[RawProbes]:
        return raw_probes(self.pic, self.ioapic, self.cpus)

    def named_probes(self, part: int, raw: RawProbes) -> Probes:
        return named_probes(part, raw)

    def raw_lines(self) -> RawProbes:
        return (self.routes, *self.sources)

    def named_lines(self, raw: RawProbes) -> dict[str, int]:
        """The PIT's line and the resampled lines, as the inputs have them."""
        routes, *sources = raw
        lines: dict[str, int] = {}
        for pin, gsi in gsi_of(routes).items():
            if own := sources[pin] & (1 << PIT | 1 << RESAMPLERS):
                lines[f"gsi{gsi}"] = own
        return lines

    def pic_line(self, vector: int) -> int:
        if self.pic is not None:
            for first, chip in ((0, self.pic.primary), (8, self.pic.secondary)):
                if 0 <= vector - chip.irq_base < 8:
                    return first + vector - chip.irq_base
        return -1

    def gsi_of_vector(self, vector: int) -> int:
        if self.ioapic is not None:
            for pin, entry in enumerate(self.ioapic.redirection):
                if entry & 0xFF == vector and not entry & ioapic.MASKED:
                    return gsi_of(self.routes).get(IOAPIC_INPUTS + pin, -1)
        return -1

    def wake_timers(self) -> None:
        """See ApicTimer.dormant."""
        for lapic in self.apics.lapics:
            lapic.timer.wake()

    # Guest accesses.

    def find_mmio(self, cpu: Vcpu, address: int, size: int) -> Device | None:
        """The vCPU's local APIC, or a device of the bus. KVM: x86.c vcpu_mmio_read."""
        assert isinstance(cpu, Cpu)
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
            self.observer.pic_ended(line)
        self.pins.acknowledged(line)

    def pic_masked(self, line: int, masked: bool) -> None:
        self.pins.masked(line, masked)

    def pic_output(self) -> None:
        for cpu in self.cpus:
            cpu.priorities_changed()

    def takes_pic_interrupts(self) -> bool:
        return any(lapic.passes_extint for lapic in self.apics.lapics)

    # Wires of the IOAPIC, as its IoapicWires describe them; the first are the APIC bus's methods: see __init__.

    def ioapic_acked(self, pin: int) -> None:
        if self.observer is not None:
            self.observer.kvm_ack_irq(ChipId.IOAPIC, pin)
        self.pins.acknowledged(IOAPIC_INPUTS + pin)

    def ioapic_masked(self, pin: int, masked: bool) -> None:
        self.pins.masked(IOAPIC_INPUTS + pin, masked)

    def resample(self, pin: int) -> bool:
        return self.pins.ask_resamplers(IOAPIC_INPUTS + pin)

    @property
    def ioapic_noticed(self) -> int:
        return self.pins.ioapic_noticed

    def serve_ioapic_later(self, pin: int, nanoseconds: int) -> None:
        if self.observer is not None and self.ioapic is not None:
            self.observer.kvm_ioapic_delayed_eoi_inj(self.ioapic.redirection[pin])
        if self.delayed_eoi.deadline is None:
            self.agenda.set_alarm(self.delayed_eoi, self.now() + nanoseconds)

    def asserted_anew(self, pin: int, entry: int, status: int) -> None:
        if self.observer is not None:
            self.observer.kvm_ioapic_set_irq(entry, pin, status == 0)

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
