"""The local APIC's timer: one-shot, periodic and TSC-deadline, its divider, and the TSC. A count is a nanosecond."""

from __future__ import annotations

import pytest

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import LVT_MASKED, LapicRegisters, Reg
from irqchipd.chips.lapic_timer import MIN_PERIOD
from irqchipd.chips.message import DeliveryMode
from tests.chips.lapicboard import ENABLED, Board

VECTOR = 0xEC
ONE_SHOT, PERIODIC, TSC_DEADLINE, RESERVED = (mode << 17 | VECTOR for mode in range(4))
MODES = {"one-shot": ONE_SHOT, "periodic": PERIODIC, "TSC-deadline": TSC_DEADLINE, "reserved": RESERVED}
# The divide configuration register, SDM figure 11-10; bit 2 is not used.
DIVIDE_BY = {1: 0xB, 2: 0x0, 4: 0x1, 8: 0x2, 16: 0x3, 32: 0x8, 64: 0x9, 128: 0xA}
DISABLED = ENABLED & ~0x100  # SVR
BASE_ENABLED, BASE_DISABLED = 0xFEE0_0900, 0xFEE0_0100
LATER = 10**18  # a time after everything has expired


@pytest.fixture(params=[False, True], ids=["", "lazy"])
def board(request: pytest.FixtureRequest) -> Board:
    board = Board()
    board.lazy = request.param
    return board


def start(board: Board, mode: int, count: int, divisor: int = 1) -> None:
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[divisor])
    board.write(Reg.LVT_TIMER, mode)
    board.write(Reg.TIMER_INITIAL_COUNT, count)


def interrupts(board: Board, nanoseconds: int) -> list[int]:
    """Let time pass, with a CPU that takes and ends every interrupt. Returns the interrupts' times, relative to now."""
    came: list[int] = []
    begin = board.time
    end = begin + nanoseconds

    def take() -> None:
        while (vector := board.take()) is not None:
            assert vector == VECTOR
            came.append(board.time - begin)
            board.eoi()

    take()
    while board.expires is not None and board.expires <= end:
        board.advance(board.expires - board.time)
        take()
    board.advance(end - board.time)
    return came


def count(board: Board) -> int:
    return board.read(Reg.TIMER_CURRENT_COUNT)


def arm(board: Board, deadline: int) -> None:
    assert board.lapic.write_msr(Msr.TSC_DEADLINE, deadline) == 0


def deadline(board: Board) -> int | None:
    return board.lapic.read_msr(Msr.TSC_DEADLINE)


def tsc(board: Board) -> int:
    value = board.lapic.read_msr(Msr.TSC)
    assert value is not None
    return value


# One-shot and periodic.


def test_at_reset_nothing_counts() -> None:
    board = Board(enabled=False)
    assert board.expires is None
    assert count(board) == 0


def test_a_one_shot_interrupts_once_when_its_count_is_over(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    assert interrupts(board, 999) == []
    assert interrupts(board, 1) == [1]
    assert interrupts(board, LATER) == []


def test_a_periodic_timer_interrupts_again_and_again(board: Board) -> None:
    start(board, PERIODIC, 300_000)
    assert interrupts(board, 1_000_000) == [300_000, 600_000, 900_000]
    assert interrupts(board, 300_000) == [200_000]


def test_periods_that_the_cpu_does_not_take_in_time_are_one_interrupt(board: Board) -> None:
    start(board, PERIODIC, 300_000)
    board.advance(1_000_000)
    assert interrupts(board, 500_000) == [0, 200_000, 500_000]


@pytest.mark.parametrize(("divisor", "register"), DIVIDE_BY.items())
def test_the_divide_configuration(board: Board, divisor: int, register: int) -> None:
    board.write(Reg.TIMER_DIVIDE, register)
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    board.write(Reg.TIMER_INITIAL_COUNT, 1000)
    assert board.read(Reg.TIMER_DIVIDE) == register
    board.advance(400 * divisor)
    assert count(board) == 600
    assert interrupts(board, 1000 * divisor) == [600 * divisor]


def test_bit_2_of_the_divide_configuration_is_not_kept(board: Board) -> None:
    board.write(Reg.TIMER_DIVIDE, 0xF)
    assert board.read(Reg.TIMER_DIVIDE) == 0xB


def test_at_reset_the_divider_is_2(board: Board) -> None:
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    board.write(Reg.TIMER_INITIAL_COUNT, 1000)
    assert interrupts(board, LATER) == [2000]


def test_the_largest_count_takes_nine_minutes(board: Board) -> None:
    start(board, ONE_SHOT, 0xFFFF_FFFF, divisor=128)
    assert count(board) == 0xFFFF_FFFF
    assert interrupts(board, LATER) == [0xFFFF_FFFF * 128]


@pytest.mark.parametrize(
    ("elapsed", "left"),
    [(0, 1000), (1, 999), (16, 999), (17, 998), (8000, 500), (15_984, 1), (15_985, 0), (16_000, 0), (50_000, 0)],
)
def test_the_current_count_of_a_one_shot(board: Board, elapsed: int, left: int) -> None:
    start(board, ONE_SHOT, 1000, divisor=16)
    board.advance(elapsed)
    assert count(board) == left


@pytest.mark.parametrize(
    ("elapsed", "left"),
    [(0, 500_000), (1, 499_999), (499_999, 1), (500_000, 500_000), (500_001, 499_999), (1_250_000, 250_000)],
)
def test_the_current_count_of_a_periodic_timer(board: Board, elapsed: int, left: int) -> None:
    start(board, PERIODIC, 500_000)
    board.advance(elapsed)
    assert count(board) == left


def test_the_current_count_cannot_be_written(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    board.write(Reg.TIMER_CURRENT_COUNT, 5)
    assert count(board) == 1000
    assert interrupts(board, LATER) == [1000]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
def test_writing_the_initial_count_restarts_the_timer(board: Board, mode: int) -> None:
    start(board, mode, 900_000)
    board.advance(600_000)
    board.write(Reg.TIMER_INITIAL_COUNT, 800_000)
    assert count(board) == 800_000
    assert interrupts(board, 1_000_000) == [800_000]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
def test_an_initial_count_of_0_stops(board: Board, mode: int) -> None:
    start(board, mode, 900_000)
    board.advance(600_000)
    board.write(Reg.TIMER_INITIAL_COUNT, 0)
    assert count(board) == 0
    assert interrupts(board, LATER) == []
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[2])  # no count is left to be rescaled
    assert interrupts(board, LATER) == []


# KVM: lapic.c limit_periodic_timer_frequency.


@pytest.mark.parametrize(
    ("count_", "divisor", "period"),
    [
        (1, 1, 200_000),
        (199_999, 1, 200_000),
        (200_000, 1, 200_000),
        (200_001, 1, 200_001),
        (3_000, 64, 200_000),
        (50_000, 8, 400_000),
    ],
)
def test_a_period_is_at_least_200_microseconds(board: Board, count_: int, divisor: int, period: int) -> None:
    start(board, PERIODIC, count_, divisor)
    assert interrupts(board, 1_000_000) == list(range(period, 1_000_001, period))
    assert board.read(Reg.TIMER_INITIAL_COUNT) == count_


def test_a_one_shot_can_be_shorter(board: Board) -> None:
    start(board, ONE_SHOT, 1)
    assert interrupts(board, LATER) == [1]


def test_the_current_count_of_a_lengthened_period_begins_above_the_initial_one(board: Board) -> None:
    start(board, PERIODIC, 1000, divisor=4)
    board.advance(100_000)
    assert count(board) == 25_000
    assert board.read(Reg.TIMER_INITIAL_COUNT) == 1000


# The LVT entry at the expiry decides. KVM: lapic.c apic_has_pending_timer; a masked expiry stays pending.


def test_the_vector_is_the_one_at_the_expiry(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    board.write(Reg.LVT_TIMER, 0x31)
    board.advance(1000)
    assert board.take() == 0x31


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
def test_a_masked_expiry_interrupts_when_unmasked(board: Board, mode: int) -> None:
    start(board, mode | LVT_MASKED, 300_000)
    assert interrupts(board, 1_000_000) == []
    board.write(Reg.LVT_TIMER, mode)
    assert interrupts(board, 300_000) == ([0] if mode == ONE_SHOT else [0, 200_000])
    board.write(Reg.TIMER_INITIAL_COUNT, 0)
    assert interrupts(board, LATER) == []


def test_masked_expiries_are_not_counted(board: Board) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 1000)
    board.advance(2000)
    assert count(board) == 0


def test_a_masked_expiry_has_the_vector_at_the_unmasking(board: Board) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 1000)
    board.advance(1000)
    board.write(Reg.LVT_TIMER, LVT_MASKED | 0x31)
    assert board.take() is None
    board.write(Reg.LVT_TIMER, 0x32)
    assert board.take() == 0x32


def test_a_masked_timer_counts_on(board: Board) -> None:
    start(board, PERIODIC | LVT_MASKED, 300_000)
    for left in (200_000, 100_000, 300_000, 200_000):
        board.advance(100_000 if left != 200_000 else 400_000)
        assert count(board) == left
    board.write(Reg.LVT_TIMER, PERIODIC)
    assert interrupts(board, 500_000) == [0, 200_000, 500_000]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, RESERVED], ids=["one-shot", "periodic", "reserved"])
def test_a_pending_expiry_survives_a_change_of_the_mode(board: Board, mode: int) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 300_000)
    board.advance(300_000)
    board.write(Reg.LVT_TIMER, mode)
    assert interrupts(board, LATER) == [0]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
@pytest.mark.parametrize("initial", [0, 400_000])
def test_a_new_initial_count_drops_a_pending_expiry(board: Board, mode: int, initial: int) -> None:
    start(board, mode | LVT_MASKED, 300_000)
    board.advance(300_000)
    board.write(Reg.TIMER_INITIAL_COUNT, initial)
    board.write(Reg.LVT_TIMER, mode)
    assert interrupts(board, 500_000) == ([400_000] if initial else [])


def test_a_pending_deadline_is_still_read(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | LVT_MASKED)
    when = tsc(board) + 1000
    arm(board, when)
    assert interrupts(board, 2000) == []
    assert deadline(board) == when
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == [0]


@pytest.mark.parametrize("after", [0, 1000])
def test_a_new_deadline_drops_a_pending_expiry(board: Board, after: int) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | LVT_MASKED)
    arm(board, tsc(board) - 1)
    arm(board, tsc(board) + after if after else 0)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert interrupts(board, LATER) == ([after] if after else [])


@pytest.mark.parametrize(
    ("mode", "crossed"),
    [(ONE_SHOT, TSC_DEADLINE), (PERIODIC, TSC_DEADLINE), (TSC_DEADLINE, ONE_SHOT), (TSC_DEADLINE, PERIODIC)],
)
def test_going_to_or_from_tsc_deadline_mode_drops_a_pending_expiry(board: Board, mode: int, crossed: int) -> None:
    start(board, mode | LVT_MASKED, 300_000)
    arm(board, tsc(board) + 300_000)
    board.advance(300_000)
    board.write(Reg.LVT_TIMER, crossed)
    assert interrupts(board, LATER) == []


def test_software_disabling_masks_the_timer_and_drops_a_pending_expiry(board: Board) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 1000)
    board.advance(1000)
    board.write(Reg.SVR, DISABLED)
    board.write(Reg.SVR, ENABLED)
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert interrupts(board, LATER) == []


def test_a_deadline_dropped_by_software_disabling_is_still_read(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | LVT_MASKED)
    arm(board, 5)
    board.write(Reg.SVR, DISABLED)
    board.write(Reg.SVR, ENABLED)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert interrupts(board, LATER) == []
    assert deadline(board) == 5


def test_software_enabling_delivers_an_unmasked_pending_expiry(board: Board) -> None:
    # Only a restored entry can be unmasked in a software-disabled APIC.
    board.lapic.restore(LapicRegisters(svr=DISABLED, lvt_timer=ONE_SHOT, timer_initial_count=1000))
    assert interrupts(board, 1000) == []
    board.write(Reg.SVR, ENABLED)
    assert interrupts(board, LATER) == [0]


@pytest.mark.parametrize("before", [100_000, 400_000, 1_000_000])
def test_an_expiry_while_software_disabled_waits(board: Board, before: int) -> None:
    start(board, PERIODIC | LVT_MASKED, 300_000)
    board.advance(before)
    board.write(Reg.SVR, DISABLED)
    assert board.read(Reg.LVT_TIMER) == PERIODIC | LVT_MASKED
    assert interrupts(board, 300_000) == []
    board.write(Reg.SVR, ENABLED)
    assert interrupts(board, 0) == []  # still masked
    board.write(Reg.LVT_TIMER, PERIODIC)
    assert interrupts(board, 300_000) == [0, 200_000]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, TSC_DEADLINE], ids=["one-shot", "periodic", "TSC-deadline"])
def test_an_expiry_while_the_apic_is_disabled_waits(board: Board, mode: int) -> None:
    start(board, mode, 300_000)
    arm(board, tsc(board) + 300_000)
    assert board.lapic.write_msr(Msr.APIC_BASE, BASE_DISABLED) == 0
    assert interrupts(board, 700_000) == []
    assert board.lapic.write_msr(Msr.APIC_BASE, BASE_ENABLED) == 0
    assert interrupts(board, 300_000) == ([0, 200_000] if mode == PERIODIC else [0])


def test_a_restored_entry_can_say_nmi(board: Board) -> None:
    # KVM: lapic.c kvm_apic_local_deliver uses the delivery mode, which no guest can write.
    lvt = DeliveryMode.NMI << 8 | PERIODIC
    board.lapic.restore(LapicRegisters(svr=ENABLED, lvt_timer=lvt, timer_initial_count=300_000))
    assert interrupts(board, 1_500_000) == []
    assert board.signals == [(DeliveryMode.NMI, 0)] * 2


def test_an_interrupt_of_another_vector_does_not_wait_for_one_that_is_not_taken(board: Board) -> None:
    start(board, PERIODIC, 300_000)
    board.advance(1_000_000)
    board.write(Reg.LVT_TIMER, PERIODIC & ~0xFF | 0x31)
    board.advance(200_000)
    assert board.vectors(Reg.IRR) == [0x31, VECTOR]


# Changes of the divider: the rest is counted at the new rate.


@pytest.mark.parametrize(
    ("old", "new", "elapsed", "left"),
    [
        (1, 4, 400, 2400),
        (16, 2, 4000, 1500),
        (16, 2, 4001, 1499),  # rounded down
        (128, 1, 0, 1000),
        (1, 128, 999, 128),
    ],
)
def test_a_change_of_the_divider_stretches_the_rest(board: Board, old: int, new: int, elapsed: int, left: int) -> None:
    start(board, ONE_SHOT, 1000, divisor=old)
    board.advance(elapsed)
    before = count(board)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[new])
    assert count(board) == before
    assert interrupts(board, LATER) == [left]


def test_a_change_of_the_divider_changes_later_periods(board: Board) -> None:
    start(board, PERIODIC, 400_000)
    board.advance(100_000)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[2])
    assert interrupts(board, 2_200_000) == [600_000, 1_400_000, 2_200_000]


def test_a_change_of_the_divider_can_make_the_period_too_short(board: Board) -> None:
    start(board, PERIODIC, 100_000, divisor=4)
    board.advance(200_000)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[1])
    assert interrupts(board, 450_000) == [50_000, 250_000, 450_000]


def test_an_expired_one_shot_expires_again_when_the_divider_changes(board: Board) -> None:
    # KVM: lapic.c kvm_lapic_reg_write restarts any timer with a period, even if nothing of it is left.
    start(board, ONE_SHOT, 1000)
    assert interrupts(board, 5000) == [1000]
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[4])
    assert board.expires is None
    assert count(board) == 0
    assert interrupts(board, LATER) == [0]
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[1])
    assert interrupts(board, LATER) == [0]


def test_a_pending_one_shot_does_not_expire_again_when_the_divider_changes(board: Board) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 1000)
    board.advance(1000)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[4])
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert interrupts(board, LATER) == [0]


def test_a_change_of_the_divider_stops_a_running_one_shot_while_an_expiry_is_pending(board: Board) -> None:
    # KVM: lapic.c restart_apic_timer; the pending expiry is from the time when the timer was periodic.
    start(board, PERIODIC | LVT_MASKED, 300_000)
    board.advance(400_000)
    board.write(Reg.LVT_TIMER, ONE_SHOT | LVT_MASKED)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[2])
    assert count(board) == 200_000
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert interrupts(board, LATER) == [0]


def test_writing_the_same_divider_does_nothing(board: Board) -> None:
    start(board, ONE_SHOT, 1000, divisor=4)
    board.advance(400)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[4])
    assert interrupts(board, 10_000) == [3600]
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[4] | 0x4)
    assert interrupts(board, LATER) == []


def test_a_change_of_the_divider_does_not_affect_a_deadline(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) + 1000)
    board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[128])
    assert interrupts(board, LATER) == [1000]


# Changes of the mode.


def test_a_running_one_shot_that_is_made_periodic_runs_on_and_then_again(board: Board) -> None:
    start(board, ONE_SHOT, 300_000)
    board.advance(100_000)
    board.write(Reg.LVT_TIMER, PERIODIC)
    assert count(board) == 200_000
    assert interrupts(board, 1_000_000) == [200_000, 500_000, 800_000]


def test_a_short_one_shot_that_is_made_periodic_has_a_longer_period(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    board.advance(400)
    board.write(Reg.LVT_TIMER, PERIODIC)
    assert interrupts(board, 500_000) == [600, 200_600, 400_600]


def test_a_running_periodic_timer_that_is_made_a_one_shot_runs_out(board: Board) -> None:
    start(board, PERIODIC, 300_000)
    board.advance(400_000)
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert count(board) == 200_000
    assert interrupts(board, LATER) == [0, 200_000]
    assert count(board) == 0


def test_an_expired_one_shot_that_is_made_periodic_does_not_run(board: Board) -> None:
    start(board, ONE_SHOT, 300_000)
    assert interrupts(board, 400_000) == [300_000]
    board.write(Reg.LVT_TIMER, PERIODIC)
    assert count(board) == 0
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, RESERVED], ids=["one-shot", "periodic", "reserved"])
def test_going_to_tsc_deadline_mode_and_back_forgets_the_counts(board: Board, mode: int) -> None:
    start(board, ONE_SHOT, 300_000)
    board.write(Reg.LVT_TIMER, mode)
    for crossed in (TSC_DEADLINE, mode):
        board.write(Reg.LVT_TIMER, crossed)
        assert board.read(Reg.TIMER_INITIAL_COUNT) == 0
        assert count(board) == 0
        board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[2])
        assert interrupts(board, 1_000_000) == []
        board.write(Reg.TIMER_DIVIDE, DIVIDE_BY[1])
        assert interrupts(board, LATER) == []


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, RESERVED], ids=["one-shot", "periodic", "reserved"])
def test_leaving_tsc_deadline_mode_forgets_the_deadline(board: Board, mode: int) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) + 1000)
    board.write(Reg.LVT_TIMER, mode)
    assert interrupts(board, 2000) == []
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
def test_an_lvt_entry_of_the_same_mode_lets_it_run_on(board: Board, mode: int) -> None:
    start(board, mode | LVT_MASKED, 300_000)
    board.advance(100_000)
    board.write(Reg.LVT_TIMER, mode)
    assert interrupts(board, 400_000) == [200_000]


# The fourth mode is reserved.


def test_in_the_reserved_mode_nothing_is_started(board: Board) -> None:
    start(board, RESERVED, 1000)
    assert board.read(Reg.LVT_TIMER) == RESERVED
    assert board.read(Reg.TIMER_INITIAL_COUNT) == 1000
    assert count(board) == 0
    assert interrupts(board, 5000) == []
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert board.read(Reg.TIMER_INITIAL_COUNT) == 1000
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
def test_a_timer_started_before_the_reserved_mode_expires(board: Board, mode: int) -> None:
    # KVM: lapic.c apic_update_lvtt stops the timer for TSC-deadline mode alone.
    start(board, mode, 300_000)
    board.advance(100_000)
    board.write(Reg.LVT_TIMER, RESERVED)
    assert count(board) == 200_000
    assert interrupts(board, LATER) == [200_000]
    assert count(board) == 0


@pytest.mark.parametrize("register", [Reg.TIMER_INITIAL_COUNT, Reg.TIMER_DIVIDE])
def test_in_the_reserved_mode_a_restart_is_a_stop(board: Board, register: int) -> None:
    start(board, ONE_SHOT, 1000)
    board.write(Reg.LVT_TIMER, RESERVED)
    board.write(register, 0x3)
    assert interrupts(board, LATER) == []


# TSC-deadline.


def test_a_deadline_interrupts_once_and_is_0_then(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    when = tsc(board) + 1000
    arm(board, when)
    assert deadline(board) == when
    assert interrupts(board, 999) == []
    assert deadline(board) == when
    assert interrupts(board, 1) == [1]
    assert deadline(board) == 0
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("ago", [0, 1, 999_999])
def test_a_deadline_in_the_past_interrupts_at_once(board: Board, ago: int) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) - ago)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == [0]


def test_a_deadline_of_0_disarms(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) + 1000)
    arm(board, 0)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("after", [500, 2000])
def test_a_deadline_replaces_the_one_before(board: Board, after: int) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) + 1000)
    arm(board, tsc(board) + after)
    assert interrupts(board, LATER) == [after]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, RESERVED], ids=["one-shot", "periodic", "reserved"])
def test_a_deadline_is_ignored_in_the_other_modes(board: Board, mode: int) -> None:
    board.write(Reg.LVT_TIMER, mode)
    for when in (tsc(board) + 1000, 1):
        arm(board, when)
        assert deadline(board) == 0
    assert interrupts(board, 2000) == []
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == []


def test_a_deadline_does_not_disturb_a_count(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    arm(board, tsc(board) + 500)
    arm(board, 0)
    assert interrupts(board, LATER) == [1000]


def test_a_deadline_does_not_disturb_an_expired_count(board: Board) -> None:
    start(board, ONE_SHOT, 1000)
    assert interrupts(board, 2000) == [1000]
    arm(board, 5)
    assert interrupts(board, LATER) == []


def test_a_count_does_not_disturb_a_deadline(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, tsc(board) + 1000)
    for initial in (500, 0):
        board.write(Reg.TIMER_INITIAL_COUNT, initial)
        assert board.read(Reg.TIMER_INITIAL_COUNT) == 0
        assert count(board) == 0
    assert interrupts(board, LATER) == [1000]


def test_unmasking_keeps_a_deadline(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | LVT_MASKED)
    arm(board, tsc(board) + 1000)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert interrupts(board, LATER) == [1000]


def test_a_deadline_of_an_apic_that_is_disabled_is_hidden_and_cannot_be_set(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    when = tsc(board) + 1000
    arm(board, when)
    board.lapic.write_msr(Msr.APIC_BASE, BASE_DISABLED)
    assert deadline(board) == 0
    arm(board, when + 1000)
    arm(board, 0)
    board.lapic.write_msr(Msr.APIC_BASE, BASE_ENABLED)
    assert deadline(board) == when
    assert interrupts(board, LATER) == [1000]


def test_a_deadline_later_than_any_time_never_comes(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    arm(board, (1 << 64) - 1)
    assert interrupts(board, LATER) == []
    assert board.expires is not None
    assert board.expires < 1 << 63  # within a VM's range of time
    assert deadline(board) == (1 << 64) - 1


# The TSC.


def test_the_tsc_counts_nanoseconds_from_the_vms_creation_by_default(board: Board) -> None:
    assert tsc(board) == board.time == 1_000_000
    board.advance(12_345)
    assert tsc(board) == 1_012_345


@pytest.mark.parametrize("khz", [1, 999_999, 1_000_000, 2_500_000, 3_400_001])
def test_the_tsc_has_the_vms_frequency(board: Board, khz: int) -> None:
    board.lapic.timer.tsc_khz = khz
    assert tsc(board) == khz
    board.advance(9_000_000)
    assert tsc(board) == 10 * khz


@pytest.mark.parametrize(
    ("khz", "ticks", "nanoseconds"), [(2_500_000, 5000, 2000), (500_000, 1000, 2000), (1, 2, 2_000_000)]
)
def test_a_deadline_expires_when_the_tsc_reaches_it(board: Board, khz: int, ticks: int, nanoseconds: int) -> None:
    board.lapic.timer.tsc_khz = khz
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    when = tsc(board) + ticks
    arm(board, when)
    assert interrupts(board, nanoseconds) == [nanoseconds]
    assert tsc(board) == when


def test_the_counts_do_not_depend_on_the_tsc(board: Board) -> None:
    board.lapic.timer.tsc_khz = 2_500_000
    start(board, ONE_SHOT, 1000)
    assert interrupts(board, LATER) == [1000]


@pytest.mark.parametrize("khz", [700_001, 1_000_000, 2_500_000])
@pytest.mark.parametrize("value", [0, 5, 1 << 40, (1 << 64) - 1])
def test_the_tsc_continues_from_the_written_value(board: Board, khz: int, value: int) -> None:
    board.lapic.timer.tsc_khz = khz
    board.advance(7)
    assert board.lapic.write_msr(Msr.TSC, value) == 0
    assert tsc(board) == value
    board.advance(1_000_000)
    assert tsc(board) == (value + khz) % (1 << 64)


def test_a_deadline_uses_the_written_tsc(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    board.lapic.write_msr(Msr.TSC, 5_000_000)
    arm(board, 4_999_999)
    assert interrupts(board, 0) == [0]
    arm(board, 5_001_000)
    assert interrupts(board, LATER) == [1000]


@pytest.mark.parametrize("value", [0, 1 << 40])
def test_a_running_deadline_does_not_move_with_the_tsc(board: Board, value: int) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    when = tsc(board) + 1000
    arm(board, when)
    board.lapic.write_msr(Msr.TSC, value)
    assert deadline(board) == when
    assert interrupts(board, LATER) == [1000]


# KVM_GET_LAPIC and KVM_SET_LAPIC.


def move(board: Board, **changes: int) -> Board:
    """Another board, at another time, with this board's registers, some of them changed."""
    registers = LapicRegisters.unpack(board.lapic.registers().pack())
    for name, value in changes.items():
        setattr(registers, name, value)
    other = Board()
    other.lazy = board.lazy
    other.advance(77_777)
    other.lapic.restore(registers)
    return other


def test_a_saved_timer_has_its_current_count(board: Board) -> None:
    assert board.lapic.registers().timer_current_count == 0
    start(board, PERIODIC, 300_000)
    board.advance(100_000)
    registers = board.lapic.registers()
    assert (registers.timer_initial_count, registers.timer_current_count) == (300_000, 200_000)
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert board.lapic.registers().timer_current_count == 0


@pytest.mark.parametrize(
    ("mode", "came"), [(ONE_SHOT, [800_000]), (PERIODIC, [800_000, 2_000_000])], ids=["one-shot", "periodic"]
)
def test_a_restored_timer_runs_on_from_its_current_count(board: Board, mode: int, came: list[int]) -> None:
    start(board, mode, 300_000, divisor=4)
    board.advance(400_000)
    other = move(board)
    assert count(other) == 200_000
    assert other.read(Reg.TIMER_INITIAL_COUNT) == 300_000
    assert interrupts(other, 2_000_000) == came


def test_a_restored_one_shot_without_a_current_count_has_expired(board: Board) -> None:
    # KVM: lapic.c set_target_expiration; it expires now, even if it had expired before it was saved.
    start(board, ONE_SHOT, 300_000)
    assert interrupts(board, 400_000) == [300_000]
    other = move(board)
    assert count(other) == 0
    assert interrupts(other, LATER) == [0]


def test_a_restored_periodic_timer_without_a_current_count_begins_again(board: Board) -> None:
    start(board, PERIODIC, 300_000)
    board.advance(100_000)
    other = move(board, timer_current_count=0)
    assert count(other) == 300_000
    assert interrupts(other, 700_000) == [300_000, 600_000]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC], ids=["one-shot", "periodic"])
@pytest.mark.parametrize("current", [300_001, 0xFFFF_FFFF])
def test_a_restored_current_count_above_the_initial_one_becomes_the_initial_one(
    board: Board, mode: int, current: int
) -> None:
    start(board, mode, 300_000)
    other = move(board, timer_current_count=current)
    assert count(other) == 300_000
    assert interrupts(other, 400_000) == [300_000]


def test_a_restored_short_period_is_lengthened_after_the_current_count(board: Board) -> None:
    start(board, PERIODIC, 1000)
    other = move(board, timer_current_count=500)
    assert interrupts(other, 500_000) == [500, 200_500, 400_500]
    assert interrupts(move(board, timer_current_count=MIN_PERIOD - 1), MIN_PERIOD) == [MIN_PERIOD - 1]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("current", [0, 1000])
def test_a_restored_timer_without_an_initial_count_is_stopped(board: Board, mode: int, current: int) -> None:
    start(board, PERIODIC, 300_000)
    board.lapic.restore(LapicRegisters(svr=ENABLED, lvt_timer=mode, timer_current_count=current))
    assert count(board) == 0
    assert interrupts(board, LATER) == []


def test_a_restored_timer_in_the_reserved_mode_does_not_run(board: Board) -> None:
    start(board, ONE_SHOT, 300_000)
    other = move(board, lvt_timer=RESERVED)
    assert interrupts(other, LATER) == []


def test_a_restored_masked_timer_expires_too(board: Board) -> None:
    start(board, PERIODIC | LVT_MASKED, 300_000)
    board.advance(100_000)
    other = move(board)
    assert interrupts(other, 250_000) == []
    other.write(Reg.LVT_TIMER, PERIODIC)
    assert interrupts(other, 300_000) == [0, 250_000]


def test_restoring_drops_a_pending_expiry(board: Board) -> None:
    start(board, ONE_SHOT | LVT_MASKED, 1000)
    board.advance(1000)
    registers = board.lapic.registers()
    registers.lvt_timer, registers.timer_current_count = ONE_SHOT, 500
    board.lapic.restore(registers)
    assert interrupts(board, LATER) == [500]


def test_a_pending_deadline_expires_again_when_restored(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | LVT_MASKED)
    arm(board, 5)
    board.lapic.restore(board.lapic.registers())
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert interrupts(board, LATER) == [0]
    assert deadline(board) == 0


def test_restoring_to_tsc_deadline_mode_forgets_the_counts(board: Board) -> None:
    start(board, ONE_SHOT, 300_000)
    other = move(board, lvt_timer=TSC_DEADLINE)
    assert other.read(Reg.TIMER_INITIAL_COUNT) == 0
    assert deadline(other) == 0
    assert interrupts(other, LATER) == []


def test_a_deadline_survives_a_restore_in_its_mode(board: Board) -> None:
    # KVM: lapic.c __start_apic_timer; the deadline is not part of the state, and nothing clears it.
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    when = tsc(board) + 1000
    arm(board, when)
    board.lapic.restore(board.lapic.registers())
    assert deadline(board) == when
    assert interrupts(board, LATER) == [1000]


def test_the_current_count_has_32_bits(board: Board) -> None:
    # In the reserved mode a restore changes the divider without rescaling the rest of the count.
    start(board, ONE_SHOT, 0xFFFF_FFFF, divisor=128)
    registers = board.lapic.registers()
    registers.lvt_timer, registers.timer_divide = RESERVED, DIVIDE_BY[1]
    board.lapic.restore(registers)
    board.advance(1000)
    assert count(board) == (0xFFFF_FFFF * 128 - 1000) & 0xFFFF_FFFF
    assert board.lapic.registers().timer_current_count == count(board)


# INIT and RESET.


@pytest.mark.parametrize("init", [True, False], ids=["INIT", "RESET"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_init_and_reset_stop_the_timer(board: Board, mode: int, init: bool) -> None:
    start(board, ONE_SHOT, 1000)
    board.write(Reg.LVT_TIMER, mode)
    arm(board, tsc(board) + 1000)
    board.lapic.reset(init=init)
    assert board.expires is None
    assert board.read(Reg.LVT_TIMER) == LVT_MASKED
    assert board.read(Reg.TIMER_INITIAL_COUNT) == 0
    assert board.read(Reg.TIMER_DIVIDE) == 0
    assert count(board) == 0
    board.write(Reg.SVR, ENABLED)
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    assert interrupts(board, 10_000) == []
    board.write(Reg.LVT_TIMER, TSC_DEADLINE)
    assert deadline(board) == 0
    assert interrupts(board, LATER) == []


@pytest.mark.parametrize("init", [True, False], ids=["INIT", "RESET"])
def test_after_init_and_reset_the_divider_is_2(board: Board, init: bool) -> None:
    start(board, ONE_SHOT, 1000, divisor=128)
    board.lapic.reset(init=init)
    board.write(Reg.SVR, ENABLED)
    board.write(Reg.LVT_TIMER, ONE_SHOT)
    board.write(Reg.TIMER_INITIAL_COUNT, 1000)
    assert interrupts(board, LATER) == [2000]


@pytest.mark.parametrize("init", [True, False], ids=["INIT", "RESET"])
def test_the_tsc_goes_on_over_init_and_reset(board: Board, init: bool) -> None:
    board.lapic.write_msr(Msr.TSC, 5_000_000)
    board.lapic.reset(init=init)
    board.advance(10)
    assert tsc(board) == 5_000_010


@pytest.mark.parametrize("khz", [1, 999, 1_000_000, 2_300_007, 3_000_000, 100_000_000])
@pytest.mark.parametrize("ticks", [1, 4, 12_345])
def test_a_deadline_expires_at_the_first_nanosecond_at_which_the_tsc_has_reached_it(khz: int, ticks: int) -> None:
    board = Board()
    board.lapic.timer.tsc_khz = khz
    board.time = 1_234_567
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x40)
    deadline = board.lapic.timer.tsc(board.time) + ticks
    board.lapic.write_msr(Msr.TSC_DEADLINE, deadline)
    assert board.expires is not None
    assert board.lapic.timer.tsc(board.expires - 1) < deadline <= board.lapic.timer.tsc(board.expires)
