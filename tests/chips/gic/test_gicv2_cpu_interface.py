"""The GICv2's CPU interface, which is a GICV frame to a guest. Arm IHI 0048B, 4.4; QEMU's where it leaves a choice."""

import pytest

from irqchipd.chips.gic.gicc import HIDDEN, Gicc
from irqchipd.chips.gic.gicv2 import Gicd
from tests.chips.gic.boardv2 import NONE, Board

ENABLE_0, ENABLE_1, ACK_CTL, FIQ_EN, CBPR, EOI_MODE = 1, 2, 4, 8, 0x10, 0x200
IDLE = 0xFF
IRQ, FIQ, NEITHER = (True, False), (False, True), (False, False)


@pytest.fixture
def board() -> Board:
    board = Board(cpus=1)
    board.enable_everything()
    return board


def outputs(board: Board, cpu: int = 0) -> tuple[bool, bool]:
    """IRQ and FIQ at a CPU."""
    board.gic.frames[cpu].load()
    board.gic.enter(board.gic.cpus[cpu])
    signals = board.gic.frames[cpu].outputs()
    board.gic.exit(board.gic.cpus[cpu])
    return signals


def read(board: Board, offset: int, size: int) -> int:
    """A guest's access that is not a word."""
    return board.gic.frames[0].read(offset, size)


class TestControl:
    def test_it_keeps_six_bits(self, board: Board) -> None:
        board.write_cpu(Gicc.CTLR, 0xFFFF_FFFF)
        assert board.read_cpu(Gicc.CTLR) == EOI_MODE | CBPR | FIQ_EN | ACK_CTL | ENABLE_1 | ENABLE_0

    def test_nothing_is_seen_while_both_groups_are_off(self, board: Board) -> None:
        board.write_cpu(Gicc.CTLR, 0)
        board.edge(40)
        assert (board.read_cpu(Gicc.HPPIR), board.acknowledge(), outputs(board)) == (NONE, NONE, NEITHER)

    @pytest.mark.parametrize(
        ("control", "group", "signals"),
        [
            (ENABLE_0, 0, IRQ),
            (ENABLE_0 | FIQ_EN, 0, FIQ),
            (ENABLE_1 | FIQ_EN, 1, IRQ),
            (ENABLE_1 | FIQ_EN, 0, NEITHER),
            (ENABLE_0, 1, NEITHER),
        ],
    )
    def test_which_input_of_the_cpu_a_group_drives(
        self, board: Board, control: int, group: int, signals: tuple[bool, bool]
    ) -> None:
        board.write_cpu(Gicc.CTLR, control)
        board.interrupt(40).group = group
        board.edge(40)
        assert outputs(board) == signals

    def test_group_1_is_hidden_without_ack_ctl(self, board: Board) -> None:
        board.interrupt(40).group = 1
        board.write_cpu(Gicc.CTLR, ENABLE_1)
        board.edge(40)
        assert (board.read_cpu(Gicc.HPPIR), board.acknowledge()) == (HIDDEN, HIDDEN)
        board.write_cpu(Gicc.CTLR, ENABLE_1 | ACK_CTL)
        assert (board.read_cpu(Gicc.HPPIR), board.acknowledge()) == (40, 40)

    def test_one_enabled_group_suffices_to_take_from_the_other(self, board: Board) -> None:
        board.write_cpu(Gicc.CTLR, ENABLE_1)
        board.edge(40)
        assert outputs(board) == NEITHER
        assert board.acknowledge() == 40


class TestAcknowledge:
    def test_the_mask_hides_its_own_priority_and_below(self, board: Board) -> None:
        board.edge(40)
        board.write_cpu(Gicc.PMR, 0x80)
        assert (board.read_cpu(Gicc.HPPIR), board.acknowledge()) == (NONE, NONE)
        board.write_cpu(Gicc.PMR, 0x8F)
        assert board.read_cpu(Gicc.PMR) == 0x88
        assert (board.read_cpu(Gicc.HPPIR), board.acknowledge()) == (40, 40)

    def test_iar_names_the_source_of_an_sgi(self) -> None:
        board = Board(cpus=4)
        board.enable_everything()
        board.write(Gicd.SGIR, 1 << 16 | 5, cpu=3)
        assert board.read_cpu(Gicc.HPPIR) == 5
        assert board.acknowledge() == 3 << 10 | 5
        board.end(3 << 10 | 5)
        assert not board.interrupt(5).active

    def test_preemption_compares_the_whole_priority_with_the_running_group_priority(self, board: Board) -> None:
        board.write_cpu(Gicc.BPR, 6)
        for intid, priority in ((40, 0x98), (41, 0x88), (42, 0x78)):
            board.set_priority(intid, priority)
        board.edge(40)
        assert board.acknowledge() == 40
        assert board.read_cpu(Gicc.RPR) == 0x80
        board.edge(41)
        assert (outputs(board), board.acknowledge()) == (NEITHER, NONE)
        board.edge(42)
        assert (outputs(board), board.acknowledge()) == (IRQ, 42)
        assert board.read_cpu(Gicc.RPR) == 0


class TestBinaryPoints:
    def test_both_have_a_minimum_when_the_cpu_runs(self, board: Board) -> None:
        assert (board.read_cpu(Gicc.BPR), board.read_cpu(Gicc.ABPR)) == (2, 3)
        board.write_cpu(Gicc.BPR, 0)
        board.write_cpu(Gicc.ABPR, 0)
        assert (board.read_cpu(Gicc.BPR), board.read_cpu(Gicc.ABPR)) == (2, 3)

    @pytest.mark.parametrize(("control", "running"), [(0, 0x80), (CBPR, 0x90)])
    def test_group_1_has_its_own_or_shares_group_0s(self, board: Board, control: int, running: int) -> None:
        board.write_cpu(Gicc.CTLR, ENABLE_0 | ENABLE_1 | ACK_CTL | control)
        board.write_cpu(Gicc.BPR, 3)
        board.write_cpu(Gicc.ABPR, 6)
        board.interrupt(40).group = 1
        board.set_priority(40, 0x98)
        board.edge(40)
        assert board.acknowledge() == 40
        assert board.read_cpu(Gicc.RPR) == running


class TestEnd:
    def test_priorities_drop_one_by_one(self, board: Board) -> None:
        board.set_priority(41, 0x40)
        board.edge(40)
        assert board.acknowledge() == 40
        board.edge(41)
        assert board.acknowledge() == 41
        assert board.read_cpu(Gicc.APR0) == 1 << (0x40 >> 3) | 1 << (0x80 >> 3)
        assert board.read_cpu(Gicc.RPR) == 0x40
        board.end(41)
        assert board.read_cpu(Gicc.RPR) == 0x80
        board.end(40)
        assert (board.read_cpu(Gicc.RPR), board.read_cpu(Gicc.APR0)) == (IDLE, 0)

    def test_active_priorities_can_be_written(self, board: Board) -> None:
        board.write_cpu(Gicc.APR0, 1 << 4)
        assert (board.read_cpu(Gicc.APR0), board.read_cpu(Gicc.RPR)) == (1 << 4, 0x20)
        board.edge(40)
        assert board.acknowledge() == NONE

    def test_out_of_order_the_highest_priority_drops_and_the_named_interrupt_ends(self, board: Board) -> None:
        board.set_priority(41, 0x40)
        board.edge(40)
        board.acknowledge()
        board.edge(41)
        board.acknowledge()
        board.end(40)
        assert board.read_cpu(Gicc.RPR) == 0x80
        assert (board.interrupt(40).active, board.interrupt(41).active) == (False, True)

    def test_split_mode_drops_the_priority_first_and_deactivates_later(self, board: Board) -> None:
        board.write_cpu(Gicc.CTLR, ENABLE_0 | EOI_MODE)
        board.edge(40)
        board.acknowledge()
        board.end(40)
        assert board.read_cpu(Gicc.RPR) == IDLE
        assert board.interrupt(40).active
        board.write_cpu(Gicc.DIR, 40)
        assert not board.interrupt(40).active

    def test_dir_does_nothing_in_the_other_mode(self, board: Board) -> None:
        board.edge(40)
        board.acknowledge()
        board.write_cpu(Gicc.DIR, 40)
        assert board.interrupt(40).active

    @pytest.mark.parametrize("intid", [1020, 1022, 1023])
    def test_special_intids_are_ignored(self, board: Board, intid: int) -> None:
        board.edge(40)
        board.acknowledge()
        board.end(intid)
        assert board.read_cpu(Gicc.RPR) == 0x80

    def test_an_end_without_a_running_priority_still_ends_an_active_interrupt(self, board: Board) -> None:
        board.write(Gicd.ISACTIVER + 4, 1 << 8)
        board.end(40)
        assert not board.interrupt(40).active


class TestFrame:
    def test_identity(self, board: Board) -> None:
        assert board.read_cpu(Gicc.IIDR) == 0x2043B

    @pytest.mark.parametrize("offset", [0x20, 0x24, 0x28, 0xD4, 0xE0, 0x1004])
    def test_aliases_and_further_active_priorities_are_not_there(self, board: Board, offset: int) -> None:
        board.write_cpu(offset, 0xFFFF_FFFF)
        assert board.read_cpu(offset) == 0

    @pytest.mark.parametrize("offset", [Gicc.EOIR, Gicc.DIR])
    def test_what_is_write_only_reads_as_zero(self, board: Board, offset: int) -> None:
        assert board.read_cpu(offset) == 0

    def test_narrow_and_wide_accesses(self, board: Board) -> None:
        board.write_cpu(Gicc.CTLR, ENABLE_0 | EOI_MODE)
        assert (read(board, Gicc.CTLR, 1), read(board, Gicc.CTLR, 2)) == (ENABLE_0, ENABLE_0 | EOI_MODE)
        assert read(board, Gicc.CTLR, 8) == 0xF8 << 32 | EOI_MODE | ENABLE_0
        board.gic.frames[0].write(Gicc.CTLR, 0x48_0000_0001, 8)
        assert (read(board, Gicc.CTLR, 4), read(board, Gicc.PMR, 4)) == (ENABLE_0, 0x48)
        board.gic.frames[0].write(Gicc.CTLR, 0x203, 1)
        assert read(board, Gicc.CTLR, 4) == ENABLE_0 | ENABLE_1
