"""The distributor's state of one interrupt (KVM: struct vgic_irq, include/kvm/arm_vgic.h)."""

from __future__ import annotations

from typing import Final

SGIS: Final = 16  # software-generated interrupts: INTIDs 0 to 15, one set per CPU
PRIVATE: Final = 32  # SGIs, and the private peripheral interrupts (PPIs) from 16; shared ones (SPIs) follow
NOBODY: Final = -1  # instead of a CPU's index
NO_OWNER: Final = 0  # instead of the number of a device in the kernel


class Interrupt:
    """The distributor's state of one interrupt. A CPU is named by its index, 0 for the first created."""

    __slots__ = (
        "active",
        "active_source",
        "affinity",
        "enabled",
        "group",
        "hardware",
        "intid",
        "level",
        "line",
        "owner",
        "pending_latch",
        "physical",
        "priority",
        "queued_on",
        "source",
        "target",
        "targets",
    )

    def __init__(self, intid: int) -> None:
        self.intid: Final = intid
        self.enabled = intid < SGIS
        # Level-triggered. SGIs and SPIs are edge-triggered at first (KVM: vgic_init, kvm_vgic_dist_init).
        self.level = SGIS <= intid < PRIVATE
        self.group = 0
        self.priority = 0
        # The input's level. KVM tracks a line only while its interrupt is level-triggered.
        self.line = False
        # Pending by an edge or by a register write.
        self.pending_latch = False
        self.active = False
        # GICv2's SGIs: the CPUs with a pending SGI, one bit each; the CPU whose SGI is active.
        self.source = 0
        self.active_source = 0
        # GICv2: GICD_ITARGETSR. GICv3: the affinity in GICD_IROUTER.
        self.targets = 0
        self.affinity = 0
        # The CPU that gets this interrupt next, and the CPU whose ap_list has this interrupt (irq->vcpu).
        self.target = NOBODY
        self.queued_on = NOBODY
        # The kernel's device, by the VM's number, that is the only driver of the line (irq->owner).
        self.owner = NO_OWNER
        # Whether the guest's EOI deactivates an interrupt of the host, and that interrupt's INTID.
        self.hardware = False
        self.physical = 0

    @property
    def pending(self) -> bool:
        """Whether the interrupt is pending. KVM: irq_is_pending."""
        return self.pending_latch or (self.level and self.line)

    @property
    def mapped_level(self) -> bool:
        """Whether the host's interrupt reports that the line rises. KVM: vgic_irq_is_mapped_level."""
        return self.level and self.hardware

    @property
    def weight(self) -> int:
        """The number of list registers that the interrupt would fill. KVM: vgic_irq_get_lr_count."""
        if self.source:
            return self.source.bit_count() + self.active
        return int(self.pending or self.active)
