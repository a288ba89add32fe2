"""An interrupt's way through a GICv2: lines, states, targets, and more interrupts than list registers."""

from __future__ import annotations

import pytest

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import Gicd
from tests.chips.gic.boardv2 import NONE, Board

SPI = 40
PPI = 20
BIT = 1 << SPI % 32


@pytest.fixture
def board() -> Board:
    board = Board()
    board.enable_everything()
    board.kicked.clear()
    return board


# Edges and levels. IHI 0048B, 3.2.4.


def test_an_edge_is_pending_active_and_inactive(board: Board) -> None:
    def state() -> tuple[bool, bool]:
        return bool(board.read(Gicd.ISPENDR + 4) & BIT), bool(board.read(Gicd.ISACTIVER + 4) & BIT)

    assert state() == (False, False)
    board.line(SPI, 1)
    board.line(SPI, 0)
    assert state() == (True, False)
    assert board.acknowledge() == SPI
    assert state() == (False, True)
    board.end(SPI)
    assert state() == (False, False)


def test_an_edge_while_active_is_pending_again(board: Board) -> None:
    board.edge(SPI)
    assert board.acknowledge() == SPI
    board.edge(SPI)
    assert board.acknowledge() == NONE
    board.end(SPI)
    assert board.acknowledge_all() == [SPI]


def test_a_level_is_taken_again_until_its_line_is_low(board: Board) -> None:
    board.make_level()
    board.line(SPI, 1)
    for _ in range(3):
        assert board.acknowledge() == SPI
        assert board.acknowledge() == NONE
        board.end(SPI)
    assert board.acknowledge() == SPI
    board.line(SPI, 0)
    board.end(SPI)
    assert board.acknowledge() == NONE


def test_a_level_that_drops_in_time_is_not_taken(board: Board) -> None:
    board.make_level()
    board.line(SPI, 1)
    board.line(SPI, 0)
    assert board.acknowledge() == NONE


def test_a_pending_level_cannot_be_cleared_while_its_line_is_high(board: Board) -> None:
    board.line(PPI, 1)
    board.write(Gicd.ICPENDR, 1 << PPI)
    assert board.read(Gicd.ISPENDR) == 1 << PPI


def test_a_level_s_latch_ends_with_the_interrupt(board: Board) -> None:
    board.write(Gicd.ISPENDR, 1 << PPI)
    assert board.acknowledge() == PPI
    assert board.read(Gicd.ISPENDR) == 1 << PPI
    board.write(Gicd.ISPENDR, 1 << PPI)
    board.end(PPI)
    assert board.read(Gicd.ISPENDR) == 0


def test_a_high_line_hides_while_the_interrupt_is_edge_triggered(board: Board) -> None:
    board.make_level()
    board.line(SPI, 1)
    board.write(Gicd.ICFGR + 8, 0xAAAA_AAAA)
    assert board.read(Gicd.ISPENDR + 4) == 0
    board.make_level()
    assert board.read(Gicd.ISPENDR + 4) == BIT


def test_each_end_of_a_level_triggered_spi_is_reported(board: Board) -> None:
    board.make_level()
    board.line(SPI, 1)
    for _ in range(2):
        board.acknowledge()
        board.end(SPI)
    board.line(SPI, 0)
    board.edge(SPI + 16)
    assert board.acknowledge_all() == [SPI + 16]
    board.line(PPI, 1)
    board.acknowledge()
    board.end(PPI)
    assert board.ended == [SPI - 32, SPI - 32]


# Enabling.


def test_a_disabled_interrupt_waits(board: Board) -> None:
    board.write(Gicd.ICENABLER + 4, BIT)
    board.edge(SPI)
    assert board.acknowledge() == NONE
    board.write(Gicd.ISENABLER + 4, BIT)
    assert board.acknowledge() == SPI


def test_what_came_while_the_distributor_was_off_needs_another_event(board: Board) -> None:
    board.write(Gicd.CTLR, 0)
    board.edge(SPI)
    board.write(Gicd.CTLR, 1)
    assert board.read(Gicd.ISPENDR + 4) == BIT
    assert board.acknowledge() == NONE
    board.write(Gicd.ISENABLER + 4, BIT)
    assert board.acknowledge() == SPI


def test_turning_the_distributor_on_kicks_who_has_something_pending(board: Board) -> None:
    board.edge(SPI)
    board.gic.distributor.write(board.gic.cpus[1], Gicd.CTLR, 4, 0)
    board.kicked.clear()
    board.gic.distributor.write(board.gic.cpus[1], Gicd.CTLR, 4, 1)
    assert board.kicked == [0]


def test_turning_on_what_is_on_kicks_nobody(board: Board) -> None:
    board.edge(SPI)
    board.kicked.clear()
    board.write(Gicd.CTLR, 1)
    assert board.kicked == []


# Targets.


def test_a_cpu_is_kicked_for_its_interrupts(board: Board) -> None:
    board.write(Gicd.ITARGETSR + SPI, 2, size=1)
    board.edge(SPI)
    board.line(PPI, 1, cpu=0)
    assert board.kicked == [1, 0]


def test_a_pending_interrupt_moves_when_its_old_cpu_runs(board: Board) -> None:
    board.edge(SPI)
    board.write(Gicd.ITARGETSR + SPI, 2, cpu=1, size=1)
    assert board.acknowledge(cpu=1) == NONE
    board.run(0)
    assert board.acknowledge(cpu=1) == SPI


def test_an_active_interrupt_stays(board: Board) -> None:
    board.edge(SPI)
    assert board.acknowledge(cpu=0) == SPI
    board.write(Gicd.ITARGETSR + SPI, 2, size=1)
    board.edge(SPI)
    board.run(0)
    assert board.acknowledge(cpu=1) == NONE
    board.end(SPI, cpu=0)
    assert board.acknowledge(cpu=1) == SPI


def test_a_target_is_a_cpu_s_place_in_the_order_of_creation_and_a_source_its_id() -> None:
    board = Board(cpus=0, interrupts=32)
    for cpu_id in (1, 0):
        board.gic.add_cpu(cpu_id)
    board.gic.add_spis(64)
    board.enable_everything()
    first = 0  # the first CPU created, whose id is 1
    board.write(Gicd.ITARGETSR + SPI, 1 << first, size=1)
    board.edge(SPI)
    assert board.acknowledge(first) == SPI
    assert board.read(Gicd.ITARGETSR, first, size=1) == 1 << first
    board.write(Gicd.SGIR, 1 << 16 + first | 3, first)
    assert board.read(Gicd.SPENDSGIR, first) == 1 << 24 + 1


# WFI.


@pytest.mark.parametrize(("mask", "wakes"), [(0xF8, True), (0x88, True), (0x80, False), (0, False)])
def test_a_cpu_wakes_for_what_is_above_its_priority_mask(board: Board, mask: int, wakes: bool) -> None:
    board.write_cpu(Gicc.PMR, mask)
    assert not board.gic.pending(board.gic.cpus[0])
    board.edge(SPI)
    assert board.gic.pending(board.gic.cpus[0]) == wakes
    assert not board.gic.pending(board.gic.cpus[1])


def test_nobody_wakes_while_the_distributor_is_off(board: Board) -> None:
    board.edge(SPI)
    board.gic.distributor.write(board.gic.cpus[1], Gicd.CTLR, 4, 0)
    assert not board.gic.pending(board.gic.cpus[0])


def test_a_cpu_does_not_wake_for_what_it_has_taken(board: Board) -> None:
    board.edge(SPI)
    board.acknowledge()
    assert not board.gic.pending(board.gic.cpus[0])


# Order, and four list registers.


def test_the_highest_priority_comes_first(board: Board) -> None:
    for n, priority in enumerate((0x60, 0x20, 0x40)):
        board.set_priority(SPI + n, priority)
    board.edge(SPI, SPI + 1, SPI + 2)
    assert board.acknowledge_all() == [SPI + 1, SPI + 2, SPI]


def test_among_equal_priorities_the_first_queued_comes_first(board: Board) -> None:
    board.edge(37, 34, 36, 35)
    assert board.acknowledge_all() == [37, 34, 36, 35]


def test_the_four_most_urgent_get_the_list_registers(board: Board) -> None:
    for n, priority in enumerate((0x70, 0x60, 0x50, 0x40, 0x30, 0x20)):
        board.set_priority(SPI + n, priority)
    board.edge(*range(SPI, SPI + 6))
    assert board.acknowledge_all() == [SPI + 5, SPI + 4, SPI + 3, SPI + 2, SPI + 1, SPI]


def test_four_active_interrupts_leave_no_room(board: Board) -> None:
    for n, priority in enumerate((0x70, 0x60, 0x50, 0x40, 0x10)):
        board.set_priority(SPI + n, priority)
    for n in range(4):
        board.edge(SPI + n)
        assert board.acknowledge() == SPI + n
    board.edge(SPI + 4)
    assert board.acknowledge() == NONE
    board.end(SPI + 3)
    assert board.acknowledge() == SPI + 4


def test_ending_an_interrupt_without_a_list_register_does_nothing(board: Board) -> None:
    for intid in range(SPI, SPI + 5):
        board.write(Gicd.ISACTIVER + 4, 1 << intid % 32)
    board.end(SPI + 4)
    assert board.read(Gicd.ISACTIVER + 4) == 0b11111 << SPI % 32
    board.end(SPI)
    assert board.read(Gicd.ISACTIVER + 4) == 0b11110 << SPI % 32


def test_the_end_of_a_level_sorts_the_queue(board: Board) -> None:
    """The maintenance interrupt makes the guest leave and enter; the priority that counted then still shows."""
    board.make_level()
    board.set_priority(SPI, 0xA0)
    board.line(SPI, 1)
    assert board.acknowledge() == SPI
    for intid in range(SPI + 1, SPI + 5):
        board.line(intid, 1)
    board.end(SPI)
    board.user_write(Gicd.IPRIORITYR + SPI, 0x8080_8080)
    assert board.acknowledge() == SPI + 1


def test_another_number_of_list_registers_shows() -> None:
    board = Board(list_registers=2)
    board.enable_everything()
    for intid in (SPI, SPI + 1):
        board.set_priority(intid, 0x60 - 8 * (intid - SPI))
        board.edge(intid)
        assert board.acknowledge() == intid
    board.set_priority(SPI + 2, 0)
    board.edge(SPI + 2)
    assert board.acknowledge() == NONE


# Interrupts of the kernel's own devices: timers.


def test_only_its_owner_drives_a_line(board: Board) -> None:
    timer = board.interrupt(27)
    timer.owner = 1
    board.line(27, 1)
    assert not timer.line
    board.gic.set_line(timer, True, owner=1)
    assert board.acknowledge() == 27


@pytest.fixture
def timer(board: Board) -> Board:
    """The board, whose PPI 27 is mapped to a host's interrupt that is high."""
    board.interrupt(27).owner = 1
    board.gic.map_physical(board.interrupt(27), 27)
    board.physical = True
    board.gic.set_line(board.interrupt(27), True, owner=1)
    return board


def test_ending_a_mapped_interrupt_ends_the_host_s(timer: Board) -> None:
    assert timer.acknowledge() == 27
    assert timer.physical_actives == []
    timer.end(27)
    assert timer.physical_actives == [False]
    assert timer.acknowledge() == NONE  # the host's next interrupt raises the line


def test_a_mapped_interrupt_that_was_not_taken_follows_the_device(timer: Board) -> None:
    timer.run(0)
    assert timer.acknowledge() == 27
    timer.end(27)
    timer.gic.set_line(timer.interrupt(27), True, owner=1)
    timer.physical = False
    timer.run(0)
    assert timer.acknowledge() == NONE


def test_a_guest_sees_the_level_of_a_mapped_interrupt_s_device(timer: Board) -> None:
    assert timer.read(Gicd.ISPENDR) == 1 << 27
    timer.physical = False
    timer.write(Gicd.ISPENDR, 1 << 27)
    assert timer.read(Gicd.ISPENDR) == 0
    assert timer.user_read(Gicd.ISPENDR) == 1 << 27


def test_user_space_cannot_change_a_mapped_interrupt_s_active_state(timer: Board) -> None:
    timer.user_write(Gicd.ISACTIVER, 1 << 27)
    assert timer.user_read(Gicd.ISACTIVER) == 0
    timer.write(Gicd.ISACTIVER, 1 << 27)
    assert timer.user_read(Gicd.ISACTIVER) == 1 << 27
    assert timer.physical_actives == [True]


def test_user_space_cannot_end_a_mapped_interrupt(timer: Board) -> None:
    timer.acknowledge()
    timer.user_write(Gicd.ICACTIVER, 1 << 27)
    assert timer.user_read(Gicd.ISACTIVER) == 1 << 27
    timer.write(Gicd.ICACTIVER, 1 << 27)
    assert timer.user_read(Gicd.ISACTIVER) == 0
    assert timer.physical_actives == [False]


def test_an_active_mapped_interrupt_is_not_pending_in_its_list_register(timer: Board) -> None:
    timer.acknowledge()
    timer.gic.set_line(timer.interrupt(27), True, owner=1)
    timer.gic.enter(timer.gic.cpus[0])
    (register,) = timer.gic.cpus[0].interface.list_registers
    assert (register.active, register.pending, register.hardware, register.physical) == (True, False, True, 27)


def test_the_end_of_one_mapped_interrupt_leaves_the_others_alone(timer: Board) -> None:
    timer.gic.map_physical(timer.interrupt(30), 30)
    timer.interrupt(30).owner = 1
    assert timer.acknowledge() == 27
    timer.end(27)
    assert timer.physical_actives == [False]


@pytest.mark.parametrize(("taken", "high", "actives"), [(False, False, [False]), (False, True, []), (True, False, [])])
def test_enabling_a_mapped_interrupt_looks_at_its_device(
    timer: Board, taken: bool, high: bool, actives: list[bool]
) -> None:
    if taken:
        timer.acknowledge()
        timer.gic.set_line(timer.interrupt(27), True, owner=1)
    timer.physical = high
    timer.gic.distributor.write(timer.gic.cpus[0], Gicd.ISENABLER, 4, 1 << 27)
    assert timer.interrupt(27).line == high
    assert timer.physical_actives == actives


@pytest.mark.parametrize(("taken", "actives"), [(False, [False]), (True, [])])
def test_clearing_a_mapped_interrupt_lets_the_host_s_come_again(timer: Board, taken: bool, actives: list[bool]) -> None:
    if taken:
        timer.acknowledge()
    timer.gic.distributor.write(timer.gic.cpus[0], Gicd.ICPENDR, 4, 1 << 27 | 1 << PPI)
    assert timer.physical_actives == actives
