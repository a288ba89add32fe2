"""The local APIC: the messages it accepts, the interrupts its CPU takes, and how an interrupt ends."""

from __future__ import annotations

import pytest

from irqchipd.chips.lapic_registers import LVT_MASKED, LapicRegisters, Reg
from irqchipd.chips.message import DeliveryMode, Message, Shorthand
from tests.chips.lapicboard import Board, fixed, mode


@pytest.fixture
def board() -> Board:
    return Board()


# The acceptance rule: the class of the highest request must be above the processor's.


@pytest.mark.parametrize(
    ("tpr", "requested", "taken"),
    [
        (0x00, 0x31, 0x31),
        (0x00, 0x10, 0x10),
        (0x00, 0x0F, None),  # class 0 is never above
        (0x20, 0x31, 0x31),
        (0x2F, 0x31, 0x31),  # classes are compared, not priorities
        (0x30, 0x31, None),
        (0x30, 0x3F, None),
        (0x30, 0x40, 0x40),
        (0xF0, 0xFF, None),
    ],
)
def test_the_task_priority_holds_off_its_class_and_those_below(
    board: Board, tpr: int, requested: int, taken: int | None
) -> None:
    board.write(Reg.TPR, tpr)
    board.accept(requested)
    assert board.take() == taken


@pytest.mark.parametrize(
    ("in_service", "requested", "taken"), [(0x51, 0x5F, None), (0x51, 0x60, 0x60), (0x51, 0x4F, None)]
)
def test_a_vector_in_service_holds_off_its_class_and_those_below(
    board: Board, in_service: int, requested: int, taken: int | None
) -> None:
    board.accept(in_service)
    assert board.take() == in_service
    board.accept(requested)
    assert board.take() == taken


def test_the_highest_vector_is_taken_first_and_an_eoi_lets_the_next_through(board: Board) -> None:
    board.accept(0x41, 0xFE, 0x33, 0x45)
    taken = []
    while (vector := board.take()) is not None:
        taken.append(vector)
        board.eoi()
    assert taken == [0xFE, 0x45, 0x41, 0x33]


def test_lowering_the_task_priority_lets_a_waiting_vector_through(board: Board) -> None:
    board.write(Reg.TPR, 0x50)
    board.accept(0x45)
    assert board.take() is None
    board.write(Reg.TPR, 0x30)
    assert board.take() == 0x45


def test_taking_moves_a_vector_from_requested_to_in_service(board: Board) -> None:
    board.accept(0x31, 0xE2)
    assert board.take() == 0xE2
    assert board.vectors(Reg.IRR) == [0x31]
    assert board.vectors(Reg.ISR) == [0xE2]


@pytest.mark.parametrize(
    ("tpr", "in_service", "ppr"),
    [(0x00, 0x51, 0x50), (0x4F, 0x51, 0x50), (0x53, 0x51, 0x53), (0x63, 0x51, 0x63), (0x23, None, 0x23)],
)
def test_the_processor_priority_is_the_higher_of_task_and_service(
    board: Board, tpr: int, in_service: int | None, ppr: int
) -> None:
    if in_service is not None:
        board.accept(in_service)
        assert board.take() == in_service
    board.write(Reg.TPR, tpr)
    assert board.read(Reg.PPR) == ppr


# Arriving messages.


def test_a_vector_sent_twice_before_it_is_taken_is_taken_once_but_not_reported_as_coalesced(board: Board) -> None:
    assert [board.lapic.accept(fixed(0x31)) for _ in range(2)] == [1, 1]
    assert board.take() == 0x31
    board.eoi()
    assert board.take() is None


def test_a_vector_sent_again_in_service_is_taken_again_after_the_eoi(board: Board) -> None:
    board.accept(0x31)
    assert board.take() == 0x31
    board.accept(0x31)
    assert board.take() is None
    board.eoi()
    assert board.take() == 0x31


def test_vectors_below_16_are_accepted_and_no_error_is_recorded(board: Board) -> None:
    assert board.lapic.accept(fixed(0x05)) == 1
    assert board.read(Reg.ESR) == 0


@pytest.mark.parametrize("delivery_mode", [DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY])
def test_a_software_disabled_apic_accepts_nothing(delivery_mode: int) -> None:
    board = Board(enabled=False)
    assert board.lapic.accept(mode(delivery_mode, vector=0x31)) == 0
    board.write(Reg.SVR, 0x1FF)
    assert board.take() is None


def test_a_request_outlives_the_software_disable(board: Board) -> None:
    board.accept(0x31)
    board.write(Reg.SVR, 0x0FF)
    assert board.take() == 0x31


def test_a_level_message_that_deasserts_is_not_accepted(board: Board) -> None:
    assert board.lapic.accept(fixed(0x31, level_triggered=True, asserted=False)) == 0
    assert board.take() is None
    assert board.lapic.accept(fixed(0x31, asserted=False)) == 1
    assert board.take() == 0x31


@pytest.mark.parametrize(
    ("message", "status", "signals"),
    [
        (mode(DeliveryMode.SMI, vector=0x31), 1, [(DeliveryMode.SMI, 0)]),
        (mode(DeliveryMode.NMI, vector=0x31), 1, [(DeliveryMode.NMI, 0)]),
        (mode(DeliveryMode.INIT), 1, [(DeliveryMode.INIT, 0)]),
        (mode(DeliveryMode.INIT, level_triggered=True), 1, [(DeliveryMode.INIT, 0)]),
        (mode(DeliveryMode.INIT, level_triggered=True, asserted=False), 0, []),
        (mode(DeliveryMode.STARTUP, vector=0x9A), 1, [(DeliveryMode.STARTUP, 0x9A)]),
        (mode(DeliveryMode.EXTINT, vector=0x31), 0, []),
        (mode(DeliveryMode.REMOTE_READ, vector=0x31), 1, [(DeliveryMode.REMOTE_READ, 0)]),
    ],
)
@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
def test_messages_that_bypass_the_request_register(
    message: Message, status: int, signals: list[tuple[int, int]], enabled: bool
) -> None:
    board = Board(enabled=enabled)
    assert board.lapic.accept(message) == status
    assert board.signals == signals
    assert board.take() is None


# End of interrupt.


def test_an_eoi_ends_the_highest_vector_in_service(board: Board) -> None:
    for vector in (0x31, 0x52):
        board.accept(vector)
        board.take()
    board.eoi()
    assert board.ended == [(0x52, False)]
    assert board.vectors(Reg.ISR) == [0x31]


def test_an_eoi_with_nothing_in_service_is_ignored(board: Board) -> None:
    board.accept(0x31)
    board.eoi()
    assert (board.ended, board.ended_in_vain) == ([], 1)
    assert board.take() == 0x31


def test_even_vector_0_can_be_ended() -> None:
    board = Board()
    board.lapic.restore(LapicRegisters(isr=1 << 0))
    board.eoi()
    assert board.ended == [(0, False)]


def test_an_eoi_says_whether_the_vector_was_last_accepted_as_level(board: Board) -> None:
    for level_triggered in (True, False, True):
        board.lapic.accept(fixed(0x31, level_triggered=level_triggered))
        assert board.vectors(Reg.TMR) == ([0x31] if level_triggered else [])
        board.take()
        board.eoi()
    assert board.ended == [(0x31, True), (0x31, False), (0x31, True)]


def test_an_edge_accepted_in_service_of_a_level_makes_its_eoi_an_edges(board: Board) -> None:
    board.lapic.accept(fixed(0x31, level_triggered=True))
    board.take()
    board.accept(0x31)
    board.eoi()
    assert board.ended == [(0x31, False)]


# Interprocessor interrupts.


@pytest.mark.parametrize(
    ("high", "low", "message"),
    [
        (0x0300_0000, 0x0000_4031, Message(0x31, DeliveryMode.FIXED, 3, logical=False, level_triggered=False)),
        (
            0x0F00_0000,
            0x0000_4941,
            Message(0x41, DeliveryMode.LOWEST_PRIORITY, 15, logical=True, level_triggered=False),
        ),
        (
            0,
            0x0004_0051,
            Message(0x51, 0, 0, logical=False, level_triggered=False, asserted=False, shorthand=Shorthand.SELF),
        ),
        (
            0x0100_0000,
            0x000C_C500,
            Message(
                0, DeliveryMode.INIT, 1, logical=False, level_triggered=True, shorthand=Shorthand.ALL_EXCLUDING_SELF
            ),
        ),
        (
            0x0100_0000,
            0x000C_8500,
            Message(
                0,
                DeliveryMode.INIT,
                1,
                logical=False,
                level_triggered=True,
                asserted=False,
                shorthand=Shorthand.ALL_EXCLUDING_SELF,
            ),
        ),
        (0x0200_0000, 0x0000_469A, Message(0x9A, DeliveryMode.STARTUP, 2, logical=False, level_triggered=False)),
    ],
    ids=["fixed", "lowest priority", "self", "INIT", "INIT de-assert", "start-up"],
)
def test_writing_the_low_half_of_the_command_register_sends(
    board: Board, high: int, low: int, message: Message
) -> None:
    board.write(Reg.ICR2, high)
    assert board.ipis == []
    board.write(Reg.ICR, low)
    assert board.ipis == [(low, message)]


def test_the_command_register_is_never_busy(board: Board) -> None:
    board.write(Reg.ICR, 0x0000_5031)
    assert board.read(Reg.ICR) == 0x0000_4031
    assert board.ipis[0][0] == 0x0000_4031


# The PIC behind LINT0.


@pytest.mark.parametrize(
    ("apic_id", "lint0", "passes"),
    [
        (0, None, True),  # the boot CPU, as at reset
        (1, None, False),
        (0, 0x0001_0700, False),
        (0, 0x0000_0031, False),
        (0, 0x0000_0400, False),
        (1, 0x0000_0700, True),
        (1, 0x0000_8731, True),
    ],
)
def test_lint0_passes_the_pic_on_where_it_is_extint_and_unmasked(apic_id: int, lint0: int | None, passes: bool) -> None:
    board = Board(apic_id=apic_id)
    if lint0 is not None:
        board.write(Reg.LVT_LINT0, lint0)
    assert board.lapic.passes_extint == passes


def test_software_disabling_the_apic_blocks_the_pic(board: Board) -> None:
    board.write(Reg.SVR, 0x0FF)
    assert not board.lapic.passes_extint
    assert board.read(Reg.LVT_LINT0) == LVT_MASKED | 0x700


# Reports to the bus.


@pytest.mark.parametrize(
    ("register", "value", "told"),
    [
        (Reg.ID, 0x0500_0000, ["addressing"]),
        (Reg.LDR, 0x0100_0000, ["addressing"]),
        (Reg.DFR, 0x0FFF_FFFF, ["addressing"]),
        (Reg.SVR, 0x0FF, ["priorities", "addressing"]),
        (Reg.SVR, 0x1EE, []),
        (Reg.TPR, 0x20, ["priorities"]),
        (Reg.LVT_LINT0, 0x700, ["priorities"]),
        (Reg.LVT_LINT1, 0x400, []),
    ],
)
def test_a_write_reports_what_it_may_have_changed(board: Board, register: int, value: int, told: list[str]) -> None:
    board.write(register, value)
    assert board.events == told


def test_accepting_taking_and_ending_report_a_possible_change_of_the_next_interrupt(board: Board) -> None:
    for step in (lambda: board.accept(0x31), board.take, board.eoi):
        board.events.clear()
        step()
        assert board.events == ["priorities"]
    board.events.clear()
    board.take()
    assert board.events == []
