"""The 8259 pair: initialisation, the mask, lines, the ELCR, and the kernel's structure."""

from __future__ import annotations

import pytest

from irqchipd.chips.i8259 import I8259, Expect, Port
from tests.chips.picboard import (
    EOI,
    POLL,
    PRIMARY,
    READ_ISR,
    SECONDARY,
    SET_ROTATE_ON_AUTO_EOI,
    SPECIAL_MASK_MODE,
    Board,
    set_lowest_priority,
    specific_eoi,
)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.initialise()
    return board


# ICW1 to ICW4.


@pytest.mark.parametrize("line", [0, 1, *range(3, 16)])
def test_every_line_has_its_vector(board: Board, line: int) -> None:
    board.pulse(line)
    assert board.inta() == PRIMARY + line
    assert board.inta() is None


def test_at_power_on_everything_is_zero_except_the_elcr_mask() -> None:
    board = Board()
    assert board.pair.primary.pack() == bytes(15) + b"\xf8"
    assert board.pair.secondary.pack() == bytes(15) + b"\xde"


def test_an_uninitialised_pic_gives_its_lines_as_vectors() -> None:
    board = Board()
    board.pulse(1, 0)
    assert board.inta() == 0
    board.out(Port.PRIMARY_COMMAND, EOI)
    assert board.inta() == 1


def test_icw2_gives_the_upper_five_bits_of_the_vector(board: Board) -> None:
    board.out(Port.PRIMARY_COMMAND, 0x11)
    board.out(Port.PRIMARY_DATA, 0x47, 0x04, 0x01)
    board.pulse(3)
    assert board.inta() == 0x43


def test_without_icw4_the_third_data_write_is_the_mask(board: Board) -> None:
    board.out(Port.PRIMARY_COMMAND, 0x10)
    board.out(Port.PRIMARY_DATA, 0x40, 0x04, 0xFD)
    board.pulse(0, 1)
    assert board.drain() == [0x41]


def test_writes_during_initialisation_are_not_the_mask_though_reads_give_it() -> None:
    board = Board()
    board.pair.restore(board.pair.primary, I8259(imr=0x55, init_state=Expect.ICW2))
    board.out(Port.PRIMARY_DATA, 0x20)
    assert board.read(Port.PRIMARY_DATA) == 0x55
    board.out(Port.PRIMARY_DATA, 0x04)
    assert board.read(Port.PRIMARY_DATA) == 0x55
    board.out(Port.PRIMARY_DATA, 0xAA)  # init4 is 0: this is OCW1 again
    assert board.read(Port.PRIMARY_DATA) == 0xAA


def test_icw1_unmasks_every_line(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 0xFF)
    board.initialise()
    board.pulse(4)
    assert board.inta() == PRIMARY + 4


def test_icw1_forgets_edges_and_keeps_level_requests(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 1 << 5)
    board.pulse(3)
    board.rise(5)
    board.initialise()
    assert board.drain() == [PRIMARY + 5]


def test_after_icw1_a_line_that_is_still_high_is_a_new_edge(board: Board) -> None:
    board.rise(3)
    board.initialise()
    board.rise(3)
    assert board.inta() == PRIMARY + 3


def test_icw1_acknowledges_the_edges_that_it_discards(board: Board) -> None:
    board.out(Port.SECONDARY_DATA, 0xFF)
    board.pulse(8, 15)
    board.out(Port.SECONDARY_COMMAND, 0x11)
    assert board.acked == [8, 15]


def test_icw1_acknowledges_nothing_if_no_cpu_takes_pic_interrupts() -> None:
    board = Board(takes_interrupts=False)
    board.pulse(3)
    board.out(Port.PRIMARY_COMMAND, 0x11)
    assert board.acked == []


def test_icw1_ends_only_the_service_of_edges_that_it_discards(board: Board) -> None:
    board.pulse(3, 1)
    assert board.drain() == [PRIMARY + 1]
    board.out(Port.PRIMARY_COMMAND, specific_eoi(1))
    assert board.inta() == PRIMARY + 3
    board.pulse(1)
    assert board.inta() == PRIMARY + 1
    board.pulse(1)  # 1 and 3 in service, 1 requested again
    board.initialise()
    assert board.isr() == 1 << 3


def test_icw1_leaves_the_output_as_it_was_so_an_inta_is_spurious(board: Board) -> None:
    board.pulse(3)
    board.out(Port.PRIMARY_COMMAND, 0x11)
    assert board.inta() == PRIMARY + 7
    assert board.isr() == 0


def test_icw1_resets_the_priorities_the_special_mask_and_what_a_read_selects(board: Board) -> None:
    board.out(Port.PRIMARY_COMMAND, set_lowest_priority(3), READ_ISR, SPECIAL_MASK_MODE)
    board.initialise()
    assert board.pair.primary.special_mask == 0
    board.out(Port.PRIMARY_DATA, 0xFF)
    board.rise(4, 0)
    assert board.read(Port.PRIMARY_COMMAND) == 0x11  # IRR
    board.out(Port.PRIMARY_DATA, 0x00)
    assert board.inta() == PRIMARY


def test_icw1_keeps_a_requested_poll(board: Board) -> None:
    board.out(Port.PRIMARY_COMMAND, POLL, 0x11)
    assert board.read(Port.PRIMARY_DATA) == 0x07


@pytest.mark.parametrize(("icw1", "in_service"), [(0x10, 1 << 3), (0x11, 0)], ids=["no ICW4", "ICW4 to come"])
def test_icw1_turns_auto_eoi_off_only_when_no_icw4_follows(board: Board, icw1: int, in_service: int) -> None:
    board.initialise(icw4=0x03)
    board.out(Port.PRIMARY_COMMAND, icw1)
    board.out(Port.PRIMARY_DATA, PRIMARY, 0x04)
    board.pulse(3)
    assert board.inta() == PRIMARY + 3
    assert board.isr() == in_service


def test_without_icw4_there_is_no_special_fully_nested_mode(board: Board) -> None:
    board.initialise(icw4=0x11)
    board.out(Port.PRIMARY_COMMAND, 0x10)
    board.out(Port.PRIMARY_DATA, PRIMARY, 0x04)
    board.pulse(9)
    assert board.inta() == SECONDARY + 1
    board.pulse(8)
    assert board.inta() is None


def test_icw1_keeps_rotation_on_auto_eoi(board: Board) -> None:
    board.out(Port.PRIMARY_COMMAND, SET_ROTATE_ON_AUTO_EOI)
    board.initialise(icw4=0x03)
    board.rise(3, 4)
    assert board.inta() == PRIMARY + 3
    board.fall(3)
    board.rise(3)
    assert board.drain() == [PRIMARY + 4, PRIMARY + 3]  # 3 now has the lowest priority


# OCW1: the mask.


def test_a_masked_line_waits_and_is_delivered_when_unmasked(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 1 << 4)
    assert board.pair.set_line(4, 1) == -1
    assert board.inta() is None
    board.out(Port.PRIMARY_DATA, 0)
    assert board.inta() == PRIMARY + 4


def test_masking_a_request_takes_it_from_the_cpu(board: Board) -> None:
    board.rise(4)
    board.out(Port.PRIMARY_DATA, 1 << 4)
    assert board.inta() is None


def test_masking_the_cascade_silences_the_secondary(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 1 << 2)
    board.pulse(11)
    assert board.inta() is None
    board.out(Port.PRIMARY_DATA, 0)
    assert board.inta() == SECONDARY + 3


# Reports of masked lines. KVM: i8259.c pic_ioport_write.


def test_ocw1_reports_every_line_whose_mask_it_changes(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 0b0000_0101)
    assert board.masks == [(0, True), (2, True)]
    board.masks.clear()
    board.out(Port.PRIMARY_DATA, 0b1000_0100)
    assert board.masks == [(0, False), (7, True)]


def test_the_secondarys_lines_are_8_to_15(board: Board) -> None:
    board.out(Port.SECONDARY_DATA, 0b1000_0001)
    board.out(Port.SECONDARY_DATA, 0)
    assert board.masks == [(8, True), (15, True), (8, False), (15, False)]


def test_ocw1_that_changes_nothing_reports_nothing(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 0xFF)
    board.masks.clear()
    board.out(Port.PRIMARY_DATA, 0xFF)
    assert board.masks == []


def test_icw1_does_not_report_the_lines_it_unmasks(board: Board) -> None:
    board.out(Port.PRIMARY_DATA, 0xFF)
    board.out(Port.SECONDARY_DATA, 0xFF)
    board.masks.clear()
    board.initialise()  # ICW2 to ICW4 go to the mask's port
    assert board.read(Port.PRIMARY_DATA) == board.read(Port.SECONDARY_DATA) == 0
    assert board.masks == []
    board.out(Port.PRIMARY_DATA, 0x01)
    assert board.masks == [(0, True)]


def test_a_restored_mask_is_not_reported(board: Board) -> None:
    board.pair.restore(board.pair.primary, I8259(imr=0xFF))
    board.pair.restore(board.pair.primary, I8259())
    assert board.masks == []


def test_the_mask_is_reported_before_the_interrupt_it_held_is_requested() -> None:
    class Watched(Board):
        def pic_masked(self, line: int, masked: bool) -> None:
            super().pic_masked(line, masked)
            self.output_at_mask = self.pair.output

    board = Watched()
    board.initialise()
    board.out(Port.PRIMARY_DATA, 0x20)
    board.rise(5)
    board.out(Port.PRIMARY_DATA, 0)
    assert not board.output_at_mask
    assert board.inta() == PRIMARY + 5


# RESET.


def test_reset_is_as_the_pair_powers_on(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 0xFF)
    board.out(Port.SECONDARY_DATA, 0xFE)
    board.rise(5, 6, 8)
    assert board.inta() == SECONDARY
    board.masks.clear()
    board.acked.clear()
    board.pair.reset()
    fresh = Board().pair
    assert (board.pair.primary, board.pair.secondary) == (fresh.primary, fresh.secondary)
    assert not board.pair.output
    assert board.masks == []
    assert board.acked == []
    board.rise(3)
    assert board.inta() == 3


def test_reset_reports_that_the_output_fell(board: Board) -> None:
    board.rise(5)
    board.output_changes.clear()
    board.pair.reset()
    assert board.output_changes == [False]


# The status of raising and lowering a line.


@pytest.mark.parametrize(
    ("elcr", "mask", "statuses"),
    [
        (0x00, 0x00, [1, 1, 1, 1, 0, 1, 0]),  # the second 1 of an edge line is no new edge, yet not coalesced
        (0x20, 0x00, [1, 0, 1, 1, 1, 1, 1]),
        (0x00, 0xFF, [-1] * 7),
        (0x20, 0xFF, [-1] * 7),
    ],
    ids=["edge", "level", "edge masked", "level masked"],
)
def test_the_status_of_driving_a_line(board: Board, elcr: int, mask: int, statuses: list[int]) -> None:
    board.out(Port.PRIMARY_ELCR, elcr)
    board.out(Port.PRIMARY_DATA, mask)
    assert [board.pair.set_line(5, level) for level in (1, 1, 0, 0, 1, 0, 1)] == statuses


def test_only_changes_of_the_output_are_reported(board: Board) -> None:
    board.rise(5, 6)
    board.fall(6)
    board.out(Port.PRIMARY_DATA, 0xFF)
    board.out(Port.PRIMARY_DATA, 0xFE)
    assert board.output_changes == [True, False]


# Edge and level: the ELCR.


def test_an_edge_interrupts_once_and_a_level_until_it_drops(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 1 << 5)
    board.rise(4, 5)
    assert board.inta() == PRIMARY + 4
    board.out(Port.PRIMARY_COMMAND, EOI)
    for _ in range(3):
        assert board.inta() == PRIMARY + 5
        board.out(Port.PRIMARY_COMMAND, EOI)
    board.fall(5)
    assert board.inta() is None


def test_an_edge_that_ended_still_interrupts_but_a_level_does_not(board: Board) -> None:
    board.out(Port.PRIMARY_ELCR, 1 << 5)
    board.pulse(5)
    assert board.inta() is None
    board.pulse(4)
    assert board.inta() == PRIMARY + 4


@pytest.mark.parametrize(("written", "primary", "secondary"), [(0xFF, 0xF8, 0xDE), (0x5F, 0x58, 0x5E), (0, 0, 0)])
def test_lines_that_are_always_edge_have_no_elcr_bit(board: Board, written: int, primary: int, secondary: int) -> None:
    board.out(Port.PRIMARY_ELCR, written)
    board.out(Port.SECONDARY_ELCR, written)
    assert (board.read(Port.PRIMARY_ELCR), board.read(Port.SECONDARY_ELCR)) == (primary, secondary)


def test_a_change_of_the_elcr_does_not_re_evaluate_requests(board: Board) -> None:
    board.pulse(4)
    board.out(Port.PRIMARY_ELCR, 1 << 4)
    assert board.irr() == 1 << 4
    board.fall(4)  # only now is it a level line that is low
    assert board.inta() is None


@pytest.mark.parametrize("size", [2, 4])
def test_accesses_wider_than_a_byte_do_nothing_and_read_zero(board: Board, size: int) -> None:
    board.out(Port.PRIMARY_DATA, 0xA5)
    board.out(Port.PRIMARY_COMMAND, POLL)
    for port in (Port.PRIMARY_COMMAND, Port.PRIMARY_DATA, Port.PRIMARY_ELCR):
        before = board.pair.primary.pack()
        board.pair.write(port, size, 0x11)
        assert board.pair.read(port, size) == 0
        assert board.pair.primary.pack() == before


# The kernel's structure.

# Recorded from KVM_GET_IRQCHIP: SFNM, ICW4 given, base 28h, line 0 the lowest, line 1 high and requested.
RECORDED = bytes.fromhex("020200000128000000000000010100de")


def test_the_structure_is_the_kernels() -> None:
    state = I8259(
        last_irr=0x02, irr=0x02, priority_add=1, irq_base=0x28, special_fully_nested_mode=1, init4=1, elcr_mask=0xDE
    )
    assert state.pack() == RECORDED
    assert I8259.unpack(RECORDED) == state


def test_a_restored_request_interrupts(board: Board) -> None:
    board.pair.restore(board.pair.secondary, I8259.unpack(RECORDED))
    assert board.inta() == SECONDARY + 1


def test_a_restored_line_that_was_high_is_no_new_edge(board: Board) -> None:
    board.pair.restore(board.pair.primary, I8259(last_irr=1 << 3))
    board.rise(3)
    assert board.inta() is None


def test_raw_values_that_no_guest_can_set_are_kept(board: Board) -> None:
    state = I8259(elcr=0xFF, elcr_mask=0x00, priority_add=200, init_state=77, irq_base=0xFF)
    board.pair.restore(board.pair.primary, state)
    board.out(Port.PRIMARY_DATA, 0xFF)  # not expected in this state
    assert board.pair.primary == state
    board.rise(0)
    assert board.inta() == 0xFF
