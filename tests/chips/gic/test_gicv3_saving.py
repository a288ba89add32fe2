"""A GICv3 that resumes equals the saved one and goes on like it; and what no GICv3 can be is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.chips.gic.gicv3 import SavedGicV3, SavedRedistributor
from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.list_register import PRIORITY_BITS
from irqchipd.chips.gic.redistributor import SGI_BASE, Redistributor
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.saved import StateError
from tests.builds import needs_sources
from tests.chips.gic.gicv3board import CTLR, ICFGR, IIDR, IPRIORITYR, IROUTER, Board
from tests.chips.gic.states import changed, leaves, value_at

CPUS, INTERRUPTS = 2, 64
INTIDS = (3, 9, 20, 27, 40, 41, 42, 43, 44, 63)  # some of each kind, and more than there are list registers

cpus = st.integers(0, CPUS - 1)
intids = st.sampled_from(INTIDS)
words = st.one_of(st.integers(0, 0xFFFF_FFFF), st.builds(lambda intid: 1 << intid % 32, intids))
bit_registers = (0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380)
distributor = [CTLR, IIDR, ICFGR + 8, ICFGR + 12, *(base + 4 for base in bit_registers)]
redistributor = [0x0, 0x70, 0x74, 0x78, 0x7C, SGI_BASE + ICFGR + 4, *(SGI_BASE + base for base in bit_registers)]
reads = (Icc.IAR1, Icc.IAR1, Icc.IAR0, Icc.HPPIR1, Icc.HPPIR0, Icc.RPR, Icc.BPR1, Icc.CTLR)
saved_registers = (Icc.PMR, Icc.BPR0, Icc.BPR1, Icc.AP0R0, Icc.AP1R0, Icc.CTLR, Icc.IGRPEN0, Icc.IGRPEN1)
ends = (Icc.EOIR1, Icc.EOIR1, Icc.EOIR0, Icc.DIR)
sgis = (Icc.SGI1R, Icc.SGI0R, Icc.ASGI1R)

operations = st.lists(
    st.one_of(
        st.tuples(st.just("line"), intids.filter(lambda intid: intid >= 16), st.booleans(), cpus),
        st.tuples(st.just("gicd"), st.sampled_from(distributor), st.none() | words, st.just(4), cpus),
        st.tuples(st.just("gicd"), st.sampled_from([IPRIORITYR + i for i in INTIDS]), words, st.just(1), cpus),
        st.tuples(st.just("gicd"), st.sampled_from([IROUTER + 8 * i for i in INTIDS]), st.integers(0, 2), st.just(8)),
        st.tuples(st.just("gicr"), st.sampled_from(redistributor), st.none() | words, st.just(4), cpus),
        st.tuples(st.just("mrs"), st.sampled_from(reads), cpus),
        st.tuples(st.just("msr"), st.sampled_from(ends), intids, cpus),
        st.tuples(
            st.just("msr"), st.sampled_from(sgis), st.sampled_from([3 << 24 | 3, 9 << 24 | 2, 3 << 24 | 1 << 40])
        ),
        st.tuples(st.just("msr"), st.sampled_from(saved_registers), words, cpus),
        st.tuples(st.just("user_gicd"), st.sampled_from(distributor), words),
        st.tuples(st.just("user_system_register"), st.sampled_from(saved_registers), words, cpus),
        st.tuples(st.just("user_lines"), st.sampled_from([0, 32]), words, cpus),
        st.tuples(st.just("outputs"), cpus),
    ),
    max_size=60,
)


class UserBoard(Board):
    """A board with a user space, whose accesses may be refused."""

    def user_gicd(self, offset: int, value: int) -> str:
        try:
            self.gic.distributor.user_write(self.gic.cpus[0], offset, value)
        except AccessRefused as refused:
            return str(refused)
        return ""

    def user_system_register(self, register: int, value: int, cpu: int) -> str:
        try:
            self.gic.system_registers[cpu].set(register, value)
        except AccessRefused as refused:
            return str(refused)
        return ""

    def user_lines(self, first: int, value: int, cpu: int) -> None:
        self.gic.write_lines(self.gic.cpus[cpu], first, value)


def a_board(timer: bool, has_its: bool = False) -> UserBoard:
    board = UserBoard(CPUS, INTERRUPTS)
    for intid in INTIDS:
        board.configure(intid, 8 * (intid % 5))
    if has_its:
        board.gic.redistributors.add_its()
    if timer:
        timer_interrupt = board.gic.cpus[0].private[27]
        board.gic.map_physical(timer_interrupt, 27)
        timer_interrupt.owner = 1
    return board


def do(board: UserBoard, program: list[Any]) -> list[object]:
    return [getattr(board, name)(*arguments) for name, *arguments in program]


def saved_of(board: Board) -> SavedGicV3:
    return SavedGicV3(**board.gic.save())


def check(saved: SavedGicV3) -> None:
    saved.check(CPUS, Board().gic.list_registers, PRIORITY_BITS)


def resumed(saved: SavedGicV3) -> UserBoard:
    check(saved)
    board = UserBoard(CPUS, INTERRUPTS)
    board.gic.resume(saved)
    return board


@given(before=operations, inside=st.none() | cpus, after=operations, timer=st.booleans(), has_its=st.booleans())
@settings(max_examples=150)
def test_a_gic_that_resumes_goes_on_like_the_saved_one(
    before: list[Any], inside: int | None, after: list[Any], timer: bool, has_its: bool
) -> None:
    board = a_board(timer, has_its)
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


@given(data=st.data(), before=operations, after=operations)
@settings(max_examples=150)
def test_any_other_state_is_refused_or_works(data: st.DataObject, before: list[Any], after: list[Any]) -> None:
    board = a_board(timer=False)
    do(board, before)
    saved = saved_of(board)
    numbers = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 32, 40, 63, 248, 255, 0x180, 0x580, 1 << 31, 1 << 40])
    for path in data.draw(st.lists(st.sampled_from(leaves(saved)), min_size=1, max_size=3)):
        kind = st.booleans() if isinstance(value_at(saved, path), bool) else numbers
        saved = changed(saved, path, data.draw(kind))
    try:
        other = resumed(saved)
    except StateError:
        return
    assert saved_of(other) == saved
    do(other, after)
    check(saved_of(other))


def with_first(name: str, **changes: Any) -> SavedGicV3:
    """A state with changes in the first SPI, CPU or redistributor."""
    saved = saved_of(Board(CPUS))
    first, *rest = getattr(saved, name)
    parts: dict[str, Any] = {name: (replace(first, **changes), *rest)}
    return replace(saved, **parts)


def with_private(intid: int, **changes: Any) -> SavedGicV3:
    private = list(saved_of(Board(CPUS)).cpus[0].private)
    private[intid] = replace(private[intid], **changes)
    return with_first("cpus", private=tuple(private))


def with_gic(**changes: Any) -> SavedGicV3:
    return replace(saved_of(Board(CPUS)), **changes)


CONTRADICTIONS: list[tuple[SavedGicV3, str]] = [
    (with_gic(revision=1), "revision"),
    (with_gic(propbaser=0x10000), "propbaser"),
    (with_gic(redistributors=()), "redistributors"),
    (with_gic(cpus=()), "has 0 CPUs, but the VM 2"),
    (with_first("redistributors", lpis_enabled=True), "LPIs"),
    (with_first("redistributors", pendbaser=0), "pendbaser"),
    (with_first("redistributors", pendbaser=0x580 | 1 << 63), "pendbaser"),
    (with_first("redistributors", affinity=1 << 24), "affinity of a CPU"),
    (with_first("spis", target=2), "the target of interrupt 32"),
    (with_first("redistributors", priority_bits=6), "priority bits"),
    (with_first("redistributors", priority_bits=0), "priority bits"),
    (with_first("redistributors", id_bits=2), "id_bits"),
    (with_first("spis", affinity=1 << 24, target=None), "three levels"),
    (with_first("spis", targets=1), "targets of a GICv2"),
    (with_first("spis", source=1), "sources"),
    (with_private(3, affinity=1), "routed by affinity"),
    (with_private(3, source=1), "sources"),
    (with_private(20, targets=1), "targets of a GICv2"),
    (with_first("cpus", ackctl=1), "AckCtl"),
    (with_first("cpus", fiqen=1), "FIQEn"),
    (with_first("cpus", ap1r=(0, 1, 0, 0)), "1 active priorities"),
    (with_first("cpus", pmr=0x100), "pmr"),
]


@pytest.mark.parametrize(("saved", "why"), CONTRADICTIONS, ids=[why for _, why in CONTRADICTIONS])
def test_a_state_that_no_gicv3_has_is_refused(saved: SavedGicV3, why: str) -> None:
    with pytest.raises(StateError, match=why):
        check(saved)


def test_an_spi_keeps_its_target_when_a_cpus_affinity_changes() -> None:
    board = a_board(timer=False)
    board.gicd(IROUTER + 8 * 40, 1, 8)
    board.gic.cpus[1].affinity = 5
    other = resumed(saved_of(board))
    other.pulse(40)
    assert other.outputs(1)[0]
    other.gicd(IROUTER + 8 * 40, 5, 8)
    assert other.gic.interrupt(other.gic.cpus[0], 40).target == 1


def test_an_spi_for_nobody_stays_for_nobody() -> None:
    board = a_board(timer=False)
    board.gicd(IROUTER + 8 * 40, 7, 8)
    board.pulse(40)
    other = resumed(saved_of(board))
    assert not any(other.outputs(cpu)[0] for cpu in range(CPUS))
    other.gicd(IROUTER + 8 * 40, 1, 8)
    other.pulse(40)
    assert other.outputs(1)[0]


@needs_sources
def test_the_saved_redistributor_has_every_field_of_the_chip() -> None:
    names = {field.name for field in fields(SavedRedistributor)}
    assert names == set(Redistributor.__slots__) | {"affinity", "priority_bits", "id_bits"}
