"""The IOAPIC's register file, its pins, and the messages that they send."""

from __future__ import annotations

import struct

import pytest

from irqchipd.chips.ioapic import MASKED, PINS, STATE_SIZE, Ioapic, IoapicState
from irqchipd.chips.message import DeliveryMode, Message
from tests.chips.ioapicboard import REMOTE_IRR, SELECT, WINDOW, Board, edge, level


@pytest.fixture
def board() -> Board:
    return Board()


# The indirect registers.


def test_at_reset_every_pin_is_masked(board: Board) -> None:
    assert [board.entry(pin) for pin in range(PINS)] == [MASKED] * PINS
    assert board.ioapic.set_pin(5, 1) == -1
    assert board.sent == []


@pytest.mark.parametrize(
    ("register", "written", "read"),
    [
        (0x00, 0xFFFF_FFFF, 0x0F00_0000),  # ID keeps bits 27:24
        (0x01, 0xFFFF_FFFF, 0x0017_0011),  # version 11h, 24 pins
        (0x02, 0xFFFF_FFFF, 0x0000_0000),  # arbitration is read-only
        (0x3F, 0xFFFF_FFFF, 0xFFFF_FFFF),  # the last pin's high half
        (0x10, 0xFFFF_0045, 0xFFFF_0045),  # reserved bits are stored
        (0x10, 0x5501_F045, 0x5501_A045),  # remote IRR and delivery status are not
        (0x11, 0xFFFF_FFFF, 0xFFFF_FFFF),
    ],
)
def test_the_bits_that_a_register_keeps(board: Board, register: int, written: int, read: int) -> None:
    board.write_register(register, written)
    assert board.read_register(register) == read


def test_arbitration_mirrors_the_id(board: Board) -> None:
    board.write_register(0x00, 0x0A00_0000)
    assert board.read_register(0x02) == 0x0A00_0000


@pytest.mark.parametrize("register", [*range(0x03, 0x10), 0x40, 0x41, 0x80, 0xFF])
def test_registers_that_do_not_exist_read_ones_and_ignore_writes(board: Board, register: int) -> None:
    board.select(register)
    before = board.ioapic.state()
    board.write_register(register, 0x0000_0030)
    assert board.read_register(register) == 0xFFFF_FFFF
    assert board.ioapic.state() == before


def test_the_select_register_has_eight_bits(board: Board) -> None:
    board.write(SELECT, 0xFFFF_FF01)
    assert board.read(SELECT) == 0x01
    assert board.read(WINDOW) == 0x0017_0011


# Accesses.


@pytest.mark.parametrize(
    ("size", "value", "entry"),
    [
        (1, 0x66, 0x0000_0066),  # KVM zero-extends: this unmasks the pin
        (2, 0x8166, 0x0000_8166),
        (4, 0x0001_8166, 0x0001_8166),
        (8, 0x1234_5678_0001_8166, 0x0001_8166),
    ],
)
def test_a_write_replaces_the_whole_register_whatever_its_size(board: Board, size: int, value: int, entry: int) -> None:
    board.program(0, 0x0001_0055)
    board.select(0x10)
    board.write(WINDOW, value, size)
    assert board.entry(0) == entry


def test_a_byte_written_over_a_masked_entry_lets_its_interrupt_through(board: Board) -> None:
    board.program(0, edge(0x55, masked=True))
    board.select(0x10)
    board.write(WINDOW, 0x66, 1)
    board.ioapic.set_pin(0, 1)
    assert board.vectors() == [0x66]


@pytest.mark.parametrize(("size", "value"), [(1, 0x21), (2, 0x4321), (4, 0x8765_4321), (8, 0x8765_4321)])
def test_a_read_gives_the_low_bytes_zero_extended(board: Board, size: int, value: int) -> None:
    board.write_register(0x11, 0x8765_4321)
    assert board.read(WINDOW, size) == value


@pytest.mark.parametrize("offset", [0x01, 0x04, 0x08, 0x11, 0x20, 0x40, 0xFC])
def test_the_rest_of_the_window_reads_zero_and_ignores_writes(board: Board, offset: int) -> None:
    board.select(0x01)
    before = board.ioapic.state()
    board.write(offset, 0x10)
    assert board.read(offset) == 0
    assert board.ioapic.state() == before


# Redirection entries, as messages.


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0x0300_0000_0000_0031, Message(0x31, DeliveryMode.FIXED, 3, logical=False, level_triggered=False)),
        (0xF000_0000_0000_8941, Message(0x41, DeliveryMode.LOWEST_PRIORITY, 0xF0, logical=True, level_triggered=True)),
        (0xFF00_0000_0000_0451, Message(0x51, DeliveryMode.NMI, 0xFF, logical=False, level_triggered=False)),
    ],
)
def test_an_entry_determines_the_message(board: Board, entry: int, message: Message) -> None:
    board.program(7, entry)
    board.ioapic.set_pin(7, 1)
    assert board.sent == [message]


def test_a_pin_sends_its_own_entrys_message(board: Board) -> None:
    for pin in range(PINS):
        board.program(pin, edge(0x30 + pin))
    for pin in reversed(range(PINS)):
        board.ioapic.set_pin(pin, 1)
    assert board.vectors() == [0x30 + pin for pin in reversed(range(PINS))]


def test_a_rewritten_entry_reports_its_old_and_new_destinations(board: Board) -> None:
    board.program(3, edge(0x31, destination=1))
    board.changed.clear()
    board.write_register(0x17, 2 << 24)
    assert board.changed == [(edge(0x31, destination=1), edge(0x31, destination=2))]


# Pins.


@pytest.mark.parametrize(
    ("entry", "levels", "statuses", "sent"),
    [
        (edge(0x31, masked=True), (1, 1, 0, 1), [-1, 0, 1, -1], 0),
        (edge(0x31), (1, 1, 0, 1, 0, 1), [1, 0, 1, 1, 1, 1], 3),
        (level(0x31, masked=True), (1, 1, 0, 1), [-1, -1, 1, -1], 0),
        (level(0x31), (1, 1, 0, 1), [1, -1, 1, -1], 1),  # -1 under remote IRR, though nothing is masked
    ],
    ids=["edge masked", "edge", "level masked", "level"],
)
def test_the_status_of_driving_a_pin(
    board: Board, entry: int, levels: tuple[int, ...], statuses: list[int], sent: int
) -> None:
    board.program(5, entry)
    assert [board.ioapic.set_pin(5, high) for high in levels] == statuses
    assert board.vectors() == [0x31] * sent


def test_the_status_is_the_number_of_accepting_cpus(board: Board) -> None:
    board.program(5, edge(0x31))
    board.status = 3
    assert board.ioapic.set_pin(5, 1) == 3


def test_an_edge_under_a_mask_is_lost_when_unmasked(board: Board) -> None:
    board.program(5, edge(0x31, masked=True))
    board.ioapic.set_pin(5, 1)
    board.program(5, edge(0x31))
    assert board.sent == []


def test_a_level_under_a_mask_is_delivered_when_unmasked(board: Board) -> None:
    board.program(5, level(0x31, masked=True))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x31))
    assert board.vectors() == [0x31]


def test_a_level_that_dropped_under_a_mask_is_not_delivered_when_unmasked(board: Board) -> None:
    board.program(5, level(0x31, masked=True))
    board.ioapic.set_pin(5, 1)
    board.ioapic.set_pin(5, 0)
    board.program(5, level(0x31))
    assert board.sent == []


@pytest.mark.parametrize(("entry", "pending"), [(level(0x31), 1 << 5), (edge(0x31), 0)], ids=["level", "edge"])
def test_an_unaccepted_level_stays_pending_and_an_edge_is_lost(board: Board, entry: int, pending: int) -> None:
    board.program(5, entry)
    board.status = 0
    assert board.ioapic.set_pin(5, 1) == 0
    assert not board.entry(5) & REMOTE_IRR
    assert board.ioapic.state().irr == pending


def test_an_unaccepted_level_is_tried_again_when_its_entry_is_written(board: Board) -> None:
    board.program(5, level(0x31, destination=9))
    board.status = 0
    board.ioapic.set_pin(5, 1)
    board.sent.clear()
    board.status = 1
    board.write_register(0x1B, 0)  # the high half: to CPU 0
    assert [message.destination for message in board.sent] == [0]
    assert board.entry(5) & REMOTE_IRR


def test_a_status_below_zero_sets_remote_irr_too(board: Board) -> None:
    board.program(5, level(0x31))
    board.status = -1
    assert board.ioapic.set_pin(5, 1) == -1
    assert board.entry(5) & REMOTE_IRR


def test_masking_and_unmasking_keeps_remote_irr(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x31, masked=True))
    board.program(5, level(0x31))
    assert board.entry(5) == level(0x31) | REMOTE_IRR
    assert board.vectors() == [0x31]


def test_making_a_pin_edge_and_back_ends_its_interrupt_and_a_high_line_interrupts_again(board: Board) -> None:
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    board.program(5, edge(0x31, masked=True))
    assert board.entry(5) == edge(0x31, masked=True)
    board.program(5, level(0x31))
    assert board.vectors() == [0x31, 0x31]


def test_any_write_to_an_edge_entry_clears_its_remote_irr(board: Board) -> None:
    entries = list(IoapicState().redirection)
    entries[5] = edge(0x31) | REMOTE_IRR
    board.ioapic.restore(IoapicState(redirection=tuple(entries)))
    board.write_register(0x1B, 1 << 24)
    assert board.entry(5) == edge(0x31, destination=1)


# Reports of masked pins.


def test_a_change_of_the_mask_is_reported(board: Board) -> None:
    board.program(5, edge(0x31))
    board.program(6, level(0x32))
    assert board.masks == [(5, False), (6, False)]
    board.program(5, edge(0x31, masked=True))
    assert board.masks == [(5, False), (6, False), (5, True)]


def test_a_write_that_does_not_change_the_mask_reports_nothing(board: Board) -> None:
    board.program(5, edge(0x31, masked=True))
    board.program(5, level(0x32, masked=True, destination=3))
    board.program(6, edge(0x31))
    board.masks.clear()
    board.program(6, level(0x33, destination=3))
    board.write_register(0x11 + 2 * 6, MASKED)  # bit 16 of the high half is not the mask
    assert board.masks == []


def test_the_mask_is_reported_before_the_interrupt_it_held_is_sent() -> None:
    class Watched(Board):
        def ioapic_masked(self, pin: int, masked: bool) -> None:
            super().ioapic_masked(pin, masked)
            self.vectors_at_mask = self.vectors()

    board = Watched()
    board.program(5, level(0x31, masked=True))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x31))
    assert board.masks == [(5, False)]
    assert board.vectors_at_mask == []
    assert board.vectors() == [0x31]


def test_a_restored_mask_is_not_reported(board: Board) -> None:
    board.program(5, edge(0x31))
    board.masks.clear()
    board.ioapic.restore(IoapicState())
    board.ioapic.restore(IoapicState(redirection=(edge(0x31),) * 24))
    board.ioapic.reset()
    assert board.masks == []


# Unmasking a level pin that is resampled. KVM: ioapic.c ioapic_write_indirect.


@pytest.fixture
def resampled(board: Board) -> Board:
    """A board with a masked level pin that went high and is resampled."""
    board.resamples = True
    board.program(5, level(0x31, masked=True))
    board.ioapic.set_pin(5, 1)
    return board


def test_unmasking_a_resampled_pin_resamples_it(resampled: Board) -> None:
    resampled.program(5, level(0x31))
    assert resampled.resampled == [5]
    assert resampled.vectors() == []
    assert resampled.ioapic.state().irr == 0
    resampled.program(5, level(0x31))
    assert resampled.resampled == [5]  # nothing is pending any more
    assert resampled.ioapic.set_pin(5, 1) == 1  # the pin is still high
    assert resampled.vectors() == [0x31]


def test_unmasking_a_resampled_pin_leaves_the_others_pending(resampled: Board) -> None:
    resampled.program(6, level(0x32, masked=True))
    resampled.ioapic.set_pin(6, 1)
    resampled.program(5, level(0x31))
    assert resampled.ioapic.state().irr == 1 << 6


def test_unmasking_a_pin_without_a_resampler_delivers(resampled: Board) -> None:
    resampled.resamples = False
    resampled.program(5, level(0x31))
    assert resampled.resampled == [5]
    assert resampled.vectors() == [0x31]
    assert resampled.entry(5) & REMOTE_IRR


@pytest.mark.parametrize(
    ("entry", "high"),
    [(level(0x31, masked=True), 1), (edge(0x31), 1), (level(0x31), 0)],
    ids=["still masked", "edge", "low"],
)
def test_a_pin_that_would_not_interrupt_is_not_resampled(resampled: Board, entry: int, high: int) -> None:
    resampled.ioapic.set_pin(5, high)
    resampled.program(5, entry)
    assert resampled.resampled == []
    assert resampled.vectors() == []


def test_a_pin_in_service_is_not_resampled(board: Board) -> None:
    board.resamples = True
    board.program(5, level(0x31))
    board.ioapic.set_pin(5, 1)
    board.program(5, level(0x31, masked=True))
    board.program(5, level(0x31))
    assert board.resampled == []
    assert board.ioapic.state().irr == 1 << 5


# RESET.


def test_reset_is_as_it_powers_on(board: Board) -> None:
    board.program(5, level(0x31))
    board.program(6, edge(0x32))
    for pin in (5, 6, 7):
        board.ioapic.set_pin(pin, 1)
    board.write_register(0x00, 0x0F00_0000)
    board.ioapic.base_address += 0x1000
    board.ioapic.pad = 7
    board.replaced = 0
    board.ioapic.reset()
    assert board.ioapic.state() == IoapicState()
    assert board.replaced == 1
    board.program(6, edge(0x32))
    assert board.ioapic.set_pin(6, 1) == 1  # a new edge, though the line never fell
    assert board.vectors() == [0x31, 0x32, 0x32]


# The kernel's structure.


def test_the_structure_is_the_kernels() -> None:
    entries = [MASKED] * PINS
    entries[23] = 0x0102_0304_0506_0708
    state = IoapicState(0x1111_2222_3333_4444, 0x55, 0x66, 0x77, 0x88, tuple(entries))
    data = state.pack()
    assert len(data) == STATE_SIZE == 216
    assert struct.unpack_from("<QIIII", data) == (0x1111_2222_3333_4444, 0x55, 0x66, 0x77, 0x88)
    assert data[24:32] == bytes([0, 0, 1, 0, 0, 0, 0, 0])
    assert data[-8:] == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert IoapicState.unpack(data) == state


def restore(board: Board, *, irr: int, pin: int, entry: int) -> None:
    entries = list(IoapicState().redirection)
    entries[pin] = entry
    board.ioapic.restore(IoapicState(irr=irr, redirection=tuple(entries)))


@pytest.mark.parametrize(
    ("entry", "vectors", "irr"),
    [
        (edge(0x31), [0x31], 0),
        (level(0x31), [0x31], 1 << 5),
        (level(0x31) | REMOTE_IRR, [], 1 << 5),
        (edge(0x31, masked=True), [], 1 << 5),
        (level(0x31, masked=True), [], 1 << 5),
    ],
    ids=["edge", "level", "level in service", "edge masked", "level masked"],
)
def test_a_restored_request_is_delivered_if_it_can_be(board: Board, entry: int, vectors: list[int], irr: int) -> None:
    restore(board, irr=1 << 5, pin=5, entry=entry)
    assert board.vectors() == vectors
    assert board.ioapic.state().irr == irr


def test_restored_requests_of_pins_that_do_not_exist_are_dropped(board: Board) -> None:
    board.ioapic.restore(IoapicState(irr=0xFFFF_FFFF))
    assert board.ioapic.state().irr == 0x00FF_FFFF


def test_raw_values_that_no_guest_can_set_are_kept(board: Board) -> None:
    state = IoapicState(ioregsel=0x1FF, id=0xDEAD_BEEF, pad=0x1234)
    board.ioapic.restore(state)
    assert board.ioapic.state() == state
    assert board.read(SELECT) == 0x1FF
    assert board.read(WINDOW) == 0xFFFF_FFFF
    assert board.read_register(0x00) == 0x0F00_0000


def test_a_restored_base_address_moves_the_window(board: Board) -> None:
    assert board.ioapic.claims(0xFEC0_00FF)
    assert not board.ioapic.claims(0xFEC0_0100)
    board.ioapic.restore(IoapicState(base_address=0xFED0_0000))
    assert not board.ioapic.claims(0xFEC0_0000)
    assert board.ioapic.claims(0xFED0_0000)


def test_a_restored_state_replaces_every_pins_history(board: Board) -> None:
    board.program(5, edge(0x31))
    board.ioapic.set_pin(5, 1)
    restore(board, irr=0, pin=5, entry=edge(0x32))
    assert board.ioapic.set_pin(5, 1) == 1  # an edge, though the line has been high all the time
    assert board.vectors() == [0x31, 0x32]


@pytest.mark.parametrize("pin", [0, 5, 23])
def test_a_restored_request_is_seen_though_its_pin_had_delivered_an_edge(board: Board, pin: int) -> None:
    board.program(pin, edge(0x31))
    board.ioapic.set_pin(pin, 1)
    restore(board, irr=1 << pin, pin=pin, entry=level(0x31, masked=True))
    assert board.ioapic.state().irr == 1 << pin


def test_every_pin_that_is_high_is_in_the_state(board: Board) -> None:
    assert Ioapic(board).state() == IoapicState()
    for pin in range(PINS):
        board.program(pin, level(0x31, masked=True))
        board.ioapic.set_pin(pin, 1)
    assert board.ioapic.state().irr == 0x00FF_FFFF
