"""What the daemon keeps of a VM that somebody looks at: states as they were, within a bound of bytes."""

from __future__ import annotations

import gc
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from random import Random

import pytest

from irqchipd.page.history import (
    EVENTS,
    EVENTS_RATION,
    STATES,
    STATES_BYTES,
    STATES_RATION_NS,
    History,
    is_busy,
    most_states,
    rations,
)
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.machine import Vm
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.x86.machine import X86Vm
from tests.vm.arm64.machine import GICC, Arm, ppi, spi

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
MS = 1_000_000

Operation = Callable[[], object]


def x86() -> tuple[Vm, list[Operation]]:
    vm = X86Vm("pc", clock=VirtualClock())
    vm.create_irqchip()
    for vcpu in range(2):
        vm.create_vcpu(vcpu)
        vm.mmio_write(vcpu, LAPIC + 0xF0, 4, 0x1FF)
    for gsi, entry in ((4, 0x34), (5, 0x8045)):
        vm.mmio_write(0, IOAPIC, 4, 0x10 + 2 * gsi)
        vm.mmio_write(0, IOAPIC + 0x10, 4, entry)
    lines: list[Operation] = [partial(vm.irq_line, gsi, level) for gsi in (4, 5) for level in (True, False)]
    return vm, [
        *lines,
        lambda: vm.ack_interrupt(0),
        lambda: vm.mmio_write(0, LAPIC + 0xB0, 4, 0),
        lambda: vm.mmio_write(0, LAPIC + 0x300, 4, 0x4_4000 | 0x51),  # to itself
        lambda: vm.signal_msi(LAPIC + (1 << 12), 0x61),
    ]


def arm64() -> tuple[Vm, list[Operation]]:
    arm = Arm(2, 2)
    for intid in (36, 37, 20):
        arm.configure(intid, level=intid == 37)
    lines = (spi(36), spi(37), ppi(0, 20))
    return arm.vm, [
        *(partial(arm.line, line, level) for line in lines for level in (1, 0)),
        partial(arm.read, GICC + 0xC),
        *(partial(arm.write, GICC + 0x10, intid) for intid in (36, 37, 20)),
    ]


def s390() -> tuple[Vm, list[Operation]]:
    vm = S390Vm("z", clock=VirtualClock())
    vm.create_vcpu(0)
    return vm, [
        partial(vm.s390_interrupt, 0xFFFF_2603, 0x2603, 1),
        partial(vm.s390_interrupt, 0xFFFF_2401, 0x1000, 0),
        partial(vm.take_irq, 0),
    ]


@pytest.mark.parametrize("make", [x86, arm64, s390])
def test_a_state_is_the_one_after_its_event(make: Callable[[], tuple[Vm, list[Operation]]]) -> None:
    """While so much happens that most states, and many events, are not kept."""
    vm, operations = make()
    history, rng = History(vm), Random(1)
    vm.attach(history)
    # By the number of the last event before; several where an operation without an event changed something.
    now: dict[int, list[VmState]] = defaultdict(list)
    now[0].append(vm.saved())
    seen, last = 0, 0
    for _ in range(20):
        for _ in range(rng.choice((1, 20, 500))):
            rng.choice(operations)()
            now[history._number].append(vm.saved())
        moment, events = history.look(last)
        now[moment.number].append(vm.saved())
        assert moment.state == vm.saved()
        seen, last = seen + len(events), moment.number
        assert len(events) <= EVENTS_RATION
    moments, events = history.all()
    assert 20 <= len(moments) <= STATES
    assert 400 < len(events) <= EVENTS
    assert len(events) < last, "some were not kept, and the numbers tell"
    for moment in moments:
        assert moment.state in now[moment.number], moment.number
    for before, after in pairwise(moments):
        assert (before.number, before.time) < (after.number, after.time)
    for one, other in pairwise(events):
        assert one[0] < other[0]
        assert one[1] <= other[1]


def test_states_are_spread_over_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is not enough time for a state after each: a step back leads to one nearby."""
    vm, operations = x86()
    history, numbers = History(vm), list[int]()
    vm.attach(history)
    monkeypatch.setattr("irqchipd.page.history.rations", lambda _: (EVENTS_RATION, 1_000_000))  # for ten or so
    for _ in range(3):
        history.look(0)
        numbers = [history._number]
        while not history._rests:
            operations[len(numbers) % 4]()
            numbers.append(history._number)
    kept = [moment.number for moment in history.all()[0] if moment.number > numbers[0]]
    assert len(kept) < EVENTS_RATION // 8, "not after each"
    assert max(kept[:-1]) > numbers[0] + EVENTS_RATION // 2, "and not of the first events alone"


def many_vcpus() -> Vm:
    vm = X86Vm("pc", 288)
    vm.create_irqchip()
    for vcpu in range(288):
        vm.create_vcpu(vcpu)
    return vm


def many_sources() -> Vm:
    vm = X86Vm("pc")
    vm.create_irqchip()
    for _ in range(300):
        source = vm.open_source("c" * 64)
        for gsi in (20, 4000):
            vm.irq_line(gsi, True, source)
    return vm


def many_interrupts() -> Vm:
    arm = Arm(3, 16, interrupts=992)
    for intid in range(32, 992):
        arm.configure(intid, priority=intid * 8 & 0xF8, level=bool(intid & 0x100))
    return arm.vm


def many_floating() -> Vm:
    vm = S390Vm("z")
    vm.create_vcpu(0)
    for number in range(8000):
        vm.s390_interrupt(number + 1, 1 << 16 | 1, 0x8000_0000)
    return vm


@pytest.mark.parametrize("make", [many_vcpus, many_sources, many_interrupts, many_floating])
def test_what_is_kept_of_a_large_vm_is_bounded_by_bytes(make: Callable[[], Vm]) -> None:
    vm = make()
    history = History(vm)
    first, _ = history.look(0)
    most = most_states(first.state)
    assert 2 <= most < STATES
    del first
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(most + 3):
            history.kvm_eoi(0, 0)
            history.look(1 << 60)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(history.all()[0]) == most
    assert held <= STATES_BYTES


def test_a_busy_daemon_spends_a_share_of_its_time() -> None:
    assert not is_busy(100 * MS, 10 * MS)
    assert rations(None) == (EVENTS_RATION, STATES_RATION_NS)  # it has time to spare
    assert is_busy(100 * MS, 25 * MS)
    assert rations(100 * MS) == (EVENTS_RATION, MS)
    events, states = rations(25 * MS)
    assert states == 25 * MS // 100
    assert 100 < events < EVENTS_RATION
    assert not is_busy(1 * MS, 1 * MS)  # too short a time to tell


def test_a_state_that_takes_long_is_kept_only_by_looks() -> None:
    vm, operations = x86()
    history = History(vm)
    vm.attach(history)
    history.look(0)
    history._state_ns = STATES_RATION_NS
    for operation in operations:
        operation()
    assert len(history._moments) == 1
    history.look(0)
    assert len(history._moments) == 2
