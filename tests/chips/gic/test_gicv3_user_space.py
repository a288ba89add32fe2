"""What user space reads and writes of a GICv3. Linux: Documentation/virt/kvm/devices/arm-vgic-v3.rst."""

from errno import EINVAL, ENOENT

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.refused import AccessRefused
from tests.chips.gic.gicv3board import (
    CTLR,
    ICENABLER,
    ICPENDR,
    IIDR,
    IPRIORITYR,
    IROUTER,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    LEVEL,
    SPURIOUS,
    Board,
)


def get(board: Board, offset: int) -> int:
    """KVM_DEV_ARM_VGIC_GRP_DIST_REGS."""
    return board.gic.distributor.user_read(board.gic.cpus[0], offset)


def put(board: Board, offset: int, value: int) -> None:
    """KVM_DEV_ARM_VGIC_GRP_DIST_REGS."""
    board.gic.distributor.user_write(board.gic.cpus[0], offset, value)


class TestDistributor:
    def test_ispendr_is_the_latch_alone_and_zeros_clear(self) -> None:
        board = Board()
        board.configure(40, trigger=LEVEL)
        board.line(40, 1)
        assert get(board, ISPENDR + 4) == 0
        put(board, ISPENDR + 4, 1 << 8)
        assert get(board, ISPENDR + 4) == 1 << 8
        put(board, ISPENDR + 4, 1 << 9)
        assert get(board, ISPENDR + 4) == 1 << 9

    def test_icpendr_reads_as_zero_and_clears_nothing(self) -> None:
        board = Board()
        put(board, ISPENDR + 4, 1)
        put(board, ICPENDR + 4, 1)
        assert get(board, ICPENDR + 4) == 0
        assert get(board, ISPENDR + 4) == 1

    def test_zeros_in_isenabler_and_isactiver_clear_nothing(self) -> None:
        board = Board()
        for offset in (ISENABLER + 4, ISACTIVER + 4):
            put(board, offset, 3)
            put(board, offset, 0)
            assert get(board, offset) == 3

    def test_what_is_restored_is_delivered(self) -> None:
        board = Board()
        put(board, ISENABLER + 4, 1 << 8)
        put(board, ISPENDR + 4, 1 << 8)
        assert board.mrs(Icc.IAR1) == 40

    def test_enabling_kicks_nobody(self) -> None:
        board = Board()
        board.configure(40)
        board.pulse(40)
        put(board, CTLR, 0)
        board.wires.kicked.clear()
        put(board, CTLR, 2)
        assert board.wires.kicked == []
        assert get(board, CTLR) == 0x52

    @pytest.mark.parametrize("value", [0x4B00143B, 0x4B00043B, 0x4C00343B, 0])
    def test_other_identities_are_refused(self, value: int) -> None:
        board = Board()
        with pytest.raises(
            AccessRefused, match=r"GICD_IIDR cannot be .*; 0x4b00243b or 0x4b00343b is allowed"
        ) as refused:
            put(board, IIDR, value)
        assert refused.value.number == EINVAL
        assert get(board, IIDR) == 0x4B00343B

    def test_an_older_revision_is_taken(self) -> None:
        board = Board()
        put(board, IIDR, 0x4B00243B)
        assert get(board, IIDR) == 0x4B00243B

    def test_typer2_can_only_be_zero(self) -> None:
        board = Board()
        put(board, 0xC, 0)
        with pytest.raises(AccessRefused):
            put(board, 0xC, 1)

    def test_no_offset_faults(self) -> None:
        board = Board()
        for offset in (0x1000, 0x101, 0x8000_0000):
            put(board, offset, 1)
            assert get(board, offset) == 0

    @pytest.mark.parametrize(
        ("offset", "there"),
        [
            (ISENABLER, True),
            (ICENABLER + 8, False),
            (0x820, True),
            (0xD04, True),
            (IROUTER + 8 * 40, True),
            (IROUTER + 8 * 96, False),
        ],
    )
    def test_which_registers_there_are(self, offset: int, there: bool) -> None:
        board = Board(interrupts=64 if offset == ICENABLER + 8 else 96)
        assert board.gic.distributor.has(offset) == there

    def test_byte_registers_have_only_aligned_words(self) -> None:
        assert not Board().gic.distributor.has(IPRIORITYR + 33)

    def test_the_hosts_state_of_a_mapped_interrupt_is_not_user_spaces(self) -> None:
        board = Board()
        cpu = board.gic.cpus[0]
        board.gic.map_physical(cpu.private[27], 27)
        registers = board.gic.redistributors.registers
        registers.user_write(cpu, 0x10000 + ISACTIVER, 1 << 27)
        assert registers.user_read(cpu, 0x10000 + ISACTIVER) == 0


class TestLines:
    def test_lines_of_level_interrupts(self) -> None:
        board = Board()
        board.configure(40, trigger=LEVEL)
        board.configure(20)
        board.line(40, 1)
        board.line(20, 1)
        cpu = board.gic.cpus[0]
        assert board.gic.read_lines(cpu, 32) == 1 << 8
        assert board.gic.read_lines(cpu, 0) == 1 << 20

    def test_a_written_line_is_delivered_and_shows_when_the_trigger_is_level(self) -> None:
        board = Board()
        board.configure(40)
        cpu = board.gic.cpus[0]
        board.gic.write_lines(cpu, 32, 1 << 8)
        assert board.gic.read_lines(cpu, 32) == 0
        assert board.mrs(Icc.IAR1) == SPURIOUS
        board.gicd(0xC08, 0)
        assert board.gic.read_lines(cpu, 32) == 1 << 8
        board.gic.write_lines(cpu, 32, 1 << 8)
        assert board.mrs(Icc.IAR1) == 40

    def test_sgis_and_interrupts_beyond_the_last_have_no_lines(self) -> None:
        board = Board(interrupts=64)
        cpu = board.gic.cpus[0]
        for first in (0, 64, 992):
            board.gic.write_lines(cpu, first, 0xFFFFFFFF)
        assert board.gic.read_lines(cpu, 0) == 0xFFFF0000
        assert board.gic.read_lines(cpu, 64) == 0

    def test_a_word_begins_at_a_multiple_of_32(self) -> None:
        board = Board()
        with pytest.raises(AccessRefused, match="multiple of 32"):
            board.gic.read_lines(board.gic.cpus[0], 33)
        with pytest.raises(AccessRefused, match="multiple of 32"):
            board.gic.write_lines(board.gic.cpus[0], 1, 1)


class TestSystemRegisters:
    @pytest.mark.parametrize(
        ("register", "written", "kept"),
        [
            (Icc.PMR, 0x1FF, 0xFF),
            (Icc.BPR0, 8, 0),
            (Icc.BPR1, 0xF, 7),
            (Icc.AP0R0, 0x1_0000_0003, 3),
            (Icc.AP1R0, 0xFFFFFFFF, 0xFFFFFFFF),
            (Icc.CTLR, 0x8C03, 0x8C03),
            (Icc.SRE, 1, 7),
            (Icc.IGRPEN0, 2, 0),
            (Icc.IGRPEN1, 3, 1),
        ],
    )
    def test_what_a_register_keeps(self, register: int, written: int, kept: int) -> None:
        registers = Board().gic.system_registers[0]
        registers.set(register, written)
        assert registers.get(register) == kept

    def test_a_small_binary_point_stays_until_the_cpu_runs(self) -> None:
        board = Board()
        registers = board.gic.system_registers[0]
        registers.set(Icc.BPR0, 0)
        registers.set(Icc.BPR1, 1)
        assert (registers.get(Icc.BPR0), registers.get(Icc.BPR1)) == (0, 1)
        board.outputs()
        assert (registers.get(Icc.BPR0), registers.get(Icc.BPR1)) == (2, 3)

    def test_a_common_binary_point_hides_group_1s(self) -> None:
        registers = Board().gic.system_registers[0]
        registers.set(Icc.BPR1, 6)
        registers.set(Icc.CTLR, 0x8C01)
        registers.set(Icc.BPR0, 4)
        registers.set(Icc.BPR1, 7)
        assert registers.get(Icc.BPR1) == 5
        registers.set(Icc.CTLR, 0x8C00)
        assert registers.get(Icc.BPR1) == 6

    @pytest.mark.parametrize("value", [0x8D00, 0x9400, 0xCC00, 0x0C00])
    def test_a_control_register_that_the_host_does_not_have_is_refused(self, value: int) -> None:
        registers = Board().gic.system_registers[0]
        with pytest.raises(AccessRefused, match="ICC_CTLR_EL1") as refused:
            registers.set(Icc.CTLR, value)
        assert refused.value.number == EINVAL

    def test_a_refused_one_has_lowered_what_it_passed(self) -> None:
        registers = Board().gic.system_registers[0]
        with pytest.raises(AccessRefused):
            registers.set(Icc.CTLR, 0)
        assert registers.get(Icc.CTLR) == 0x8000
        with pytest.raises(AccessRefused, match="priority bits"):
            registers.set(Icc.CTLR, 0x8C00)

    def test_bypass_cannot_replace_system_registers(self) -> None:
        registers = Board().gic.system_registers[0]
        with pytest.raises(AccessRefused, match="ICC_SRE_EL1"):
            registers.set(Icc.SRE, 6)

    @pytest.mark.parametrize(("bits", "most"), [(5, 0), (6, 1), (7, 3)])
    def test_active_priorities_that_need_more_bits_are_there_and_refused(self, bits: int, most: int) -> None:
        registers = Board(bits=bits).gic.system_registers[0]
        for n in range(4):
            assert registers.has(Icc.AP0R0 + n)
            assert registers.has(Icc.AP1R0 + n)
            if n <= most:
                registers.set(Icc.AP1R0 + n, 1 << n)
                assert registers.get(Icc.AP1R0 + n) == 1 << n
            else:
                with pytest.raises(AccessRefused) as refused:
                    registers.get(Icc.AP1R0 + n)
                assert refused.value.number == EINVAL

    @pytest.mark.parametrize("register", [0, Icc.IAR1, Icc.RPR, Icc.SGI1R, Icc.DIR])
    def test_registers_that_are_not_state_cannot_be_named(self, register: int) -> None:
        registers = Board().gic.system_registers[0]
        assert not registers.has(register)
        for access in (lambda: registers.get(register), lambda: registers.set(register, 0)):
            with pytest.raises(AccessRefused) as refused:
                access()
            assert refused.value.number == ENOENT
