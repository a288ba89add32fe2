"""A restored VM equals the saved one; and any other state is refused or makes a working VM."""

from __future__ import annotations

import gzip
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client.replay.in_process import executors, new_vm
from irqchip_client.replay.traces import as_expected
from irqchipd.chips.i8254_state import SavedPit
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import Reg
from irqchipd.chips.lapic_timer import PERIODIC, TSC_DEADLINE
from irqchipd.chips.message import DeliveryMode
from irqchipd.chips.saved import MAX_LATE
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.timers import Timers
from irqchipd.vm.backlog import Backlog
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, GsiResampled
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.registry import Registry
from irqchipd.vm.routing import MsiRoute
from irqchipd.vm.snapshot import ChipsState, SourceState, VmState
from irqchipd.vm.vcpu_state import MpState, Signal
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.vcpu_state import SavedVcpu
from tests.vm.operations import Machine, Operation, everything
from tests.vm.pc import EOI, LEVEL, Ear, Pc, refused, to

MS = 1_000_000
TRACES = 800  # a random choice of the 1900 golden traces
CUTS = 3

Path_ = tuple[str | int, ...]  # the path to a part of a state


def restored(state: VmState) -> X86Vm:
    return X86Vm.restored("restored", MAX_VCPUS, state)


# The golden traces.


@cache
def golden() -> list[str]:
    lines = []
    for path in sorted((Path(__file__).parents[1] / "conformance" / "golden").glob("kvm-6.18*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            lines += file.readlines()
    return lines


def replay(trace: Mapping[str, Any], cuts: Sequence[int] = ()) -> tuple[list[int], VmState]:
    """Replay a trace, moving at `cuts`. Returns the indices of operations answered otherwise, and the final state."""
    vm = new_vm(trace["vcpus"])
    execute = executors(vm)
    wrong = []
    for number, (name, *arguments, expected) in enumerate(trace["ops"]):
        for _ in range(cuts.count(number)):
            vm = restored(vm.save())
            execute = executors(vm)
        try:
            answer = execute[name](*arguments)
        except VmError as error:
            answer = f"-{error.reason}"
        if not as_expected(expected, answer):
            wrong.append(number)
    return wrong, vm.save()


def test_a_vm_moved_anywhere_in_a_golden_trace_answers_as_the_kernel_did() -> None:
    seed = secrets.randbits(32)
    rng = Random(seed)
    for line in rng.sample(golden(), TRACES):
        trace = json.loads(line)
        name = f"seed {seed}, family {trace['family']}, trace {trace['seed']}"
        cuts = [rng.randrange(len(trace["ops"])) for _ in range(CUTS)]
        wrong, end = replay(trace, cuts)
        assert wrong == [], f"{name}, cut at {cuts}"
        assert end == replay(trace)[1], f"{name}, cut at {cuts}"


# Random operations, and time.

BEFORE: list[Operation] = [
    ("start_pit", (2, 1193)),
    ("start_apic_timer", (0, PERIODIC | 0x31, 0xB, 250_000)),
    ("start_apic_timer", (1, TSC_DEADLINE | 0x41, 0xB, 3 * MS)),
    ("nmi", (0,)),
    ("mmio_write", (0, 0xFEE0_0300, 4, 0xC_4200)),
    ("set_mp_state", (1, MpState.SIPI_RECEIVED)),
]
AFTER: list[Operation] = [
    ("advance", (10 * MS,)),
    *(("msr_read", (vcpu, msr)) for vcpu in (0, 1) for msr in (Msr.TSC, Msr.TSC_DEADLINE)),
    *((name, (vcpu,)) for name in ("take_signal", "ack_interrupt") for vcpu in (0, 1, 0, 1)),
    *(("mmio_write", (vcpu, 0xFEE0_00B0, 4, 0)) for vcpu in (0, 1)),
    ("signal_msi", (0xFEE0_F004, 0x71)),
]


@settings(max_examples=150)
@given(st.lists(everything, max_size=40), st.data())
def test_a_vm_moved_at_any_time_behaves_like_one_that_stayed(history: list[Operation], data: st.DataObject) -> None:
    stays, moves = Machine(pit=True), Machine(pit=True)
    history = BEFORE + history + AFTER
    cuts = data.draw(st.lists(st.integers(0, len(history)), max_size=3))
    for number, operation in enumerate(history):
        for _ in range(cuts.count(number)):
            before = moves.vm.save()
            moves = moves.moved()
            assert moves.vm.save() == before
        assert moves.apply(operation) == stays.apply(operation), operation
    assert moves.vm.save() == stays.vm.save()
    assert moves.told == stays.told
    assert moves.state() == stays.state()


@settings(max_examples=100)
@given(st.lists(everything, max_size=40))
def test_a_saved_state_round_trips_through_its_message(history: list[Operation]) -> None:
    machine = Machine(pit=True)
    machine.apply_all(history)
    state = machine.vm.save()
    assert snapshot_from(pb.VmSnapshot.FromString(snapshot_to(state).SerializeToString())) == state
    assert restored(state).save() == state


def test_saving_changes_nothing() -> None:
    pc = rich()
    assert pc.vm.save() == pc.vm.save()


# Single cases.


def test_timers_continue_where_they_were() -> None:
    pc = Pc(2, pit=True)
    pc.start(1)
    pc.initialise_pics()
    pc.count_apic(0, 0x31, 5 * MS)
    pc.count_apic(1, 0x41, 2 * MS, periodic=True)
    pc.count_pit(3580)  # 3.0004 ms
    pc.vm.advance(2_500_000)
    vm = restored(pc.vm.save())
    assert vm.describe().now == 2_500_000
    assert vm.describe().next_timer == 3_000_380
    pc.vm = vm
    assert pc.lapic_read(0, Reg.TIMER_CURRENT_COUNT) == 2_500_000
    assert pc.serve_all(1) == [0x41]
    vm.advance(500_380)
    assert pc.take() == 0x20
    vm.advance(5 * MS)
    assert pc.takers() == {0: 0x31, 1: 0x41}


def test_a_real_clock_goes_on_from_where_it_was_saved_and_its_timers_ring() -> None:
    pc = Pc(real=True)
    pc.count_apic(0, 0x31, 30 * MS)
    pc.deadlines.move(10 * MS)
    state = pc.vm.save()
    pc.vm.delete()
    pc.deadlines.move(30 * MS)
    vm = Registry(max_vms=1, deadlines=pc.deadlines).restore("again", state)
    assert vm.describe().now == state.now_ns == 10 * MS
    outcomes: list[object] = []
    vm.halt(0, outcomes.append)
    pc.deadlines.move(20 * MS - 1)
    assert outcomes == []
    pc.deadlines.move(1)
    assert outcomes == [(0x31, False)]


def test_a_vcpu_that_halts_is_halted_and_can_halt_again() -> None:
    pc = Pc()
    halts: list[Halt] = [pc.vm.halt(0, lambda _: None)]
    vm = restored(pc.vm.save())
    assert vm.get_mp_state(0) == MpState.HALTED
    outcomes: list[object] = []
    vm.halt(0, outcomes.append)
    vm.signal_msi(0xFEE0_0000, 0x31)
    assert outcomes == [(0x31, False)]
    assert not halts[0].finished


def test_an_interrupt_that_a_halt_gave_back_is_taken_after_the_move() -> None:
    pc = Pc()
    pc.msi(0, 0x31)
    pc.vm.abandon(pc.vm.halt(0, lambda _: None))
    assert restored(pc.vm.save()).ack_interrupt(0) == (0x31, False)


def test_a_masked_expiry_still_waits_after_the_move() -> None:
    pc = Pc()
    pc.count_apic(0, 0x31, 100)
    pc.lapic_write(0, Reg.LVT_TIMER, 0x1_0031)
    pc.vm.advance(200)
    pc.vm = restored(pc.vm.save())
    assert pc.take() is None
    pc.lapic_write(0, Reg.LVT_TIMER, 0x31)
    assert pc.take() == 0x31


def test_ticks_that_wait_for_an_acknowledgement_wait_after_the_move() -> None:
    pc = Pc(pit=True)
    pc.initialise_pics()
    pc.count_pit(1193)
    pc.vm.advance(3 * 999_847)
    pc.vm = restored(pc.vm.save())
    assert pc.take() == 0x20
    pc.vm = restored(pc.vm.save())
    assert pc.take() is None
    for _ in range(2):
        pc.out(0x20, EOI)
        pc.vm = restored(pc.vm.save())
        assert pc.take() == 0x20
    pc.out(0x20, EOI)
    assert pc.take() is None


def test_a_tick_that_has_not_been_acknowledged_holds_back_the_next_after_the_move() -> None:
    pc = Pc(pit=True)
    pc.mask_pics()
    pc.lapic_write(0, Reg.LVT_LINT0, 0x400)  # each delivered tick is an NMI
    pc.count_pit(1193)
    pc.vm.advance(999_847)
    assert pc.vm.take_signal(0) == Signal(DeliveryMode.NMI)
    pc.vm = restored(pc.vm.save())
    pc.vm.advance(MS)
    assert pc.vm.take_signal(0) is None
    pc.out(0x20, 0x60)  # a specific EOI of line 0
    assert pc.vm.take_signal(0) == Signal(DeliveryMode.NMI)


def test_the_count_of_eois_in_a_row_and_the_pause_continue_after_the_move() -> None:
    pc = Pc()
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    for turn in range(10_000):
        if turn == 9_990:
            pc.vm = restored(pc.vm.save())
        assert pc.take() == 0x31
        pc.eoi()
    assert pc.take() is None
    pc.vm.advance(4 * MS)
    pc.vm = restored(pc.vm.save())
    pc.vm.advance(6 * MS - 1)
    assert pc.take() is None
    pc.vm.advance(1)
    assert pc.take() == 0x31


def test_pending_signals_are_pending_after_the_move() -> None:
    pc = Pc(2)
    pc.ipi(0, 0x4500, destination=1)
    pc.ipi(0, 0x4612, destination=1)
    for _ in range(2):
        pc.ipi(0, 0x4400, destination=1)
        pc.vm = restored(pc.vm.save())
    pc.ipi(0, 0x4200, destination=1)
    taken = []
    for _ in range(6):
        pc.vm = restored(pc.vm.save())
        taken.append(pc.vm.take_signal(1))
    kinds = DeliveryMode.INIT, DeliveryMode.STARTUP, DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.NMI
    assert [signal.delivery_mode if signal else None for signal in taken] == [*kinds, None]
    assert taken[1] == Signal(DeliveryMode.STARTUP, 0x12)


def test_a_vmms_pic_vector_is_pending_after_the_move() -> None:
    assert restored(split().save()).ack_interrupt(0) == (0x08, True)


def test_a_deadline_is_read_after_the_move_and_met() -> None:
    pc = Pc()
    pc.lapic_write(0, Reg.LVT_TIMER, TSC_DEADLINE | 0x31)
    pc.vm.msr_write(0, Msr.TSC, 1 << 50)
    pc.vm.msr_write(0, Msr.TSC_DEADLINE, (1 << 50) + 500)
    pc.vm = restored(pc.vm.save())
    assert pc.vm.msr_read(0, Msr.TSC_DEADLINE) == (1 << 50) + 500
    pc.vm.advance(499)
    assert pc.vm.msr_read(0, Msr.TSC) == (1 << 50) + 499
    assert pc.take() is None
    pc.vm.advance(1)
    assert pc.take() == 0x31


def test_a_vcpu_missing_in_the_map_of_destinations_is_missing_after_the_move() -> None:
    pc = Pc()
    pc.vm.create_vcpu(1)
    assert pc.vm.signal_msi(0xFEE0_1000, 0x400) == 0
    pc.vm = restored(pc.vm.save())
    assert pc.vm.signal_msi(0xFEE0_1000, 0x400) == 0
    pc.lapic_write(1, Reg.LDR, 1 << 24)
    assert pc.vm.signal_msi(0xFEE0_1000, 0x400) == 1


def test_an_entrys_last_reported_eoi_is_the_last_after_the_move() -> None:
    """The entry was redirected while its interrupt was in service, and a vCPU has rescanned since."""
    pc = Pc(2)
    ear = Ear(pc.vm, gsis=[16])
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1, 0)
    assert pc.take() == 0x31
    pc.program(16, LEVEL | to(1) | 0x31)
    assert pc.take() is None
    pc.vm = restored(pc.vm.save())
    ear = Ear(pc.vm, gsis=[17])
    assert pc.take() is None
    pc.vm = restored(pc.vm.save())
    pc.eoi()
    assert pc.take() is None
    assert not int.from_bytes(pc.vm.save().vcpus[0].handled, "little") >> 0x31 & 1
    assert ear.heard() == []


@pytest.mark.parametrize("full", [True, False])
def test_a_state_can_be_restored_twice_and_the_copies_are_independent(full: bool) -> None:
    state = rich().vm.save() if full else split().save()
    one, two = restored(state), restored(state)
    one.advance(7 * MS)
    one.irq_line(17, True)
    one.reset()
    assert two.save() == state


def test_a_name_that_is_taken_and_a_daemon_that_is_full() -> None:
    registry, state = Registry(max_vms=2), rich().vm.save()
    registry.restore("one", state)
    with refused("EEXIST"):
        registry.restore("one", state)
    with refused("EINVAL"):
        registry.restore("!", state)
    assert registry.restore("", state).name == "vm-1"
    with refused("ENOSPC"):
        registry.restore("three", state)
    with refused("EINVAL"):
        Registry(max_vms=1, max_vcpus=1).restore("one", state)


def test_a_pit_with_any_state_can_be_moved() -> None:
    """KVM_SET_PIT2 keeps channel 0's load time as given, though unused. It may come from another host."""
    pc = Pc(pit=True)
    state = pc.vm.get_pit()
    state.channels[0].count_load_time = (1 << 63) - 1
    pc.vm.set_pit(state)
    saved = pc.vm.save()
    assert restored(saved).save() == saved


@pytest.mark.parametrize("what", ["halted", "an NMI", "queued"])
def test_a_vcpu_without_a_local_apic_has_no_run_state(what: str) -> None:
    state = bare().save()
    (vcpu,) = state.vcpus
    match what:
        case "halted":
            vcpu = replace(vcpu, mp_state=MpState.HALTED + 1)
        case "an NMI":
            vcpu = replace(vcpu, nmis=1)
        case _:
            vcpu = replace(vcpu, queued=((0x31, False),))
    with refused("EINVAL"):
        restored(replace(state, vcpus=(vcpu,)))


# Sources.


def test_sources_come_back_detached_with_their_levels_until_they_are_resumed() -> None:
    pc = Pc()
    pc.mask_pics()
    source = pc.vm.open_source("disk")
    pc.vm.open_source("net")
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1, source=source)
    pc.line(9, 1)
    vm = restored(pc.vm.save())
    disk, net = vm.describe().sources
    assert (disk.client, disk.number, disk.asserted, disk.detached) == ("disk", source.number, [16], True)
    assert (net.client, net.asserted, net.detached) == ("net", [], True)
    assert vm.describe().asserted == [9]
    with refused("ENOENT"):
        vm.open_source("nobody", resume=True)
    other = vm.open_source("disk")  # a Session that does not resume gets a new source
    assert other.number not in (disk.number, net.number)
    resumed = vm.open_source("disk", resume=True)
    assert resumed.number == disk.number
    assert [info.detached for info in vm.describe().sources] == [False, True, False]
    with refused("ENOENT"):
        vm.open_source("disk", resume=True)
    pc.vm = vm
    assert pc.take() == 0x31
    vm.irq_line(16, False, resumed)
    assert pc.serve_all() == []
    pc.eoi()
    assert pc.take() is None


def test_a_resumed_source_that_ends_drops_its_levels() -> None:
    pc = Pc()
    pc.line(16, 1, source=pc.vm.open_source("disk"))
    vm = restored(pc.vm.save())
    vm.close_source(vm.open_source("disk", resume=True))
    assert vm.describe().sources == []
    state = vm.get_irqchip(2)
    assert getattr(state, "irr", None) == 0


def test_two_of_one_name_are_resumed_one_after_the_other() -> None:
    pc = Pc()
    for gsi in (16, 17):
        pc.line(gsi, 1, source=pc.vm.open_source("twin"))
    vm = restored(pc.vm.save())
    assert [vm.open_source("twin", resume=True).asserted for _ in range(2)] == [1 << 16, 1 << 17]
    with refused("ENOENT"):
        vm.open_source("twin", resume=True)


def test_acknowledgements_without_a_client_are_reported_when_it_resumes() -> None:
    pc = Pc()
    source = pc.vm.open_source("disk", resampled=[16], listener=lambda _: None)
    pc.program(16, LEVEL | 0x31)
    pc.vm.irq_line(16, True, source)
    pc.vm = restored(pc.vm.save())
    assert pc.serve_all() == [0x31]
    pc.vm.signal_msi(0xFEE0_0000, 0x31)
    assert pc.serve_all() == [0x31]
    pc.vm = restored(pc.vm.save())  # moved again
    told: list[Event] = []
    resumed = pc.vm.open_source("disk", listener=told.append, resume=True)
    assert told == [GsiResampled(16, 2)]
    pc.vm.irq_line(16, True, resumed)
    assert pc.serve_all() == [0x31]
    assert told == [GsiResampled(16, 2), GsiResampled(16, 1)]
    with refused("EINVAL"):
        pc.vm.irq_line(16, False, resumed)


def test_a_resumed_source_may_resample_more_gsis() -> None:
    pc = Pc()
    pc.vm.open_source("disk", resampled=[16])
    pc.vm = restored(pc.vm.save())
    told: list[Event] = []
    source = pc.vm.open_source("disk", resampled=[16, 17], listener=told.append, resume=True)
    for pin in (16, 17):
        pc.program(pin, LEVEL | pin + 0x20)
        pc.vm.irq_line(pin, True, source)
        assert pc.serve_all() == [pin + 0x20]
    assert told == [GsiResampled(16, 1), GsiResampled(17, 1)]


# Arbitrary states.


def rich() -> Pc:
    """A VM whose state has every part."""
    pc = Pc(3, pit=True)
    pc.start(1, 2)
    pc.initialise_pics()
    pc.vm.advance(3 * MS)
    pc.program(8, 0x38)
    pc.program(16, LEVEL | 0x41)
    pc.line(8, 1)
    pc.line(16, 1, source=pc.vm.open_source("disk"))
    pc.vm.irq_line(17, True, pc.vm.open_source("net", resampled=[5, 17]))
    pc.line(10, 1)
    pc.count_pit(1193)
    pc.count_apic(0, 0x51, 700_000, periodic=True)
    pc.count_apic(1, 0x52, 20 * MS)
    assert pc.vm.msr_write(2, Msr.APIC_BASE, 0xFEE0_0C00) == 0
    pc.vm.advance(5 * MS)
    pc.msi(0, 0x61)
    pc.vm.abandon(pc.vm.halt(0, lambda _: None))
    pc.vm.nmi(0)
    pc.ipi(0, 0x4200, destination=1)
    pc.vm.set_mp_state(1, MpState.SIPI_RECEIVED)
    pc.vm._pc.delayed_eoi.deadline = None
    pc.vm._pc.serve_ioapic_later(4, 10 * MS)
    return pc


def split() -> X86Vm:
    vm = X86Vm("split", clock=VirtualClock())
    vm.enable_cap(121, args=[24])
    for vcpu in (0, 1):
        vm.create_vcpu(vcpu)
    vm.set_routing([MsiRoute(4, 0xFEE0_0000, 0xC034), MsiRoute(30, 0xFEE0_1000, 0x31)])
    vm.interrupt(0, 0x08)
    vm.irq_line(4, True, vm.open_source("disk"))
    return vm


def bare() -> X86Vm:
    vm = X86Vm("bare", clock=VirtualClock())
    vm.create_vcpu(0)
    return vm


MESSAGES: dict[type, Any] = {
    VmState: pb.VmSnapshot,
    ChipsState: pb.ChipsSnapshot,
    SavedPit: pb.PitSnapshot,
    SavedVcpu: pb.VcpuSnapshot,
    SourceState: pb.SourceSnapshot,
}
RANGES = {
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_ENUM: (1, 5),
}
NUMBERS = [-1, 0, 1, 2, 3, 5, 63, 254, 255, 256, 1000, 4095, 4096, *(1 << n for n in (31, 32, 62, 63)), (1 << 63) - 1]


def parts(state: object) -> Iterator[tuple[Path_, Any, FieldDescriptor]]:
    """Every field of a state and its parts, with the contract's description of the field."""
    descriptors = MESSAGES[type(state)].DESCRIPTOR.fields_by_name
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        yield (field.name,), value, descriptors[field.name]
        inner = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(inner):
            if is_dataclass(part) and type(part) in MESSAGES:
                prefix = (field.name, index) if isinstance(value, tuple) else (field.name,)
                for path, deeper, descriptor in parts(part):
                    yield (*prefix, *path), deeper, descriptor


def with_part(state: Any, path: Path_, value: object) -> Any:
    """The state with a part replaced."""
    if not path:
        return value
    first, *rest = path
    if isinstance(state, tuple):
        assert isinstance(first, int)
        return (*state[:first], with_part(state[first], tuple(rest), value), *state[first + 1 :])
    assert isinstance(first, str)
    return replace(state, **{first: with_part(getattr(state, first), tuple(rest), value)})


def others(value: object, descriptor: FieldDescriptor) -> list[object]:
    """Other values for a field, within the contract's type."""
    low, high = RANGES.get(descriptor.type, (0, 0))
    numbers = [number for number in (*NUMBERS, low, high) if low <= number <= high]
    found: list[object] = []
    match value:
        case bool():
            found = [not value]
        case int():
            found = [*numbers, *(number for number in (value - 1, value + 1) if low <= number <= high)]
        case bytes():
            found = [b"", bytes(len(value)), b"\xff" * len(value), value[:-1], value + b"\1", value[::-1]]
        case str():
            found = ["", "x" * 65, "\0", "é" * 64]
        case Mapping():
            found = [{}, *({number: 0} for number in NUMBERS if 0 <= number < 1 << 32), {0: 255}, {0: 256}]
            found += [{5: number} for number in (*NUMBERS, (1 << 64) - 1) if number >= 0]
        case tuple():
            found = [(), value[:-1], value + value[:1], value[::-1]]
            if descriptor.type == FieldDescriptor.TYPE_BYTES:
                found += [(*value[:-1], part) for part in (b"", b"\xff", b"\xff" * 8, bytes(2000), b"\4")]
            elif descriptor.type != FieldDescriptor.TYPE_MESSAGE:
                found += [(*value[:-1], number) for number in numbers]
        case None if descriptor.type == FieldDescriptor.TYPE_BOOL:
            found = [False, True]
        case None if descriptor.type == FieldDescriptor.TYPE_BYTES:
            found = [b"", bytes(1024)]
        case None if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            found = [*numbers]
    if descriptor.has_presence:
        found.append(None)
    return [other for other in found if other != value]


def probe(vm: X86Vm, operations: Iterable[Operation] = ()) -> None:
    """Use everything in a VM: operations may be refused but not fail, and the VM can be saved and restored."""
    machine = Machine.__new__(Machine)
    machine.vm, machine.clock, machine.resampled, machine.told = vm, VirtualClock(), {}, []
    machine.sources = [None, *(machine._open_source(number) for number in (1, 2))]
    machine.apply_all([*operations, *PROBES])
    vm.describe()
    state = vm.save()
    assert snapshot_from(snapshot_to(state)) == state
    assert restored(state).save() == state


PROBES: list[Operation] = [
    *(("halt", (vcpu, False, False)) for vcpu in (0, 1, 0, 1)),
    *(("take_signal", (vcpu,)) for vcpu in (0, 1, 0)),
    *(("ack_interrupt", (vcpu,)) for vcpu in (0, 1)),
    *(("pio_read", (0, port, 1)) for port in (0x20, 0xA0, 0x40, 0x41, 0x42, 0x61)),
    ("pio_write", (0, 0x43, 1, 0xC6)),
    ("get_pit", ()),
    ("pio_write", (0, 0x20, 1, 0x20)),
    ("pio_write", (0, 0x20, 1, 0x65)),
    ("pio_write", (0, 0xA0, 1, 0x61)),
    *(("mmio_read", (vcpu, 0xFEE0_0390, 4)) for vcpu in (0, 1)),
    *(("msr_read", (vcpu, msr)) for vcpu in (0, 1, 2) for msr in (0x10, 0x1B, 0x6E0, 0x802, 0x839)),
    ("mmio_write", (0, 0xFEE0_00B0, 4, 0)),
    ("advance", (MS,)),
    ("mmio_write", (0, 0xFEE0_03E0, 4, 0xA)),
    ("mmio_write", (1, 0xFEE0_03E0, 4, 0x0)),
    *(("irq_line", (gsi, level, source)) for gsi in (4, 8, 10, 17) for level in (True, False) for source in (0, 1)),
    ("signal_msi", (0xFEEF_F000, 0x71)),
    ("mmio_write", (0, 0xFEE0_0320, 4, PERIODIC | 0x51)),
    ("mmio_write", (0, 0xFEE0_00F0, 4, 0x0FF)),
    ("mmio_write", (0, 0xFEE0_00F0, 4, 0x1FF)),
    ("write_entry", (0, 16, 0x41)),
    ("advance", (5 * MS,)),
    *(("ack_interrupt", (vcpu,)) for vcpu in (0, 1)),
    ("close_source", (1,)),
    ("set_pit_reinject", (False,)),
    ("mmio_write", (0, 0xFEE0_0300, 4, 0x8_4500)),
    *(("get_lapic", (vcpu,)) for vcpu in (0, 1, 2)),
    ("set_routing", ([],)),
]


@pytest.mark.parametrize("kind", ["full", "split", "bare"])
def test_each_altered_field_is_refused_or_makes_a_working_vm(kind: str) -> None:
    state = {"full": rich().vm, "split": split(), "bare": bare()}[kind].save()
    probe(restored(state))
    outcomes = Counter(
        attempt(with_part(state, path, other), f"{'.'.join(map(str, path))} = {other!r:.60}")
        for path, value, descriptor in parts(state)
        for other in others(value, descriptor)
    )
    assert {outcome: count for outcome, count in outcomes.items() if outcome not in ("refused", "accepted")} == {}
    assert outcomes["refused"] > 50
    assert outcomes["accepted"] > 15


def attempt(state: VmState, name: str, operations: Iterable[Operation] = ()) -> str:
    """The outcome of restoring a state: refused, accepted, or what failed."""
    try:
        vm = restored(state)
    except VmError as error:
        return "refused" if error.reason == "EINVAL" else f"{name}: {error.reason}"
    except Exception as error:
        return f"{name}: {error!r} when restored"
    try:
        if vm.describe().virtual:
            probe(vm, operations)
    except Exception as error:
        return f"{name}: {error!r} later"
    vm.delete()
    return "accepted"


@cache
def rich_state() -> VmState:
    return rich().vm.save()


@st.composite
def altered(draw: st.DrawFn) -> VmState:
    """A state with some altered fields, and chip structures exchanged for random ones."""
    state = rich_state()
    for _ in range(draw(st.integers(1, 4))):
        path, value, descriptor = draw(st.sampled_from(list(parts(state))))
        if isinstance(value, bytes) and value:
            at = draw(st.integers(0, len(value) - 1))
            word = draw(st.binary(min_size=1, max_size=min(8, len(value) - at)))
            state = with_part(state, path, value[:at] + word + value[at + len(word) :])
        elif alternatives := others(value, descriptor):
            state = with_part(state, path, draw(st.sampled_from(alternatives)))
    return state


@settings(max_examples=200)
@given(altered(), st.lists(everything, max_size=20))
def test_a_state_altered_in_several_places_is_refused_or_makes_a_working_vm(
    state: VmState, future: list[Operation]
) -> None:
    assert attempt(state, "it", future) in ("refused", "accepted")


@pytest.mark.parametrize("timer", ["PIT", "APIC"])
def test_a_restored_timer_that_is_centuries_late_does_not_keep_the_daemon_busy(timer: str) -> None:
    """The state is refused, or the timer catches up."""
    state = rich_state()
    state = replace(state, clock=1, now_ns=1 << 61)
    if timer == "PIT":
        assert state.pit is not None
        state = replace(state, pit=replace(state.pit, expires_ns=0))
    else:
        first, *rest = state.vcpus
        state = replace(state, vcpus=(replace(first, timer_expires_ns=0, timer_target_ns=0), *rest))
    try:
        vm = X86Vm.restored("restored", MAX_VCPUS, state, deadlines=Timers())
    except VmError:
        return
    try:
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1
    finally:
        vm.delete()


# Late timers.


@st.composite
def late(draw: st.DrawFn) -> VmState:
    """A VM after some operations, then some time during which its timers were not served."""
    machine = Machine()
    machine.apply_all(draw(st.lists(everything, max_size=30)))
    pc = rich() if draw(st.booleans()) else None
    state = (pc or machine).vm.save()
    lateness = draw(st.integers(0, 120_000 * MS) | st.integers(0, 1 << 61))
    return replace(state, now_ns=state.now_ns + lateness)


@settings(max_examples=100)
@given(late())
def test_a_vm_can_be_moved_however_late_it_is(state: VmState) -> None:
    vm = restored(state)
    assert vm.describe().now == state.now_ns
    again = restored(vm.save())
    assert again.save() == vm.save()
    for cpu in again._pc.cpus:
        if cpu.alarm.deadline is not None and cpu.lapic is not None and cpu.lapic.timer.mode == PERIODIC:
            assert cpu.alarm.deadline >= state.now_ns - MAX_LATE
    pit = again._pc.pit
    if pit is not None and pit.running and pit.periodic:
        assert pit.expires is not None
        assert pit.expires >= state.now_ns - MAX_LATE


@pytest.mark.parametrize("late_ns", [0, 59_000 * MS, 60_000 * MS, 61_000 * MS, 3_600_000 * MS + 1])
def test_a_late_periodic_timer_keeps_its_phase_and_at_most_a_minute_of_lateness(late_ns: int) -> None:
    pc = Pc(1)
    pc.count_apic(0, 0x51, 700_000, periodic=True)
    state = pc.vm.save()
    (vcpu,) = state.vcpus
    assert vcpu.timer_expires_ns is not None
    moved = restored(replace(state, now_ns=vcpu.timer_expires_ns + late_ns)).save()
    expires = moved.vcpus[0].timer_expires_ns
    assert expires is not None
    assert (expires - vcpu.timer_expires_ns) % vcpu.timer_period_ns == 0
    assert moved.now_ns - expires in range(min(late_ns, MAX_LATE - vcpu.timer_period_ns), MAX_LATE + 1)
    assert moved.vcpus[0].timer_target_ns == expires


def test_a_late_one_shot_interrupts_after_the_move() -> None:
    pc = Pc(1)
    pc.count_apic(0, 0x52, 20 * MS)
    state = pc.vm.save()
    vm = restored(replace(state, now_ns=state.now_ns + 3_600_000 * MS))
    vm.advance(0)
    assert vm.ack_interrupt(0) == (0x52, False)


def test_a_vm_on_a_real_clock_saved_while_late_can_be_restored() -> None:
    state = rich().vm.save()
    vm = restored(replace(state, clock=1, now_ns=state.now_ns + 600_000 * MS))
    try:
        assert vm.describe().lateness >= 0
        restored(vm.save()).delete()
    finally:
        vm.delete()


def test_a_vms_lateness_is_that_of_its_earliest_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    pc = Pc(2)
    pc.count_apic(0, 0x52, 20 * MS)
    pc.count_apic(1, 0x53, 50 * MS)
    first = pc.vm.describe().next_timer
    assert first is not None
    assert pc.vm.describe().lateness == 0
    clock = VirtualClock(first + 5)
    pc.vm.agenda.clock = clock
    assert pc.vm.describe().lateness == 0, "a virtual clock stands still until they are served"
    monkeypatch.setattr(VirtualClock, "virtual", False)
    pc.vm.agenda.backlog = Backlog()  # so that no timer expires
    assert pc.vm.describe().lateness == 5
