"""arm64's traces on the chips alone, without a daemon: irqchipd's own Arm64Vm, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from irqchipd.chips.fault import FAULT
from irqchipd.vm.architectures import Gic, check_extension
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.lines import Irqfd
from irqchipd.vm.regions import Access
from irqchipd.vm.routing import MsiRoute, PinRoute, Route
from irqchipd.vm.snapshot import ARM64
from irqchipd.vm.sources import SHARED, LineSource

from .arm64 import SYSREGS, UNCLAIMED, UNDEFINED

DEASSIGN, RESAMPLE = 1, 2  # KVM_IRQFD_FLAG_*


class Slot:
    """An eventfd and a resample eventfd, which a trace may make an irqfd."""

    def __init__(self) -> None:
        self.count = 0
        self.resampled = 0
        self.irqfd: Irqfd | None = None

    def resample(self, _: object) -> None:
        """The SPI was ended."""
        self.resampled += 1


class Arm64Player:
    """Executes each operation on a VM, and returns the answer in the traces' form."""

    vm: Arm64Vm

    def __init__(self, gic: int) -> None:
        self._gic = gic
        self.new_vm()
        self.operations: dict[str, Callable[..., Any]] = {
            "new_vm": self.new_vm,
            "create_irqchip": self.create_irqchip,
            "create_device": self.create_device,
            "device_addr": self.device_addr,
            "set_attr": self.set_attr,
            "get_attr": self.get_attr,
            "has_attr": self.has_attr,
            "create_vcpu": self.create_vcpu,
            "vcpu_init": self.vcpu_init,
            "vcpu_set_attr": self.vcpu_set_attr,
            "vcpu_get_attr": self.vcpu_get_attr,
            "vcpu_has_attr": self.vcpu_has_attr,
            "irq_line": self.irq_line,
            "set_gsi_routing": self.set_gsi_routing,
            "irqfd": self.irqfd,
            "irqfd_signal": self.irqfd_signal,
            "irqfd_resampled": self.irqfd_resampled,
            "signal_msi": self.signal_msi,
            "check_extension": self.check_extension,
            "read": self.read,
            "write": self.write,
            "mrs": self.mrs,
            "msr": self.msr,
            "state": self.state,
        }

    def execute(self, name: str, arguments: Sequence[Any]) -> Any:
        """Do an operation, and return its answer."""
        try:
            return self.operations[name](*arguments)
        except VmError as error:
            return f"-{error.reason}"

    def new_vm(self) -> int:
        """Begin with a new VM. Time stands still: no answer depends on it."""
        self.vm = Arm64Vm("replay", clock=VirtualClock(), version=self._gic)
        self.slots: dict[int, Slot] = {}
        self._shared = LineSource(SHARED)
        return 0

    def create_irqchip(self) -> int:
        self.vm.create_irqchip()
        return 0

    def create_device(self, kind: int, flags: int) -> int:
        self.vm.create_device(kind, flags)
        return 0

    def device_addr(self, number: int, address: int) -> int:
        self.vm.set_device_addr(number, address)
        return 0

    def set_attr(self, device: int, group: int, attr: int, value: int) -> int:
        self.vm.set_device_attr(device, None, group, attr, value.to_bytes(8, "little"))
        return 0

    def get_attr(self, device: int, group: int, attr: int, before: int) -> int:
        data = self.vm.get_device_attr(device, None, group, attr, before.to_bytes(8, "little"))
        return int.from_bytes(data, "little")

    def has_attr(self, device: int, group: int, attr: int) -> int:
        self.vm.has_device_attr(device, None, group, attr)
        return 0

    def create_vcpu(self, vcpu: int) -> int:
        self.vm.create_vcpu(vcpu)
        return 0

    def vcpu_init(self, vcpu: int, features: int, target: int) -> int:
        self.vm.vcpu_init(vcpu, None if target < 0 else target, features)
        return 0

    def vcpu_set_attr(self, vcpu: int, group: int, attr: int, value: int) -> int:
        self.vm.set_device_attr(None, vcpu, group, attr, value.to_bytes(8, "little"))
        return 0

    def vcpu_get_attr(self, vcpu: int, group: int, attr: int, before: int) -> int:
        data = self.vm.get_device_attr(None, vcpu, group, attr, before.to_bytes(8, "little"))
        return int.from_bytes(data, "little")

    def vcpu_has_attr(self, vcpu: int, group: int, attr: int) -> int:
        self.vm.has_device_attr(None, vcpu, group, attr)
        return 0

    def irq_line(self, irq: int, level: int) -> int:
        return self.vm.irq_line(irq, level != 0)

    def set_gsi_routing(self, table: Sequence[Sequence[Any]], flags: int) -> int:
        self.vm.check_alive()
        if flags:
            raise invalid(f"flags {flags:#x} of a routing table; only 0 is allowed")
        self.vm.set_routing([_route(*entry) for entry in table])
        return 0

    def irqfd(self, slot: int, gsi: int, flags: int) -> int | str:
        """KVM_IRQFD, as in PortEventfds, with numbers in the place of eventfds."""
        self.vm.check_alive()
        if flags & ~(DEASSIGN | RESAMPLE):
            raise invalid(f"flags {flags:#x} of an irqfd")
        one = self.slots.setdefault(slot, Slot())
        if flags & DEASSIGN:
            if one.irqfd is not None and one.irqfd.gsi == gsi:
                self.vm.remove_irqfd(one.irqfd)
                one.irqfd, one.count = None, 0
            return 0
        added = self.vm.add_irqfd(self._shared, gsi, one.resample if flags & RESAMPLE else None)
        if one.irqfd is not None:
            # KVM reports an eventfd that is in use only after it has found the resampler.
            self.vm.remove_irqfd(added)
            return "-EBUSY"
        one.irqfd = added
        if one.count:
            self.vm.trigger(added, assigned=True)
        return 0

    def irqfd_signal(self, slot: int) -> int:
        one = self.slots.setdefault(slot, Slot())
        one.count += 1
        if one.irqfd is not None:
            one.count = 0
            self.vm.trigger(one.irqfd)
        return 0

    def irqfd_resampled(self, slot: int) -> int:
        one = self.slots.setdefault(slot, Slot())
        resampled, one.resampled = one.resampled, 0
        return resampled

    def signal_msi(self, address: int, data: int, flags: int, _devid: int) -> int:
        return self.vm.signal_msi(address, data, flags)

    def check_extension(self, whose: str, capability: int) -> int:
        if whose == "vm":
            return self.vm.check_extension(capability)
        return check_extension(ARM64, Gic(self._gic), capability)

    def read(self, vcpu: int, address: int, size: int) -> int | str:
        value = self.vm.mmio_read(vcpu, address, size)
        assert not isinstance(value, Access), "the VM has no regions"
        return UNCLAIMED if value is None else value

    def write(self, vcpu: int, address: int, size: int, value: int) -> str | None:
        return None if self.vm.mmio_write(vcpu, address, size, value) else UNCLAIMED

    def mrs(self, vcpu: int, register: str) -> int | str | None:
        value = self.vm.sysreg_read(vcpu, SYSREGS[register])
        return UNDEFINED if value == FAULT else value

    def msr(self, vcpu: int, register: str, value: int) -> str | None:
        return UNDEFINED if self.vm.sysreg_write(vcpu, SYSREGS[register], value) == FAULT else None

    def state(self, device: int, blocks: Sequence[Sequence[int]]) -> list[Any]:
        """Read the attributes that blocks name."""
        return [
            [group, first, step, [self.execute("get_attr", (device, group, first + step * n, 0)) for n in range(count)]]
            for group, first, step, count in blocks
        ]


def _route(gsi: int, to: str | int, *where: Any) -> Route:
    if to == "irqchip":
        return PinRoute(gsi, *where)
    if to == "msi":
        address, data, devid = where
        return MsiRoute(gsi, address, data, flags=int(devid is not None))
    raise invalid(f"a route of type {to}")
