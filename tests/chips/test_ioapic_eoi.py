"""The IOAPIC's end of interrupt, which EOIs concern it, and the tracking of the RTC's ticks."""

from __future__ import annotations

import pytest

from irqchipd.chips import ioapic
from irqchipd.chips.ioapic import IoapicState
from tests.builds import COMPILED, WHY
from tests.chips.ioapicboard import NO_CPU, REMOTE_IRR, Board, edge, level

RTC = 8


@pytest.fixture
def board() -> Board:
    return Board()


def eoi(board: Board, vector: int, *, cpu: int = 0, level_triggered: bool = True, directed: bool = False) -> None:
    board.ioapic.end_of_interrupt(cpu, vector, level_triggered, directed)


# End of interrupt.


def test_after_the_eoi_a_line_that_is_still_high_interrupts_again(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    eoi(board, 0x31)
    assert board.vectors() == [0x31, 0x31]
    board.ioapic.set_pin(5, 0)
    eoi(board, 0x31)
    assert board.vectors() == [0x31, 0x31]
    assert board.entry(5) == level(0x31)


def test_a_line_that_dropped_and_rose_in_service_interrupts_after_the_eoi(board: Board) -> None:
    board.program(5, level(0x31))
    for high in (1, 0, 1):
        board.ioapic.set_pin(5, high)
    assert board.vectors() == [0x31]
    eoi(board, 0x31)
    assert board.vectors() == [0x31, 0x31]


def test_an_eoi_under_a_mask_redelivers_only_when_unmasked(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x31, masked=True))
    eoi(board, 0x31)
    assert board.vectors() == [0x31]
    board.program(5, level(0x31))
    assert board.vectors() == [0x31, 0x31]


def test_an_eoi_ends_every_pin_that_has_its_vector(board: Board) -> None:
    for pin, vector in ((3, 0x31), (5, 0x31), (6, 0x32)):
        board.program(pin, level(vector))
        board.ioapic.set_pin(pin, 1)
        board.ioapic.set_pin(pin, 0)
    eoi(board, 0x31)
    assert board.acked == [3, 5]
    assert [bool(board.entry(pin) & REMOTE_IRR) for pin in (3, 5, 6)] == [False, False, True]


def test_a_vector_changed_in_service_leaves_the_pin_stuck(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x46))
    eoi(board, 0x31)
    assert board.entry(5) == 0xC046
    assert board.vectors() == [0x31]


def test_an_eoi_that_the_local_apic_saw_as_edge_is_acknowledged_and_ends_nothing(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    eoi(board, 0x31, level_triggered=False)
    assert board.acked == [5]
    assert board.entry(5) & REMOTE_IRR
    assert board.vectors() == [0x31]


def test_an_edge_pins_eoi_is_acknowledged_too(board: Board) -> None:
    board.program(5, edge(0x31))
    board.ioapic.set_pin(5, 1)
    eoi(board, 0x31, level_triggered=False)
    assert board.acked == [5]
    assert board.vectors() == [0x31]


def test_a_directed_eoi_is_acknowledged_and_ends_nothing(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    eoi(board, 0x31, directed=True)
    assert board.acked == [5]
    assert board.entry(5) & REMOTE_IRR


def test_a_pin_is_acknowledged_before_its_remote_irr_is_cleared(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    eoi(board, 0x31)
    assert board.entries_at_ack == [level(0x31) | REMOTE_IRR]


# A storm: a level line that stays high. KVM: ioapic.c kvm_ioapic_update_eoi_one.

MAX_EOIS = 10_000


def storm(board: Board, *pins: int) -> None:
    """Program level pins 5 to 7 with vectors 35h to 37h, and raise some of them."""
    for pin in (5, 6, 7):
        board.program(pin, level(0x30 + pin))
    for pin in pins:
        board.ioapic.set_pin(pin, 1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower the limit, so that the fourth EOI in a row is delayed; returns the number of EOIs that are not."""
    if COMPILED:
        pytest.skip(WHY)
    monkeypatch.setattr(ioapic, "MAX_SUCCESSIVE_EOIS", 4)
    return 3


def test_the_ten_thousandth_eoi_in_a_row_is_served_10_ms_later(board: Board) -> None:
    storm(board, 5)
    for round_ in (1, 2):
        for _ in range(MAX_EOIS - 1):
            eoi(board, 0x35)
        assert len(board.sent) == round_ * MAX_EOIS
        assert board.entry(5) & REMOTE_IRR
        eoi(board, 0x35)
        assert len(board.sent) == round_ * MAX_EOIS
        assert not board.entry(5) & REMOTE_IRR
        assert board.served_later == [10_000_000] * round_
        board.ioapic.serve_delayed()
        assert board.entry(5) & REMOTE_IRR
    assert len(board.sent) == 2 * MAX_EOIS + 1


def test_an_eoi_that_finds_the_line_low_restarts_the_count(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short):
        eoi(board, 0x35)
    board.ioapic.set_pin(5, 0)
    eoi(board, 0x35)
    board.ioapic.set_pin(5, 1)
    for _ in range(short):
        eoi(board, 0x35)
    assert board.served_later == []
    eoi(board, 0x35)
    assert board.served_later == [10_000_000]


def test_an_eoi_under_a_mask_restarts_the_count(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short):
        eoi(board, 0x35)
    board.program(5, level(0x35, masked=True))
    eoi(board, 0x35)
    board.program(5, level(0x35))
    for _ in range(short):
        eoi(board, 0x35)
    assert board.served_later == []


def test_a_line_that_falls_between_two_eois_does_not_restart_the_count(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short + 1):
        board.ioapic.set_pin(5, 0)
        board.ioapic.set_pin(5, 1)
        eoi(board, 0x35)
    assert board.served_later == [10_000_000]


@pytest.mark.parametrize(("level_triggered", "directed"), [(False, False), (True, True)], ids=["edge", "directed"])
def test_an_eoi_that_ends_nothing_is_not_counted(
    board: Board, short: int, level_triggered: bool, directed: bool
) -> None:
    storm(board, 5)
    for _ in range(short + 1):
        eoi(board, 0x35, level_triggered=level_triggered, directed=directed)
    for _ in range(short):
        eoi(board, 0x35)
    assert board.served_later == []


def test_every_pin_has_a_count_of_its_own(board: Board, short: int) -> None:
    storm(board, 5, 6)
    for _ in range(short):
        eoi(board, 0x35)
        eoi(board, 0x36)
    board.sent.clear()
    eoi(board, 0x36)
    assert board.vectors() == []
    assert board.served_later == [10_000_000]
    eoi(board, 0x35)
    assert board.served_later == [10_000_000] * 2


def test_a_storm_on_one_of_two_pins_that_share_a_vector_leaves_the_other_alone(board: Board, short: int) -> None:
    board.program(5, level(0x35))
    board.program(6, level(0x35))
    board.ioapic.set_pin(5, 1)
    for _ in range(short):
        eoi(board, 0x35)
    board.ioapic.set_pin(6, 1)
    board.sent.clear()
    eoi(board, 0x35)
    assert board.vectors() == [0x35]
    assert [bool(board.entry(pin) & REMOTE_IRR) for pin in (5, 6)] == [False, True]


def test_the_delayed_service_serves_all_level_pins_that_are_high_and_not_in_service(board: Board) -> None:
    board.status = 0  # no CPU accepts them, so they are not in service
    storm(board, 5, 6)
    board.program(9, edge(0x39))
    board.program(10, level(0x3A, masked=True))
    for pin in (9, 10):
        board.ioapic.set_pin(pin, 1)
    board.sent.clear()
    board.status = 1
    board.ioapic.serve_delayed()
    assert board.vectors() == [0x35, 0x36]
    board.ioapic.serve_delayed()
    assert board.vectors() == [0x35, 0x36]


def test_a_storm_that_ended_is_not_served_later(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short + 1):
        eoi(board, 0x35)
    board.sent.clear()
    board.ioapic.set_pin(5, 0)
    board.ioapic.serve_delayed()
    assert board.vectors() == []


def test_a_line_that_rises_before_the_delayed_service_is_delivered_at_once(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short + 1):
        eoi(board, 0x35)
    board.sent.clear()
    assert board.ioapic.set_pin(5, 1) == 1
    assert board.vectors() == [0x35]
    board.ioapic.serve_delayed()
    assert board.vectors() == [0x35]


def test_reset_restarts_the_count(board: Board, short: int) -> None:
    storm(board, 5)
    for _ in range(short):
        eoi(board, 0x35)
    board.ioapic.reset()
    storm(board, 5)
    for _ in range(short):
        eoi(board, 0x35)
    assert board.served_later == []


# The EOIs that a CPU has to report.


def vectors(bits: int) -> set[int]:
    return {vector for vector in range(256) if bits >> vector & 1}


def test_a_cpu_reports_the_level_vectors_sent_to_it(board: Board) -> None:
    board.matching = 0b10
    board.program(3, level(0x31))
    board.program(4, edge(0x32))
    board.program(5, level(0x33, destination=NO_CPU))
    board.program(6, level(0x34, masked=True))
    board.program(RTC, edge(0x38))
    for cpu, expected in ((0, set()), (1, {0x31, 0x34, 0x38})):
        handled, stale = board.ioapic.handled_vectors(cpu, pending=0)
        assert vectors(handled) == expected
        assert stale == -1


@pytest.mark.parametrize("logical", [False, True])
def test_an_entrys_cpus_are_found_by_its_destination_and_mode(board: Board, logical: bool) -> None:
    board.program(3, level(0x31, destination=0x42) | logical << 11)
    board.asked.clear()
    board.ioapic.handled_vectors(0, pending=0)
    assert board.asked == [(0x42, logical), (0, False)]  # pin 8 is always looked up
    board.program(RTC, edge(0x38, destination=0x43) | logical << 11)
    board.asked.clear()
    board.ioapic.retrack_rtc(0)
    assert board.asked == [(0x43, logical)]


def test_a_cpu_reports_pending_vectors_of_redirected_entries(board: Board) -> None:
    board.program(3, level(0x31, destination=NO_CPU))
    board.program(4, level(0x45, destination=NO_CPU))
    board.program(5, level(0x33, destination=NO_CPU))
    board.program(6, edge(0x50, destination=NO_CPU))
    handled, stale = board.ioapic.handled_vectors(0, pending=1 << 0x31 | 1 << 0x45 | 1 << 0x50)
    assert vectors(handled) - {0} == {0x31, 0x45}
    assert stale == 0x45


def test_a_cpu_reports_edges_that_have_a_listener(board: Board) -> None:
    board.matching = 0b1
    board.ioapic_noticed = 1 << 4 | 1 << 5 | 1 << 7
    for pin in (3, 4, 6):
        board.program(pin, edge(0x30 + pin))
    board.program(5, edge(0x35, masked=True))
    board.program(7, edge(0x37, destination=NO_CPU))
    board.program(RTC, edge(0x38))
    for pending, expected, stale_expected in ((0, {0x34, 0x35, 0x38}, -1), (1 << 0x37, {0x34, 0x35, 0x37, 0x38}, 0x37)):
        handled, stale = board.ioapic.handled_vectors(0, pending)
        assert vectors(handled) == expected
        assert stale == stale_expected
    board.ioapic_noticed = 0
    assert vectors(board.ioapic.handled_vectors(0, 0)[0]) == {0x38}


def test_a_cpu_reports_a_tracked_tick_after_pin_8_has_got_another_vector(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.ioapic.set_pin(RTC, 1)
    board.program(RTC, edge(0x39, destination=NO_CPU))
    handled, _ = board.ioapic.handled_vectors(0, pending=0)
    assert vectors(handled) == {0x38}


# The RTC's ticks.


def test_a_tick_is_coalesced_until_the_last_one_was_ended(board: Board) -> None:
    board.program(RTC, edge(0x38))
    assert [board.ioapic.set_pin(RTC, high) for high in (1, 0, 1, 0)] == [1, 1, 0, 1]
    assert board.vectors() == [0x38]
    eoi(board, 0x38, level_triggered=False)
    assert board.ioapic.set_pin(RTC, 1) == 1
    assert board.vectors() == [0x38, 0x38]


def test_only_pin_8_is_tracked(board: Board) -> None:
    board.program(9, edge(0x38))
    assert [board.ioapic.set_pin(9, high) for high in (1, 0, 1, 0)] == [1, 1, 1, 1]


def test_a_tick_whose_caller_ignores_the_status_is_not_tracked(board: Board) -> None:
    board.program(RTC, edge(0x38))
    assert [board.ioapic.set_pin(RTC, high, line_status=False) for high in (1, 0, 1, 0)] == [1, 1, 1, 1]
    assert board.ioapic.set_pin(RTC, 1) == 1


def test_a_level_tick_repeated_by_the_ioapic_itself_is_not_tracked(board: Board) -> None:
    board.program(RTC, level(0x38))
    board.ioapic.set_pin(RTC, 1)
    assert board.ioapic.set_pin(RTC, 1) == 0  # coalesced: the tick is tracked
    eoi(board, 0x38)
    assert board.vectors() == [0x38, 0x38]
    assert board.ioapic.set_pin(RTC, 1) == -1  # under remote IRR: the tick is not tracked
    eoi(board, 0x38)
    board.ioapic.set_pin(RTC, 0)
    eoi(board, 0x38)
    board.program(RTC, level(0x38, masked=True))
    board.ioapic.set_pin(RTC, 1)
    board.program(RTC, level(0x38))  # sent as it is unmasked
    assert board.ioapic.set_pin(RTC, 1) == -1


def test_an_unaccepted_tick_is_not_waited_for(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.status, board.takers = -1, []
    board.ioapic.set_pin(RTC, 1)
    board.ioapic.set_pin(RTC, 0)
    board.status = 1
    assert board.ioapic.set_pin(RTC, 1) == 1


def test_a_tick_sent_to_several_cpus_is_ended_by_all_of_them(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.status, board.takers = 2, [0, 3]
    board.ioapic.set_pin(RTC, 1)
    board.ioapic.set_pin(RTC, 0)
    for cpu, vector in ((0, 0x39), (1, 0x38), (0, 0x38), (0, 0x38)):
        eoi(board, vector, cpu=cpu, level_triggered=False)
        assert board.ioapic.set_pin(RTC, 1) == 0
    eoi(board, 0x38, cpu=3, level_triggered=False)
    assert board.ioapic.set_pin(RTC, 1) == 2


def restore_with_rtc(board: Board, entry: int, irr: int = 0) -> None:
    entries = list(IoapicState().redirection)
    entries[RTC] = entry
    board.ioapic.restore(IoapicState(irr=irr, redirection=tuple(entries)))


def test_a_restored_ioapic_waits_for_ticks_that_cpus_still_have(board: Board) -> None:
    board.matching, board.pending = 0b11, {0x38: 0b10}
    restore_with_rtc(board, edge(0x38))
    assert board.ioapic.set_pin(RTC, 1) == 0
    eoi(board, 0x38, cpu=0, level_triggered=False)
    assert board.ioapic.set_pin(RTC, 1) == 0
    eoi(board, 0x38, cpu=1, level_triggered=False)
    assert board.ioapic.set_pin(RTC, 1) == 1


def test_a_restored_ioapic_forgets_earlier_ticks(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.ioapic.set_pin(RTC, 1)
    restore_with_rtc(board, edge(0x38))
    assert board.ioapic.set_pin(RTC, 1) == 1


@pytest.mark.parametrize("matching", [0b0, 0b1])
def test_a_restored_tick_is_delivered_before_tracking_restarts(board: Board, matching: int) -> None:
    board.matching = matching
    restore_with_rtc(board, edge(0x38), irr=1 << RTC)
    assert board.vectors() == [0x38]
    board.ioapic.set_pin(RTC, 0)
    assert board.ioapic.set_pin(RTC, 1) == 1  # the board's CPU has nothing pending


def test_a_restored_tick_is_not_held_back_by_an_earlier_one(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.ioapic.set_pin(RTC, 1)
    restore_with_rtc(board, edge(0x39), irr=1 << RTC)
    assert board.vectors() == [0x38, 0x39]


def test_a_cpu_whose_state_was_replaced_is_checked_again(board: Board) -> None:
    board.matching = 0b1
    board.program(RTC, edge(0x38))
    board.ioapic.set_pin(RTC, 1)
    board.ioapic.set_pin(RTC, 0)
    board.ioapic.retrack_rtc(0)  # the CPU no longer has the vector
    assert board.ioapic.set_pin(RTC, 1) == 1
    board.ioapic.set_pin(RTC, 0)
    board.pending = {0x38: 0b1}
    board.ioapic.retrack_rtc(0)
    assert board.ioapic.set_pin(RTC, 1) == 0


def test_a_cpu_that_is_not_pin_8s_destination_is_not_checked(board: Board) -> None:
    board.program(RTC, edge(0x38))
    board.pending = {0x38: 0b10}
    board.matching = 0b1
    board.ioapic.retrack_rtc(1)
    assert board.ioapic.set_pin(RTC, 1) == 1
