"""What a guest does: accesses to frames, WFI, RESET, and regions of devices beside the GIC."""

from __future__ import annotations

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.vm.arm64.numbers import Address, DeviceType, Group
from irqchipd.vm.arm64.vcpus import Sysreg
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, InterruptPending, VmReset
from irqchipd.vm.regions import Access, Space
from irqchipd.vm.vcpu_state import MpState
from tests.vm.arm64.machine import FRAME, GICC, GICD, GICR, SPURIOUS, Arm, Wfi, ppi, refused, spi

BOTH = pytest.mark.parametrize("gic", [2, 3])


@BOTH
class TestWfi:
    def test_it_ends_with_an_interrupt_that_is_not_acknowledged(self, gic: int) -> None:
        arm = Arm(gic, 2)
        arm.configure(40, vcpu=1)
        wfi = Wfi(arm, 1)
        with refused("EBUSY"):
            arm.vm.halt(1, print)
        arm.line(spi(40), 1)
        assert wfi.outcome == (0, 2)
        assert Wfi(arm, 1).outcome == (0, 2)
        assert arm.take(1) == 40
        assert Wfi(arm, 1).waits

    def test_what_is_masked_by_priority_or_disabled_does_not_wake(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, priority=0xF8)
        wfi = Wfi(arm)
        for intid in (40, 41):
            arm.line(spi(intid), 1)
        assert wfi.waits

    def test_another_vcpu_s_sgi_wakes(self, gic: int) -> None:
        arm = Arm(gic, 2)
        wfi = Wfi(arm, 1)
        if gic == 2:
            arm.write(GICD + 0xF00, 1 << 17 | 5)
        else:
            arm.msr(Icc.SGI1R, 5 << 24 | 2)
        assert wfi.outcome == (0, 2)
        assert arm.take(1) == 5

    def test_an_abandoned_one_takes_nothing(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40)
        wfi = Wfi(arm)
        assert arm.vm.abandon(wfi.halt)
        arm.line(spi(40), 1)
        assert wfi.waits
        wfi = Wfi(arm)
        assert not arm.vm.abandon(wfi.halt)
        assert arm.take() == 40

    def test_a_vcpu_that_is_off_does_not_wake(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40)
        for state in (MpState.STOPPED, MpState.SUSPENDED):
            arm.vm.set_mp_state(0, state)
            wfi = Wfi(arm)
            arm.line(spi(40), 1)
            assert wfi.waits
            arm.vm.set_mp_state(0, 0)
            assert wfi.outcome == (0, 2)
            arm.line(spi(40), 0)
            assert arm.take() == 40

    def test_listeners_hear_of_an_interrupt_once(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40)
        heard: list[Event] = []
        arm.vm.subscribe([0], heard.append)
        arm.line(spi(40), 1)
        arm.line(spi(40), 1)
        assert heard == [InterruptPending(0)]
        assert arm.take() == 40
        arm.line(spi(40), 1)
        assert heard == [InterruptPending(0)] * 2

    def test_it_ends_with_the_vm(self, gic: int) -> None:
        arm = Arm(gic)
        wfi = Wfi(arm)
        arm.vm.delete()
        assert isinstance(wfi.outcome, VmError)


def test_group_0_of_a_gicv3_is_an_fiq() -> None:
    arm = Arm(3)
    arm.msr(Icc.IGRPEN0, 1)
    arm.configure(40)
    arm.write(GICD + 0x84, 0)
    arm.line(spi(40), 1)
    assert arm.mrs(Sysreg.ISR) == 0x40
    assert Wfi(arm).outcome == (0, 3)


def test_a_gicv2_s_fiq() -> None:
    arm = Arm(2)
    arm.write(GICC, 1 | 8)
    arm.configure(40)
    arm.line(spi(40), 1)
    assert Wfi(arm).outcome == (0, 3)


class TestFrames:
    def test_every_redistributor_is_reached_by_every_vcpu(self) -> None:
        arm = Arm(3, 3)
        typers = [arm.read(GICR + FRAME * n + 8, 8, vcpu=1) for n in range(3)]
        assert typers == [n << 32 | n << 8 | (16 if n == 2 else 0) for n in range(3)]
        assert arm.vm.mmio_read(0, GICR + 3 * FRAME, 4) is None

    def test_accesses_have_a_size_and_fit(self) -> None:
        arm = Arm(2)
        for size, address, value in ((3, GICD, 0), (4, 1 << 64, 0), (4, GICD, 1 << 32)):
            with refused("EINVAL"):
                arm.vm.mmio_write(0, address, size, value)
        with refused("ENOENT"):
            arm.vm.mmio_read(7, GICD, 4)
        assert arm.vm.mmio_read(0, GICD - 2, 4) is None
        assert arm.vm.mmio_read(0, GICD + 0xFFE, 4) is None
        assert arm.vm.pio_read(0, 0x60, 1) is None

    @pytest.mark.parametrize(
        ("gic", "taken"), [(2, GICD + 0xF00), (2, GICC + 0x1FFF), (3, GICD + 0xFFF0), (3, GICR + FRAME)]
    )
    def test_regions_and_frames_are_apart(self, gic: int, taken: int) -> None:
        arm = Arm(gic, 2)
        source = arm.vm.open_source("device")
        with refused("EEXIST"):
            arm.vm.register_region(source, Space.MMIO, taken, 0x10, print)
        heard: list[object] = []
        arm.vm.register_region(source, Space.MMIO, 0x0900_0000, 0x1000, heard.append)
        access = arm.vm.mmio_read(0, 0x0900_0000, 4)
        assert isinstance(access, Access)
        assert arm.vm.complete_access(source, access.number, 7)
        assert access.result() == (7, True)

    def test_a_region_s_memory_is_no_frame_s(self) -> None:
        arm = Arm(3, 1, ready=False)
        source = arm.vm.open_source("device")
        arm.vm.register_region(source, Space.MMIO, GICD + 0x8000, 0x10, print)
        arm.vm.register_region(source, Space.MMIO, GICR, 0x10, print)
        arm.vm.create_device(DeviceType.GICV3, 0)
        for attr, address in ((Address.V3_DIST, GICD), (Address.V3_REDIST, GICR)):
            with refused("EEXIST"):
                arm.set(Group.ADDR, attr, address)
            assert arm.get(Group.ADDR, attr) == (1 << 64) - 1
        arm.set(Group.ADDR, Address.V3_REDIST_REGION, 2 << 52 | GICR + FRAME)
        arm.vm.register_region(source, Space.MMIO, GICR + 2 * FRAME, 0x10, print)
        with refused("EEXIST"):
            arm.vm.create_vcpu(1)
        assert arm.vm.describe().vcpus == [0]


@BOTH
class TestReset:
    def test_the_gic_and_the_vcpus_are_as_at_first(self, gic: int) -> None:
        arm, fresh = Arm(gic, 2), Arm(gic, 2)
        for one in (arm, fresh):
            one.vm.reset()
        arm.configure(40, level=True)
        arm.configure(27)
        arm.enable()
        arm.msr(Sysreg.CNTV_CTL, 1)
        arm.line(spi(40), 1)
        assert arm.acknowledge() == 27
        arm.line(spi(40), 0)
        arm.vm.set_mp_state(1, MpState.STOPPED)
        arm.vm.reset()
        old, new = arm.vm.save(), fresh.vm.save()
        assert old.arm64 is not None
        assert new.arm64 is not None
        assert (old.arm64.gicv2, old.arm64.gicv3) == (new.arm64.gicv2, new.arm64.gicv3)
        assert arm.vm.get_mp_state(1) == 0
        assert arm.vm.describe().next_timer is None

    def test_lines_stay(self, gic: int) -> None:
        arm = Arm(gic)
        arm.line(spi(40), 1)
        arm.line(ppi(0, 20), 1)
        arm.vm.reset()
        arm.enable()
        assert not arm.pending(40), "an edge is no level"
        arm.configure(40, level=True)
        arm.configure(20)
        assert sorted((arm.acknowledge(), arm.acknowledge())) in ([20, 40], [40, SPURIOUS], [20, SPURIOUS])
        assert arm.pending(20)

    def test_sources_hear_of_it(self, gic: int) -> None:
        arm = Arm(gic)
        heard: list[Event] = []
        arm.vm.open_source("device", listener=heard.append)
        arm.vm.reset(3)
        assert heard == [VmReset(3)]

    def test_what_user_space_has_chosen_stays(self, gic: int) -> None:
        arm = Arm(gic)
        arm.set(Group.DIST_REGS, 8, 0x4B00243B)
        arm.vm.reset()
        assert arm.get(Group.DIST_REGS, 8) == 0x4B00243B
        assert arm.line(ppi(0, 27), 1) == 0
        assert not arm.pending(27), "the timer's interrupt is the timer's still"
