"""The generic timers: their registers, and the PPIs that they drive, by a virtual and by a real clock."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from irqchipd.chips.fault import FAULT
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.vcpus import Sysreg
from irqchipd.vm.clock import Deadlines, RealClock
from tests.vm.arm64.machine import SPURIOUS, Arm, Wfi, ppi, refused, spi, u64

TICK = 16
ENABLE, MASKED, STATUS = 1, 2, 4
MS = 1_000_000
TIMER = 1  # the group of a vCPU's attributes
BOTH = pytest.mark.parametrize("gic", [2, 3])


class Timer(NamedTuple):
    """A timer's interrupt and registers."""

    intid: int
    control: int
    compare: int
    value: int


VIRTUAL = Timer(27, Sysreg.CNTV_CTL, Sysreg.CNTV_CVAL, Sysreg.CNTV_TVAL)
PHYSICAL = Timer(30, Sysreg.CNTP_CTL, Sysreg.CNTP_CVAL, Sysreg.CNTP_TVAL)
TIMERS = pytest.mark.parametrize("timer", [VIRTUAL, PHYSICAL], ids=["virtual", "physical"])


class TestRegisters:
    def test_the_counters_tell_the_vm_s_time(self) -> None:
        arm = Arm(3)
        assert arm.mrs(Sysreg.CNTFRQ) == 62_500_000
        arm.elapse(160)
        assert arm.mrs(Sysreg.CNTVCT) == arm.mrs(Sysreg.CNTPCT) == 10

    @TIMERS
    def test_the_compare_value_and_the_ticks_to_go(self, timer: Timer) -> None:
        arm = Arm(3)
        arm.elapse(100 * TICK)
        arm.msr(timer.value, 50)
        assert arm.mrs(timer.compare) == 150
        arm.elapse(20 * TICK)
        assert arm.mrs(timer.value) == 30
        arm.msr(timer.value, 0xFFFF_FFFF)  # -1
        assert arm.mrs(timer.compare) == 119
        assert arm.mrs(timer.value) == 0xFFFF_FFFF
        arm.msr(timer.compare, (1 << 64) - 1)
        assert arm.mrs(timer.compare) == (1 << 64) - 1
        arm.msr(timer.control, 0xFF)
        assert arm.mrs(timer.control) & ~STATUS == (3 if timer.intid == 27 else 0xFB)

    def test_a_disabled_timer_has_no_status_in_hardware_and_one_in_the_kernel(self) -> None:
        arm = Arm(3)
        assert arm.mrs(Sysreg.CNTV_CTL) == 0
        assert arm.mrs(Sysreg.CNTP_CTL) == STATUS

    @pytest.mark.parametrize("register", [Sysreg.CNTFRQ, Sysreg.CNTPCT, Sysreg.CNTVCT, Sysreg.ISR])
    def test_some_are_read_only(self, register: int) -> None:
        assert Arm(3).vm.sysreg_write(0, register, 1) == FAULT

    def test_others_are_not_claimed(self) -> None:
        vm = Arm(3).vm
        assert vm.sysreg_read(0, 0xC005) is None  # MPIDR_EL1
        assert vm.sysreg_write(0, 0xC005, 1) is None
        with refused("EINVAL"):
            vm.sysreg_write(0, Sysreg.CNTV_CVAL, 1 << 64)

    def test_a_gicv2_has_no_system_registers(self) -> None:
        vm = Arm(2).vm
        assert vm.sysreg_read(0, 0xC230) == FAULT
        assert vm.sysreg_write(0, 0xC65D, 0) == FAULT


@BOTH
@TIMERS
class TestInterrupts:
    def test_a_timer_interrupts_when_its_time_comes(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic, 2)
        arm.configure(timer.intid, vcpu=1)
        arm.msr(timer.value, 100, 1)
        arm.msr(timer.control, ENABLE, 1)
        arm.elapse(99 * TICK)
        assert arm.acknowledge(1) == SPURIOUS
        assert arm.mrs(timer.control, 1) == ENABLE
        arm.elapse(TICK)
        assert arm.acknowledge(1) == timer.intid
        assert arm.mrs(timer.control, 1) == ENABLE | STATUS
        arm.msr(timer.compare, 200, 1)
        arm.end(timer.intid, 1)
        assert arm.acknowledge(1) == SPURIOUS
        arm.elapse(100 * TICK)
        assert arm.acknowledge(1) == timer.intid
        assert arm.acknowledge(0) == SPURIOUS

    def test_a_timer_that_is_not_stopped_interrupts_again(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic)
        arm.configure(timer.intid)
        arm.msr(timer.compare, 0)
        arm.msr(timer.control, ENABLE)
        assert [arm.take(), arm.take()] == [timer.intid, timer.intid]
        arm.msr(timer.control, ENABLE | MASKED)
        assert arm.take() == SPURIOUS
        arm.msr(timer.control, ENABLE)
        assert arm.take() == timer.intid
        arm.msr(timer.control, 0)
        assert arm.take() == SPURIOUS

    def test_a_halted_vcpu_wakes(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic, 2)
        arm.configure(timer.intid)
        arm.msr(timer.compare, MS // TICK)
        arm.msr(timer.control, ENABLE)
        wfi, other = Wfi(arm, 0), Wfi(arm, 1)
        assert arm.vm.describe().next_timer == MS
        arm.elapse(MS - 1)
        assert wfi.waits
        arm.elapse(1)
        assert wfi.outcome == (0, 2)
        assert other.waits
        assert arm.take() == timer.intid

    def test_a_ppi_that_is_disabled_wakes_nobody(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic)
        arm.msr(timer.control, ENABLE)
        assert Wfi(arm).waits

    def test_a_vcpu_s_line_belongs_to_its_timer_once_it_has_run(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic)
        arm.configure(timer.intid)
        assert arm.line(ppi(0, timer.intid), 1) == 0
        assert not arm.pending(timer.intid)

    def test_a_real_clock_s_timer_rings(self, gic: int, timer: Timer) -> None:
        deadlines = Deadlines()
        arm = Arm(gic, clock=RealClock(deadlines), deadlines=deadlines)
        arm.configure(timer.intid)
        arm.msr(timer.value, MS // TICK)
        arm.msr(timer.control, ENABLE)
        wfi = Wfi(arm)
        deadlines.move(MS - 1)
        assert wfi.waits
        deadlines.move(1)
        assert wfi.outcome == (0, 2)

    def test_initialising_a_vcpu_again_stops_its_timers(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic)
        arm.configure(timer.intid)
        arm.msr(timer.control, ENABLE)
        assert arm.pending(timer.intid)
        arm.vm.vcpu_init(0, None, 4)
        assert not arm.pending(timer.intid)
        assert arm.mrs(timer.control) & ENABLE == 0
        assert arm.vm.describe().next_timer is None

    def test_a_timer_beyond_the_clock_s_end_never_rings(self, gic: int, timer: Timer) -> None:
        arm = Arm(gic)
        arm.msr(timer.compare, (1 << 64) - 1)
        arm.msr(timer.control, ENABLE)
        assert arm.vm.describe().next_timer is None


class TestPpis:
    def attribute(self, arm: Arm, timer: int) -> int:
        return int.from_bytes(arm.vm.get_device_attr(None, 0, TIMER, timer, bytes(4)), "little")

    def test_user_space_may_choose_them_until_a_vcpu_runs(self) -> None:
        arm = Arm(3, 2, ready=False)
        with refused("EINVAL"):
            arm.vm.set_device_attr(None, 0, TIMER, 0, u64(20))
        arm.create_gic()
        arm.vm.set_device_attr(None, 0, TIMER, 0, u64(20))
        assert [self.attribute(arm, timer) for timer in range(4)] == [20, 30, 28, 26]
        for bad in (15, 32):
            with refused("EINVAL"):
                arm.vm.set_device_attr(None, 0, TIMER, 0, u64(bad))
        with refused("ENXIO"):
            arm.vm.set_device_attr(None, 0, TIMER, 4, u64(20))
        with refused("EFAULT"):
            arm.vm.set_device_attr(None, 0, TIMER, 0, bytes(3))
        arm.enable()
        with refused("EBUSY"):
            arm.vm.set_device_attr(None, 1, TIMER, 0, u64(21))
        arm.configure(20, vcpu=1)
        arm.msr(Sysreg.CNTV_CTL, ENABLE, 1)
        assert arm.take(1) == 20

    def test_two_timers_of_one_ppi_do_not_run(self) -> None:
        arm = Arm(3, 1, ready=False)
        arm.create_gic()
        arm.vm.set_device_attr(None, 0, TIMER, 0, u64(30))
        for _ in range(2):
            with refused("EINVAL"):
                arm.vm.mmio_read(0, 0, 4)
        arm.vm.set_device_attr(None, 0, TIMER, 0, u64(27))
        assert arm.vm.mmio_read(0, 0, 4) is None

    def test_what_a_timer_has_taken_stays_its_own(self) -> None:
        arm = Arm(3, 1, ready=False)
        arm.create_gic()

        def give(timer: int, intid: int) -> None:
            arm.vm.set_device_attr(None, 0, TIMER, timer, u64(intid))

        give(0, 18)
        give(1, 18)
        with refused("EINVAL"):
            arm.vm.mmio_read(0, 0, 4)  # the physical timer has taken PPI 18
        give(1, 20)
        with refused("EINVAL", "interrupt 18 of vCPU 0"):
            arm.vm.mmio_read(0, 0, 4)
        arm.vm = Arm64Vm.restored("moved", 1, arm.vm.save())
        with refused("EINVAL", "interrupt 18 of vCPU 0"):
            arm.vm.mmio_read(0, 0, 4)
        give(0, 27)
        arm.enable()
        arm.configure(18)
        arm.vm.reset()
        arm.line(ppi(0, 18), 1)
        assert not arm.pending(18)

    @pytest.mark.parametrize("intid", [30, 27, 23, 40])
    def test_a_pmu_takes_its_interrupt(self, intid: int) -> None:
        arm = Arm(3, 0, ready=False)
        arm.vm.create_vcpu(0)
        arm.vm.vcpu_init(0, None, 4 | 8)
        arm.create_gic()
        arm.vm.set_device_attr(None, 0, 0, 0, u64(intid))
        arm.vm.set_device_attr(None, 0, 0, 1, b"")
        arm.vm = Arm64Vm.restored("moved", 1, arm.vm.save())
        if intid in (27, 30):
            with refused("EINVAL", f"interrupt {intid}"):
                arm.vm.mmio_read(0, 0, 4)
        else:
            arm.enable()
            arm.line(ppi(0, intid) if intid < 32 else spi(intid), 1)
            assert not arm.pending(intid)

    def test_a_pmu_is_refused_an_interrupt_that_is_a_timer_s_or_is_not_there(self) -> None:
        arm = Arm(3, 0, ready=False)
        for vcpu in range(2):
            arm.vm.create_vcpu(vcpu)
            arm.vm.vcpu_init(vcpu, None, 4 | 8)
        arm.create_gic()
        with refused("EINVAL"):
            arm.vm.mmio_read(0, 0, 4)  # the timers have theirs; the PMU is not initialised
        arm.vm.set_device_attr(None, 0, 0, 0, u64(27))
        with refused("EEXIST"):
            arm.vm.set_device_attr(None, 0, 0, 1, b"")
        arm = Arm(3, 0, ready=False)
        arm.vm.create_vcpu(0)
        arm.vm.vcpu_init(0, None, 4 | 8)
        arm.create_gic()
        arm.vm.set_device_attr(None, 0, 0, 0, u64(64))
        with refused("EINVAL"):
            arm.vm.set_device_attr(None, 0, 0, 1, b"")

    def test_other_attributes_of_a_vcpu(self) -> None:
        vm = Arm(3).vm
        for group, attr in ((1, 0), (1, 3), (2, 0)):
            vm.has_device_attr(None, 0, group, attr)
        for group, attr in ((0, 0), (1, 4), (2, 1), (3, 0)):
            with refused("ENXIO"):
                vm.has_device_attr(None, 0, group, attr)
        with refused("ENODEV"):
            vm.set_device_attr(None, 0, 0, 0, u64(23))
        with refused("EINVAL"):
            vm.set_device_attr(None, 0, 2, 0, u64(8))
        vm.set_device_attr(None, 0, 2, 0, u64(64))
        with refused("EEXIST"):
            vm.set_device_attr(None, 0, 2, 0, u64(64))
        assert vm.get_device_attr(None, 0, 2, 0, u64(0)) == u64(64)

    def test_a_pmu_is_initialised_before_its_vcpu_runs(self) -> None:
        arm = Arm(3, 0, ready=False)
        arm.vm.create_vcpu(0)
        arm.vm.vcpu_init(0, None, 4 | 8)
        arm.create_gic()
        with refused("EINVAL"):
            arm.vm.mmio_read(0, 0, 4)
        with refused("ENXIO"):
            arm.vm.set_device_attr(None, 0, 0, 1, b"")
        arm.vm.set_device_attr(None, 0, 0, 0, u64(23))
        arm.vm.set_device_attr(None, 0, 0, 1, b"")
        assert arm.vm.get_device_attr(None, 0, 0, 0, u64(0)) == u64(23)
        assert arm.vm.mmio_read(0, 0, 4) is None
        with refused("EBUSY"):
            arm.vm.set_device_attr(None, 0, 0, 1, b"")

    def test_a_pmu_takes_a_filter_until_a_vcpu_has_run(self) -> None:
        arm = Arm(3, 0, ready=False)
        for vcpu in range(2):
            arm.vm.create_vcpu(vcpu)
        arm.vm.vcpu_init(0, None, 4 | 8)
        for attr in range(4):
            arm.vm.has_device_attr(None, 1, 0, attr)
        with refused("ENXIO"):
            arm.vm.has_device_attr(None, 1, 0, 4)
        deny, events = 1 << 32, 1024 << 16
        arm.vm.set_device_attr(None, 1, 0, 2, u64(deny | events))
        with refused("EFAULT"):
            arm.vm.set_device_attr(None, 1, 0, 2, bytes(7))
        for wrong in (deny | events | 1, 2 << 32):
            with refused("EINVAL", "events"):
                arm.vm.set_device_attr(None, 0, 0, 2, u64(wrong))
        with refused("ENXIO"):
            arm.vm.set_device_attr(None, 0, 0, 3, u64(8))
        assert arm.vm.mmio_read(0, 0, 4) is None
        with refused("EBUSY"):
            arm.vm.set_device_attr(None, 1, 0, 2, u64(0))
