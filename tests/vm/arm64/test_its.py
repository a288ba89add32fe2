"""Interrupt translation services: what they answer to user space and a guest, without the guest's memory."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from irqchipd.chips.gic import its as chip
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import Address, Control, DeviceType, Group
from irqchipd.vm.arm64.states import ItsState
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.snapshot import VmState
from tests.builds import needs_sources
from tests.vm.arm64.machine import GICD, GICR, Arm, refused

BASE = 0x0808_0000
CTLR, IIDR, TYPER, CBASER, CWRITER, CREADR, DEVICES, COLLECTIONS = 0, 4, 8, 0x80, 0x88, 0x90, 0x100, 0x108
VALID = 1 << 63
QUIESCENT = 1 << 31
TRANSLATER = BASE + 0x1_0040
ITS = 1  # the number of the device


class Its(Arm):
    """A VM with a GICv3 and an ITS in its place."""

    def __init__(self) -> None:
        super().__init__(3)
        self.vm.create_device(DeviceType.ITS, 0)
        self.set(Group.ADDR, Address.ITS, BASE, ITS)

    def put(self, offset: int, value: int) -> None:
        """User space writes a register."""
        self.set(Group.ITS_REGS, offset, value, ITS)

    def register(self, offset: int) -> int:
        """User space reads a register."""
        return self.get(Group.ITS_REGS, offset, ITS)

    def switch_on(self) -> None:
        """The guest gives it tables and a queue of 4 KiB, and enables it."""
        for offset in (DEVICES, COLLECTIONS, CBASER):
            self.write(BASE + offset, VALID | 0x9000_0000, 8)
        self.write(BASE + CTLR, 1)
        assert self.read(BASE + CTLR) == QUIESCENT | 1


@pytest.fixture
def its() -> Its:
    return Its()


class TestAttributes:
    def test_the_address(self) -> None:
        arm = Arm(3)
        arm.vm.create_device(DeviceType.ITS, 0)
        assert arm.get(Group.ADDR, Address.ITS, ITS) == (1 << 64) - 1
        with refused("ENXIO", "no address"):
            arm.get(Group.ITS_REGS, CTLR, ITS)
        with refused("EINVAL"):
            arm.get(Group.ITS_REGS, 2, ITS)
        assert arm.vm.mmio_read(0, BASE, 4) is None
        for wrong, reason in ((BASE + 0x1000, "EINVAL"), (1 << 40, "E2BIG"), (GICD, "EEXIST")):
            with refused(reason):
                arm.set(Group.ADDR, Address.ITS, wrong, ITS)
        for attr in (Address.V3_DIST, Address.V3_REDIST, 5):
            with refused("ENODEV"):
                arm.set(Group.ADDR, attr, BASE, ITS)
            with refused("ENODEV"):
                arm.get(Group.ADDR, attr, ITS)
        arm.set(Group.ADDR, Address.ITS, BASE, ITS)
        assert arm.get(Group.ADDR, Address.ITS, ITS) == BASE
        with refused("EEXIST"):
            arm.set(Group.ADDR, Address.ITS, BASE, ITS)

    def test_what_there_is(self, its: Its) -> None:
        for group, attr in ((Group.ADDR, 4), *((Group.CTRL, attr) for attr in (0, 1, 2, 4)), (Group.ITS_REGS, 0x138)):
            its.vm.has_device_attr(ITS, None, group, attr)
        for group, attr in ((Group.ADDR, 2), (Group.CTRL, 3), (Group.NR_IRQS, 0), (Group.ITS_REGS, 0x98)):
            with refused("ENXIO"):
                its.vm.has_device_attr(ITS, None, group, attr)
        for attr in (2, 0x84, 0xFFD2):
            with refused("EINVAL"):
                its.vm.has_device_attr(ITS, None, Group.ITS_REGS, attr)
        with refused("ENXIO"):
            its.set(Group.NR_IRQS, 0, 64, ITS)
        with refused("ENXIO"):
            its.get(Group.CTRL, 0, ITS)

    def test_two_have_registers_of_their_own(self, its: Its) -> None:
        assert its.vm.create_device(DeviceType.ITS, 0) == 2
        its.set(Group.ADDR, Address.ITS, 0x0900_0000, 2)
        its.put(CBASER, VALID | 5)
        assert its.register(CBASER) & 0xFF == 5
        assert its.get(Group.ITS_REGS, CBASER, 2) == 0

    def test_tables_in_memory_are_out_of_reach(self, its: Its) -> None:
        its.set(Group.CTRL, Control.ITS_SAVE_TABLES, 0, ITS)
        its.set(Group.CTRL, Control.ITS_RESTORE_TABLES, 0, ITS)
        its.put(DEVICES, VALID)
        its.set(Group.CTRL, Control.ITS_SAVE_TABLES, 0, ITS)
        with refused("EFAULT"):
            its.set(Group.CTRL, Control.ITS_RESTORE_TABLES, 0, ITS)
        its.put(COLLECTIONS, VALID)
        with refused("EFAULT"):
            its.set(Group.CTRL, Control.ITS_SAVE_TABLES, 0, ITS)
        its.set(Group.CTRL, Control.ITS_RESET, 0, ITS)
        its.set(Group.CTRL, Control.ITS_RESTORE_TABLES, 0, ITS)


class TestRegisters:
    def test_what_it_is(self, its: Its) -> None:
        assert its.register(IIDR) == its.read(BASE + IIDR) == 0x4B00_043B
        assert its.register(TYPER) == its.read(BASE + TYPER, 8) == 0x1_EF71
        assert its.read(BASE + 0xFFE8) == 0x3B
        assert its.read(BASE + TYPER + 4) == 0
        its.put(IIDR, 0x4B00_043B)
        with refused("EINVAL", "revision"):
            its.put(IIDR, 0x4B00_143B)

    def test_tables_keep_what_they_are_for(self, its: Its) -> None:
        every = (1 << 64) - 1
        its.put(DEVICES, every)
        its.put(COLLECTIONS, every)
        assert its.register(DEVICES) == 0xF907_FFFF_FFFF_FEFF
        assert its.register(COLLECTIONS) == 0xBC07_FFFF_FFFF_FEFF
        its.write(BASE + DEVICES + 4, 0)
        assert its.read(BASE + DEVICES, 8) == 0x1907_0000_FFFF_FEFF
        its.put(DEVICES + 0x10, every)
        assert its.register(DEVICES + 0x10) == 0

    def test_without_tables_or_queue_it_stays_disabled(self, its: Its) -> None:
        its.put(DEVICES, VALID)
        its.put(COLLECTIONS, VALID)
        its.write(BASE + CTLR, 1)
        assert its.read(BASE + CTLR) == QUIESCENT

    def test_commands_that_cannot_be_read_are_skipped(self, its: Its) -> None:
        its.put(CBASER, VALID)
        its.write(BASE + CWRITER, 0x40, 8)
        assert its.read(BASE + CTLR) == 0
        its.write(BASE + CWRITER, 0x1000)  # behind the queue's end
        assert its.read(BASE + CWRITER) == 0x40
        its.put(DEVICES, VALID)
        its.put(COLLECTIONS, VALID)
        its.write(BASE + CTLR, 1)
        assert its.read(BASE + CREADR) == 0x40
        its.write(BASE + CWRITER, 0x60)
        assert its.register(CREADR) == 0x60
        with refused("EBUSY"):
            its.put(CREADR, 0)
        its.put(CBASER, 0)  # an ITS that is enabled keeps its queue
        assert its.register(CBASER) & VALID
        its.put(CTLR, 0)
        its.put(CREADR, 0x20)
        with refused("EINVAL"):
            its.put(CREADR, 0x1000)
        assert its.register(CREADR) == 0x20

    def test_accesses_of_other_sizes_find_nothing(self, its: Its) -> None:
        assert its.read(BASE + IIDR, 2) == its.read(BASE + CTLR, 8) == its.read(TRANSLATER) == 0
        its.write(BASE + CBASER, 0xFF, 1)
        its.write(TRANSLATER, 3)
        assert its.register(CBASER) == 0


def test_an_msi_reaches_an_enabled_one_and_nothing_else(its: Its) -> None:
    with refused("EBUSY"):
        its.vm.signal_msi(TRANSLATER, 3, 1)
    its.switch_on()
    assert its.vm.signal_msi(TRANSLATER, 3, 1) == 0
    for address, flags in ((TRANSLATER, 0), (GICD, 1), (BASE + 0x2_0000, 1)):
        with refused("EINVAL"):
            its.vm.signal_msi(address, 3, flags)


def test_a_reset_disables_it(its: Its) -> None:
    its.switch_on()
    its.vm.reset()
    assert its.read(BASE + CTLR) == QUIESCENT
    assert its.register(CBASER) == 0
    assert its.get(Group.ADDR, Address.ITS, ITS) == BASE


class TestSnapshots:
    def test_it_goes_on(self, its: Its) -> None:
        its.switch_on()
        its.write(BASE + CWRITER, 0x60)
        state = its.vm.save()
        assert snapshot_from(snapshot_to(state)) == state
        its.vm = Arm64Vm.restored("moved", MAX_VCPUS, snapshot_from(snapshot_to(state)))
        assert its.vm.save() == state
        assert its.read(BASE + CTLR) == QUIESCENT | 1
        assert its.register(CREADR) == 0x60
        with refused("EBUSY"):
            its.put(CREADR, 0)

    @needs_sources
    def test_it_has_every_field(self) -> None:
        assert vars(chip.Its()).keys() == {field.name for field in fields(chip.SavedIts)}

    @pytest.mark.parametrize(
        "change",
        [
            {"address": GICR},
            {"address": BASE + 0x1000},
            {"cbaser": 1 << 12},
            {"cwriter": 0x20},
            {"cwriter": 0x1000, "creadr": 0x1000},
            {"cwriter": 1, "creadr": 1},
            {"devices": 0},
            {"collections": 1 << 62},
            {"cbaser": 0},
        ],
    )
    def test_a_state_that_none_has_is_refused(self, its: Its, change: dict[str, int]) -> None:
        its.switch_on()
        with refused("EINVAL"):
            Arm64Vm.restored("moved", MAX_VCPUS, _with(its.vm.save(), change))

    def test_a_device_has_a_state(self, its: Its) -> None:
        state = its.vm.save()
        assert state.arm64 is not None
        with refused("EINVAL", "no state"):
            Arm64Vm.restored("moved", MAX_VCPUS, replace(state, arm64=replace(state.arm64, its=())))


def _with(state: VmState, change: dict[str, int]) -> VmState:
    """A state whose ITS is changed."""
    assert state.arm64 is not None
    (one,) = state.arm64.its
    changed: ItsState = replace(one, **change)  # type: ignore[arg-type]
    return replace(state, arm64=replace(state.arm64, its=(changed,)))
