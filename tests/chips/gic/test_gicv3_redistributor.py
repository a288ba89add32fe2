"""The GICv3's redistributors. Arm IHI 0069, 12.11."""

import pytest

from irqchipd.chips.gic.icc import Icc
from irqchipd.chips.gic.redistributor import SGI_BASE
from tests.chips.gic.gicv3board import (
    ICACTIVER,
    ICENABLER,
    ICFGR,
    ICPENDR,
    IGROUPR,
    IIDR,
    IPRIORITYR,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    PIDR2,
    Board,
)

GICR_CTLR, GICR_IIDR, GICR_TYPER, STATUSR, WAKER, PROPBASER, PENDBASER = 0x0, 0x4, 0x8, 0x10, 0x14, 0x70, 0x78
ENABLE_LPIS = 1


class TestRdBase:
    def test_typer_names_the_cpu_and_the_last_redistributor(self) -> None:
        board = Board(cpus=18)
        assert board.gicr(GICR_TYPER, size=8, cpu=0) == 0
        assert board.gicr(GICR_TYPER, size=8, cpu=17) == 0x101 << 32 | 17 << 8 | 1 << 4
        assert board.gicr(GICR_TYPER, cpu=17) == 17 << 8 | 1 << 4
        assert board.gicr(GICR_TYPER + 4, cpu=17) == 0x101

    def test_identity(self) -> None:
        board = Board()
        assert board.gicr(GICR_IIDR) == 0x4B00043B
        assert board.gicr(PIDR2) == 0x3B

    def test_a_redistributor_never_sleeps(self) -> None:
        board = Board()
        board.gicr(WAKER, 0xFFFFFFFF)
        assert board.gicr(WAKER) == 0

    def test_there_is_no_statusr(self) -> None:
        assert Board().gicr(STATUSR) == 0

    def test_without_a_translation_service_lpis_stay_off(self) -> None:
        board = Board()
        board.gicr(GICR_CTLR, ENABLE_LPIS)
        assert board.gicr(GICR_CTLR) == 6

    def test_with_one_they_can_be_enabled_and_disabled(self) -> None:
        board = Board()
        board.gic.redistributors.add_its()
        board.gicr(GICR_CTLR, ENABLE_LPIS)
        assert board.gicr(GICR_CTLR) == 7
        assert board.gicr(GICR_TYPER) & 1
        board.gicr(GICR_CTLR, 0)
        assert board.gicr(GICR_CTLR) == 6

    def test_revision_2_does_not_say_that_they_can(self) -> None:
        board = Board()
        board.gic.distributor.user_write(board.gic.cpus[0], IIDR, 0x4B00243B)
        assert board.gicr(GICR_CTLR) == 0


class TestTables:
    def test_reset(self) -> None:
        board = Board()
        assert board.gicr(PROPBASER, size=8) == 0
        assert board.gicr(PENDBASER, size=8) == 0x580

    def test_reserved_bits_and_attributes_that_are_not_allowed(self) -> None:
        board = Board()
        board.gicr(PROPBASER, (1 << 64) - 1, 8)
        board.gicr(PENDBASER, (1 << 64) - 1, 8)
        assert board.gicr(PROPBASER, size=8) == 0xF_FFFF_FFFF_FF9F
        assert board.gicr(PENDBASER, size=8) == 0xF_FFFF_FFFF_0F80

    @pytest.mark.parametrize(("written", "kept"), [(0, 0x180), (0x800, 0x580), (0x80, 0x180), (0x200, 0x200)])
    def test_memory_attributes(self, written: int, kept: int) -> None:
        board = Board()
        board.gicr(PROPBASER, written)
        assert board.gicr(PROPBASER) == kept

    def test_outer_cacheability_is_none_or_that_of_the_inner(self) -> None:
        board = Board()
        board.gicr(PROPBASER, 0x07 << 56, 8)
        assert board.gicr(PROPBASER + 4) == 0
        board.gicr(PROPBASER, 0x01 << 56, 8)
        assert board.gicr(PROPBASER + 4) == 1 << 24

    def test_halves_are_written_on_their_own(self) -> None:
        board = Board()
        board.gicr(PENDBASER + 4, 0x12)
        board.gicr(PENDBASER, 0x30000)
        assert board.gicr(PENDBASER, size=8) == 0x12_0003_0180

    def test_propbaser_is_shared_and_pendbaser_is_not(self) -> None:
        board = Board(cpus=2)
        board.gicr(PROPBASER, 0x10000, cpu=0)
        board.gicr(PENDBASER, 0x10000, cpu=0)
        assert board.gicr(PROPBASER, cpu=1) == 0x10180
        assert board.gicr(PENDBASER, cpu=1) == 0x580

    def test_enabled_lpis_lock_both(self) -> None:
        board = Board()
        board.gic.redistributors.add_its()
        board.gicr(GICR_CTLR, ENABLE_LPIS)
        board.gicr(PROPBASER, 0x10000)
        board.gicr(PENDBASER, 0x10000)
        assert board.gicr(PROPBASER) == 0x580
        assert board.gicr(PENDBASER) == 0x580


class TestSgiBase:
    def test_reset(self) -> None:
        board = Board()
        assert board.gicr(SGI_BASE + IGROUPR) == 0xFFFFFFFF
        assert board.gicr(SGI_BASE + ISENABLER) == 0xFFFF
        assert board.gicr(SGI_BASE + ICFGR) == 0xAAAAAAAA
        assert board.gicr(SGI_BASE + ICFGR + 4) == 0

    def test_triggers_of_private_interrupts_are_fixed(self) -> None:
        board = Board()
        board.gicr(SGI_BASE + ICFGR, 0)
        board.gicr(SGI_BASE + ICFGR + 4, 0xFFFFFFFF)
        assert board.gicr(SGI_BASE + ICFGR) == 0xAAAAAAAA
        assert board.gicr(SGI_BASE + ICFGR + 4) == 0

    def test_any_cpu_reaches_the_frame_of_another(self) -> None:
        board = Board(cpus=2)
        board.gicr(SGI_BASE + ISENABLER, 1 << 20, cpu=1)
        board.gicr(SGI_BASE + ISPENDR, 1 << 20, cpu=1)
        assert board.gicr(SGI_BASE + ISPENDR, cpu=0) == 0
        assert board.mrs(Icc.IAR1, 1) == 20

    @pytest.mark.parametrize(("sets", "clears"), [(ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)])
    def test_set_and_clear_registers_read_the_state(self, sets: int, clears: int) -> None:
        board = Board(cpus=2)
        before = board.gicr(SGI_BASE + sets, cpu=1)
        board.gicr(SGI_BASE + sets, 0xF0_0008, cpu=1)
        board.gicr(SGI_BASE + clears, 0x30_0008, cpu=1)
        expected = (before | 0xC0_0000) & ~8
        assert board.gicr(SGI_BASE + sets, cpu=1) == board.gicr(SGI_BASE + clears, cpu=1) == expected
        assert board.gicr(SGI_BASE + sets, cpu=0) == before

    def test_priorities_take_bytes(self) -> None:
        board = Board()
        board.gicr(SGI_BASE + IPRIORITYR + 21, 0x9C, 1)
        assert board.gicr(SGI_BASE + IPRIORITYR + 20) == 0x9800

    def test_there_is_nothing_behind_the_private_interrupts(self) -> None:
        board = Board()
        for offset in (ISENABLER + 4, ICENABLER + 4, IPRIORITYR + 32, ICFGR + 8):
            board.gicr(SGI_BASE + offset, 0xFFFFFFFF)
            assert board.gicr(SGI_BASE + offset) == 0
        assert board.gicd(ISENABLER + 4) == 0
