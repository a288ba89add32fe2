"""Line sources: how much a VM's sources may hold together, and their bitmaps."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.limits import Limits
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.snapshot import SourceState
from irqchipd.vm.sources import MAX_SOURCES, SOURCES_BYTES, LineSource, bits_of, bytes_of, numbers_of
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.vcpu_state import MAX_QUEUED
from tests.vm.pc import Pc, refused

LONGEST = "\U0001f600" * 64  # a client's name


def restored(vm: X86Vm) -> X86Vm:
    return X86Vm.restored("restored", MAX_VCPUS, vm.save())


def vm_with_irqchip() -> X86Vm:
    vm = X86Vm("test")
    vm.create_irqchip()
    return vm


def held(vm: X86Vm) -> int:
    """The total that the sources hold, by their own accounts; checks that the VM's total agrees."""
    size = sum(source.bytes for source in vm._sources.values())
    assert vm._sources_bytes._total == size
    return size


@given(st.sets(st.integers(0, MAX_GSIS - 1)))
def test_a_bitmap_has_the_gsis_that_it_was_made_of(gsis: set[int]) -> None:
    assert numbers_of(bits_of(gsis)) == sorted(gsis)


def test_the_sources_of_a_vm_are_bounded() -> None:
    vm = vm_with_irqchip()
    sources = [vm.open_source("") for _ in range(MAX_SOURCES)]
    with refused("ENOSPC"):
        vm.open_source("")
    vm.close_source(sources[5])
    vm.open_source("")
    assert restored(vm).describe(room=0).source_count == MAX_SOURCES


def test_names_lines_and_resampled_gsis_are_bounded_together() -> None:
    vm = vm_with_irqchip()
    high, many = vm.open_source("high"), vm.open_source("many", resampled=range(1000))
    while held(vm) + bytes_of(LONGEST, 0, 0) <= SOURCES_BYTES:
        vm.open_source(LONGEST)
    before = vm.describe()
    with refused("ENOSPC"):
        vm.open_source(LONGEST)
    vm.open_source("")
    with refused("ENOSPC"):
        vm.irq_line(MAX_GSIS - 1, True, high)
    with refused("ENOSPC"):
        vm.irq_lines([3 << 1 | 1, (MAX_GSIS - 1) << 1 | 1], high)
    with refused("ENOSPC"):
        vm.open_source("", resampled=range(100))
    assert high.asserted == 0
    assert vm.describe().sources[:-1] == before.sources
    assert vm.irq_line(MAX_GSIS - 1, False, high) == -1, "lowering a line needs no room"
    assert vm.irq_line(MAX_GSIS, True, high) == -1, "nor does a GSI without a route"
    vm.irq_line(MAX_GSIS - 1, True)  # source 0 always has room
    assert snapshot_to(vm.save()).ByteSize() < Limits().message_bytes
    assert restored(vm).save().sources == vm.save().sources
    vm.close_source(many)
    vm.irq_line(MAX_GSIS - 1, True, high)
    for source in list(vm._sources.values()):
        vm.close_source(source)
    assert held(vm) == 0


def test_a_hundred_sources_of_all_lines_can_be_moved() -> None:
    vm = vm_with_irqchip()
    for _ in range(100):
        source = vm.open_source("x")
        vm.irq_lines([gsi << 1 | 1 for gsi in range(MAX_GSIS)], source)
    message = snapshot_to(vm.save())
    assert message.ByteSize() < 100_000
    moved = X86Vm.restored("moved", MAX_VCPUS, snapshot_from(message))
    assert moved.describe().sources[99].asserted == list(range(MAX_GSIS))
    assert held(moved) <= held(vm)


def test_restored_sources_are_bounded_too() -> None:
    vm = vm_with_irqchip()
    state = vm.save()
    one = SourceState(source=1, client="x", asserted=b"\xff" * (MAX_GSIS // 8), resampled_gsis={})
    many = tuple(replace(one, source=number) for number in range(100, 100 + SOURCES_BYTES // 577))
    X86Vm.restored("most", MAX_VCPUS, replace(state, sources=many))
    with refused("EINVAL"):
        X86Vm.restored("more", MAX_VCPUS, replace(state, sources=(*many, replace(one, source=99))))
    named = [replace(one, client="", source=number, asserted=b"") for number in range(64, 65 + MAX_SOURCES)]
    with refused("EINVAL"):
        X86Vm.restored("many", MAX_VCPUS, replace(state, sources=tuple(named)))
    with refused("EINVAL"):
        X86Vm.restored("wide", MAX_VCPUS, replace(state, sources=(replace(one, asserted=bytes(MAX_GSIS // 8 + 1)),)))


@pytest.mark.parametrize("resampled", [0, 50])
def test_a_vm_whose_sources_hold_the_most_is_a_few_mebibytes(resampled: int) -> None:
    vm = vm_with_irqchip()
    told = dict.fromkeys(range(resampled), 1)
    one = SourceState(source=1, client="", asserted=b"", resampled_gsis=told)
    count = min(SOURCES_BYTES // bytes_of("", 0, resampled), MAX_SOURCES)
    state = replace(vm.save(), sources=tuple(replace(one, source=100 + number) for number in range(count)))
    tracemalloc.start()
    try:
        moved = X86Vm.restored("moved", MAX_VCPUS, state)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert moved.describe(room=0).source_count == count
    assert held < 6 << 20


# Interrupts that halts gave back.


def test_interrupts_given_back_are_bounded() -> None:
    pc = Pc()
    cpu = pc.vm._pc.cpus[0]
    for vector in range(100, 100 + 2 * MAX_QUEUED):
        cpu.give_back((vector, False), cpu.reset_count)
    assert cpu.queued == [(vector, False) for vector in range(100, 100 + MAX_QUEUED)]
    state = pc.vm.save()
    assert X86Vm.restored("moved", MAX_VCPUS, state).save().vcpus[0].queued == tuple(cpu.queued)
    (vcpu,) = state.vcpus
    with refused("EINVAL"):
        X86Vm.restored(
            "more", MAX_VCPUS, replace(state, vcpus=(replace(vcpu, queued=((33, False),) * (MAX_QUEUED + 1)),))
        )


def test_every_interrupt_that_can_be_given_back_has_room() -> None:
    """One interrupt per class of the local APIC, taken from the lowest up, and none ended."""
    pc = Pc()
    vectors = list(range(0x1F, 0x100, 0x10))
    halts = []
    for vector in vectors:
        pc.msi(0, vector)
        halts.append(pc.vm.halt(0, lambda _: None))
    for halt in halts:
        pc.vm.abandon(halt)
    assert [pc.take() for _ in vectors] == vectors


# Pages of a VM's sources.


def pages(vm: X86Vm, room: int) -> list[list[str]]:
    after: int | None = 0
    found = []
    while after is not None:
        description = vm.describe(after, room, one_at_least=True)
        found.append([source.client for source in description.sources])
        after = description.next_source
    return found


def test_sources_are_listed_in_pages_of_bounded_size() -> None:
    vm = vm_with_irqchip()
    for number in range(10):
        vm.open_source(f"client {number}")
    assert pages(vm, 100) == [[f"client {number}", f"client {number + 1}"] for number in range(0, 10, 2)]
    assert pages(vm, 1) == [[f"client {number}"] for number in range(10)]
    description = vm.describe(room=1)
    assert (description.sources, description.source_count) == ([], 10)


def test_pages_hold_while_sources_come_and_go() -> None:
    vm = vm_with_irqchip()
    sources: list[LineSource] = [vm.open_source(f"{number}") for number in range(100)]
    seen: list[str] = []
    after: int | None = 0
    rng = random.Random(1)
    stay = set(rng.sample(range(100), 50))
    for number in set(range(100)) - stay:
        sources[number].dropped_events = 1
    going = [number for number in range(100) if number not in stay]
    while after is not None:
        description = vm.describe(after, 300, one_at_least=True)
        seen += [source.client for source in description.sources]
        after = description.next_source
        for _ in range(2):
            if going:
                vm.close_source(sources[going.pop()])
        vm.open_source("new")
        if len(seen) > 1000:
            break
    old = [client for client in seen if client != "new"]
    assert len(set(old)) == len(old)
    assert {int(client) for client in old} >= stay


def test_a_restored_vms_sources_are_in_their_order() -> None:
    vm = vm_with_irqchip()
    sources = [vm.open_source(f"{number}") for number in range(4)]
    vm.close_source(sources[0])
    vm.open_source("last")  # with the number of the first
    assert pages(restored(vm), 1) == [["1"], ["2"], ["3"], ["last"]]
