"""The GICv3's CPU interface, which a guest reaches by system registers. Arm IHI 0069, 4.8 and 12.2."""

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.interrupt import SGIS
from tests.chips.gic.gicv3board import EDGE, ICACTIVER, ISACTIVER, ISPENDR, LEVEL, SPURIOUS, Board

IDLE = 0xFF
IRQ, FIQ, NEITHER = (True, False), (False, True), (False, False)
CBPR, EOI_MODE = 1, 2


def pending(board: Board, intid: int) -> bool:
    """Whether the distributor shows an interrupt as pending."""
    return bool(board.gicd(ISPENDR + (intid >> 5 << 2)) >> (intid & 31) & 1)


def active(board: Board, intid: int) -> bool:
    """Whether the distributor shows an interrupt as active."""
    return bool(board.gicd(ISACTIVER + (intid >> 5 << 2)) >> (intid & 31) & 1)


class TestLifeOfAnInterrupt:
    def test_inactive_pending_active_inactive(self) -> None:
        board = Board()
        board.configure(40)
        assert board.outputs() == NEITHER
        board.pulse(40)
        assert (pending(board, 40), active(board, 40), board.outputs()) == (True, False, IRQ)
        assert board.mrs(Icc.IAR1) == 40
        assert (pending(board, 40), active(board, 40), board.outputs()) == (False, True, NEITHER)
        board.msr(Icc.EOIR1, 40)
        assert (pending(board, 40), active(board, 40), board.outputs()) == (False, False, NEITHER)

    def test_an_edge_while_active_makes_active_and_pending(self) -> None:
        board = Board()
        board.configure(40)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.pulse(40)
        assert (pending(board, 40), active(board, 40)) == (True, True)
        assert board.mrs(Icc.IAR1) == SPURIOUS
        board.msr(Icc.EOIR1, 40)
        assert board.mrs(Icc.IAR1) == 40

    def test_a_level_interrupt_whose_line_stays_high_comes_again(self) -> None:
        board = Board()
        board.configure(40, trigger=LEVEL)
        board.line(40, 1)
        assert board.mrs(Icc.IAR1) == 40
        board.msr(Icc.EOIR1, 40)
        assert board.wires.acknowledged == [40 - 32]
        assert board.mrs(Icc.IAR1) == 40
        board.line(40, 0)
        board.msr(Icc.EOIR1, 40)
        assert board.mrs(Icc.IAR1) == SPURIOUS

    def test_a_lowered_line_takes_back_what_was_not_acknowledged(self) -> None:
        board = Board()
        board.configure(40, trigger=LEVEL)
        board.line(40, 1)
        assert board.outputs() == IRQ
        board.line(40, 0)
        assert board.outputs() == NEITHER
        assert board.mrs(Icc.IAR1) == SPURIOUS

    def test_the_end_of_an_edge_interrupt_notifies_nobody(self) -> None:
        board = Board()
        board.configure(40, trigger=EDGE)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.msr(Icc.EOIR1, 40)
        assert board.wires.acknowledged == []


class TestAcknowledge:
    def test_the_highest_priority_first(self) -> None:
        board = Board()
        for intid, priority in ((40, 0x80), (41, 0x20), (42, 0x40)):
            board.configure(intid, priority)
        board.pulse(40, 41, 42)
        assert board.mrs(Icc.HPPIR1) == 41
        assert board.mrs(Icc.IAR1) == 41

    def test_among_equals_the_first_queued(self) -> None:
        board = Board()
        for intid in (34, 36, 37):
            board.configure(intid)
        board.pulse(37, 34, 36)
        taken = []
        for _ in range(3):
            taken.append(board.mrs(Icc.IAR1))
            board.msr(Icc.EOIR1, taken[-1] or 0)
        assert taken == [37, 34, 36]

    def test_the_mask_hides_its_own_priority_and_below(self) -> None:
        board = Board()
        board.configure(40, 0x80)
        board.pulse(40)
        board.msr(Icc.PMR, 0x80)
        assert board.outputs() == NEITHER
        assert board.mrs(Icc.IAR1) == SPURIOUS
        assert board.mrs(Icc.HPPIR1) == 40
        board.msr(Icc.PMR, 0x88)
        assert board.outputs() == IRQ
        assert board.mrs(Icc.IAR1) == 40

    def test_each_group_has_its_register_and_its_input_of_the_cpu(self) -> None:
        board = Board()
        board.configure(40, 0x40, group=0)
        board.pulse(40)
        assert board.outputs() == FIQ
        assert board.mrs(Icc.HPPIR1) == board.mrs(Icc.IAR1) == SPURIOUS
        assert board.mrs(Icc.HPPIR0) == 40
        assert board.mrs(Icc.IAR0) == 40

    def test_a_higher_interrupt_of_the_other_group_hides_a_lower_one(self) -> None:
        board = Board()
        board.configure(40, 0x40, group=0)
        board.configure(41, 0x80, group=1)
        board.pulse(40, 41)
        assert board.mrs(Icc.IAR1) == SPURIOUS
        board.msr(Icc.IGRPEN0, 0)
        assert board.mrs(Icc.IAR1) == 41

    def test_only_four_have_a_list_register(self) -> None:
        board = Board()
        for intid in range(40, 46):
            board.configure(intid, 0x80 - 8 * (intid - 40))
            board.pulse(intid)
        board.msr(Icc.CTLR, EOI_MODE)
        taken = []
        for _ in range(4):
            taken.append(board.mrs(Icc.IAR1))
            board.msr(Icc.EOIR1, 0)
        assert taken == [45, 44, 43, 42]
        assert board.mrs(Icc.IAR1) == SPURIOUS
        board.msr(Icc.DIR, 44)
        assert board.mrs(Icc.IAR1) == 41

    def test_more_list_registers_hold_more(self) -> None:
        board = Board(list_registers=16)
        for intid in range(40, 46):
            board.configure(intid)
            board.pulse(intid)
        board.msr(Icc.CTLR, EOI_MODE)
        for intid in range(40, 46):
            assert board.mrs(Icc.IAR1) == intid
            board.msr(Icc.EOIR1, intid)


class TestPriorities:
    def test_running_priority(self) -> None:
        board = Board()
        board.configure(40, 0x80)
        board.configure(41, 0x40)
        assert board.mrs(Icc.RPR) == IDLE
        board.pulse(40)
        board.mrs(Icc.IAR1)
        assert board.mrs(Icc.RPR) == 0x80
        board.pulse(41)
        assert board.mrs(Icc.IAR1) == 41
        assert board.mrs(Icc.RPR) == 0x40
        board.msr(Icc.EOIR1, 41)
        assert board.mrs(Icc.RPR) == 0x80
        board.msr(Icc.EOIR1, 40)
        assert board.mrs(Icc.RPR) == IDLE

    def test_an_equal_priority_does_not_preempt(self) -> None:
        board = Board()
        board.configure(40)
        board.configure(41)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.pulse(41)
        assert board.outputs() == NEITHER
        assert board.mrs(Icc.IAR1) == SPURIOUS
        assert board.mrs(Icc.HPPIR1) == 41

    def test_the_binary_point_says_which_bits_preempt(self) -> None:
        board = Board()
        board.msr(Icc.BPR1, 5)  # bits 7:5 of group 1
        board.configure(40, 0x98)
        board.configure(41, 0x80)
        board.configure(42, 0x78)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        assert board.mrs(Icc.RPR) == 0x80
        board.pulse(41)
        assert board.outputs() == NEITHER
        board.pulse(42)
        assert board.mrs(Icc.IAR1) == 42

    def test_a_common_binary_point_is_group_0s(self) -> None:
        board = Board()
        board.msr(Icc.BPR0, 4)
        board.msr(Icc.BPR1, 7)
        board.msr(Icc.CTLR, CBPR)
        assert board.mrs(Icc.BPR1) == 5
        board.msr(Icc.BPR1, 3)
        board.msr(Icc.CTLR, 0)
        assert board.mrs(Icc.BPR1) == 7
        board.msr(Icc.BPR0, 7)
        board.msr(Icc.CTLR, CBPR)
        assert board.mrs(Icc.BPR1) == 7

    @pytest.mark.parametrize(("bits", "least"), [(5, 2), (6, 1), (7, 0)])
    def test_binary_points_have_a_minimum(self, bits: int, least: int) -> None:
        board = Board(bits=bits)
        assert (board.mrs(Icc.BPR0), board.mrs(Icc.BPR1)) == (least, least + 1)
        board.msr(Icc.BPR0, 0)
        board.msr(Icc.BPR1, 0)
        assert (board.mrs(Icc.BPR0), board.mrs(Icc.BPR1)) == (least, least + 1)

    def test_a_written_binary_point_has_its_minimum_at_once(self) -> None:
        interface = Board().gic.interfaces[0]
        for register, least in ((Icc.BPR0, 2), (Icc.BPR1, 3)):
            interface.write(register, 0)
            assert interface.read(register) == least

    @pytest.mark.parametrize(("control", "running"), [(0, 0x80), (CBPR, 0x90)])
    def test_group_1_preempts_by_its_own_binary_point_or_by_the_common_one(self, control: int, running: int) -> None:
        board = Board()
        board.msr(Icc.BPR0, 3)
        board.msr(Icc.BPR1, 6)
        board.msr(Icc.CTLR, control)
        board.configure(40, 0x98, group=1)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        assert board.mrs(Icc.RPR) == running

    def test_group_0_preempts_by_its_own(self) -> None:
        board = Board()
        board.msr(Icc.BPR0, 3)
        board.msr(Icc.BPR1, 6)
        board.configure(40, 0x98, group=0)
        board.pulse(40)
        board.mrs(Icc.IAR0)
        assert board.mrs(Icc.RPR) == 0x90

    @pytest.mark.parametrize(("bits", "mask"), [(5, 0xF8), (6, 0xFC), (7, 0xFE)])
    def test_the_mask_has_as_many_bits_as_priorities(self, bits: int, mask: int) -> None:
        assert Board(bits=bits).mrs(Icc.PMR) == mask

    @pytest.mark.parametrize(("bits", "registers"), [(5, 1), (6, 2), (7, 4)])
    def test_active_priorities_have_a_bit_for_each_preempting_priority(self, bits: int, registers: int) -> None:
        board = Board(bits=bits)
        board.msr(Icc.BPR1, 0)
        board.configure(40, 0xF0)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        values = [board.mrs(Icc.AP1R0 + n) for n in range(4)]
        bit = 0xF0 >> 8 - bits
        assert values[bit >> 5] == 1 << (bit & 31)
        assert [value is None for value in values] == [n >= registers for n in range(4)]
        assert board.mrs(Icc.RPR) == 0xF0

    def test_the_distributors_active_registers_leave_the_running_priority(self) -> None:
        board = Board()
        board.configure(40)
        board.gicd(ISACTIVER + 4, 1 << 8)
        assert board.mrs(Icc.RPR) == IDLE
        board.gicd(ICACTIVER + 4, 1 << 8)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.gicd(ICACTIVER + 4, 1 << 8)
        assert board.mrs(Icc.RPR) == 0x80


class TestEnd:
    def test_split_mode_drops_the_priority_first_and_deactivates_later(self) -> None:
        board = Board()
        board.msr(Icc.CTLR, EOI_MODE)
        board.configure(40)
        board.configure(41)
        board.pulse(40, 41)
        board.mrs(Icc.IAR1)
        board.msr(Icc.EOIR1, 40)
        assert board.mrs(Icc.RPR) == IDLE
        assert active(board, 40)
        assert board.mrs(Icc.IAR1) == 41
        board.msr(Icc.DIR, 40)
        assert not active(board, 40)
        assert active(board, 41)

    def test_the_mode_can_be_left_again(self) -> None:
        board = Board()
        board.msr(Icc.CTLR, EOI_MODE)
        board.msr(Icc.CTLR, 0)
        board.configure(40)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.msr(Icc.EOIR1, 40)
        assert not active(board, 40)

    def test_dir_does_nothing_in_the_other_mode(self) -> None:
        board = Board()
        board.configure(40)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.msr(Icc.DIR, 40)
        assert active(board, 40)

    def test_the_other_groups_register_only_drops_the_priority(self) -> None:
        board = Board()
        board.configure(40, group=1)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.msr(Icc.EOIR0, 40)
        assert board.mrs(Icc.RPR) == IDLE
        board.msr(Icc.EOIR1, 40)
        assert active(board, 40)

    def test_with_equal_active_priorities_group_0_drops_first(self) -> None:
        board = Board()
        board.msr(Icc.AP0R0, 1 << 8)
        board.msr(Icc.AP1R0, 1 << 8)
        board.msr(Icc.EOIR1, 40)
        assert (board.mrs(Icc.AP0R0), board.mrs(Icc.AP1R0)) == (0, 1 << 8)

    @pytest.mark.parametrize("intid", [1020, 1021, 1022, 1023])
    def test_special_intids_are_ignored(self, intid: int) -> None:
        board = Board()
        board.configure(40)
        board.pulse(40)
        board.mrs(Icc.IAR1)
        board.msr(Icc.EOIR1, intid)
        assert board.mrs(Icc.RPR) == 0x80

    def test_an_end_without_an_acknowledgement_does_nothing(self) -> None:
        board = Board()
        board.configure(40)
        board.gicd(ISACTIVER + 4, 1 << 8)
        board.msr(Icc.EOIR1, 40)
        assert active(board, 40)

    def test_the_end_of_a_mapped_interrupt_ends_the_hosts(self) -> None:
        board = Board()
        ended: list[tuple[int, int, bool]] = []
        board.wires.set_physical_active = lambda *state: ended.append(state)  # type: ignore[method-assign]
        board.configure(27)
        timer = board.gic.cpus[0].private[27]
        board.gic.map_physical(timer, 27)
        timer.owner = 1
        board.gic.set_line(timer, True, owner=1)
        assert board.mrs(Icc.IAR1) == 27
        board.msr(Icc.EOIR1, 27)
        assert (0, 27, False) in ended


class TestRegisters:
    def test_ctlr(self) -> None:
        board = Board()
        assert board.mrs(Icc.CTLR) == 0x8C00
        board.msr(Icc.CTLR, 0xFFFFFFFF)
        assert board.mrs(Icc.CTLR) == 0x8C03

    def test_system_registers_cannot_be_disabled(self) -> None:
        board = Board()
        assert board.msr(Icc.SRE, 0)
        assert board.mrs(Icc.SRE) == 7

    @pytest.mark.parametrize("register", [Icc.EOIR0, Icc.EOIR1, Icc.DIR, Icc.SGI0R, Icc.SGI1R, Icc.ASGI1R])
    def test_reading_what_is_write_only_is_undefined(self, register: int) -> None:
        assert Board().mrs(register) is None

    @pytest.mark.parametrize("register", [Icc.IAR0, Icc.IAR1, Icc.HPPIR0, Icc.HPPIR1, Icc.RPR, Icc.AP0R1])
    def test_writing_what_is_read_only_or_not_there_is_undefined(self, register: int) -> None:
        assert not Board().msr(register, 1)

    def test_a_disabled_group_is_neither_seen_nor_taken(self) -> None:
        board = Board()
        board.configure(40)
        board.pulse(40)
        board.msr(Icc.IGRPEN1, 0)
        assert board.mrs(Icc.IGRPEN1) == 0
        assert board.mrs(Icc.HPPIR1) == board.mrs(Icc.IAR1) == SPURIOUS
        assert board.outputs() == NEITHER


class TestSgis:
    @staticmethod
    def seen(board: Board, sgi: int) -> list[int]:
        """The CPUs at which an SGI is pending."""
        return [cpu.index for cpu in board.gic.cpus if cpu.private[sgi].pending_latch]

    @pytest.mark.parametrize(
        ("value", "cpus"),
        [
            (0b0101, [0, 2]),
            (1 << 40, [0, 2, 3]),
            (1 << 40 | 0b0010, [0, 2, 3]),
            (1 << 16 | 1, [16]),
            (1 << 32 | 1, []),
            (1 << 48 | 1, []),
        ],
        ids=["list", "all but self", "all but self ignores the list", "aff1", "aff2 of nobody", "aff3 of nobody"],
    )
    def test_whom_an_sgi_is_for(self, value: int, cpus: list[int]) -> None:
        board = Board(cpus=17 if cpus == [16] else 4)
        board.msr(Icc.SGI1R, 5 << 24 | value, cpu=1)
        assert self.seen(board, 5) == cpus

    def test_the_range_selector_is_ignored(self) -> None:
        board = Board(cpus=2)
        board.msr(Icc.SGI1R, 1 << 44 | 0b11)
        assert self.seen(board, 0) == [0, 1]

    @pytest.mark.parametrize(("register", "groups"), [(Icc.SGI1R, {0, 1}), (Icc.SGI0R, {0}), (Icc.ASGI1R, {0})])
    def test_which_groups_a_register_generates(self, register: int, groups: set[int]) -> None:
        board = Board()
        for group in (0, 1):
            board.configure(3 + group, group=group)
            board.msr(register, 3 + group << 24 | 1)
        assert {group for group in (0, 1) if self.seen(board, 3 + group)} == groups

    def test_an_sgi_pends_once_whoever_sends_it(self) -> None:
        board = Board(cpus=2)
        board.msr(Icc.SGI1R, 1, cpu=0)
        board.msr(Icc.SGI1R, 1, cpu=1)
        assert board.mrs(Icc.IAR1) == 0
        board.msr(Icc.EOIR1, 0)
        assert board.mrs(Icc.IAR1) == SPURIOUS

    def test_all_sixteen(self) -> None:
        board = Board()
        for sgi in range(SGIS):
            board.msr(Icc.SGI1R, sgi << 24 | 1)
        taken = []
        for _ in range(SGIS):
            taken.append(board.mrs(Icc.IAR1))
            board.msr(Icc.EOIR1, taken[-1] or 0)
        assert taken == list(range(SGIS))
