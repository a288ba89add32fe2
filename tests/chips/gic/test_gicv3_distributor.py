"""The GICv3's distributor. Arm IHI 0069, 12.9; where KVM implements less or more, its docstrings say so."""

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.interrupt import NOBODY
from tests.chips.gic.gicv3board import (
    CTLR,
    ICACTIVER,
    ICENABLER,
    ICFGR,
    ICPENDR,
    IGROUPR,
    IIDR,
    IPRIORITYR,
    IROUTER,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    LEVEL,
    PIDR2,
    SPURIOUS,
    TYPER,
    Board,
)


class TestIdentity:
    @pytest.mark.parametrize(("interrupts", "lines"), [(64, 1), (96, 2), (992, 30)])
    def test_typer_has_the_number_of_interrupts_and_ten_bits_of_intids(self, interrupts: int, lines: int) -> None:
        assert Board(interrupts=interrupts).gicd(TYPER) == 9 << 19 | lines

    def test_an_interrupt_translation_service_brings_lpis_with_sixteen_bits_of_intids(self) -> None:
        board = Board(interrupts=64)
        board.gic.redistributors.add_its()
        assert board.gicd(TYPER) == 15 << 19 | 1 << 17 | 1

    def test_iidr_is_kvms_and_pidr2_says_version_3(self) -> None:
        board = Board()
        assert board.gicd(IIDR) == 0x4B00343B
        assert board.gicd(PIDR2) == 0x3B
        assert [board.gicd(0xFFD0 + 4 * n) for n in range(12) if n != 6] == [0] * 11

    def test_statusr_reads_as_one(self) -> None:
        assert Board().gicd(0x10) == 0xFFFFFFFF


class TestControl:
    def test_affinity_routing_is_on_and_there_is_one_security_state(self) -> None:
        board = Board()
        board.gicd(CTLR, 0)
        assert board.gicd(CTLR) == 0x50

    def test_bit_1_enables_both_groups(self) -> None:
        board = Board()
        board.configure(40, group=0)
        board.configure(41, group=1)
        board.pulse(40, 41)
        assert board.gicd(CTLR) == 0x52
        assert board.mrs(Icc.IAR0) == 40
        assert board.msr(Icc.EOIR0, 40)
        assert board.mrs(Icc.IAR1) == 41

    def test_bit_0_enables_nothing(self) -> None:
        board = Board()
        board.gicd(CTLR, 1)
        board.configure(40)
        board.pulse(40)
        assert board.gicd(CTLR) == 0x50
        assert board.mrs(Icc.IAR1) == SPURIOUS

    def test_enabling_kicks_who_has_something_pending_and_enabling_again_nobody(self) -> None:
        board = Board(cpus=2)
        board.configure(40, cpu=1)
        board.pulse(40)
        for value, kicked in ((0, []), (2, [1]), (2, [])):
            board.wires.kicked.clear()
            board.gicd(CTLR, value)
            assert board.wires.kicked == kicked

    def test_what_became_pending_while_off_waits_for_its_next_event(self) -> None:
        board = Board()
        board.configure(40)
        board.gicd(CTLR, 0)
        board.pulse(40)
        board.gicd(CTLR, 2)
        assert board.mrs(Icc.IAR1) == SPURIOUS
        board.gicd(ISPENDR + 4, 1 << 8)
        assert board.mrs(Icc.IAR1) == 40


class TestInterruptRegisters:
    def test_reset(self) -> None:
        board = Board()
        assert board.gicd(IGROUPR + 4) == 0xFFFFFFFF
        assert board.gicd(ISENABLER + 4) == board.gicd(IPRIORITYR + 32) == 0
        assert board.gicd(ICFGR + 8) == 0xAAAAAAAA

    @pytest.mark.parametrize("offset", [IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER])
    def test_those_of_private_interrupts_are_in_the_redistributors(self, offset: int) -> None:
        board = Board()
        board.gicd(offset, 0xFFFFFFFF)
        assert board.gicd(offset) == 0
        assert not any(i.pending or i.active for i in board.gic.cpus[0].private)

    def test_set_and_clear_registers_read_the_state(self) -> None:
        board = Board()
        for sets, clears in ((ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)):
            board.gicd(sets + 4, 0xF0)
            board.gicd(clears + 4, 0x30)
            assert board.gicd(sets + 4) == board.gicd(clears + 4) == 0xC0

    def test_priorities_have_five_bits_and_take_bytes(self) -> None:
        board = Board()
        board.gicd(IPRIORITYR + 40, 0xFF, 1)
        board.gicd(IPRIORITYR + 41, 0x47, 1)
        assert board.gicd(IPRIORITYR + 40) == 0x40F8

    @pytest.mark.parametrize(("offset", "size"), [(ISENABLER + 4, 1), (ISENABLER + 4, 2), (ISENABLER, 8), (0x402, 4)])
    def test_other_sizes_read_as_zero_and_write_nothing(self, offset: int, size: int) -> None:
        board = Board()
        board.gicd(ISENABLER + 4, 0xFFFFFFFF)
        assert board.gicd(offset, size=size) == 0
        board.gicd(ICENABLER - ISENABLER + offset, (1 << 8 * size) - 1, size)
        assert board.gicd(ISENABLER + 4) == 0xFFFFFFFF

    def test_interrupts_beyond_the_last_do_not_exist(self) -> None:
        board = Board(interrupts=64)
        board.gicd(ISENABLER + 8, 0xFFFFFFFF)
        assert board.gicd(ISENABLER + 8) == 0
        assert board.gicd(IROUTER + 8 * 64, size=8) == 0

    @pytest.mark.parametrize("offset", [0x820, 0xD04, 0xE00, 0xF00, 0xF10])
    def test_what_affinity_routing_replaces_is_not_there(self, offset: int) -> None:
        board = Board()
        board.gicd(offset, 0xFFFFFFFF)
        assert board.gicd(offset) == 0

    def test_a_high_line_makes_a_level_interrupt_pending_whatever_icpendr_clears(self) -> None:
        board = Board()
        board.configure(40, trigger=LEVEL)
        board.line(40, 1)
        board.gicd(ICPENDR + 4, 1 << 8)
        assert board.gicd(ISPENDR + 4) == 1 << 8
        board.line(40, 0)
        assert board.gicd(ISPENDR + 4) == 0


class TestRouting:
    def test_an_interrupt_goes_to_the_cpu_with_its_affinity(self) -> None:
        board = Board(cpus=3)
        board.configure(40, cpu=2)
        board.pulse(40)
        assert [board.outputs(cpu)[0] for cpu in range(3)] == [False, False, True]

    @pytest.mark.parametrize("intid", [32, 95])
    def test_irouter_keeps_three_affinities(self, intid: int) -> None:
        board = Board()
        router = IROUTER + 8 * intid
        board.gicd(router, 0xFF_80FF_FFFF, 8)
        assert board.gicd(router, size=8) == 0xFFFFFF
        board.gicd(router + 4, 0xFFFFFFFF)
        assert board.gicd(router + 4) == 0
        board.gicd(router, 0x12)
        assert board.gicd(router) == 0x12

    def test_private_interrupts_have_no_route(self) -> None:
        board = Board()
        board.gicd(IROUTER + 8 * 31, 0x12, 8)
        assert board.gicd(IROUTER + 8 * 31, size=8) == 0

    def test_an_affinity_that_no_cpu_has_takes_an_interrupt_nowhere(self) -> None:
        board = Board(cpus=2)
        board.configure(40)
        board.gicd(IROUTER + 8 * 40, 7, 8)
        board.pulse(40)
        assert board.gic.interrupt(board.gic.cpus[0], 40).target == NOBODY
        assert board.gicd(ISPENDR + 4) == 1 << 8
        assert not any(board.outputs(cpu)[0] for cpu in range(2))

    def test_a_pending_interrupt_moves_when_its_old_cpu_next_runs(self) -> None:
        board = Board(cpus=2)
        board.configure(40, cpu=0)
        board.pulse(40)
        board.gicd(IROUTER + 8 * 40, 1, 8)
        assert not board.outputs(1)[0]
        assert not board.outputs(0)[0]
        assert board.outputs(1)[0]
        assert board.wires.kicked[-1] == 1

    def test_an_active_interrupt_stays_with_its_cpu(self) -> None:
        board = Board(cpus=2)
        board.configure(40, cpu=0)
        board.pulse(40)
        assert board.mrs(Icc.IAR1, 0) == 40
        board.gicd(IROUTER + 8 * 40, 1, 8)
        board.pulse(40)
        assert not board.outputs(1)[0]
        board.msr(Icc.EOIR1, 40, 0)
        assert board.outputs(1)[0]
