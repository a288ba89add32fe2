"""Snapshots of arm64 VMs: a VM goes on from one as if nothing had happened, and a state that no VM has is refused."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import is_dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import Address, Control, DeviceType, Group
from irqchipd.vm.arm64.states import Arm64State, PlaceState
from irqchipd.vm.arm64.vcpus import Sysreg
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import GsiResampled
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.snapshot import IRQCHIP_NONE, VmState
from irqchipd.vm.sources import LineSource
from tests.chips.gic.states import changed, leaves, value_at
from tests.vm.arm64.machine import FRAME, GICD, GICR, PSCI, SPURIOUS, Arm, Wfi, ppi, refused, spi
from tests.vm.arm64.operations import Machine, Operation, operations

BOTH = pytest.mark.parametrize("gic", [2, 3])
sequences = st.lists(operations, max_size=30)


def moved(vm: Arm64Vm) -> Arm64Vm:
    """A VM that went through a snapshot's message."""
    state = vm.save()
    message = snapshot_to(state)
    assert snapshot_from(message) == state
    return Arm64Vm.restored("moved", MAX_VCPUS, snapshot_from(message))


@settings(max_examples=200)
@given(st.sampled_from([2, 3]), sequences, sequences)
def test_a_restored_vm_goes_on_as_the_saved_one(gic: int, history: list[Operation], future: list[Operation]) -> None:
    machine = Machine(gic)
    machine.apply_all(history)
    other = machine.moved()
    assert other.apply_all(future) == machine.apply_all(future)
    old, new = machine.vm.save(), other.vm.save()
    assert replace(new, sources=()) == replace(old, sources=())
    assert [one.asserted for one in new.sources] == [one.asserted for one in old.sources]


@BOTH
class TestStages:
    def test_a_vm_without_a_gic(self, gic: int) -> None:
        arm = Arm(gic, 2, ready=False)
        arm.line(1 << 16, 1)
        arm.vm.set_routing([PinRoute(3, 0, 4)])
        arm.vm = moved(arm.vm)
        assert arm.mrs(Sysreg.ISR, 1) == 0x80
        arm.line(1 << 16, 0)
        assert arm.mrs(Sysreg.ISR, 1) == 0

    def test_a_gic_that_is_not_initialised(self, gic: int) -> None:
        arm = Arm(gic, 1, ready=False)
        arm.vm.create_device(DeviceType.GICV2 if gic == 2 else DeviceType.GICV3, 0)
        arm.set(Group.NR_IRQS, 0, 96)
        arm.set(Group.ADDR, Address.V2_DIST if gic == 2 else Address.V3_DIST, GICD)
        arm.vm = moved(arm.vm)
        with refused("EBUSY"):
            arm.set(Group.NR_IRQS, 0, 64)
        with refused("EEXIST"):
            arm.set(Group.ADDR, Address.V2_DIST if gic == 2 else Address.V3_DIST, GICD)
        arm.vm.has_device_attr(0, None, Group.DIST_REGS, 0x108)
        arm.vm.create_vcpu(1)
        arm.set(Group.CTRL, Control.INIT, 0)
        assert arm.get(Group.NR_IRQS, 0) == 96

    def test_a_dead_vm_stays_dead(self, gic: int) -> None:
        arm = Arm(gic, 1, ready=False)
        arm.vm.create_device(DeviceType.GICV2 if gic == 2 else DeviceType.GICV3, 0)
        with refused("ENXIO"):
            arm.vm.mmio_read(0, GICD, 4)
        with refused("EIO"):
            moved(arm.vm).check_alive()

    def test_a_running_timer(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(27)
        arm.msr(Sysreg.CNTV_CVAL, 100)
        arm.msr(Sysreg.CNTV_CTL, 1)
        arm.vm = moved(arm.vm)
        wfi = Wfi(arm)
        arm.elapse(1600)
        assert wfi.outcome == (0, 2)
        assert arm.take() == 27
        arm.vm = moved(arm.vm)
        assert arm.line(ppi(0, 27), 1) == 0
        arm.msr(Sysreg.CNTV_CTL, 0)
        assert arm.take() == SPURIOUS, "the interrupt is the timer's still"

    def test_lines_are_their_sources_still(self, gic: int) -> None:
        arm = Arm(gic)
        arm.configure(40, level=True)
        arm.configure(41, level=True)
        heard: list[object] = []
        arm.vm.irq_line(spi(40), True, arm.vm.open_source("one"))
        arm.line(spi(40), 1)
        arm.vm.irq_line(spi(41), True, arm.vm.open_source("two", resampled=[9]))
        arm.vm = moved(arm.vm)
        arm.line(spi(40), 0)
        assert arm.take() == 40
        arm.vm.close_source(arm.vm.open_source("one", resume=True))
        assert [arm.take(), arm.take()] == [41, SPURIOUS]
        arm.vm.open_source("two", resume=True, listener=heard.append)
        assert heard == [GsiResampled(9, 1)]


def test_redistributors_keep_their_places_when_a_region_is_refused() -> None:
    arm = Arm(3, 0, ready=False)
    arm.vm.create_device(DeviceType.GICV3, 0)
    arm.set(Group.ADDR, Address.V3_DIST, GICD)
    arm.set(Group.ADDR, Address.V3_REDIST_REGION, 1 << 52 | GICR)
    for vcpu in range(2):
        arm.vm.create_vcpu(vcpu)
        arm.vm.vcpu_init(vcpu, None, PSCI)
    with refused("EINVAL"):
        arm.set(Group.ADDR, Address.V3_REDIST_REGION, 1 << 52 | GICD | 1)
    arm.vm = moved(arm.vm)
    arm.set(Group.ADDR, Address.V3_REDIST_REGION, 2 << 52 | GICR + FRAME | 1)
    arm.set(Group.CTRL, Control.INIT, 0)
    arm.vm = moved(arm.vm)
    assert arm.vm.mmio_read(0, GICR + 8, 4) == 0
    assert arm.vm.mmio_read(0, GICR + FRAME + 8, 4) == 1 << 8 | 1 << 4
    arm.vm = moved(arm.vm)
    assert arm.vm.mmio_read(0, GICR + 8, 4) == 0


def test_of_vcpus_without_an_affinity_the_last_has_0_once_one_was_to_run() -> None:
    """KVM: kvm_init_mpidr_data."""
    arm = Arm(3, 0, ready=False)
    for vcpu in range(3):
        arm.vm.create_vcpu(vcpu)
    arm.create_gic()

    def named() -> int:
        """The id of the vCPU that affinity 0 names, from GICR_TYPER."""
        return arm.get(Group.REDIST_REGS, 8) >> 8

    assert named() == 0
    arm.vm.vcpu_init(0, None, PSCI)
    arm.vm.mmio_read(0, 0, 4)
    assert named() == 2
    arm.vm = moved(arm.vm)
    assert named() == 2
    arm.vm.vcpu_init(2, None, PSCI)
    assert named() == 0
    arm.vm.vcpu_init(1, None, PSCI)
    arm.vm.mmio_read(1, 0, 4)
    assert named() == 0


# States that no VM has.


def busy(gic: int) -> VmState:
    """A VM in which much is going on."""
    machine = Machine(gic)
    source = machine.sources[1]
    assert isinstance(source, LineSource)
    machine.configure(40, level=True)
    machine.configure(41)
    machine.configure(20, vcpu=1)
    machine.configure(27)
    machine.vm.irq_line(spi(40), True, source)
    machine.line(ppi(1, 20), 1)
    machine.line(spi(41), 1)
    assert machine.acknowledge() == 40
    machine.msr(Sysreg.CNTV_CVAL, 1 << 20)
    machine.msr(Sysreg.CNTV_CTL, 1)
    return machine.vm.save()


BUSY = {gic: busy(gic) for gic in (2, 3)}
OPTIONAL = ("features", "dist_address", "cpu_address", "stolen_time", "target", "region")
ODD_NUMBERS = (-1, 0, 1, 2, 3, 4, 5, 7, 8, 27, 31, 32, 63, 64, 255, 1 << 16, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)


@BOTH
def test_no_change_of_a_value_makes_a_later_operation_fail(gic: int) -> None:
    """It is refused, or the VM that has it can do everything."""
    state = BUSY[gic]
    seed = secrets.randbits(32)
    rng = Random(seed)
    # A part that is absent cannot be a number.
    paths = [path for path in leaves(state.arm64) if value_at(state.arm64, path) is not None or path[-1] in OPTIONAL]
    accepted = 0
    refusals: set[str] = set()
    for path in rng.sample(paths, 250):
        value = value_at(state.arm64, path)
        other: Any = not value if isinstance(value, bool) else rng.choice([n for n in ODD_NUMBERS if n != value])
        if other == -1:
            other = None if path[-1] in OPTIONAL else 1 << 20
        odd = replace(state, arm64=changed(state.arm64, path, other))
        try:
            vm = Arm64Vm.restored("odd", MAX_VCPUS, odd)
        except VmError as refusal:
            refusals.add(refusal.reason)
            continue
        accepted += 1
        _use(vm)
    assert refusals == {"EINVAL"}, f"seed {seed}"
    assert accepted > 50, f"seed {seed}"


def _use(vm: Arm64Vm) -> None:
    """Do a little of everything; what is refused is refused with an errno."""
    arm = object.__new__(Arm)
    arm.vm = vm
    for action in (
        lambda: vm.irq_line(spi(40), False),
        lambda: vm.irq_line(ppi(1, 20), False),
        *(lambda vcpu=vcpu, at=at: vm.mmio_read(vcpu, at, 4) for vcpu in (0, 1) for at in (GICD + 0x204, 0x0801_000C)),
        *(lambda vcpu=vcpu: vm.sysreg_read(vcpu, 0xC660) for vcpu in (0, 1)),
        *(lambda vcpu=vcpu: vm.sysreg_write(vcpu, Sysreg.CNTV_TVAL, 10) for vcpu in (0, 1)),
        lambda: vm.advance(1 << 30),
        lambda: vm.abandon(vm.halt(1, lambda _: None)),
        vm.reset,
        vm.describe,
        vm.save,
    ):
        with suppress(VmError):
            action()  # type: ignore[operator]


def refusals(gic: int) -> list[tuple[str, dict[str, Any]]]:
    """Contradictions between parts of a state: what is replaced in arm64."""
    saved = BUSY[gic].arm64
    assert saved is not None
    first, second = saved.vcpus
    return [
        ("gic_version", {"gic_version": 5 - gic}),
        ("list registers", {"list_registers": 17}),
        ("devices", {"devices": (saved.devices[0],) * 2}),
        ("a device of type 6", {"devices": (6,)}),
        ("SPIs, not 64", {"interrupts": 96}),
        ("ready", {"initialised": False}),
        ("dead", {"dead": True}),
        ("timer_interrupts", {"timer_interrupts": (27, 30, 28)}),
        ("timer_interrupts_fixed", {"timer_interrupts": (27, 27, 28, 26)}),
        ("mapped", {"timer_interrupts": (20, 30, 28, 26)}),
        ("ready without addresses", {"dist_address": None}),
        ("dist_address", {"dist_address": 0x0800_0800}),
        ("vCPUs are there twice", {"vcpus": (first, replace(second, vcpu=0))}),
        ("timers are not wired", {"vcpus": (first, replace(second, timers_wired=False))}),
        ("a timer of vCPU 1 is absent", {"vcpus": (first, replace(second, physical_timer=None))}),
        ("features", {"vcpus": (first, replace(second, features=0))}),
        ("not initialised", {"vcpus": (first, replace(second, features=None))}),
        ("the GIC has 2 CPUs", {"vcpus": (first,)}),
        ("a resampled line", {"resampled_lines": (20,)}),
        ("line 64", {"resampled_lines": (64,)}),
    ]


@BOTH
def test_contradictions_are_refused(gic: int) -> None:
    state = BUSY[gic]
    saved = state.arm64
    assert saved is not None
    for hint, parts in refusals(gic):
        with refused("EINVAL", hint if hint != "gic_version" else ""):
            Arm64Vm.restored("odd", MAX_VCPUS, replace(state, arm64=replace(saved, **parts)))
    for hint, common in (
        ("arm64 is absent", {"arm64": None}),
        ("irqchip_mode", {"irqchip_mode": IRQCHIP_NONE}),
        ("x86", {"tsc_khz": 1}),
        ("line 31", {"asserted_gsis": (31,)}),
        ("to vCPU 9", {"asserted_gsis": (1024 + 32 * 9 + 20,)}),
        ("neither a PPI", {"asserted_gsis": (1024 + 5,)}),
        ("a GSI is", {"asserted_gsis": (1024 + 32 * 512,)}),
    ):
        with refused("EINVAL", hint):
            Arm64Vm.restored("odd", MAX_VCPUS, replace(state, **common))


def test_places_that_no_redistributor_has_are_refused() -> None:
    state = BUSY[3]
    saved = state.arm64
    assert isinstance(saved, Arm64State)
    first, second = saved.vcpus
    place = second.place
    assert isinstance(place, PlaceState)
    for hint, other in (
        ("is absent", replace(place, region=1)),
        ("not in use", replace(place, index=2, base=place.base + FRAME)),
        ("the address", replace(place, base=place.base + FRAME)),
        ("two vCPUs have", first.place),
        ("has no redistributor", None),
        ("overlap at", replace(place, region=None, base=GICD)),
        ("a redistributor's address", replace(place, region=None, base=1 << 40)),
    ):
        with refused("EINVAL", hint):
            odd = replace(saved, vcpus=(first, replace(second, place=other)))
            Arm64Vm.restored("odd", MAX_VCPUS, replace(state, arm64=odd))


def test_every_part_of_a_state_is_a_dataclass_of_plain_values() -> None:
    """So that leaves() reaches all of it."""
    for gic, state in BUSY.items():
        for path in leaves(state.arm64):
            value = value_at(state.arm64, path)
            assert value is None or type(value) in (int, bool), f"{gic} {path}"
    assert is_dataclass(Arm64State)
