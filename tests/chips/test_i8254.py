"""The 8254: modes, latches, access to the counts, the timer's ticks, the speaker, and the kernel's structure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchipd.chips.i8254 import FLAG_HPET_LEGACY, FLAG_SPEAKER_DATA_ON, Pit, Port
from irqchipd.chips.i8254_state import CHANNELS, MAX_COUNT, MIN_PERIOD, STATE_SIZE, Access, Mode, PitChannel, PitState
from tests.chips.pitboard import STATUS_OUT, Board, clocks, control, latch, read_back

MS = 1_000_000
PERIODIC = [Mode.RATE_GENERATOR, Mode.SQUARE_WAVE]
ONCE = [Mode.TERMINAL_COUNT, Mode.ONE_SHOT, Mode.SOFTWARE_STROBE]
COUNT = 1193  # about a millisecond
INTERVAL = 999_847  # ns, rounded down


@pytest.fixture
def board() -> Board:
    return Board(now=12_345_678)


def with_channel(board: Board, index: int, channel: PitChannel, flags: int = 0) -> PitState:
    """The board's state with one channel replaced."""
    channels = list(board.pit.state().channels)
    channels[index] = channel
    return PitState(tuple(channels), flags)


# Modes: the count and OUT after a number of clocks.


@pytest.mark.parametrize(
    ("mode", "count", "seen"),
    [
        (0, 6, {0: (6, 0), 1: (5, 0), 5: (1, 0), 6: (0, 1), 7: (0xFFFF, 1), 70000: (0xEE96, 1)}),
        (1, 6, {0: (6, 1), 1: (5, 1), 5: (1, 1), 6: (0, 0), 7: (0xFFFF, 0)}),
        (2, 6, {0: (6, 0), 1: (5, 0), 5: (1, 0), 6: (6, 1), 7: (5, 0), 12: (6, 1)}),
        (3, 6, {0: (6, 1), 1: (4, 1), 2: (2, 1), 3: (6, 0), 4: (4, 0), 5: (2, 0), 6: (6, 1)}),
        (3, 5, {0: (5, 1), 1: (3, 1), 2: (1, 1), 3: (4, 0), 4: (2, 0), 5: (5, 1)}),
        (4, 6, {0: (6, 0), 5: (1, 0), 6: (0, 1), 7: (0xFFFF, 0)}),
        (5, 6, {0: (6, 0), 5: (1, 0), 6: (0, 1), 7: (0xFFFF, 0)}),
        (6, 6, {0: (6, 0), 5: (1, 0), 6: (6, 1), 7: (5, 0)}),
        (7, 6, {0: (6, 1), 1: (4, 1), 3: (6, 0), 6: (6, 1)}),
    ],
)
@pytest.mark.parametrize("channel", [1, 2])
def test_counts_and_outputs_over_time(
    board: Board, channel: int, mode: int, count: int, seen: dict[int, tuple[int, int]]
) -> None:
    board.program(channel, mode, count)
    start = board.time
    for clock, expected in seen.items():
        board.time = start + clocks(clock)
        assert (board.count(channel), board.output(channel)) == expected, clock
        board.time = start + clocks(clock + 1) - 1  # nothing moves until the next clock
        assert (board.count(channel), board.output(channel)) == expected, clock


def test_a_count_of_zero_is_65536_and_reads_as_zero(board: Board) -> None:
    board.program(2, Mode.RATE_GENERATOR, 0)
    assert board.pit.channels[2].count == MAX_COUNT
    assert board.count(2) == 0
    board.advance(clocks(1))
    assert board.count(2) == 0xFFFF
    board.advance(clocks(MAX_COUNT))
    assert board.count(2) == 0xFFFF


def test_bcd_is_stored_and_counts_in_binary(board: Board) -> None:
    board.program(2, Mode.TERMINAL_COUNT, 0x1234, bcd=1)
    board.advance(clocks(5))
    assert board.count(2) == 0x122F
    assert board.status(2) == 0x31


def test_a_counter_without_a_control_word_counts_from_65536_repeatedly(board: Board) -> None:
    board.advance(clocks(3))
    assert board.read(Port.CHANNEL_1) == 0xFD
    board.advance(clocks(MAX_COUNT))
    assert board.read(Port.CHANNEL_1) == 0xFD


def test_channel_0_stands_still_until_its_first_control_word(board: Board) -> None:
    board.advance(clocks(3))
    assert board.read(Port.CHANNEL_0) == 0
    assert board.alarm is None


def test_writing_a_count_starts_over(board: Board) -> None:
    board.program(2, Mode.TERMINAL_COUNT, 1000)
    board.advance(clocks(500))
    board.load(2, 100)
    assert board.count(2) == 100


def test_half_a_count_changes_nothing(board: Board) -> None:
    board.program(2, Mode.TERMINAL_COUNT, 1000)
    board.advance(clocks(500))
    board.out(Port.CHANNEL_2, 7)
    assert board.count(2) == 500


def test_a_control_word_lets_the_old_count_go_on_in_the_new_mode(board: Board) -> None:
    board.program(2, Mode.TERMINAL_COUNT, 1000)
    board.advance(clocks(1010))
    assert board.count(2) == 0xFFF6
    board.out(Port.CONTROL, control(2, Mode.RATE_GENERATOR))
    assert board.count(2) == 990


# Access to the counts.


@pytest.mark.parametrize(
    ("access", "written", "count"),
    [
        (Access.LSB, [0x34], 0x34),
        (Access.LSB, [0x34, 0x12], 0x12),
        (Access.LSB, [0], MAX_COUNT),
        (Access.MSB, [0x12], 0x1200),
        (Access.MSB, [0], MAX_COUNT),
        (Access.WORD, [0x34, 0x12], 0x1234),
        (Access.WORD, [0x34, 0x12, 0x78, 0x56], 0x5678),
        (Access.WORD, [0, 0], MAX_COUNT),
    ],
)
def test_writing_a_count(board: Board, access: int, written: list[int], count: int) -> None:
    board.out(Port.CONTROL, control(1, Mode.RATE_GENERATOR, access))
    board.out(Port.CHANNEL_1, *written)
    assert board.pit.channels[1].count == count


def test_before_a_control_word_a_write_is_the_low_half(board: Board) -> None:
    board.out(Port.CHANNEL_1, 0x34)
    assert board.pit.channels[1].count == 0x34


@pytest.mark.parametrize(
    ("access", "read"),
    [(Access.LSB, [0x34, 0x34]), (Access.MSB, [0x12, 0x12]), (Access.WORD, [0x34, 0x12, 0x34, 0x12])],
)
@pytest.mark.parametrize("latched", [False, True])
def test_reading_a_count(board: Board, access: int, read: list[int], latched: bool) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, control(1, Mode.RATE_GENERATOR, access))
    if latched:
        board.out(Port.CONTROL, latch(1))
    assert [board.read(Port.CHANNEL_1) for _ in read] == read


def test_the_halves_of_an_unlatched_count_are_read_at_two_moments(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1200)
    assert board.read(Port.CHANNEL_1) == 0x00
    board.advance(clocks(1))
    assert board.read(Port.CHANNEL_1) == 0x11


def test_a_control_word_starts_words_over(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CHANNEL_1, 0xFF)
    board.read(Port.CHANNEL_1)
    board.out(Port.CONTROL, control(1, Mode.RATE_GENERATOR))
    assert board.word(1) == 0x1234
    board.load(1, 0x5678)
    assert board.word(1) == 0x5678


@pytest.mark.parametrize("size", [2, 4])
def test_a_wide_access_uses_its_low_byte(board: Board, size: int) -> None:
    board.pit.write(Port.CONTROL, size, 0xABCD00 | control(1, Mode.RATE_GENERATOR))
    board.pit.write(Port.CHANNEL_1, size, 0xFFFF34)
    board.pit.write(Port.CHANNEL_1, size, 0xFFFF12)
    assert board.pit.channels[1].count == 0x1234
    assert [board.pit.read(Port.CHANNEL_1, size) for _ in range(2)] == [0x34, 0x12]


def test_the_control_port_reads_zero(board: Board) -> None:
    before = board.pit.state()
    assert board.read(Port.CONTROL) == 0
    assert board.pit.state() == before


# The latch and read-back commands.


def test_a_latched_count_stands_still_until_it_is_read(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, latch(1))
    board.advance(clocks(0x34))
    assert board.word(1) == 0x1234
    assert board.word(1) == 0x1200


def test_a_second_latch_is_ignored(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, latch(1))
    board.advance(clocks(0x34))
    board.out(Port.CONTROL, latch(1), read_back(1, status=False))
    assert board.word(1) == 0x1234
    assert board.word(1) == 0x1200


def test_a_second_latch_is_ignored_while_half_of_the_first_is_unread(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, latch(1))
    assert board.read(Port.CHANNEL_1) == 0x34
    board.advance(clocks(0x234))
    board.out(Port.CONTROL, latch(1))
    assert board.read(Port.CHANNEL_1) == 0x12


def test_a_control_word_and_a_new_count_leave_the_latches(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, latch(1))
    board.program(1, Mode.SQUARE_WAVE, 0x5678)
    assert board.word(1) == 0x1234


def test_a_counter_that_has_no_access_mode_does_not_latch(board: Board) -> None:
    board.advance(clocks(0x11))
    board.out(Port.CONTROL, latch(1))
    assert board.pit.channels[1].count_latched == 0
    assert board.pit.channels[1].latched_count == 0xFFEF  # though the kernel stores the count
    board.advance(clocks(0x11))
    assert board.read(Port.CHANNEL_1) == 0xDE


def test_read_back_latches_many_and_a_channels_status_is_read_before_its_count(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.program(2, Mode.SQUARE_WAVE, 0x5678)
    board.out(Port.CONTROL, read_back(1, 2))
    board.advance(clocks(0x1000))
    for channel, status, count in ((1, 0x34, 0x1234), (2, STATUS_OUT | 0x36, 0x5678)):
        assert board.read(Port.CHANNEL_0 + channel) == status
        assert board.word(channel) == count


def test_a_status_comes_first_even_in_the_middle_of_a_count(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 0x1234)
    board.out(Port.CONTROL, latch(1))
    assert board.read(Port.CHANNEL_1) == 0x34
    assert board.status(1) == 0x34
    assert board.read(Port.CHANNEL_1) == 0x12


def test_a_second_status_is_ignored_until_the_first_is_read(board: Board) -> None:
    board.program(1, Mode.TERMINAL_COUNT, 5)
    board.out(Port.CONTROL, read_back(1, count=False))
    board.advance(clocks(5))
    assert board.status(1) == 0x30
    assert board.status(1) == STATUS_OUT | 0x30


def test_read_back_without_a_channel_does_nothing(board: Board) -> None:
    board.program(1, Mode.RATE_GENERATOR, 5)
    before = board.pit.state()
    board.out(Port.CONTROL, read_back(), read_back(0, 1, 2, count=False, status=False))
    assert board.pit.state() == before


def test_null_count_is_never_set(board: Board) -> None:
    board.out(Port.CONTROL, control(1, Mode.RATE_GENERATOR, Access.LSB))
    assert board.status(1) == 0x14


def test_the_status_of_a_counter_without_a_control_word(board: Board) -> None:
    assert [board.status(channel) for channel in range(CHANNELS)] == [
        0xFE
    ] * CHANNELS  # mode FFh reaches into OUT's bit


# Channel 0: ticks.


@pytest.mark.parametrize("mode", PERIODIC)
def test_a_periodic_timer_ticks_on(board: Board, mode: int) -> None:
    start = board.time
    board.program(0, mode, COUNT)
    board.advance(3 * INTERVAL)
    assert board.ticks == [start + INTERVAL * n for n in (1, 2, 3)]
    assert board.alarm == start + INTERVAL * 4


@pytest.mark.parametrize("mode", ONCE)
def test_a_one_shot_timer_ticks_once(board: Board, mode: int) -> None:
    start = board.time
    board.program(0, mode, COUNT)
    board.advance(100 * MS)
    assert board.ticks == [start + INTERVAL]
    assert board.alarm is None


def test_a_one_shot_timer_ticks_again_when_it_is_loaded_again(board: Board) -> None:
    board.program(0, Mode.TERMINAL_COUNT, COUNT)
    board.advance(5 * MS)
    start = board.time
    board.load(0, COUNT)
    board.advance(5 * MS)
    assert board.ticks[1:] == [start + INTERVAL]


def test_a_count_that_is_written_early_moves_the_tick(board: Board) -> None:
    board.program(0, Mode.TERMINAL_COUNT, COUNT)
    board.advance(INTERVAL - 1)
    start = board.time
    board.load(0, COUNT)
    board.advance(5 * MS)
    assert board.ticks == [start + INTERVAL]


def test_mode_5_stops_the_timer(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(INTERVAL)
    board.program(0, Mode.HARDWARE_STROBE, COUNT)
    assert board.alarm is None
    board.advance(5 * MS)
    assert len(board.ticks) == 1


def test_a_control_word_alone_does_not_stop_the_timer(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.out(Port.CONTROL, control(0, Mode.TERMINAL_COUNT))
    board.advance(3 * INTERVAL)
    assert len(board.ticks) == 3


def test_half_a_count_does_not_stop_the_timer(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.out(Port.CHANNEL_0, 0)
    board.advance(3 * INTERVAL)
    assert len(board.ticks) == 3


def test_the_largest_count_is_18_times_a_second(board: Board) -> None:
    board.program(0, Mode.SQUARE_WAVE, 0)
    board.advance(10**9)
    assert len(board.ticks) == 18
    assert board.pit.period == 54_925_401


@pytest.mark.parametrize("mode", PERIODIC)
def test_a_periodic_timer_is_slowed_down_except_for_its_first_tick(board: Board, mode: int) -> None:
    start = board.time
    board.program(0, mode, 100)
    board.advance(MS)
    assert [tick - start for tick in board.ticks] == [83_809 + MIN_PERIOD * n for n in range(5)]


def test_a_slowed_down_timer_reads_as_if_it_had_begun_earlier(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, 100)
    assert board.count(0) == 100 - 138 % 100  # 200 us less 83,809 ns are 138 clocks
    board.advance(83_809)
    assert board.count(0) == 100


@pytest.mark.parametrize("mode", ONCE)
def test_a_one_shot_timer_is_not_slowed_down(board: Board, mode: int) -> None:
    start = board.time
    board.program(0, mode, 1)
    board.advance(MS)
    assert board.ticks == [start + 838]


def test_channel_0_counts_as_its_timer_runs(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    for _ in range(3):
        assert (board.count(0), board.output(0)) == (COUNT, 0)
        board.advance(clocks(1000))
        assert (board.count(0), board.output(0)) == (COUNT - 1000, 0)
        board.advance(INTERVAL - clocks(1000))  # the count begins again with each tick


def test_channel_0_counts_on_after_a_one_shot(board: Board) -> None:
    board.program(0, Mode.TERMINAL_COUNT, COUNT)
    board.advance(INTERVAL)
    assert (board.count(0), board.output(0)) == (1, 0)  # the tick is less than a ns early
    board.advance(clocks(COUNT) - INTERVAL)
    assert (board.count(0), board.output(0)) == (0, 1)
    board.advance(clocks(COUNT + 5) - clocks(COUNT))
    assert (board.count(0), board.output(0)) == (0xFFFB, 1)


def test_channel_0_counts_on_from_its_timer_when_that_is_stopped(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(clocks(1000))
    board.program(0, Mode.HARDWARE_STROBE, 5000)
    assert board.count(0) == 4000
    board.advance(clocks(2000) - clocks(1000))
    assert board.count(0) == 3000


def test_late_ticks_are_delivered_one_by_one(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.time += 3 * INTERVAL
    board.advance(0)
    assert board.ticks == [board.time] * 3


def test_a_late_timer_has_counted_beyond_its_period(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.time += clocks(COUNT)
    assert (board.count(0), board.output(0)) == (COUNT, 1)


def test_an_alarm_that_was_not_set_does_nothing(board: Board) -> None:
    board.pit.timer_expired()
    board.program(0, Mode.TERMINAL_COUNT, COUNT)
    board.advance(INTERVAL)
    board.pit.timer_expired()
    assert len(board.ticks) == 1


@pytest.mark.parametrize("channel", [1, 2])
def test_the_other_channels_do_not_interrupt(board: Board, channel: int) -> None:
    board.program(channel, Mode.RATE_GENERATOR, COUNT)
    assert board.alarm is None


# Ticks that wait for an acknowledgement.


def test_unacknowledged_ticks_wait_and_none_is_lost(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(5 * INTERVAL)
    assert (len(board.ticks), board.pit.pending) == (1, 5)
    for taken in (2, 3, 4, 5):
        board.ack()
        assert len(board.ticks) == taken
    board.ack()
    board.ack()
    assert (len(board.ticks), board.pit.pending) == (5, 0)
    board.advance(INTERVAL)
    assert len(board.ticks) == 6


def test_an_acknowledgement_delivers_the_next_tick_after_the_operation(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(2 * INTERVAL)
    board.pit.irq_acked()
    assert (len(board.ticks), board.later) == (1, True)
    board.settle()
    assert len(board.ticks) == 2


def test_delivering_twice_gives_one_tick_per_acknowledgement(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(3 * INTERVAL)
    board.ack()
    board.pit.deliver()
    assert len(board.ticks) == 2


def test_an_acknowledgement_without_a_tick_does_nothing(board: Board) -> None:
    board.ack()
    assert (board.ticks, board.pit.pending, board.pit.acknowledged) == ([], 0, True)


def test_unmasking_drops_waiting_ticks(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(5 * INTERVAL)
    board.pit.gsi_masked(True)
    assert board.pit.pending == 5
    board.pit.gsi_masked(False)
    assert board.pit.pending == 0
    board.advance(INTERVAL)
    assert len(board.ticks) == 2  # the second does not wait for the first


@pytest.mark.parametrize("mode", [Mode.RATE_GENERATOR, Mode.TERMINAL_COUNT])
def test_a_new_count_drops_waiting_ticks(board: Board, mode: int) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(5 * INTERVAL)
    board.program(0, mode, COUNT)
    assert (board.pit.pending, board.pit.acknowledged) == (0, True)
    board.advance(INTERVAL)
    assert len(board.ticks) == 2


def test_stopping_the_timer_keeps_waiting_ticks(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(2 * INTERVAL)
    board.program(0, Mode.HARDWARE_STROBE, COUNT)
    board.ack()
    assert len(board.ticks) == 2


def test_without_reinjection_every_tick_is_delivered_at_once(board: Board) -> None:
    board.acknowledges = False
    board.pit.set_reinject(False)
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(5 * INTERVAL)
    assert (len(board.ticks), board.pit.pending) == (5, 0)
    board.ack()
    assert len(board.ticks) == 5


def test_turning_reinjection_off_keeps_waiting_ticks_and_ignores_acknowledgements(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(3 * INTERVAL)
    board.pit.set_reinject(False)
    board.ack()
    board.pit.gsi_masked(False)
    assert (board.pit.pending, board.pit.acknowledged) == (3, False)
    board.advance(2 * INTERVAL)
    assert (len(board.ticks), board.pit.pending) == (3, 3)


def test_turning_reinjection_on_drops_waiting_ticks_unless_it_is_already_on(board: Board) -> None:
    board.acknowledges = False
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(3 * INTERVAL)
    board.pit.set_reinject(True)
    assert (board.pit.pending, board.pit.acknowledged) == (3, False)
    board.pit.set_reinject(False)
    board.pit.set_reinject(True)
    assert (board.pit.pending, board.pit.acknowledged) == (0, True)


# The HPET replaces channel 0.


def test_the_hpet_replaces_channel_0_and_gives_it_back(board: Board) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.advance(INTERVAL // 2)
    state = board.pit.state()
    board.pit.restore(PitState(state.channels, FLAG_HPET_LEGACY))
    assert board.alarm is None
    assert board.pit.channels[0].mode == Mode.RATE_GENERATOR
    board.advance(5 * INTERVAL)
    assert board.ticks == []
    start = board.time
    board.pit.restore(PitState(board.pit.state().channels, 0))
    board.advance(INTERVAL)
    assert board.ticks == [start + INTERVAL]


def test_while_the_hpet_replaces_it_a_count_starts_no_timer(board: Board) -> None:
    board.pit.restore(PitState(board.pit.state().channels, FLAG_HPET_LEGACY))
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    assert board.pit.channels[0].count == COUNT
    assert board.alarm is None
    board.pit.restore(board.pit.state())
    assert board.alarm is None
    board.advance(clocks(1))
    assert board.count(0) == COUNT  # the timer was never started


# Port 61h: the speaker.


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("written", "read"), [(0, 0), (1, 1), (2, 2), (3, 3), (0xFC, 0), (0xFF, 3), (0x100, 0)])
def test_the_gate_and_the_data_bit_are_kept(written: int, read: int, size: int) -> None:
    board = Board()
    board.speaker.write(Port.SPEAKER, size, written)
    assert board.speaker.read(Port.SPEAKER, size) == read
    assert board.pit.flags == (FLAG_SPEAKER_DATA_ON if read & 2 else 0)


def test_the_refresh_bit_toggles_every_16384_ns() -> None:
    board = Board()
    seen = []
    for board.time in (0, 16_383, 16_384, 32_767, 32_768, 1 << 62):
        seen.append(board.speaker.read(Port.SPEAKER, 1) & 0x10)
    assert seen == [0, 0, 0x10, 0x10, 0, 0]


def test_bit_5_is_the_output_of_channel_2() -> None:
    board = Board()
    board.program(2, Mode.TERMINAL_COUNT, 6)
    assert board.speaker.read(Port.SPEAKER, 1) & 0x20 == 0
    board.advance(clocks(6))
    assert board.speaker.read(Port.SPEAKER, 1) & 0x20 == 0x20


@pytest.mark.parametrize(
    ("mode", "starts_over"),
    [(0, False), (1, True), (2, True), (3, True), (4, False), (5, True), (Mode.NONE, False)],
)
def test_a_rising_gate_starts_some_modes_over(board: Board, mode: int, starts_over: bool) -> None:
    board.pit.restore(with_channel(board, 2, PitChannel(count=1000, mode=mode, gate=0)))
    loaded = board.time
    board.advance(clocks(100))
    board.beep(1)
    risen = board.time
    assert board.pit.channels[2].count_load_time == (risen if starts_over else loaded)
    board.advance(clocks(100))
    board.beep(3)  # high already
    board.beep(2)  # the falling gate stops nothing
    assert board.pit.channels[2].count_load_time == (risen if starts_over else loaded)


def test_a_low_gate_does_not_stop_the_count(board: Board) -> None:
    board.program(2, Mode.TERMINAL_COUNT, 1000)
    board.beep(0)
    board.advance(clocks(100))
    assert board.count(2) == 900


def test_a_restored_gate_shows_with_all_its_bits_and_does_not_rise() -> None:
    board = Board()
    board.pit.restore(with_channel(board, 2, PitChannel(mode=Mode.SQUARE_WAVE, gate=0x44, count=6)))
    board.advance(clocks(3))
    assert board.speaker.read(Port.SPEAKER, 1) == 0x44
    board.beep(1)
    assert board.pit.channels[2].count_load_time == 0


# What drivers do with channel 2 and port 61h. An access takes a microsecond, as on an ISA bus.


class Driver:
    """A driver on a board, with a TSC that counts nanoseconds."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def outb(self, value: int, port: int) -> None:
        self.board.advance(1000)
        if port == Port.SPEAKER:
            self.board.beep(value)
        else:
            self.board.out(port, value)

    def inb(self, port: int) -> int:
        self.board.advance(1000)
        return self.board.speaker.read(port, 1) if port == Port.SPEAKER else self.board.read(port)

    def count_down(self, control_word: int, count: int) -> int:
        """Lets channel 2 count once, without a sound. Returns the nanoseconds until its output is high."""
        self.outb(self.inb(Port.SPEAKER) & ~2 | 1, Port.SPEAKER)
        self.outb(control_word, Port.CONTROL)
        self.outb(count & 0xFF, Port.CHANNEL_2)
        self.outb(count >> 8, Port.CHANNEL_2)
        began = self.board.time
        while not self.inb(Port.SPEAKER) & 0x20:
            pass
        return self.board.time - began


@pytest.mark.parametrize(
    "count", [0x800, 11931]
)  # SeaBIOS: src/hw/timer.c tsctimer_setup; Linux: tsc.c pit_calibrate_tsc
def test_a_tsc_is_calibrated_by_channel_2(board: Board, count: int) -> None:
    driver = Driver(board)
    for _ in range(2):
        assert driver.count_down(control(2, Mode.TERMINAL_COUNT), count) == pytest.approx(clocks(count), abs=3000)


def test_linux_calibrates_by_the_high_bytes_that_pass(board: Board) -> None:
    """tsc.c quick_pit_calibrate(): each value of the count's upper byte lasts 256 clocks, and none is left out."""
    driver = Driver(board)
    driver.outb(driver.inb(Port.SPEAKER) & ~2 | 1, Port.SPEAKER)
    driver.outb(0xB0, Port.CONTROL)
    driver.outb(0xFF, Port.CHANNEL_2)
    driver.outb(0xFF, Port.CHANNEL_2)

    def high_byte() -> int:
        driver.inb(Port.CHANNEL_2)
        return driver.inb(Port.CHANNEL_2)

    assert high_byte() == 0xFF
    ends = []
    for value in range(0xFF, 0xF0, -1):
        while (now := high_byte()) == value:
            pass
        assert now == value - 1
        ends.append(board.time)
    assert ends[-1] - ends[0] == pytest.approx(clocks(256 * (len(ends) - 1)), abs=3000)


def test_linux_beeps(board: Board) -> None:
    """pcspkr.c pcspkr_event(): 750 Hz, and silence."""
    driver = Driver(board)
    driver.outb(0xB6, Port.CONTROL)
    driver.outb(1591 & 0xFF, Port.CHANNEL_2)
    driver.outb(1591 >> 8, Port.CHANNEL_2)
    driver.outb(driver.inb(Port.SPEAKER) | 3, Port.SPEAKER)
    assert board.pit.flags & FLAG_SPEAKER_DATA_ON
    levels = []
    for _ in range(20_000):
        levels.append(bool(driver.inb(Port.SPEAKER) & 0x20))
    edges = sum(low != high for low, high in pairwise(levels))
    assert edges == pytest.approx(2 * 750 * 0.02, abs=1)
    driver.outb(driver.inb(Port.SPEAKER) & 0xFC, Port.SPEAKER)
    assert not driver.inb(Port.SPEAKER) & 3
    assert not board.pit.flags & FLAG_SPEAKER_DATA_ON


def test_delays_are_counted_by_the_refresh_bit(board: Board) -> None:
    """As old BIOSes do, and GRUB's. A PC's changes every 15 us, and KVM's every 16."""
    driver = Driver(board)
    began, changes = board.time, 0
    last = driver.inb(Port.SPEAKER) & 0x10
    while changes < 66:
        now = driver.inb(Port.SPEAKER) & 0x10
        changes, last = changes + (now != last), now
    assert board.time - began == pytest.approx(66 * 16_384, abs=16_384)


# The kernel's structure.

# Recorded from KVM_GET_PIT2 after KVM_CREATE_PIT2, but for the times at which channels 1 and 2 were loaded.
AT_RESET = (
    bytes.fromhex("00000100 0000 00000000000000 ff 00 01 0000000000000000")
    + bytes.fromhex("00000100 0000 00000000000000 ff 00 01 8877665544332211")
    + bytes.fromhex("00000100 0000 00000000000000 ff 00 00 8877665544332211")
    + bytes(40)
)


def test_at_power_on_the_structure_is_the_kernels() -> None:
    state = Board(now=0x1122334455667788).pit.state()
    assert state.pack() == AT_RESET
    assert PitState.unpack(AT_RESET) == state


def test_every_field_has_its_offset() -> None:
    channel = PitChannel(0x04030201, 0x0605, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x1817161514131211)
    assert channel.pack() == bytes(range(1, 25))
    assert PitChannel.unpack(bytes(range(1, 25))) == channel
    data = bytes(range(72)) + bytes([1, 2, 3, 4]) + bytes([0xFF] * 36)
    state = PitState.unpack(data)
    assert state.flags == 0x04030201
    assert state.pack() == data[:76] + bytes(36)  # reserved bytes are not kept


def test_a_state_is_a_copy(board: Board) -> None:
    state = board.pit.state()
    board.program(1, Mode.SQUARE_WAVE, 5)
    assert state.channels[1] == Board(now=12_345_678).pit.channels[1]
    board.pit.restore(state)
    board.program(1, Mode.SQUARE_WAVE, 5)
    assert state.channels[1].mode == Mode.NONE


def test_restoring_reloads_every_count(board: Board) -> None:
    for channel in range(CHANNELS):
        board.program(channel, Mode.RATE_GENERATOR, COUNT)
    board.advance(clocks(500))
    state = board.pit.state()
    state.channels[0].count_load_time = 77
    board.pit.restore(state)
    assert [board.count(channel) for channel in range(CHANNELS)] == [COUNT] * CHANNELS
    assert board.alarm == board.time + INTERVAL
    assert [channel.count_load_time for channel in board.pit.channels] == [77, board.time, board.time]


def test_restoring_a_count_of_zero_is_65536(board: Board) -> None:
    board.pit.restore(PitState.unpack(bytes(STATE_SIZE)))
    assert [channel.count for channel in board.pit.channels] == [MAX_COUNT] * CHANNELS
    assert board.pit.running  # mode 0


@pytest.mark.parametrize("mode", [5, 6, 7, 200, Mode.NONE])
def test_restoring_a_mode_without_ticks_stops_the_timer(board: Board, mode: int) -> None:
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.pit.restore(with_channel(board, 0, PitChannel(mode=mode, count=COUNT)))
    assert board.alarm is None


def test_a_restored_count_of_32_bits_is_kept_and_counts(board: Board) -> None:
    count = 0xFFFF_FFFF
    board.pit.restore(with_channel(board, 0, PitChannel(count=count, mode=Mode.RATE_GENERATOR, rw_mode=Access.WORD)))
    assert board.alarm == board.time + count * 10**9 // 1_193_182
    board.advance(clocks(0x10000))
    assert board.pit.channels[0].count == count
    assert board.count(0) == 0xFFFF
    board.pit.restore(with_channel(board, 1, PitChannel(count=count, mode=Mode.SQUARE_WAVE)))
    assert board.output(1) == 0  # the kernel's half of it overflows


def test_invalid_restored_access_modes_read_the_low_half(board: Board) -> None:
    channel = PitChannel(0x1234, 0x5678, count_latched=Access.WORD_MSB, read_state=77, write_state=88, rw_mode=99)
    board.pit.restore(with_channel(board, 1, channel))
    assert board.word(1) == 0x3478  # the latched low half, then the current count's
    board.out(Port.CONTROL, latch(1))
    assert board.pit.channels[1].count_latched == 99
    board.out(Port.CHANNEL_1, 0x55)
    assert board.pit.channels[1].count == 0x55


def test_a_restored_status_is_read(board: Board) -> None:
    board.pit.restore(with_channel(board, 1, PitChannel(status_latched=9, status=0xA5)))
    assert board.status(1) == 0xA5


def test_a_status_has_eight_bits_whatever_the_fields(board: Board) -> None:
    board.pit.restore(with_channel(board, 1, PitChannel(rw_mode=0xFF, mode=0xFF, bcd=0xFF)))
    assert board.status(1) == 0xFF


def test_reset_is_power_on_except_for_reinjection(board: Board) -> None:
    board.acknowledges = False
    board.pit.set_reinject(False)
    board.program(0, Mode.RATE_GENERATOR, COUNT)
    board.program(2, Mode.RATE_GENERATOR, COUNT)
    board.beep(3)
    board.advance(5 * INTERVAL)
    board.pit.reset()
    assert board.alarm is None
    fresh = Pit.at_reset(board)
    fresh.reinject = False
    assert board.pit == fresh


# No restored state makes a later operation fail.

BYTE = st.integers(0, 0xFF)
RAW_CHANNEL = st.builds(
    PitChannel,
    st.sampled_from([0, 1, 2, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    *[st.integers(0, 5) | BYTE] * 10,
    st.integers(-(1 << 63), (1 << 63) - 1),
)
RAW_STATE = st.builds(PitState, st.tuples(*[RAW_CHANNEL] * CHANNELS), st.integers(0, 3) | st.integers(0, 0xFFFF_FFFF))
SIZE = st.sampled_from([1, 2, 4])
OPERATION = st.one_of(
    st.tuples(st.just("read"), st.integers(0x40, 0x43), SIZE),
    st.tuples(st.just("write"), st.integers(0x40, 0x43), SIZE, BYTE),
    st.tuples(st.just("speaker_read"), SIZE),
    st.tuples(st.just("speaker_write"), SIZE, BYTE),
    st.tuples(st.just("advance"), st.integers(0, 10 * MS) | st.sampled_from([0, 1, 837, 838])),
    st.tuples(st.just("ack")),
    st.tuples(st.just("mask"), st.booleans()),
    st.tuples(st.just("reinject"), st.booleans()),
    st.tuples(st.just("restore"), RAW_STATE),
    st.tuples(st.just("reset")),
)


@settings(max_examples=150)
@given(RAW_STATE, st.booleans(), st.lists(OPERATION, max_size=30))
def test_no_operation_fails_in_any_state(
    state: PitState, acknowledges: bool, operations: list[tuple[object, ...]]
) -> None:
    board = Board()
    board.acknowledges = acknowledges
    pit = board.pit
    pit.restore(state)
    for operation in operations:
        match operation:
            case ("read", int(port), int(size)):
                assert 0 <= pit.read(port, size) <= 0xFF
            case ("write", int(port), int(size), int(value)):
                pit.write(port, size, value)
            case ("speaker_read", int(size)):
                assert 0 <= board.speaker.read(Port.SPEAKER, size) <= 0xFF
            case ("speaker_write", int(size), int(value)):
                board.speaker.write(Port.SPEAKER, size, value)
            case ("advance", int(ns)):
                board.advance(ns)
            case ("ack",):
                board.ack()
            case ("mask", bool(masked)):
                pit.gsi_masked(masked)
            case ("reinject", bool(reinject)):
                pit.set_reinject(reinject)
            case ("restore", PitState() as other):
                pit.restore(other)
            case ("reset",):
                pit.reset()
            case _:
                raise AssertionError(operation)
        board.settle()
        assert PitState.unpack(pit.state().pack()) == pit.state()
        assert board.alarm == (pit.expires if pit.running else None)
        assert pit.period == 0 if pit.expires is None else pit.period > 0


@given(st.binary(min_size=STATE_SIZE, max_size=STATE_SIZE))
def test_any_bytes_are_a_state(data: bytes) -> None:
    state = PitState.unpack(data)
    assert state.pack()[: STATE_SIZE - 36] == data[: STATE_SIZE - 36]
    Board().pit.restore(state)
