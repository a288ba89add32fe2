"""A GICv2 that resumes equals the saved one and goes on like it; and what no GICv2 can be is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import Gicd, SavedGicV2
from irqchipd.chips.gic.saving import SavedGicCpu, SavedInterrupt
from irqchipd.chips.saved import StateError
from tests.builds import needs_sources
from tests.chips.gic.boardv2 import Board
from tests.chips.gic.states import changed, leaves, value_at

CPUS, INTERRUPTS = 2, 64
INTIDS = (3, 9, 20, 27, 40, 41, 42, 43, 44, 63)  # some of each kind, and more than there are list registers

cpus = st.integers(0, CPUS - 1)
intids = st.sampled_from(INTIDS)
words = st.one_of(st.integers(0, 0xFFFF_FFFF), st.builds(lambda intid: 1 << intid % 32, intids))
distributor_words = [
    base + 4 * n for base in (0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380) for n in range(INTERRUPTS // 32)
] + [Gicd.CTLR, Gicd.ICFGR + 8, Gicd.ICFGR + 12, Gicd.SGIR, Gicd.CPENDSGIR, Gicd.SPENDSGIR + 8]
distributor_bytes = [base + intid for base in (Gicd.IPRIORITYR, Gicd.ITARGETSR) for intid in INTIDS]
cpu_registers = (Gicc.CTLR, Gicc.PMR, Gicc.BPR, Gicc.ABPR, Gicc.EOIR, Gicc.DIR, Gicc.APR0)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("line"), intids.filter(lambda intid: intid >= 16), st.booleans(), cpus),
        st.tuples(st.just("write"), st.sampled_from(distributor_words), words, cpus),
        st.tuples(st.just("write"), st.sampled_from(distributor_bytes), st.integers(0, 0xFF), cpus, st.just(1)),
        st.tuples(st.just("write_cpu"), st.sampled_from(cpu_registers), st.one_of(intids, words), cpus),
        st.tuples(st.just("user_write"), st.sampled_from(distributor_words), words, cpus),
        st.tuples(st.just("user_write_cpu"), st.sampled_from(cpu_registers), words, cpus),
        st.tuples(st.just("read_cpu"), st.sampled_from((Gicc.IAR, Gicc.IAR, Gicc.HPPIR, Gicc.RPR)), cpus),
        st.tuples(st.just("read"), st.sampled_from(distributor_words), cpus),
    ),
    max_size=60,
)


def a_board(timer: bool) -> Board:
    board = Board(CPUS, INTERRUPTS)
    board.enable_everything()
    if timer:
        board.gic.map_physical(board.interrupt(27), 27)
        board.interrupt(27).owner = 1
    return board


def do(board: Board, program: list[Any]) -> list[object]:
    return [getattr(board, name)(*arguments) for name, *arguments in program]


def saved_of(board: Board) -> SavedGicV2:
    return SavedGicV2(**board.gic.save())


def check(saved: SavedGicV2) -> None:
    saved.check(CPUS, Board().gic.list_registers)


def resumed(saved: SavedGicV2) -> Board:
    check(saved)
    board = Board(CPUS, INTERRUPTS)
    board.gic.resume(saved)
    return board


@given(before=operations, inside=st.none() | cpus, after=operations, timer=st.booleans())
@settings(max_examples=150)
def test_a_gic_that_resumes_goes_on_like_the_saved_one(
    before: list[Any], inside: int | None, after: list[Any], timer: bool
) -> None:
    board = a_board(timer)
    do(board, before)
    if inside is not None:  # a guest is running
        board.gic.enter(board.gic.cpus[inside])
    saved = saved_of(board)
    other = resumed(saved)
    assert saved_of(other) == saved
    if inside is not None:
        for each in (board, other):
            each.gic.exit(each.gic.cpus[inside])
    assert do(other, after) == do(board, after)
    assert saved_of(other) == saved_of(board)


def test_saving_takes_nothing_away() -> None:
    board = a_board(timer=True)
    board.edge(40, 41, 42, 43, 44)
    board.acknowledge()
    board.gic.enter(board.gic.cpus[0])
    saved = saved_of(board)
    assert saved_of(board) == saved
    assert [register.intid for register in saved.cpus[0].list_registers] == [40, 41, 42, 43]
    assert saved.cpus[0].ap_list == (40, 41, 42, 43, 44)


def with_private(intid: int, **changes: Any) -> SavedGicV2:
    saved = saved_of(Board(CPUS))
    private = list(saved.cpus[0].private)
    private[intid] = replace(private[intid], **changes)
    return with_cpu(private=tuple(private))


def with_spi(**changes: Any) -> SavedGicV2:
    saved = saved_of(Board(CPUS))
    return replace(saved, spis=(replace(saved.spis[0], **changes), *saved.spis[1:]))


def with_cpu(**changes: Any) -> SavedGicV2:
    saved = saved_of(Board(CPUS))
    return replace(saved, cpus=(replace(saved.cpus[0], **changes), *saved.cpus[1:]))


def held(**changes: Any) -> SavedGicV2:
    """A CPU with SPI 40 in a list register, changed."""
    board = a_board(timer=False)
    board.edge(40)
    board.gic.enter(board.gic.cpus[0])
    saved = saved_of(board)
    (register,) = saved.cpus[0].list_registers
    cpu = replace(saved.cpus[0], list_registers=(replace(register, **changes),))
    return replace(saved, cpus=(cpu, *saved.cpus[1:]))


CONTRADICTIONS: list[tuple[SavedGicV2, str]] = [
    (replace(saved_of(Board(CPUS)), revision=1), "revision"),
    (replace(saved_of(Board(CPUS)), cpus=()), "has 0 CPUs, but the VM 2"),
    (replace(saved_of(Board(CPUS)), spis=saved_of(Board(CPUS)).spis[1:]), "multiple of 32"),
    (with_private(20, group=2), "group"),
    (with_private(20, priority=0x44), "priority"),
    (with_private(20, level=False), "trigger"),
    (with_private(20, target=1), "another CPU"),
    (with_private(20, target=None), "another CPU"),
    (with_private(20, targets=2), "target"),
    (with_private(20, physical=5), "not mapped"),
    (with_private(20, hardware=True, physical=1020), "host's interrupt"),
    (with_private(20, source=1), "sources"),
    (with_private(20, affinity=1), "affinity"),
    (with_private(9, level=True), "trigger"),
    (with_private(9, line=True), "has a line"),
    (with_private(9, pending_latch=True), "source"),
    (with_private(9, source=1), "source"),
    (with_private(9, source=0x100, pending_latch=True), "sources"),
    (with_private(9, active_source=8), "active source"),
    (with_spi(hardware=True), "mapped to an interrupt"),
    (with_spi(targets=4, target=2), "target"),
    (with_spi(targets=2), "target differs"),
    (with_spi(target=None), "target differs"),
    (with_cpu(private=()), "private interrupts"),
    (with_cpu(ap_list=(64,)), "ap_list"),
    (with_cpu(ap_list=(40, 40)), "queued twice"),
    (with_cpu(pmr=0xFF), "pmr"),
    (with_cpu(bpr=8), "bpr"),
    (with_cpu(abpr=-1), "abpr"),
    (with_cpu(eoim=2), "eoim"),
    (with_cpu(ap0r=(0,)), "ap0r"),
    (with_cpu(ap0r=(1 << 32, 0, 0, 0)), "ap0r"),
    (with_cpu(ap1r=(1, 0, 0, 0)), "active priorities"),
    (held(intid=41), "not queued"),
    (held(group=2), "group"),
    (held(priority=0x7F), "priority"),
    (held(physical=1020), "source or host's"),
]


@pytest.mark.parametrize(("saved", "why"), CONTRADICTIONS, ids=[why for _, why in CONTRADICTIONS])
def test_a_state_that_no_gicv2_has_is_refused(saved: SavedGicV2, why: str) -> None:
    with pytest.raises(StateError, match=why):
        check(saved)


def test_an_spi_is_queued_once() -> None:
    board = a_board(timer=False)
    board.edge(40)
    saved = saved_of(board)
    both = replace(saved, cpus=tuple(replace(cpu, ap_list=(40,)) for cpu in saved.cpus))
    check(saved)
    with pytest.raises(StateError, match="on two CPUs"):
        check(both)


def test_a_private_interrupt_may_be_queued_on_each_cpu() -> None:
    saved = saved_of(Board(CPUS))
    check(replace(saved, cpus=tuple(replace(cpu, ap_list=(20,)) for cpu in saved.cpus)))


# Any change of a value is refused or makes a GIC that works.


@given(data=st.data(), before=operations, after=operations)
@settings(max_examples=150)
def test_any_other_state_is_refused_or_works(data: st.DataObject, before: list[Any], after: list[Any]) -> None:
    board = a_board(timer=False)
    do(board, before)
    saved = saved_of(board)
    paths = leaves(saved)
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3)):
        old = value_at(saved, path)
        kind = (
            st.booleans() if isinstance(old, bool) else st.sampled_from([0, 1, 2, 7, 8, 32, 40, 63, 248, 255, 1 << 31])
        )
        saved = changed(saved, path, data.draw(kind))
    try:
        other = resumed(saved)
    except StateError:
        return
    assert saved_of(other) == saved
    do(other, after)
    check(saved_of(other))


@needs_sources
def test_the_saved_classes_have_every_field_of_the_chips() -> None:
    board = Board(CPUS)
    names = {field.name for field in fields(SavedInterrupt)}
    assert names | {"intid", "queued_on"} == set(type(board.interrupt(40)).__slots__)
    vmcr = set(type(board.gic.cpus[0].interface.vmcr).__slots__)
    rest = {"private", "ap_list", "list_registers", "ap0r", "ap1r"}
    assert {field.name for field in fields(SavedGicCpu)} == vmcr | rest
