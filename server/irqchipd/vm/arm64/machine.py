"""An arm64 VM: a GICv2 or a GICv3, and generic timers."""

from __future__ import annotations

from irqchipd.vm.machine import Vm


class Arm64Vm(Vm):
    """One arm64 VM's GIC and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def set_device_addr(self, number: int, address: int) -> None:
        """KVM_ARM_SET_DEVICE_ADDR."""
        raise NotImplementedError

    def vcpu_init(self, vcpu: int, target: int | None, features: int) -> None:
        """KVM_ARM_VCPU_INIT; without a target, with the preferred one."""
        raise NotImplementedError

    def sysreg_read(self, vcpu: int, sysreg: int) -> int | None:
        """A vCPU's MRS: the value, FAULT, or None for a register that irqchipd has not."""
        raise NotImplementedError

    def sysreg_write(self, vcpu: int, sysreg: int, value: int) -> int | None:
        """A vCPU's MSR: 0, FAULT, or None for a register that irqchipd has not."""
        raise NotImplementedError
