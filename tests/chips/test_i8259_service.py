"""The 8259 pair in service: priorities, end of interrupt, rotation, polling and the cascade."""

from __future__ import annotations

import pytest

from irqchipd.chips.i8259 import I8259, Port
from tests.chips.picboard import (
    CLEAR_ROTATE_ON_AUTO_EOI,
    EOI,
    NO_OPERATION,
    POLL,
    PRIMARY,
    READ_IRR,
    READ_ISR,
    ROTATE_ON_EOI,
    SECONDARY,
    SET_ROTATE_ON_AUTO_EOI,
    SPECIAL_MASK_MODE,
    Board,
    rotate_on_specific_eoi,
    set_lowest_priority,
    specific_eoi,
)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.initialise()
    return board


def serve_all(board: Board) -> list[int]:
    """Take interrupts, ending each before the next."""
    served = []
    while (vector := board.inta()) is not None:
        served.append(vector)
        if vector >= SECONDARY:
            board.out(Port.SECONDARY_COMMAND, EOI)
        board.out(Port.PRIMARY_COMMAND, EOI)
    return served


# Priorities.


def test_lines_are_served_by_priority_with_the_secondary_in_the_place_of_line_2(board: Board) -> None:
    board.pulse(7, 15, 0, 3, 8, 12, 1)
    assert serve_all(board) == [
        PRIMARY + 0,
        PRIMARY + 1,
        SECONDARY + 0,
        SECONDARY + 4,
        SECONDARY + 7,
        PRIMARY + 3,
        PRIMARY + 7,
    ]


def test_a_higher_line_interrupts_a_lower_ones_service_but_not_vice_versa(board: Board) -> None:
    board.pulse(5)
    assert board.inta() == PRIMARY + 5
    board.pulse(6, 5)
    assert board.inta() is None
    board.pulse(4)
    assert board.inta() == PRIMARY + 4
    board.out(Port.PRIMARY_COMMAND, EOI, EOI)  # of 4, then of 5
    assert serve_all(board) == [PRIMARY + 5, PRIMARY + 6]


@pytest.mark.parametrize(
    ("lowest", "order"),
    [(7, [0, 1, 4, 7]), (0, [1, 4, 7, 0]), (3, [4, 7, 0, 1]), (4, [7, 0, 1, 4]), (6, [7, 0, 1, 4])],
)
def test_the_lowest_priority_can_be_given_to_any_line(board: Board, lowest: int, order: list[int]) -> None:
    board.out(Port.PRIMARY_COMMAND, set_lowest_priority(lowest))
    board.pulse(0, 1, 4, 7)
    assert serve_all(board) == [PRIMARY + line for line in order]


def test_setting_priorities_can_let_a_waiting_line_through(board: Board) -> None:
    board.pulse(1)
    assert board.inta() == PRIMARY + 1
    board.pulse(5)
    assert board.inta() is None
    board.out(Port.PRIMARY_COMMAND, set_lowest_priority(4))  # 5 is the highest now
    assert board.inta() == PRIMARY + 5


# End of interrupt.


def test_eoi_ends_the_highest_line_in_service(board: Board) -> None:
    board.pulse(5)
    board.inta()
    board.pulse(3)
    board.inta()
    board.out(Port.PRIMARY_COMMAND, EOI)
    assert board.acked == [3]
    assert board.isr() == 1 << 5


def test_specific_eoi_ends_the_line_that_it_names(board: Board) -> None:
    board.pulse(5)
    board.inta()
    board.pulse(3)
    board.inta()
    board.out(Port.PRIMARY_COMMAND, specific_eoi(5))
    assert board.acked == [5]
    board.pulse(4)
    assert board.inta() is None  # 3 still holds it off


@pytest.mark.parametrize("command", [EOI, ROTATE_ON_EOI])
def test_eoi_with_nothing_in_service_does_nothing(board: Board, command: int) -> None:
    before = board.pair.primary.pack()
    board.out(Port.PRIMARY_COMMAND, command)
    assert board.acked == []
    assert board.pair.primary.pack() == before


def test_specific_eoi_of_an_idle_line_is_acknowledged_too(board: Board) -> None:
    board.out(Port.SECONDARY_COMMAND, specific_eoi(3))
    assert board.acked == [11]


def test_the_no_operation_does_nothing(board: Board) -> None:
    board.pulse(4)
    board.inta()
    before = board.pair.primary.pack()
    board.out(Port.PRIMARY_COMMAND, NO_OPERATION)
    assert board.pair.primary.pack() == before
    assert board.acked == []


def test_rotate_on_eoi_puts_the_ended_line_last(board: Board) -> None:
    board.pulse(3)
    board.inta()
    board.out(Port.PRIMARY_COMMAND, ROTATE_ON_EOI)
    board.pulse(0, 3, 5)
    assert serve_all(board) == [PRIMARY + 5, PRIMARY + 0, PRIMARY + 3]


def test_rotate_on_specific_eoi_puts_the_named_line_last(board: Board) -> None:
    board.pulse(5)
    board.inta()
    board.pulse(3)
    board.inta()
    board.out(Port.PRIMARY_COMMAND, rotate_on_specific_eoi(5), EOI)
    assert board.acked == [5, 3]
    board.pulse(5, 6, 0)
    assert serve_all(board) == [PRIMARY + 6, PRIMARY + 0, PRIMARY + 5]


def test_an_eoi_of_the_secondary_alone_leaves_the_cascade_in_service(board: Board) -> None:
    board.pulse(9)
    assert board.inta() == SECONDARY + 1
    board.out(Port.SECONDARY_COMMAND, EOI)
    board.pulse(10)
    assert board.inta() is None
    board.out(Port.PRIMARY_COMMAND, EOI)
    assert board.inta() == SECONDARY + 2


# Automatic end of interrupt.


def test_auto_eoi_ends_an_interrupt_as_it_is_taken(board: Board) -> None:
    board.initialise(icw4=0x03)
    board.pulse(3)
    assert board.inta() == PRIMARY + 3
    assert board.acked == [3]
    board.pulse(5)
    assert board.inta() == PRIMARY + 5


@pytest.mark.parametrize(
    ("command", "order"), [(SET_ROTATE_ON_AUTO_EOI, [3, 4, 3]), (CLEAR_ROTATE_ON_AUTO_EOI, [3, 3, 4])]
)
def test_rotation_on_auto_eoi(board: Board, command: int, order: list[int]) -> None:
    board.initialise(icw4=0x03)
    board.out(Port.PRIMARY_COMMAND, SET_ROTATE_ON_AUTO_EOI, command)
    assert board.pair.primary.rotate_on_auto_eoi == (command == SET_ROTATE_ON_AUTO_EOI)
    board.pulse(3, 4)
    first = board.inta()
    board.pulse(3)
    assert [first, *board.drain()] == [PRIMARY + line for line in order]


# The cascade.


def test_a_secondary_line_does_not_interrupt_another_ones_service(board: Board) -> None:
    board.pulse(9)
    assert board.inta() == SECONDARY + 1
    board.pulse(8)
    assert board.inta() is None


def test_special_fully_nested_mode_lets_a_higher_secondary_line_through(board: Board) -> None:
    board.initialise(icw4=0x11)
    board.pulse(9)
    assert board.inta() == SECONDARY + 1
    board.pulse(10)
    assert board.inta() is None
    board.pulse(8)
    assert board.inta() == SECONDARY + 0


def test_special_fully_nested_mode_keeps_the_order_of_the_secondarys_lines(board: Board) -> None:
    board.initialise(icw4=0x11)
    board.pulse(8)
    assert board.inta() == SECONDARY + 0
    board.pulse(9)
    assert board.inta() is None


def test_special_fully_nested_mode_still_holds_off_lower_lines_of_the_primary(board: Board) -> None:
    board.initialise(icw4=0x11)
    board.pulse(1)
    assert board.inta() == PRIMARY + 1
    board.pulse(8)
    assert board.inta() is None


def test_special_mask_mode_is_ignored(board: Board) -> None:
    board.pulse(4)
    assert board.inta() == PRIMARY + 4
    board.out(Port.PRIMARY_DATA, 1 << 4)
    board.out(Port.PRIMARY_COMMAND, SPECIAL_MASK_MODE)
    board.pulse(6)
    assert board.inta() is None
    board.out(Port.PRIMARY_COMMAND, READ_IRR)
    assert board.pair.primary.special_mask == 1
    board.out(Port.PRIMARY_COMMAND, SPECIAL_MASK_MODE & ~0x20)
    assert board.pair.primary.special_mask == 0


def test_line_2_itself_can_be_driven_without_a_request_of_the_secondary(board: Board) -> None:
    board.pulse(2)
    assert board.inta() == SECONDARY + 7


def test_a_request_of_the_secondary_leaves_the_cascade_line_low(board: Board) -> None:
    board.rise(2)
    board.pulse(9)
    assert not board.pair.primary.last_irr & 1 << 2
    assert board.inta() == SECONDARY + 1
    board.out(Port.SECONDARY_COMMAND, EOI)
    board.out(Port.PRIMARY_COMMAND, EOI)
    board.rise(2)  # a new edge, though the line has been high all the time
    assert board.inta() == SECONDARY + 7


# Spurious interrupts.


def test_an_acknowledge_with_no_request_is_spurious_and_puts_nothing_in_service(board: Board) -> None:
    assert board.pair.acknowledge() == PRIMARY + 7
    assert board.isr() == 0


def test_a_level_on_the_primary_that_drops_before_the_acknowledge_is_no_interrupt(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 1 << 5)
    board.pulse(5)
    assert board.inta() is None


def test_a_level_on_the_secondary_that_drops_before_the_acknowledge_is_spurious(board: Board) -> None:
    board.out(Port.SECONDARY_ELCR, 1 << 4)
    board.pulse(12)  # the cascade is latched, and stays latched
    assert board.inta() == SECONDARY + 7
    assert board.isr() == 1 << 2
    assert board.isr(Port.SECONDARY_COMMAND) == 0


def test_a_read_gives_irr_or_isr_as_last_selected(board: Board) -> None:
    board.pulse(4, 6)
    board.inta()
    assert board.selected(READ_ISR) == 1 << 4
    for selects_nothing in (0x08, 0x09):
        assert board.selected(selects_nothing) == 1 << 4
    assert board.selected(READ_IRR) == 1 << 6
    assert board.selected(0x09) == 1 << 6


# Polling.


def test_a_poll_takes_the_best_line_without_putting_it_in_service(board: Board) -> None:
    board.pulse(5, 3)
    assert board.selected(POLL) == 0x83
    assert board.acked == [3]
    assert board.isr() == 0
    assert board.inta() == PRIMARY + 5


def test_a_poll_that_takes_the_last_line_lowers_the_output(board: Board) -> None:
    board.pulse(5)
    board.selected(POLL)
    assert board.inta() is None


def test_a_poll_that_finds_nothing_reads_07_and_acknowledges_nothing(board: Board) -> None:
    assert board.selected(POLL) == 0x07
    assert board.acked == []


def test_a_poll_that_finds_nothing_updates_the_output(board: Board) -> None:
    board.pulse(5)
    board.out(Port.PRIMARY_COMMAND, 0x11)  # the request is gone, and the output still high
    assert board.selected(POLL) == 0x07
    assert board.inta() is None


def test_a_poll_is_answered_once_on_either_port_of_its_chip(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 0x40)
    board.rise(5)
    board.out(Port.PRIMARY_COMMAND, POLL)
    assert board.read(Port.SECONDARY_DATA) == 0
    assert board.read(Port.PRIMARY_ELCR) == 0
    assert board.read(Port.PRIMARY_DATA) == 0x85
    assert board.read(Port.PRIMARY_DATA) == 0x40


def test_a_poll_drops_even_a_level_request(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 1 << 5)
    board.rise(5)
    assert board.selected(POLL) == 0x85
    assert board.inta() is None  # until the line is driven again
    board.rise(5)
    assert board.inta() == PRIMARY + 5


@pytest.mark.parametrize("line", range(8, 16))
def test_a_poll_of_the_secondary_answers_for_the_cascade_too(board: Board, line: int) -> None:
    board.pulse(line)
    assert board.selected(POLL, Port.SECONDARY_COMMAND) == 0x80 | line - 8
    assert board.acked == [line]
    assert board.irr() == 0
    assert board.inta() is None


def test_a_poll_of_the_secondary_ends_the_cascades_service(board: Board) -> None:
    board.pair.restore(board.pair.primary, I8259(isr=1 << 2, irq_base=PRIMARY))
    board.pulse(11)
    board.selected(POLL, Port.SECONDARY_COMMAND)
    assert board.isr() == 0


def test_a_poll_of_the_primary_that_finds_the_cascade_leaves_the_secondary_alone(board: Board) -> None:
    board.pulse(11)
    assert board.selected(POLL) == 0x82
    assert board.irr(Port.SECONDARY_COMMAND) == 1 << 3
    assert board.irr() == 0
    assert board.pair.output
    board.pulse(12)  # updates the cascade
    assert board.inta() == SECONDARY + 3
