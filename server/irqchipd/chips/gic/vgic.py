"""The core of the GIC: which interrupts are pending for each CPU, and the list registers of a vCPU.

Linux v6.12, arch/arm64/kvm/vgic: vgic.c, vgic-v2.c and vgic-v3.c. Every CPU has an ap_list: the interrupts that are
active, or pending and enabled, in the order of queueing. Before the guest runs, the first ones go into list registers
(enter); after that, their states come back (exit).
"""

from __future__ import annotations

from typing import Final, Protocol

from irqchipd.chips.gic.interrupt import NO_OWNER, NOBODY, PRIVATE, SGIS, Interrupt
from irqchipd.chips.gic.list_register import LIST_REGISTERS, CpuInterfaceState, ListRegister

PRIORITY_MASK: Final = 0xF8  # KVM's VGIC_PRI_BITS is 5 for any CPU interface
LOWEST_PRIORITY: Final = 0xFF
CPUS_V2: Final = 8  # a GICv2 has a bit for each CPU in a byte


class GicWires(Protocol):
    """The calls of a GIC to its VM. CPUs are named by their index."""

    def kick(self, cpu: int) -> None:
        """A CPU may have a new interrupt (KVM_REQ_IRQ_PENDING, kvm_vcpu_kick)."""

    def acked(self, spi: int) -> None:
        """The guest ended a level-triggered SPI, named by its number from 0 (kvm_notify_acked_irq)."""

    def physical_level(self, cpu: int, intid: int) -> bool:
        """The level of the device behind a mapped interrupt (vgic_get_phys_line_level)."""

    def set_physical_active(self, cpu: int, intid: int, active: bool) -> None:
        """Set the active state of the host's interrupt that an interrupt is mapped to (vgic_irq_set_phys_active)."""


class GicCpu:
    """A GIC's state of a vCPU. KVM: struct vgic_cpu."""

    __slots__ = ("affinity", "ap_list", "id", "index", "interface", "private")

    def __init__(self, index: int, cpu_id: int, affinity: int) -> None:
        self.index: Final = index
        self.id: Final = cpu_id
        # MPIDR's affinity: Aff3 in bits 39:32, Aff2, Aff1, Aff0 in 23:0. KVM_ARM_VCPU_INIT sets it; it is 0 before.
        self.affinity = affinity
        self.private: Final = [Interrupt(intid) for intid in range(PRIVATE)]
        self.ap_list: list[Interrupt] = []
        self.interface: Final = CpuInterfaceState()
        for interrupt in self.private:
            interrupt.target = index


class Vgic:
    """A GIC without its registers. KVM: struct vgic_dist."""

    def __init__(self, version: int, wires: GicWires, list_registers: int = LIST_REGISTERS) -> None:
        self.version: Final = version
        self.list_registers: Final = list_registers
        self._wires: Final = wires
        self.cpus: Final[list[GicCpu]] = []
        self.spis: Final[list[Interrupt]] = []
        # The number of INTIDs; those of SGIs and PPIs count once. The number may be known before the SPIs exist.
        self.interrupts = PRIVATE
        # GICD_CTLR: whether the distributor forwards interrupts.
        self.enabled = False

    def add_cpu(self, cpu_id: int, affinity: int) -> GicCpu:
        """Add a vCPU. KVM: vgic_allocate_private_irqs."""
        cpu = GicCpu(len(self.cpus), cpu_id, affinity)
        for interrupt in cpu.private:
            if self.version == 2:
                interrupt.targets = 1 << cpu.index & 0xFF
            else:
                interrupt.group = 1
        self.cpus.append(cpu)
        return cpu

    def add_spis(self, interrupts: int) -> None:
        """Make the shared interrupts, of all INTIDs below interrupts. KVM: kvm_vgic_dist_init."""
        for intid in range(PRIVATE, interrupts):
            interrupt = Interrupt(intid)
            interrupt.group = int(self.version == 3)
            interrupt.target = 0 if self.cpus else NOBODY
            self.spis.append(interrupt)
        self.interrupts = interrupts

    def interrupt(self, cpu: GicCpu, intid: int) -> Interrupt:
        """The interrupt that an INTID means to a CPU. KVM: vgic_get_vcpu_irq."""
        return cpu.private[intid] if intid < PRIVATE else self.spis[intid - PRIVATE]

    def own(self, interrupt: Interrupt, owner: int) -> bool:
        """Give an interrupt to a device in the kernel; False if another device has it. KVM: kvm_vgic_set_owner."""
        if interrupt.owner not in (NO_OWNER, owner):
            return False
        interrupt.owner = owner
        return True

    def set_line(self, interrupt: Interrupt, level: bool, owner: int = NO_OWNER) -> None:
        """Drive an interrupt's line, which only its owner may. KVM: kvm_vgic_inject_irq."""
        if interrupt.owner != owner:
            return
        # KVM: vgic_validate_injection.
        if interrupt.level:
            if interrupt.line == level:
                return
            interrupt.line = level
        elif level:
            interrupt.pending_latch = True
        else:
            return
        self.queue(interrupt)

    def queue(self, interrupt: Interrupt) -> None:
        """Put an interrupt into its target CPU's ap_list, and kick the CPU. KVM: vgic_queue_irq_unlock."""
        cpu = self._aim(interrupt)
        if cpu == NOBODY:
            return
        if interrupt.queued_on == NOBODY:
            self.cpus[cpu].ap_list.append(interrupt)
            interrupt.queued_on = cpu
        self._wires.kick(cpu)

    def kick_all(self) -> None:
        """Kick each CPU that has a pending interrupt. KVM: vgic_kick_vcpus."""
        for cpu in self.cpus:
            if self.pending(cpu):
                self._wires.kick(cpu.index)

    def pending(self, cpu: GicCpu) -> bool:
        """Whether an interrupt would wake a CPU from WFI. KVM: kvm_vgic_vcpu_pending_irq."""
        if not self.enabled:
            return False
        mask = cpu.interface.vmcr.pmr
        return any(i.enabled and i.pending and not i.active and i.priority < mask for i in cpu.ap_list)

    def map_physical(self, interrupt: Interrupt, physical: int) -> None:
        """Map an interrupt to an interrupt of the host. KVM: kvm_vgic_map_phys_irq."""
        interrupt.hardware = True
        interrupt.physical = physical

    def physical_level(self, cpu: GicCpu, interrupt: Interrupt) -> bool:
        """The level of the device behind a mapped interrupt."""
        return self._wires.physical_level(cpu.index, interrupt.intid)

    def set_physical_active(self, cpu: GicCpu, interrupt: Interrupt, active: bool) -> None:
        """Set the active state of the host's interrupt behind a mapped interrupt."""
        self._wires.set_physical_active(cpu.index, interrupt.intid, active)

    def enter(self, cpu: GicCpu) -> None:
        """Fill a CPU's list registers, before its guest runs. KVM: kvm_vgic_flush_hwstate, vgic_flush_lr_state."""
        ap_list = cpu.ap_list
        if not ap_list:
            return
        weights = [interrupt.weight for interrupt in ap_list]
        multi_sgi = max(weights) > 1
        if multi_sgi or sum(weights) > self.list_registers:
            ap_list.sort(key=_rank)
        list_registers = cpu.interface.list_registers
        priority = LOWEST_PRIORITY
        for interrupt in ap_list:
            # All sources of an SGI come before interrupts of lower priority.
            if multi_sgi and interrupt.priority > priority:
                break
            if self._aim(interrupt) == cpu.index:
                list_registers.append(self._list_register(interrupt))
                if interrupt.source:
                    priority = interrupt.priority
            if len(list_registers) == self.list_registers:
                break

    def exit(self, cpu: GicCpu) -> None:
        """Take a CPU's list registers back, after its guest ran."""
        if any(register.ended for register in cpu.interface.list_registers):
            # The maintenance interrupt for EOIs (GICH_MISR.EOI) made the guest exit, and it has entered again. A
            # maintenance interrupt for underflow would change nothing: a guest exits after each access.
            self._sync(cpu)
            self.enter(cpu)
        self._sync(cpu)

    def deactivate_physical(self, cpu: GicCpu, physical: int) -> None:
        """The guest ended an interrupt that is mapped to the host's: end the host's interrupt, too."""
        for interrupt in cpu.private:
            if interrupt.hardware and interrupt.physical == physical:
                self.set_physical_active(cpu, interrupt, False)

    def _sync(self, cpu: GicCpu) -> None:
        """KVM: kvm_vgic_sync_hwstate."""
        list_registers = cpu.interface.list_registers
        if list_registers:
            for list_register in list_registers:
                self._fold(cpu, list_register)
            list_registers.clear()
        if cpu.ap_list:
            self._prune(cpu)

    def _aim(self, interrupt: Interrupt) -> int:
        """The CPU whose ap_list should have an interrupt, or NOBODY. KVM: vgic_target_oracle."""
        target = interrupt.target
        if interrupt.active:
            return target if interrupt.queued_on == NOBODY else interrupt.queued_on
        if interrupt.enabled and self.enabled and interrupt.pending:
            return target
        return NOBODY

    def _prune(self, cpu: GicCpu) -> None:
        """Remove interrupts from an ap_list that are done, or that are for another CPU. KVM: vgic_prune_ap_list."""
        kept = []
        moved = []
        for interrupt in cpu.ap_list:
            target = self._aim(interrupt)
            if target == cpu.index:
                kept.append(interrupt)
                continue
            interrupt.queued_on = target
            if target != NOBODY:
                self.cpus[target].ap_list.append(interrupt)
                moved.append(target)
        cpu.ap_list = kept
        for target in moved:
            self._wires.kick(target)

    def _list_register(self, interrupt: Interrupt) -> ListRegister:
        """A list register with an interrupt's state. KVM: vgic_v2_populate_lr, vgic_v3_populate_lr."""
        register = ListRegister(interrupt.intid, interrupt.priority, interrupt.group)
        allow_pending = True
        sgi = self.version == 2 and interrupt.intid < SGIS
        if interrupt.active:
            register.active = True
            if sgi:
                register.physical = interrupt.active_source
            if interrupt.weight > 1:
                allow_pending = False
                register.eoi = True
        if interrupt.hardware:
            register.hardware = True
            register.physical = interrupt.physical
            # The host's interrupt has the pending state.
            allow_pending = allow_pending and not interrupt.active
        elif interrupt.level:
            # The line is sampled again when the guest ends the interrupt.
            register.eoi = True
            allow_pending = allow_pending and not interrupt.active
        if allow_pending and interrupt.pending:
            self._make_pending(register, interrupt, sgi)
        return register

    def _make_pending(self, register: ListRegister, interrupt: Interrupt, sgi: bool) -> None:
        register.pending = True
        if not interrupt.level:
            interrupt.pending_latch = False
        if sgi:
            lowest = interrupt.source & -interrupt.source
            register.physical = lowest.bit_length() - 1
            interrupt.source ^= lowest
            if interrupt.source:
                interrupt.pending_latch = True
                register.eoi = True
        if interrupt.mapped_level:
            # Only the host's next interrupt reports that the line is high again.
            interrupt.line = False

    def _fold(self, cpu: GicCpu, register: ListRegister) -> None:
        """Take an interrupt's state out of a list register. KVM: vgic_v2_fold_lr_state, vgic_v3_fold_lr_state."""
        if register.ended and register.intid >= PRIVATE:
            self._wires.acked(register.intid - PRIVATE)
        interrupt = self.interrupt(cpu, register.intid)
        sgi = self.version == 2 and interrupt.intid < SGIS
        deactivated = interrupt.active and not register.active
        interrupt.active = register.active
        if interrupt.active and sgi:
            interrupt.active_source = register.physical & 7
        if not interrupt.level:
            if register.pending:
                interrupt.pending_latch = True
                if sgi:
                    interrupt.source |= 1 << (register.physical & 7)
        elif not (register.pending or register.active):
            interrupt.pending_latch = False
        # KVM: vgic_irq_handle_resampling.
        if interrupt.mapped_level and (register.pending or (deactivated and interrupt.line)):
            interrupt.line = self.physical_level(cpu, interrupt)
            if not interrupt.line:
                self.set_physical_active(cpu, interrupt, False)


def _rank(interrupt: Interrupt) -> int:
    """The sort key of an interrupt in an ap_list. KVM v6.12: vgic_irq_cmp.

    Active interrupts come first, since a guest can end only an interrupt that has a list register; then pending ones by
    priority.
    """
    if interrupt.active:
        return -1
    return interrupt.priority if interrupt.enabled and interrupt.pending else LOWEST_PRIORITY + 1


class Deactivation:
    """Passes to the Vgic that a CPU's guest has ended an interrupt that is mapped to the host's."""

    def __init__(self, vgic: Vgic, cpu: GicCpu) -> None:
        self._vgic: Final = vgic
        self._cpu: Final = cpu

    def deactivate(self, physical: int) -> None:
        """The guest deactivated the interrupt."""
        self._vgic.deactivate_physical(self._cpu, physical)
