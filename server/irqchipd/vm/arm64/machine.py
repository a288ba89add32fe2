"""An arm64 VM: a GICv2 or a GICv3, and generic timers."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from irqchipd.chips.gic.list_register import LIST_REGISTERS, PRIORITY_BITS
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.attributes import DeviceAttributes
from irqchipd.vm.arm64.board import Arm64Board
from irqchipd.vm.arm64.capabilities import ENABLED, MAX_VCPU_ID, MSI_DEVID, capabilities
from irqchipd.vm.arm64.capabilities import MAX_VCPUS as MAX_VCPUS_CAPABILITY
from irqchipd.vm.arm64.checks import check_state
from irqchipd.vm.arm64.host import check_host, kinds_of, max_vcpus
from irqchipd.vm.arm64.numbers import CREATE_DEVICE_TEST, MAX_DEVICES, MAX_VCPUS_V3, DeviceType
from irqchipd.vm.arm64.saving import finish_board, restore_board, save_board
from irqchipd.vm.arm64.vcpu_attributes import VcpuAttributes
from irqchipd.vm.arm64.vcpus import Arm64Vcpus
from irqchipd.vm.clock import Clock, Deadlines, RealClock
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.machine import MAX_VCPUS, Description, GicInfo
from irqchipd.vm.regions import ACCESS_NS
from irqchipd.vm.saving import clock_of
from irqchipd.vm.snapshot import ARM64, IRQCHIP_FULL, IRQCHIP_NONE, VmState


class Arm64Vm(Arm64Vcpus):
    """One arm64 VM's GIC and vCPUs. Every method fails with ENOENT once the VM is deleted."""

    def __init__(
        self,
        name: str,
        max_vcpus: int = MAX_VCPUS,
        clock: Clock | None = None,
        version: int = 0,
        list_registers: int = 0,
        priority_bits: int = 0,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> None:
        list_registers, priority_bits = list_registers or LIST_REGISTERS, priority_bits or PRIORITY_BITS
        check_host(version, list_registers, priority_bits)
        deadlines = deadlines if deadlines is not None else Deadlines()
        agenda = Agenda(name, clock if clock is not None else RealClock(deadlines), deadlines)
        super().__init__(agenda, Arm64Board(agenda, list_registers, priority_bits), max_vcpus)
        self._arm.regions.access_ns = access_ns
        self._version = version
        # The kinds of the devices, by their numbers.
        self._devices: list[int] = []
        self._attributes = DeviceAttributes(self._arm, self._devices)
        self._vcpu_attributes = VcpuAttributes(self._arm)

    @property
    def architecture(self) -> int:
        return ARM64

    @property
    def _irqchip_mode(self) -> str:
        return "full" if self._arm.gic is not None else "none"

    @property
    def _device_types(self) -> list[int]:
        return self._devices

    def unsupported(self, operation: str) -> VmError:
        # KVM: arm.c kvm_arch_vm_ioctl
        return invalid(f"VM {self.name!r} is an arm64 VM, and {operation} is for other architectures")

    # Capabilities.

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: a capability's value, or 0."""
        with self._turn:
            self._check_alive()
            if capability in (MAX_VCPUS_CAPABILITY, MAX_VCPU_ID):
                return self._most_vcpus
            if capability == MSI_DEVID:
                return int(bool(self._arm.its))
            return capabilities(self._version).get(capability, 0)

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP: EINVAL for a flag, and for a capability that is not in ENABLED."""
        with self._turn:
            self._check_alive()
            if flags or len(args) > 4:
                raise invalid(f"flags {flags:#x} and {len(args)} args; no flag and at most 4 args are allowed")
            if capability not in ENABLED:
                numbers = ", ".join(map(str, ENABLED))
                raise invalid(f"capability {capability} can't be enabled: use one of {numbers}")

    # Creation.

    @property
    def _most_vcpus(self) -> int:
        """The most vCPUs that the kernel allows, and the highest id plus one."""
        gic = self._arm.gic
        return max_vcpus(self._version if gic is None else gic.version)

    def create_vcpu(self, vcpu: int) -> None:
        """KVM_CREATE_VCPU. KVM: kvm_main.c kvm_vm_ioctl_create_vcpu, arm.c kvm_arch_vcpu_precreate."""
        with self._turn:
            self._check_alive()
            most = self._most_vcpus
            if not 0 <= vcpu < MAX_VCPUS_V3:
                raise invalid(f"vCPU id {vcpu} is out of range: use 0 to {most - 1}")
            if len(self._cpus) >= min(most, self._max_vcpus):
                most = min(most, self._max_vcpus)
                raise invalid(f"VM {self.name!r} has {len(self._cpus)} vCPUs; at most {most} are allowed with its GIC")
            if self._arm.initialised:
                raise VmError(errno.EBUSY, f"the GIC of VM {self.name!r} is initialised; create vCPUs before that")
            if vcpu >= most:
                raise invalid(f"vCPU id {vcpu} is out of range: use 0 to {most - 1}")
            self.add_vcpu(self._arm.add_cpu(vcpu))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: a GICv2, or ENODEV where the host has none."""
        with self._turn:
            self._check_alive()
            self._create_gic(2)

    def create_device(self, kind: int, flags: int) -> int:
        """KVM_CREATE_DEVICE: the device's number, or 0 for a test. KVM: kvm_main.c kvm_ioctl_create_device."""
        with self._turn:
            self._check_alive()
            kinds = kinds_of(self._version)
            if kind not in kinds:
                names = ", ".join(map(str, kinds))
                raise VmError(errno.ENODEV, f"VM {self.name!r} can have no device of type {kind}; there are {names}")
            if flags & CREATE_DEVICE_TEST:
                return 0
            if len(self._devices) >= MAX_DEVICES:
                raise VmError(errno.ENOSPC, f"VM {self.name!r} has {MAX_DEVICES} devices, the most that are allowed")
            if kind == DeviceType.ITS:
                self._arm.add_its()
            elif kind == DeviceType.VFIO:
                if kind in self._devices:
                    raise VmError(errno.EBUSY, f"VM {self.name!r} has a VFIO device already")
            else:
                self._create_gic(2 if kind == DeviceType.GICV2 else 3)
            self._devices.append(kind)
            return len(self._devices) - 1

    def _create_gic(self, version: int) -> None:
        """KVM: vgic-init.c kvm_vgic_create."""
        board = self._arm
        if version == 2 and self._version == 3:
            raise VmError(errno.ENODEV, f"the host of VM {self.name!r} has only a GICv3: create that device")
        if board.gic is not None:
            raise VmError(errno.EEXIST, f"VM {self.name!r} has a GIC already: use that one")
        if any(cpu.has_run for cpu in board.cpus):
            raise VmError(errno.EBUSY, f"vCPUs of VM {self.name!r} have run; the GIC must be created before that")
        if len(board.cpus) > max_vcpus(version):
            raise VmError(errno.E2BIG, f"a GICv{version} has at most {max_vcpus(version)} vCPUs")
        board.add_gic(version)

    # Attributes.

    def set_device_addr(self, number: int, address: int) -> None:
        """KVM_ARM_SET_DEVICE_ADDR."""
        with self._turn:
            self._check_alive()
            self._attributes.gic.set_device_addr(number, address)

    def set_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, data: bytes) -> None:
        """KVM_SET_DEVICE_ATTR on a device or a vCPU; data is what addr points to."""
        with self._turn:
            if vcpu is not None:
                cpu = self._arm_cpu(vcpu)
                self._check_alive()
                self._vcpu_attributes.set(cpu, group, attr, data)
            else:
                self._attributes.set(self._device(device), group, attr, data)

    def get_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int, data: bytes) -> bytes:
        """KVM_GET_DEVICE_ATTR on a device or a vCPU: the bytes at addr afterwards; data are those before."""
        with self._turn:
            if vcpu is not None:
                cpu = self._arm_cpu(vcpu)
                self._check_alive()
                return self._vcpu_attributes.get(cpu, group, attr, data)
            return self._attributes.get(self._device(device), group, attr, data)

    def has_device_attr(self, device: int | None, vcpu: int | None, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR on a device or a vCPU: ENXIO for an unknown attribute."""
        with self._turn:
            if vcpu is not None:
                self._arm_cpu(vcpu)
                self._check_alive()
                self._vcpu_attributes.has(group, attr)
            else:
                self._attributes.has(self._device(device), group, attr)

    def _device(self, device: int | None) -> int:
        """Check a device's number: EBADF for an unknown device."""
        if device is None or not 0 <= device < len(self._devices):
            raise VmError(errno.EBADF, f"VM {self.name!r} has no device {device}; create it first")
        self._check_alive()
        return device

    # About the VM.

    def describe(self, sources_after: int = 0, room: int | None = None, *, one_at_least: bool = False) -> Description:
        board = self._arm
        gic = GicInfo(
            version=0 if board.gic is None else board.gic.version,
            initialised=board.initialised,
            interrupts=board.interrupts_wanted,
            host_version=self._version,
            list_registers=board.list_registers,
            priority_bits=board.priority_bits,
        )
        description = super().describe(sources_after, room, one_at_least=one_at_least)
        return replace(description, gic=gic)

    # All of it.

    def _save(self, **common: Any) -> VmState:
        board = self._arm
        return VmState(
            architecture=ARM64,
            irqchip_mode=IRQCHIP_NONE if board.gic is None else IRQCHIP_FULL,
            arm64=save_board(board, self._version, self._devices),
            **common,
        )

    @classmethod
    def restored(
        cls,
        name: str,
        max_vcpus: int,
        state: VmState,
        access_ns: int = ACCESS_NS,
        deadlines: Deadlines | None = None,
    ) -> Self:
        """A VM from a snapshot: EINVAL where no VM can have this state. Its clock continues from the saved time."""
        saved = check_state(state, max_vcpus)
        deadlines = deadlines if deadlines is not None else Deadlines()
        clock = clock_of(state, deadlines)
        host = saved.gic_version, saved.list_registers, saved.priority_bits
        vm = cls(name, max_vcpus, clock, *host, access_ns, deadlines)
        with vm._turn:
            vm._devices.extend(saved.devices)
            restore_board(vm._arm, state, saved)
            vm._resume_sources(state)
            finish_board(vm._arm, state, saved)
            vm._cpus = dict(vm._arm.cpu_of)
        return vm
