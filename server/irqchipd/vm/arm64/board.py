"""The board of an arm64 VM: the GIC, its frames on the bus, and the lines to it. The names and limits are the Vm's."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from irqchipd.chips.gic.gicv2 import GicV2, SavedGicV2
from irqchipd.chips.gic.gicv3 import GicV3, SavedGicV3
from irqchipd.chips.gic.interrupt import NO_OWNER, PRIVATE, SGIS, Interrupt
from irqchipd.chips.gic.its import FRAME_SIZE as ITS_FRAME_SIZE
from irqchipd.chips.gic.its import Its
from irqchipd.chips.gic.redistributor import FRAME_SIZE
from irqchipd.chips.gic.vgic import GicCpu, Vgic
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.cpu import Arm64Cpu
from irqchipd.vm.arm64.frames import CpuInterfaceFrame, RegistersFrame
from irqchipd.vm.arm64.its import ItsFrame
from irqchipd.vm.arm64.line_numbers import VCPU_LINES, line_name, owner_of
from irqchipd.vm.arm64.numbers import USUAL_INTERRUPTS
from irqchipd.vm.arm64.places import V2_CPU_SIZE, V2_DIST_SIZE, V3_DIST_SIZE, Place, Places
from irqchipd.vm.arm64.probes import named_probes, raw_probes
from irqchipd.vm.arm64.routing import SpiNotices, default_routes
from irqchipd.vm.arm64.timer import OWNERS, PHYSICAL, USUAL_PPIS, VIRTUAL
from irqchipd.vm.board import Board, Probes, RawProbes
from irqchipd.vm.bus import Device
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.regions import Reserved
from irqchipd.vm.routing import PinRoute, Route
from irqchipd.vm.sources import RESAMPLERS, SHARED, LineSource


class Arm64Board(Board):
    """A GIC and vCPUs, wired together. The board implements GicWires."""

    def __init__(self, agenda: Agenda, list_registers: int, priority_bits: int) -> None:
        super().__init__(agenda)
        self.list_registers: Final = list_registers
        self.priority_bits: Final = priority_bits
        # In the order of creation, and by id.
        self.cpus: list[Arm64Cpu] = []
        self.cpu_of: dict[int, Arm64Cpu] = {}
        self.gic: Vgic | None = None  # v2 or v3, whichever exists
        self.v2: GicV2 | None = None
        self.v3: GicV3 | None = None
        self.its: list[ItsFrame] = []  # in the order of creation
        self.places = Places()
        # The number of INTIDs that user space wants, 0 until set; and whether they exist (vgic_initialized).
        self.interrupts_wanted = 0
        self.initialised = False
        # Whether the frames are on the bus (vgic_ready); or the error that kept them off the bus, and killed the VM.
        self.ready = False
        self.dead: VmError | None = None
        # The features of all vCPUs once one is initialised; the PPIs of the timers, and whether they may change.
        self.features: int | None = None
        self.ppis = list(USUAL_PPIS)
        self.ppis_fixed = False
        # The line sources that drive a line high: bit n is source n. Lines that no source drives are absent.
        self.drivers: dict[int, int] = {}
        self.shared_source: LineSource | None = None
        self._spi_of: dict[int, int] = {}
        self.notices = self.spi_notices = SpiNotices(agenda, self.lower_resampled)
        # The vCPU whose access a frame answers.
        self.running: Arm64Cpu

    # Assembly.

    def add_gic(self, version: int) -> None:
        """Put in an uninitialised GIC."""
        if version == 2:
            self.gic = self.v2 = GicV2(self, self.list_registers)
        else:
            self.gic = self.v3 = GicV3(self, self.list_registers, self.priority_bits)
            if self.its:
                self.v3.redistributors.add_its()
        self.has_irqchip = self.can_resample = True
        for cpu in self.cpus:
            self._add_to_gic(cpu)

    def add_its(self) -> None:
        """Put in an interrupt translation service. KVM: vgic_its_create."""
        self.its.append(ItsFrame(self))
        if self.v3 is not None:
            self.v3.redistributors.add_its()

    def add_cpu(self, vcpu_id: int) -> Arm64Cpu:
        """Put in a vCPU: EEXIST for an id in use, EINVAL without a place for its redistributor."""
        place = self.places.find() if self.v3 is not None else None
        if place is not None:
            assert place.region is not None
            # The place stays taken if the creation fails later.
            place.region.used += 1
        if vcpu_id in self.cpu_of:
            raise VmError(errno.EEXIST, f"there is a vCPU {vcpu_id} already: choose another id")
        if place is not None:
            self._check_free(place)
        cpu = self.put_cpu(vcpu_id, place)
        if place is not None:
            self.register_redistributor(cpu.index)
        return cpu

    def put_cpu(self, vcpu_id: int, place: Place | None) -> Arm64Cpu:
        """Put in a vCPU, whose redistributor is not on the bus yet."""
        cpu = Arm64Cpu(self.agenda, self, vcpu_id, len(self.cpus))
        self.cpus.append(cpu)
        self.cpu_of[vcpu_id] = cpu
        self.places.of.append(place)
        if self.gic is not None:
            self._add_to_gic(cpu)
        return cpu

    def _add_to_gic(self, cpu: Arm64Cpu) -> None:
        assert self.gic is not None
        cpu.gic = self.gic.add_cpu(cpu.id, cpu.affinity if cpu.features is not None else 0)

    def place_redistributors(self, index: int, base: int, count: int) -> None:
        """Give the redistributors a region. KVM: vgic_v3_set_redist_base."""
        places = self.places
        places.add_region(index, base, count)
        placed = []
        try:
            for cpu in self.cpus:
                place = places.find() if places.of[cpu.index] is None else None
                if place is not None:
                    self._check_free(place)
                    self._register_redistributor(cpu.index, place)
                    assert place.region is not None
                    place.region.used += 1
                    places.of[cpu.index] = place
                    placed.append(cpu.index)
        except VmError:
            for vcpu in placed:
                self._unregister(vcpu)
                places.of[vcpu] = None
            places.remove_region(index)
            raise

    def _check_free(self, place: Place) -> None:
        self.regions.check_free(Reserved(place.base, FRAME_SIZE, "a redistributor's"))

    def register_redistributor(self, index: int) -> None:
        """Put a vCPU's redistributor on the bus."""
        place = self.places.of[index]
        assert place is not None
        self._register_redistributor(index, place)

    def _register_redistributor(self, index: int, place: Place) -> None:
        assert self.v3 is not None
        frame = RegistersFrame(self, self.v3.redistributors.registers, place.base, self.v3.cpus[index])
        self.mmio.register(place.base, FRAME_SIZE, frame)

    def _unregister(self, index: int) -> None:
        place = self.places.of[index]
        if place is not None and self.is_on_bus(place):
            self.mmio.unregister(place.base)

    def is_on_bus(self, place: Place) -> bool:
        """Whether the redistributor of a place is on the bus."""
        return isinstance(self.mmio.device_at(place.base, FRAME_SIZE), RegistersFrame)

    def set_dist(self, base: int) -> None:
        """Place the distributor, and reserve its memory."""
        page = Reserved(base, V2_DIST_SIZE if self.v2 is not None else V3_DIST_SIZE, "the distributor's")
        self.regions.check_free(page)
        self.regions.reserve(page)
        self.places.dist = base

    def set_cpu_frame(self, base: int) -> None:
        """Place a GICv2's CPU interfaces, and reserve their memory."""
        page = Reserved(base, V2_CPU_SIZE, "the CPU interfaces'")
        self.regions.check_free(page)
        self.regions.reserve(page)
        self.places.cpu = base

    def place_its(self, frame: ItsFrame, address: int) -> None:
        """Give an interrupt translation service its address, and reserve its memory."""
        page = Reserved(address, ITS_FRAME_SIZE, "an interrupt translation service's")
        self.regions.check_free(page)
        self.mmio.register(address, ITS_FRAME_SIZE, frame)
        self.regions.reserve(page)
        frame.address = address

    def want_interrupts(self, interrupts: int) -> None:
        """Set the number of INTIDs."""
        assert self.gic is not None
        self.interrupts_wanted = self.gic.interrupts = interrupts

    def initialise(self) -> None:
        """Make the SPIs, and their routing; no vCPU can be created from now on. KVM: vgic_init."""
        assert self.gic is not None
        if self.initialised:
            return
        self.want_interrupts(self.interrupts_wanted or USUAL_INTERRUPTS)
        self.gic.add_spis(self.interrupts_wanted)
        self.set_routes(default_routes(self.interrupts_wanted - PRIVATE))
        self.initialised = True

    def initialise_lazily(self) -> None:
        """A GICv2 initialises itself when it is needed: EBUSY of a GICv3. KVM: vgic_lazy_init."""
        if not self.initialised:
            if self.v2 is None:
                raise VmError(errno.EBUSY, "the GICv3 is not initialised: set its attribute CTRL_INIT first")
            self.initialise()

    def map_frames(self) -> None:
        """Before a vCPU runs: put the frames on the bus; if that fails, the VM is dead. KVM: kvm_vgic_map_resources."""
        if self.ready or self.gic is None:
            return
        try:
            if self.v2 is not None:
                self._prepare_v2()
            else:
                self._prepare_v3()
        except VmError as error:
            self.die(f"a vCPU can't run: {error.message}")
            raise
        self.register_frames()

    def die(self, reason: str) -> None:
        """Refuse all further operations of the VM. KVM: kvm_vm_dead."""
        self.dead = VmError(errno.EIO, f"VM {self.agenda.name!r} is dead: {reason}; delete the VM")

    def register_frames(self) -> None:
        """Put all frames but the redistributors on the bus."""
        places = self.places
        assert places.dist is not None
        if self.v2 is not None:
            assert places.cpu is not None
            self.mmio.register(places.cpu, V2_CPU_SIZE, CpuInterfaceFrame(self, self.v2.frames, places.cpu))
            self.mmio.register(places.dist, V2_DIST_SIZE, RegistersFrame(self, self.v2.distributor, places.dist))
        if self.v3 is not None:
            self.mmio.register(places.dist, V3_DIST_SIZE, RegistersFrame(self, self.v3.distributor, places.dist))
        self.ready = True

    def _prepare_v2(self) -> None:
        """KVM: vgic_v2_map_resources."""
        places = self.places
        if places.dist is None or places.cpu is None:
            raise VmError(errno.ENXIO, "the GIC has no addresses: set those of its distributor and CPU interfaces")
        if places.v2_overlap():
            raise invalid(f"the distributor at {places.dist:#x} overlaps the CPU interfaces at {places.cpu:#x}")
        self.initialise()

    def _prepare_v3(self) -> None:
        """KVM: vgic_v3_map_resources."""
        places = self.places
        if None in places.of or places.dist is None:
            raise VmError(errno.ENXIO, "the GIC has no addresses: set those of its distributor and redistributors")
        if not places.fits():
            raise invalid("the redistributors overlap the distributor, or are beyond the guest's memory")
        if not self.initialised:
            raise VmError(errno.EBUSY, "the GICv3 was not initialised: set its attribute CTRL_INIT first")

    def wire_timers(self, cpu: Arm64Cpu) -> None:
        """Connect the timers of a vCPU that runs: EINVAL if a PPI belongs to another device. KVM: kvm_timer_enable.

        A timer keeps a PPI that it has taken, even if the vCPU cannot run (timer_irqs_are_valid).
        """
        gic = self.gic
        if gic is None:
            return
        for timer in (PHYSICAL, VIRTUAL):
            ppi = self.ppis[timer]
            if not gic.own(cpu.in_gic.private[ppi], OWNERS[timer]):
                raise invalid(f"interrupt {ppi} of vCPU {cpu.id} has another owner: give the timers other PPIs")
        self.ppis_fixed = True
        gic.map_physical(cpu.in_gic.private[self.ppis[VIRTUAL]], USUAL_PPIS[VIRTUAL])
        cpu.wire_timers()

    def reset(self) -> None:
        for cpu in self.cpus:
            cpu.reset()
        if self.initialised:
            self._reset_gic()
        for frame in self.its:
            frame.its = Its()
        for line in self.drivers:
            self._restore_line(line)

    def _reset_gic(self) -> None:
        """Return the GIC to its state after the initialisation; user space's settings stay."""
        if self.v2 is not None:
            fresh = GicV2(self, self.list_registers)
            fresh.revision, fresh.groups_writable = self.v2.revision, self.v2.groups_writable
            self._fill(fresh)
            self.v2.resume(SavedGicV2(**fresh.save()))
        elif self.v3 is not None:
            new = GicV3(self, self.list_registers, self.priority_bits)
            new.redistributors.revision = self.v3.redistributors.revision
            new.zero_affinity = self.v3.zero_affinity
            if self.its:
                new.redistributors.add_its()
            self._fill(new)
            self.v3.resume(SavedGicV3(**new.save()))

    def _restore_line(self, line: int) -> None:
        """After a reset: keep a high line high, without an edge."""
        if line < VCPU_LINES:
            assert self.gic is not None
            self.gic.spis[line - PRIVATE].line = True  # seen once the SPI is level-triggered
        else:
            self._inject(line, True)

    def _fill(self, gic: Vgic) -> None:
        for cpu in self.cpus:
            gic.add_cpu(cpu.id, cpu.in_gic.affinity)
        gic.add_spis(self.interrupts_wanted)
        # The timers and the PMU keep their interrupts.
        assert self.gic is not None
        for old, new in zip(self.cpus, gic.cpus, strict=True):
            _keep_devices(new.private, old.in_gic.private)
        _keep_devices(gic.spis, self.gic.spis)

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self._spi_of = {route.gsi: route.pin for route in routes if isinstance(route, PinRoute)}
        self.spi_notices.set_routes(routes)

    def line_of_gsi(self, gsi: int) -> int | None:
        """The line of the SPI that a GSI leads to. KVM: vgic_irqfd_set_irq."""
        spi = self._spi_of.get(gsi)
        if spi is None or not self.initialised or self.gic is None or PRIVATE + spi >= self.gic.interrupts:
            return None
        return PRIVATE + spi

    def set_irq(self, gsi: int, level: int, source: int, line_status: bool = True) -> int:  # noqa: ARG002
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, level, source.bit_length() - 1)
        line = self.line_of_gsi(gsi)
        if line is None:
            return -1
        self.drive(line, level, source)
        return 0

    def drive(self, line: int, level: int, source: int) -> None:
        """Drive a line from a source. The GIC sees the OR, and a rise even while other sources drive the line high."""
        sources = self.drivers.get(line, 0)
        if level:
            self.drivers[line] = sources | source
            self._inject(line, True)
            return
        sources &= ~source
        if sources:
            self.drivers[line] = sources
        else:
            self.drivers.pop(line, None)
            self._inject(line, False)

    def hold(self, lines: Iterable[int], source: int) -> None:
        """After a restoration: a source drives lines high; the GIC's state has their levels."""
        for line in lines:
            self.drivers[line] = self.drivers.get(line, 0) | 1 << source

    def raise_gsi(self, gsi: int) -> None:
        """An irqfd was written: its SPI rises, and no source holds it high. KVM: kvm_arch_set_irq_inatomic."""
        line = self.line_of_gsi(gsi)
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, 1, SHARED)
        if line is not None:
            self._inject(line, True)

    def lower_gsi(self, gsi: int) -> None:
        """Lower a GSI. The kernel does not know the sources of a level: KVM_IRQ_LINE's own level drops, too."""
        line = self.line_of_gsi(gsi)
        if line is not None:
            shared = self.shared_source
            if shared is not None:
                shared.asserted &= ~(1 << line)
            self.drive(line, 0, 1 << SHARED | 1 << RESAMPLERS)

    def lower_resampled(self, gsi: int) -> None:
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, 0, RESAMPLERS)
        self.lower_gsi(gsi)

    def drop_source(self, source: int) -> None:
        for line, sources in list(self.drivers.items()):
            if sources & source:
                self.drive(line, 0, source)

    def _inject(self, line: int, level: bool) -> None:
        """KVM: kvm_vgic_inject_irq; or, without a GIC, arm.c vcpu_interrupt_line."""
        if line < VCPU_LINES:
            assert self.gic is not None
            self._set_line(self.gic.spis[line - PRIVATE], level)
            return
        vcpu, number = owner_of(line)
        cpu = self.cpu_of[vcpu]
        if number < SGIS:
            cpu.lines = cpu.lines | 1 << number if level else cpu.lines & ~(1 << number)
            cpu.priorities_changed()
        else:
            assert cpu.gic is not None
            self._set_line(cpu.gic.private[number], level)

    def _set_line(self, interrupt: Interrupt, level: bool, owner: int = NO_OWNER) -> None:
        assert self.gic is not None
        if self.observer is not None:
            cpu = self.cpus[interrupt.target].id if interrupt.intid < PRIVATE else 0
            self.observer.vgic_update_irq_pending(cpu, interrupt.intid, level)
            if level and interrupt.owner == owner:
                there = interrupt.line if interrupt.level else interrupt.pending_latch
                self.observer.line_raised(there, not interrupt.enabled)
        self.gic.set_line(interrupt, level, owner)

    def drive_timer(self, cpu: GicCpu, timer: int, level: bool) -> None:
        """A vCPU's timer drives its PPI."""
        ppi = self.ppis[timer]
        if self.observer is not None:
            self.observer.kvm_timer_update_irq(cpu.id, ppi, level)
        self._set_line(cpu.private[ppi], level, OWNERS[timer])

    def signal_msi(self, address: int, data: int) -> int:
        raise NotImplementedError  # no MSI reaches an interrupt: see Arm64Lines.signal_msi

    def raw_probes(self) -> list[RawProbes]:
        return [] if self.gic is None else raw_probes(self.gic, self.v2, self.v3)

    def named_probes(self, part: int, raw: RawProbes) -> Probes:  # noqa: ARG002
        return named_probes(raw)

    def raw_lines(self) -> RawProbes:
        return tuple(self.drivers.items())

    def named_lines(self, raw: RawProbes) -> dict[str, int]:
        return {line_name(line): sources for line, sources in raw}

    # For vCPUs: see GicSide.

    def flush(self, cpu: GicCpu) -> None:
        """Load a CPU interface, and fill its list registers."""
        if self.v2 is not None:
            self.v2.frames[cpu.index].load()
            self.v2.enter(cpu)
        elif self.v3 is not None:
            self.v3.interfaces[cpu.index].load()
            self.v3.enter(cpu)

    def sync(self, cpu: GicCpu) -> None:
        """Take the list registers back."""
        assert self.gic is not None
        self.gic.exit(cpu)

    def outputs(self, cpu: GicCpu) -> tuple[bool, bool]:
        """IRQ and FIQ of a CPU interface whose list registers are filled."""
        if self.v2 is not None:
            return self.v2.frames[cpu.index].outputs()
        assert self.v3 is not None
        return self.v3.interfaces[cpu.index].outputs()

    def pending(self, cpu: GicCpu) -> bool:
        """Whether an interrupt would wake a vCPU."""
        assert self.gic is not None
        return self.gic.pending(cpu)

    def gsi_of_intid(self, intid: int) -> int:
        return next((gsi for gsi, spi in self._spi_of.items() if spi + PRIVATE == intid), -1)

    def is_level(self, vcpu: int, intid: int) -> bool:
        if intid < PRIVATE:
            return self.cpu_of[vcpu].in_gic.private[intid].level
        return self.gic is not None and intid < self.gic.interrupts and self.gic.spis[intid - PRIVATE].level

    def forget_timer(self, cpu: GicCpu) -> None:
        """Start the interrupt of a vCPU's virtual timer anew."""
        interrupt = cpu.private[self.ppis[VIRTUAL]]
        interrupt.active = interrupt.pending_latch = interrupt.line = False

    # Guest accesses.

    def find_mmio(self, cpu: Vcpu, address: int, size: int) -> Device | None:
        device = self.mmio.find(address, size)
        if not isinstance(device, CpuInterfaceFrame):
            assert isinstance(cpu, Arm64Cpu)
            cpu.exit_guest()  # the access traps
        return device

    # Wires of the GIC, as its GicWires describe them.

    def kick(self, cpu: int) -> None:
        self.cpus[cpu].priorities_changed()

    def acked(self, spi: int) -> None:
        if self.observer is not None:
            self.observer.kvm_ack_irq(0, spi)
        self.spi_notices.acknowledged(spi)

    def physical_level(self, cpu: int, intid: int) -> bool:
        timers = self.cpus[cpu]
        return (timers.virtual_timer if intid == self.ppis[VIRTUAL] else timers.physical_timer).fires

    def set_physical_active(self, cpu: int, intid: int, active: bool) -> None:
        """Do nothing: the host's timer interrupt is outside the VM, and the timer's level is read again each time."""

    def is_last(self, cpu: int) -> bool:
        return self.places.is_last(cpu)


def _keep_devices(interrupts: Sequence[Interrupt], before: Sequence[Interrupt]) -> None:
    for interrupt, old in zip(interrupts, before, strict=True):
        interrupt.owner, interrupt.hardware, interrupt.physical = old.owner, old.hardware, old.physical
