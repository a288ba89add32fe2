"""The order in which a VM's GIC and vCPUs come to be, and what each step out of order answers."""

from __future__ import annotations

import pytest

from irqchipd.vm.architectures import Gic, Properties
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import Address, Control, DeviceType, Group
from irqchipd.vm.registry import Registry
from irqchipd.vm.snapshot import ARM64, X86
from irqchipd.vm.vcpu_state import MpState
from tests.vm.arm64.machine import GICC, GICD, GICR, PSCI, Arm, refused, spi, u64

TEST = 1


def bare(gic: int = 3) -> Arm:
    return Arm(gic, 0, ready=False)


class TestDevices:
    @pytest.mark.parametrize(("host", "kind"), [(2, DeviceType.GICV3), (2, DeviceType.ITS), (3, DeviceType.GICV2)])
    def test_a_host_has_the_devices_of_its_own_gic(self, host: int, kind: int) -> None:
        with refused("ENODEV"):
            bare(host).vm.create_device(kind, 0)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_host_of_either_gic_has_both(self, version: int) -> None:
        vm = Arm64Vm("either")
        vm.create_device(DeviceType.GICV2 if version == 2 else DeviceType.GICV3, 0)
        assert vm.describe().irqchip_mode == "full"

    def test_devices_are_numbered_in_order(self) -> None:
        vm = bare().vm
        assert [vm.create_device(kind, 0) for kind in (DeviceType.ITS, DeviceType.GICV3, DeviceType.ITS)] == [0, 1, 2]

    def test_a_test_makes_nothing(self) -> None:
        vm = bare().vm
        assert vm.create_device(DeviceType.GICV3, TEST) == 0
        assert vm.describe().irqchip_mode == "none"
        assert vm.create_device(DeviceType.GICV3, 2) == 0, "KVM ignores other flags"
        assert vm.describe().irqchip_mode == "full"

    def test_there_is_one_gic(self) -> None:
        vm = bare(2).vm
        vm.create_irqchip()
        with refused("EEXIST"):
            vm.create_irqchip()
        with refused("EEXIST"):
            vm.create_device(DeviceType.GICV2, 0)

    def test_a_gicv3_host_makes_no_irqchip(self) -> None:
        with refused("ENODEV"):
            bare(3).vm.create_irqchip()

    def test_there_is_no_gic_for_a_vcpu_that_has_run(self) -> None:
        arm = Arm(3, 1, ready=False)
        assert arm.vm.mmio_read(0, GICD, 4) is None
        with refused("EBUSY"):
            arm.vm.create_device(DeviceType.GICV3, 0)

    def test_a_gicv2_has_room_for_eight_vcpus(self) -> None:
        vm = Arm64Vm("many")
        for vcpu in range(9):
            vm.create_vcpu(vcpu)
        with refused("E2BIG"):
            vm.create_device(DeviceType.GICV2, 0)
        vm.create_device(DeviceType.GICV3, 0)

    def test_devices_do_not_grow_for_ever(self) -> None:
        vm = bare().vm
        for _ in range(64):
            vm.create_device(DeviceType.ITS, 0)
        with refused("ENOSPC"):
            vm.create_device(DeviceType.ITS, 0)

    def test_a_device_that_is_not_there(self) -> None:
        vm = bare().vm
        for device in (0, None, -1):
            with refused("EBADF"):
                vm.set_device_attr(device, None, Group.CTRL, Control.INIT, u64(0))


class TestVcpus:
    @pytest.mark.parametrize(("host", "most"), [(2, 8), (3, 512), (0, 512)])
    def test_ids_are_below_the_most_that_the_gic_allows(self, host: int, most: int) -> None:
        vm = Arm64Vm("ids", version=host)
        vm.create_vcpu(most - 1)
        with refused("EINVAL", str(most - 1)):
            vm.create_vcpu(most)
        with refused("EEXIST"):
            vm.create_vcpu(most - 1)

    def test_there_is_none_behind_the_initialisation(self) -> None:
        with refused("EBUSY"):
            Arm(3).vm.create_vcpu(1)

    def test_a_daemon_s_own_limit(self) -> None:
        vm = Arm64Vm("small", 1)
        vm.create_vcpu(0)
        with refused("EINVAL", "at most 1"):
            vm.create_vcpu(1)

    def test_a_vcpu_is_initialised_before_it_runs(self) -> None:
        vm = bare().vm
        vm.create_vcpu(0)
        with refused("ENOEXEC"):
            vm.mmio_read(0, GICD, 4)
        with refused("ENOEXEC"):
            vm.halt(0, print)
        with refused("EINVAL"):
            vm.vcpu_init(0, 0, PSCI)
        with refused("ENOENT"):
            vm.vcpu_init(0, None, 1 << 7)
        with refused("EINVAL"):
            vm.vcpu_init(0, None, 1 << 4)  # SVE
        with refused("ENOENT"):
            vm.vcpu_init(1, None, PSCI)
        vm.vcpu_init(0, 5, PSCI)
        assert vm.mmio_read(0, GICD, 4) is None

    def test_all_vcpus_have_the_same_features(self) -> None:
        vm = Arm(3, 2, ready=False).vm
        with refused("EINVAL"):
            vm.vcpu_init(1, None, 0)
        vm.vcpu_init(1, None, PSCI | 1)
        assert vm.get_mp_state(1) == MpState.STOPPED

    def test_run_states(self) -> None:
        vm = Arm(3).vm
        for state in (MpState.STOPPED, MpState.SUSPENDED, 0):
            vm.set_mp_state(0, state)
            assert vm.get_mp_state(0) == state
        with refused("EINVAL"):
            vm.set_mp_state(0, 3)
        with refused("ENOENT"):
            vm.set_mp_state(4, 0)


class TestInitialisation:
    def test_the_number_of_interrupts_is_set_once(self) -> None:
        arm = bare()
        arm.vm.create_device(DeviceType.GICV3, 0)
        assert arm.get(Group.NR_IRQS, 0) == 32
        for bad in (0, 32, 63, 65, 1024):
            with refused("EINVAL"):
                arm.set(Group.NR_IRQS, 0, bad)
        arm.set(Group.NR_IRQS, 0, 992)
        with refused("EBUSY"):
            arm.set(Group.NR_IRQS, 0, 64)
        assert arm.get(Group.NR_IRQS, 0, before=7 << 32) == 7 << 32 | 992, "the upper half of the buffer stays"

    def test_without_a_number_there_are_256(self) -> None:
        arm = bare()
        arm.vm.create_device(DeviceType.GICV3, 0)
        arm.set(Group.CTRL, Control.INIT, 0)
        assert arm.get(Group.NR_IRQS, 0) == 256
        assert len(arm.vm.routing()) == 224

    def test_a_gicv2_initialises_itself_and_a_gicv3_does_not(self) -> None:
        v2, v3 = (Arm(gic, 1, ready=False) for gic in (2, 3))
        v2.vm.create_device(DeviceType.GICV2, 0)
        v3.vm.create_device(DeviceType.GICV3, 0)
        assert v2.get(Group.DIST_REGS, 8) == 0x4B00343B
        with refused("EBUSY"):
            v3.get(Group.DIST_REGS, 8)
        assert v2.line(spi(40), 1) == 0
        with refused("EBUSY"):
            v3.line(spi(40), 1)

    @pytest.mark.parametrize("gic", [2, 3])
    def test_a_vcpu_that_runs_too_early_kills_the_vm(self, gic: int) -> None:
        arm = Arm(gic, 1, ready=False)
        arm.vm.create_device(DeviceType.GICV2 if gic == 2 else DeviceType.GICV3, 0)
        with refused("ENXIO"):
            arm.vm.mmio_read(0, GICD, 4)
        for operation in (
            lambda: arm.vm.mmio_read(0, GICD, 4),
            lambda: arm.vm.create_vcpu(1),
            lambda: arm.vm.vcpu_init(0, None, PSCI),
            lambda: arm.vm.create_device(DeviceType.ITS, 0),
            lambda: arm.vm.create_irqchip(),
            lambda: arm.get(Group.NR_IRQS, 0),
            lambda: arm.set(Group.CTRL, Control.INIT, 0),
            lambda: arm.line(spi(40), 1),
            lambda: arm.vm.irq_lines([spi(40) << 1]),
            lambda: arm.vm.signal_msi(0, 0),
            lambda: arm.vm.set_routing(()),
            lambda: arm.vm.check_irqfd(False),
            lambda: arm.vm.check_extension(0),
            lambda: arm.vm.enable_cap(177),
            lambda: arm.vm.get_mp_state(0),
            lambda: arm.vm.set_mp_state(0, 0),
            lambda: arm.vm.set_device_addr(0, GICD),
            lambda: arm.vm.has_device_attr(None, 0, 1, 0),
            lambda: arm.vm.halt(0, print),
            arm.vm.check_alive,
        ):
            with refused("EIO", "dead"):
                operation()
        assert arm.vm.describe().vcpus == [0], "a dead VM can be described, and deleted"
        arm.vm.delete()

    def test_overlapping_frames_kill_the_vm(self) -> None:
        arm = Arm(2, 1, ready=False)
        arm.vm.create_irqchip()
        arm.vm.set_device_addr(0, GICC + 0x1000)
        arm.vm.set_device_addr(1, GICC)
        with refused("EINVAL"):
            arm.vm.mmio_read(0, GICD, 4)
        with refused("EIO"):
            arm.vm.check_alive()


class TestAddresses:
    def test_they_are_checked_in_kvm_s_order(self) -> None:
        arm = bare()
        arm.vm.create_device(DeviceType.GICV3, 0)
        with refused("EINVAL"):
            arm.set(Group.ADDR, Address.V3_DIST, GICD + 0x1000)
        with refused("E2BIG"):
            arm.set(Group.ADDR, Address.V3_DIST, 1 << 40)
        with refused("E2BIG"):
            arm.set(Group.ADDR, Address.V3_REDIST_REGION, 1 << 52 | (1 << 40) - 0x10000)
        with refused("ENXIO"):
            arm.set(Group.ADDR, Address.V2_DIST, GICD)
        with refused("EFAULT"):
            arm.vm.set_device_attr(0, None, Group.ADDR, Address.V3_DIST, bytes(7))
        assert arm.get(Group.ADDR, Address.V3_DIST) == (1 << 64) - 1
        arm.set(Group.ADDR, Address.V3_DIST, GICD)
        with refused("EEXIST"):
            arm.set(Group.ADDR, Address.V3_DIST, GICD)
        assert arm.get(Group.ADDR, Address.V3_DIST) == GICD

    def test_the_older_call_is_a_gicv2_s(self) -> None:
        arm = bare(2)
        with refused("ENODEV"):
            arm.vm.set_device_addr(0, GICD)
        arm.vm.create_irqchip()
        with refused("ENODEV"):
            arm.vm.set_device_addr(5, GICD)
        with refused("ENODEV"):
            arm.vm.set_device_addr(1 << 16, GICD)
        arm.vm.set_device_addr(0, GICD)
        with refused("EEXIST"):
            arm.vm.set_device_addr(0, GICD)

    def test_a_vcpu_whose_redistributor_finds_no_place_is_not_made(self) -> None:
        arm = bare()
        arm.vm.create_device(DeviceType.GICV3, 0)
        arm.set(Group.ADDR, Address.V3_REDIST_REGION, 1 << 52 | GICR)
        arm.set(Group.ADDR, Address.V3_DIST, GICR)
        with refused("EINVAL"):
            arm.vm.create_vcpu(0)
        assert arm.vm.describe().vcpus == []

    def test_a_failed_creation_uses_up_a_place(self) -> None:
        """KVM: free_index counts it."""
        arm = bare()
        arm.vm.create_device(DeviceType.GICV3, 0)
        arm.set(Group.ADDR, Address.V3_REDIST_REGION, 3 << 52 | GICR)
        arm.set(Group.ADDR, Address.V3_DIST, GICD)
        for vcpu in (0, 0, 1):
            if arm.vm.describe().vcpus == [0] and vcpu == 0:
                with refused("EEXIST"):
                    arm.vm.create_vcpu(vcpu)
            else:
                arm.vm.create_vcpu(vcpu)
            arm.vm.vcpu_init(vcpu, None, PSCI)
        arm.set(Group.CTRL, Control.INIT, 0)
        assert arm.vm.mmio_read(0, GICR + 8, 4) == 0
        assert arm.vm.mmio_read(0, GICR + 0x20000 + 8, 4) is None
        assert arm.vm.mmio_read(0, GICR + 0x40000 + 8, 4) == 1 << 8 | 1 << 4, "vCPU 1, the last"


class TestProperties:
    def test_a_registry_makes_arm64_vms(self) -> None:
        registry = Registry(9)
        vm = registry.create("a", architecture=ARM64, properties=Properties(gic=Gic(3, 16, 7)))
        assert vm.describe().architecture == ARM64
        assert registry.restore("b", vm.save()).save() == vm.save()

    @pytest.mark.parametrize("gic", [Gic(1), Gic(4), Gic(3, 17), Gic(3, 0, 4), Gic(3, 0, 8)], ids=str)
    def test_a_gic_that_no_host_has(self, gic: Gic) -> None:
        with refused("EINVAL"):
            Registry(9).create("a", architecture=ARM64, properties=Properties(gic=gic))

    def test_a_tsc_is_x86_s_and_a_gic_arm64_s(self) -> None:
        with refused("EINVAL", "tsc_khz"):
            Registry(9).create("a", architecture=ARM64, properties=Properties(tsc_khz=1))
        with refused("EINVAL", "gic"):
            Registry(9).create("a", architecture=X86, properties=Properties(gic=Gic(3)))

    def test_x86_s_operations_are_refused(self) -> None:
        assert Arm(3).vm.unsupported("create_pit").reason == "EINVAL"
        assert "create_pit" in Arm(3).vm.unsupported("create_pit").message

    def test_capabilities_that_can_be_enabled(self) -> None:
        vm = Arm(3).vm
        vm.enable_cap(216)
        for bad in ((216, 1), (121, 0), (216, 0, range(5))):
            with refused("EINVAL"):
                vm.enable_cap(*bad)
