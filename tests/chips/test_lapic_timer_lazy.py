"""Expiries that change nothing are skipped, and no operation can detect that."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import LVT_MASKED, Reg
from irqchipd.chips.lapic_timer import ONE_SHOT, PERIODIC, TSC_DEADLINE
from tests.chips.lapicboard import Board, fixed

Step = tuple[str, tuple[int, ...]]

VECTOR = 0x40
PERIOD = 300_000

lvts = st.builds(
    lambda mode, vector, masked: mode | vector | (LVT_MASKED if masked else 0),
    st.sampled_from([PERIODIC, PERIODIC, PERIODIC, ONE_SHOT, TSC_DEADLINE, 3 << 17]),
    st.sampled_from([VECTOR, VECTOR, 0x51]),
    st.sampled_from([False, False, True]),
)
steps = st.one_of(
    st.tuples(st.just("advance"), st.tuples(st.integers(0, 5 * PERIOD))),
    st.tuples(st.just("advance"), st.tuples(st.integers(0, 5 * PERIOD))),
    st.tuples(st.just("take"), st.just(())),
    st.tuples(st.just("eoi"), st.just(())),
    st.tuples(st.just("read"), st.just((Reg.TIMER_CURRENT_COUNT,))),
    st.tuples(st.just("write"), st.tuples(st.just(Reg.LVT_TIMER), lvts)),
    st.tuples(st.just("write"), st.tuples(st.just(Reg.TIMER_DIVIDE), st.sampled_from([0b1011, 0, 1]))),
    st.tuples(st.just("write"), st.tuples(st.just(Reg.TIMER_INITIAL_COUNT), st.sampled_from([PERIOD, 0, 1]))),
    st.tuples(st.just("write"), st.tuples(st.just(Reg.SVR), st.sampled_from([0x1FF, 0xFF]))),
    st.tuples(st.just("write"), st.tuples(st.just(Reg.TPR), st.sampled_from([0, 0x80]))),
    st.tuples(st.just("base"), st.sampled_from([(0xFEE0_0000,), (0xFEE0_0800,)])),
    st.tuples(st.just("accept"), st.tuples(st.sampled_from([VECTOR, 0x51]), st.integers(0, 1))),
    st.tuples(st.just("restore"), st.just(())),
    st.tuples(st.just("init"), st.just(())),
)


def do(board: Board, step: Step) -> object:
    lapic = board.lapic
    match step:
        case "advance", (nanoseconds,):
            board.advance(nanoseconds)
        case "take", ():
            return board.take()
        case "eoi", ():
            board.eoi()
        case "read", (register,):
            return board.read(register)
        case "write", (register, value):
            board.write(register, value)
        case "base", (value,):
            return lapic.write_msr(Msr.APIC_BASE, value)
        case "accept", (vector, level):
            return lapic.accept(fixed(vector, level_triggered=bool(level)))
        case "restore", ():
            lapic.restore(lapic.registers())
        case "init", ():
            lapic.reset(init=True)
            board.write(Reg.SVR, 0x1FF)
    return None


def new_board(*, lazy: bool) -> Board:
    board = Board()
    board.lazy = lazy
    board.write(Reg.TIMER_DIVIDE, 0b1011)
    board.write(Reg.LVT_TIMER, PERIODIC | VECTOR)
    board.write(Reg.TIMER_INITIAL_COUNT, PERIOD)
    return board


@settings(max_examples=300)
@given(st.lists(steps, max_size=25))
def test_skipped_expiries_cannot_be_detected(history: list[Step]) -> None:
    diligent, lazy = new_board(lazy=False), new_board(lazy=True)
    for step in history:
        assert do(lazy, step) == do(diligent, step), step
        # Inspecting a timer wakes it; this uses only what is visible without: the next interrupt, and pending expiries.
        assert lazy.lapic.irr == diligent.lapic.irr
        assert lazy.lapic.tmr == diligent.lapic.tmr
    assert lazy.lapic.registers() == diligent.lapic.registers()


def test_ticks_that_are_not_taken_cost_nothing() -> None:
    board = new_board(lazy=True)
    board.advance(1000 * PERIOD)
    assert len(board.expirations) == 2  # the first is delivered, the second finds the vector still requested
    assert board.expires is None


def test_the_tick_after_a_taken_one_comes_on_time() -> None:
    board = new_board(lazy=True)
    start = board.time
    board.advance(10 * PERIOD + 7)
    assert board.take() == VECTOR
    assert board.expires == start + 11 * PERIOD
    board.eoi()
    board.advance(PERIOD - 7)
    assert board.take() == VECTOR


def test_a_tick_makes_an_interrupt_edge_triggered_again() -> None:
    board = new_board(lazy=True)
    board.advance(3 * PERIOD)
    board.lapic.accept(fixed(VECTOR, level_triggered=True))
    board.advance(PERIOD)
    assert not board.lapic.tmr
