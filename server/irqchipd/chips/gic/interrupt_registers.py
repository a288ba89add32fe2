"""Registers with bits for each interrupt, which the distributors and redistributors of GICv2 and GICv3 have in common.

KVM: vgic-mmio.c. The registers of SGIs and PPIs are banked: a CPU accesses its own.
"""

from __future__ import annotations

from typing import Final

from irqchipd.chips.gic.interrupt import PRIVATE, SGIS, Interrupt
from irqchipd.chips.gic.vgic import PRIORITY_MASK, GicCpu, Vgic

EDGE: Final = 2  # of the two bits in GICD_ICFGR; the other one is 0


class InterruptRegisters:
    """The handlers. The name of a handler begins with user if it is only for user space's accesses."""

    def __init__(self, vgic: Vgic) -> None:
        self.vgic: Final = vgic

    def read_group(self, cpu: GicCpu, first: int, count: int) -> int:
        """IGROUPR. KVM: vgic_mmio_read_group."""
        value = 0
        for n in range(count):
            value |= self.vgic.interrupt(cpu, first + n).group << n
        return value

    def write_group(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """IGROUPR. KVM: vgic_mmio_write_group."""
        for n in range(count):
            interrupt = self.vgic.interrupt(cpu, first + n)
            interrupt.group = value >> n & 1
            self.vgic.queue(interrupt)

    def read_enabled(self, cpu: GicCpu, first: int, count: int) -> int:
        """ISENABLER and ICENABLER. KVM: vgic_mmio_read_enable."""
        value = 0
        for n in range(count):
            value |= self.vgic.interrupt(cpu, first + n).enabled << n
        return value

    def enable(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISENABLER. KVM: vgic_mmio_write_senable."""
        for interrupt in self._named(cpu, first, count, value):
            if interrupt.mapped_level:
                # The guest may have changed the device while the interrupt was disabled.
                was_high = interrupt.line
                interrupt.line = self.vgic.physical_level(cpu, interrupt)
                if not interrupt.active and was_high and not interrupt.line:
                    self.vgic.set_physical_active(cpu, interrupt, False)
            interrupt.enabled = True
            self.vgic.queue(interrupt)

    def user_enable(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISENABLER. KVM: vgic_uaccess_write_senable."""
        for interrupt in self._named(cpu, first, count, value):
            interrupt.enabled = True
            self.vgic.queue(interrupt)

    def disable(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICENABLER. KVM: vgic_mmio_write_cenable, vgic_uaccess_write_cenable."""
        for interrupt in self._named(cpu, first, count, value):
            interrupt.enabled = False

    def read_pending(self, cpu: GicCpu, first: int, count: int) -> int:
        """ISPENDR and ICPENDR. KVM: vgic_mmio_read_pending."""
        value = 0
        for n in range(count):
            interrupt = self.vgic.interrupt(cpu, first + n)
            if interrupt.mapped_level:
                value |= self.vgic.physical_level(cpu, interrupt) << n
            else:
                value |= interrupt.pending << n
        return value

    def user_read_pending(self, cpu: GicCpu, first: int, count: int) -> int:
        """ISPENDR and ICPENDR; a GICv3's have only the latches, without the lines. KVM: vgic_uaccess_read_pending."""
        value = 0
        for n in range(count):
            interrupt = self.vgic.interrupt(cpu, first + n)
            value |= (interrupt.pending_latch if self.vgic.version == 3 else interrupt.pending) << n
        return value

    def set_pending(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISPENDR; the bits of a GICv2's SGIs are read-only. KVM: vgic_mmio_write_spending."""
        for interrupt in self._named(cpu, first, count, value):
            if self._has_sources(interrupt):
                continue
            interrupt.pending_latch = True
            if interrupt.hardware:
                self.vgic.set_physical_active(cpu, interrupt, True)
            self.vgic.queue(interrupt)

    def user_set_pending(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISPENDR; a GICv2's SGI gets the CPU itself as its source. KVM: vgic_uaccess_write_spending."""
        for interrupt in self._named(cpu, first, count, value):
            if self._has_sources(interrupt):
                interrupt.source |= 1 << cpu.id & 0xFF
            interrupt.pending_latch = True
            self.vgic.queue(interrupt)

    def user_write_pending(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISPENDR of a GICv3, where zeros clear latches. KVM: vgic_v3_uaccess_write_pending."""
        for n in range(count):
            interrupt = self.vgic.interrupt(cpu, first + n)
            interrupt.pending_latch = bool(value >> n & 1)
            if interrupt.pending_latch:
                self.vgic.queue(interrupt)

    def clear_pending(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICPENDR; the bits of a GICv2's SGIs are read-only. KVM: vgic_mmio_write_cpending."""
        for interrupt in self._named(cpu, first, count, value):
            if self._has_sources(interrupt):
                continue
            interrupt.pending_latch = False
            # KVM: vgic_hw_irq_cpending; otherwise a guest could mask the host's interrupt.
            if interrupt.hardware and not interrupt.active:
                self.vgic.set_physical_active(cpu, interrupt, False)

    def user_clear_pending(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICPENDR; a GICv2's SGI loses all its sources. KVM: vgic_uaccess_write_cpending."""
        for interrupt in self._named(cpu, first, count, value):
            if self._has_sources(interrupt):
                interrupt.source = 0
            interrupt.pending_latch = False

    def read_active(self, cpu: GicCpu, first: int, count: int) -> int:
        """ISACTIVER and ICACTIVER. KVM: vgic_mmio_read_active."""
        value = 0
        for n in range(count):
            value |= self.vgic.interrupt(cpu, first + n).active << n
        return value

    def set_active(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISACTIVER. KVM: vgic_mmio_write_sactive; the CPU that writes becomes the source of a GICv2's SGI."""
        self._change_active(cpu, first, count, value, active=True, source=cpu.id, user=False)

    def user_set_active(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ISACTIVER. KVM: vgic_mmio_uaccess_write_sactive; CPU 0 becomes the source of a GICv2's SGI."""
        self._change_active(cpu, first, count, value, active=True, source=0, user=True)

    def clear_active(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICACTIVER. KVM: vgic_mmio_write_cactive."""
        self._change_active(cpu, first, count, value, active=False, source=0, user=False)

    def user_clear_active(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICACTIVER. KVM: vgic_mmio_uaccess_write_cactive."""
        self._change_active(cpu, first, count, value, active=False, source=0, user=True)

    def _change_active(
        self, cpu: GicCpu, first: int, count: int, value: int, *, active: bool, source: int, user: bool
    ) -> None:
        """KVM: vgic_mmio_change_active."""
        for interrupt in self._named(cpu, first, count, value):
            if interrupt.hardware:
                # KVM: vgic_hw_irq_change_active; user space can't change the host's state.
                if not user:
                    interrupt.active = active
                    self.vgic.set_physical_active(cpu, interrupt, active)
            else:
                interrupt.active = active
                if active and self._has_sources(interrupt):
                    interrupt.active_source = source
            if interrupt.active:
                self.vgic.queue(interrupt)

    def read_priority(self, cpu: GicCpu, first: int, count: int) -> int:
        """IPRIORITYR. KVM: vgic_mmio_read_priority."""
        value = 0
        for n in range(count):
            value |= self.vgic.interrupt(cpu, first + n).priority << 8 * n
        return value

    def write_priority(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """IPRIORITYR. KVM: vgic_mmio_write_priority."""
        for n in range(count):
            self.vgic.interrupt(cpu, first + n).priority = value >> 8 * n & PRIORITY_MASK

    def read_config(self, cpu: GicCpu, first: int, count: int) -> int:
        """ICFGR. KVM: vgic_mmio_read_config."""
        value = 0
        for n in range(count):
            if not self.vgic.interrupt(cpu, first + n).level:
                value |= EDGE << 2 * n
        return value

    def write_config(self, cpu: GicCpu, first: int, count: int, value: int) -> None:
        """ICFGR; SGIs are always edge-triggered, and PPIs level-triggered. KVM: vgic_mmio_write_config."""
        for n in range(count):
            if first + n >= PRIVATE:
                self.vgic.interrupt(cpu, first + n).level = not value >> 2 * n & EDGE

    def _has_sources(self, interrupt: Interrupt) -> bool:
        """Whether an interrupt is pending per source: an SGI of a GICv2. KVM: is_vgic_v2_sgi."""
        return interrupt.intid < SGIS and self.vgic.version == 2

    def _named(self, cpu: GicCpu, first: int, count: int, value: int) -> list[Interrupt]:
        """The interrupts whose bits are set, the lowest INTID first."""
        return [self.vgic.interrupt(cpu, first + n) for n in range(count) if value >> n & 1]
