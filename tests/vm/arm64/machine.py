"""An arm64 VM for tests, with short names for a guest's and user space's actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import Address, Control, DeviceType, Group
from irqchipd.vm.clock import Clock, Deadlines, VirtualClock
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.vcpu_state import Outcome

GICD, GICC, GICR = 0x0800_0000, 0x0801_0000, 0x080A_0000
FRAME = 0x20000
SGI_BASE = 0x10000
PSCI = 4  # the features that every vCPU gets
SPURIOUS = 1023


def spi(intid: int) -> int:
    """KVM_IRQ_LINE's encoding of an SPI."""
    return 1 << 24 | intid


def ppi(vcpu: int, intid: int) -> int:
    """KVM_IRQ_LINE's encoding of a PPI."""
    return (vcpu >> 8) << 28 | 2 << 24 | (vcpu & 0xFF) << 16 | intid


def u64(value: int) -> bytes:
    """An attribute's buffer."""
    return value.to_bytes(8, "little")


@contextmanager
def refused(reason: str, hint: str = "") -> Iterator[None]:
    """Expect a refusal with an errno."""
    with pytest.raises(VmError) as error:
        yield
    assert error.value.reason == reason
    assert hint in error.value.message


class Arm:
    """A VM whose vCPUs are initialised, with a GIC in its usual place."""

    def __init__(
        self,
        gic: int = 3,
        vcpus: int = 1,
        *,
        interrupts: int = 64,
        clock: Clock | None = None,
        deadlines: Deadlines | None = None,
        ready: bool = True,
    ) -> None:
        self.gic = gic
        self.vm = Arm64Vm("arm", clock=clock or VirtualClock(), version=gic, deadlines=deadlines)
        for vcpu in range(vcpus):
            self.vm.create_vcpu(vcpu)
            self.vm.vcpu_init(vcpu, None, PSCI)
        if ready:
            self.create_gic(interrupts)
            self.enable()

    # User space.

    def create_gic(self, interrupts: int = 64) -> None:
        """Create, place and initialise the GIC."""
        self.vm.create_device(DeviceType.GICV2 if self.gic == 2 else DeviceType.GICV3, 0)
        self.set(Group.NR_IRQS, 0, interrupts)
        self.set(Group.ADDR, Address.V2_DIST if self.gic == 2 else Address.V3_DIST, GICD)
        self.set(Group.ADDR, *((Address.V2_CPU, GICC) if self.gic == 2 else (Address.V3_REDIST, GICR)))
        self.set(Group.CTRL, Control.INIT, 0)

    def set(self, group: int, attr: int, value: int, device: int = 0) -> None:
        self.vm.set_device_attr(device, None, group, attr, u64(value))

    def get(self, group: int, attr: int, device: int = 0, before: int = 0) -> int:
        return int.from_bytes(self.vm.get_device_attr(device, None, group, attr, u64(before)), "little")

    def line(self, irq: int, level: int) -> int:
        return self.vm.irq_line(irq, bool(level))

    # The guest.

    def enable(self) -> None:
        """Enable the distributor and every CPU interface, whose priority mask lets everything through."""
        self.write(GICD, 3)
        for vcpu in self.vm.describe().vcpus:
            if self.gic == 2:
                self.write(GICC + 4, 0xF8, vcpu=vcpu)
                self.write(GICC, 1, vcpu=vcpu)
            else:
                self.msr(Icc.PMR, 0xF8, vcpu)
                self.msr(Icc.IGRPEN1, 1, vcpu)

    def configure(self, intid: int, *, level: bool = False, priority: int = 0x80, vcpu: int = 0) -> None:
        """Enable an interrupt of a vCPU, or an SPI for it."""
        base = GICR + FRAME * vcpu + SGI_BASE if intid < 32 and self.gic == 3 else GICD
        self.write(base + 0x400 + intid, priority, 1, vcpu)
        if intid >= 32:
            word = 0xC00 + 4 * (intid >> 4)
            old = self.read(base + word, 4, vcpu)
            bit = 2 << 2 * (intid & 15)
            self.write(base + word, old & ~bit if level else old | bit, 4, vcpu)
            if self.gic == 2:
                self.write(base + 0x800 + intid, 1 << vcpu, 1, vcpu)
            else:
                self.write(base + 0x6000 + 8 * intid, vcpu, 8, vcpu)
        self.write(base + 0x100 + 4 * (intid >> 5), 1 << (intid & 31), 4, vcpu)

    def write(self, address: int, value: int, size: int = 4, vcpu: int = 0) -> None:
        assert self.vm.mmio_write(vcpu, address, size, value) is True

    def read(self, address: int, size: int = 4, vcpu: int = 0) -> int:
        value = self.vm.mmio_read(vcpu, address, size)
        assert isinstance(value, int)
        return value

    def msr(self, register: int, value: int, vcpu: int = 0) -> None:
        assert self.vm.sysreg_write(vcpu, register, value) == 0

    def mrs(self, register: int, vcpu: int = 0) -> int:
        value = self.vm.sysreg_read(vcpu, register)
        assert value is not None
        return value

    def acknowledge(self, vcpu: int = 0) -> int:
        """The guest reads IAR."""
        return self.read(GICC + 0xC, vcpu=vcpu) if self.gic == 2 else self.mrs(Icc.IAR1, vcpu)

    def end(self, intid: int, vcpu: int = 0) -> None:
        """The guest writes EOIR."""
        if self.gic == 2:
            self.write(GICC + 0x10, intid, vcpu=vcpu)
        else:
            self.msr(Icc.EOIR1, intid, vcpu)

    def take(self, vcpu: int = 0) -> int:
        """The guest acknowledges an interrupt, and ends it."""
        intid = self.acknowledge(vcpu)
        if intid != SPURIOUS:
            self.end(intid, vcpu)
        return intid

    def pending(self, intid: int, vcpu: int = 0) -> bool:
        """ISPENDR."""
        if intid < 32 and self.gic == 3:
            return bool(self.read(GICR + FRAME * vcpu + SGI_BASE + 0x200, vcpu=vcpu) >> intid & 1)
        return bool(self.read(GICD + 0x200 + 4 * (intid >> 5), vcpu=vcpu) >> (intid & 31) & 1)

    # Time.

    def elapse(self, nanoseconds: int) -> None:
        """Move the virtual clock by the whole time."""
        while nanoseconds:
            nanoseconds = self.vm.advance(nanoseconds).remaining


class Wfi:
    """A halt and its outcome."""

    def __init__(self, arm: Arm, vcpu: int = 0, timeout_ns: int = 0) -> None:
        self.outcomes: list[Outcome] = []
        self.halt: Halt = arm.vm.halt(vcpu, self.outcomes.append, timeout_ns=timeout_ns)

    @property
    def waits(self) -> bool:
        return not self.outcomes

    @property
    def outcome(self) -> Outcome:
        """The outcome; the halt must have ended exactly once."""
        (outcome,) = self.outcomes
        return outcome
