"""The registers of a GICv2's distributor, as a guest and user space see them. Arm IHI 0048B, 4.3."""

from __future__ import annotations

import pytest

from irqchipd.chips.gic.gicc import Gicc
from irqchipd.chips.gic.gicv2 import Gicd
from irqchipd.chips.gic.refused import AccessRefused
from tests.chips.gic.boardv2 import NONE, Board

ONES = 0xFFFF_FFFF


@pytest.fixture
def board() -> Board:
    return Board()


# 4.3.1 to 4.3.3: control, type, implementer.


def test_at_reset_the_distributor_is_off(board: Board) -> None:
    assert board.read(Gicd.CTLR) == 0


@pytest.mark.parametrize(("written", "read"), [(1, 1), (3, 1), (2, 0), (0, 0), (ONES, 1)])
def test_control_has_one_bit(board: Board, written: int, read: int) -> None:
    board.write(Gicd.CTLR, written)
    assert board.read(Gicd.CTLR) == read


@pytest.mark.parametrize(("cpus", "interrupts", "typer"), [(1, 64, 0x01), (8, 96, 0xE2), (4, 992, 0x7E)])
def test_type_counts_lines_and_cpus(cpus: int, interrupts: int, typer: int) -> None:
    board = Board(cpus, interrupts)
    board.write(Gicd.TYPER, ONES)
    assert board.read(Gicd.TYPER) == typer


def test_the_implementer_is_kvm(board: Board) -> None:
    board.write(Gicd.IIDR, 0)
    assert board.read(Gicd.IIDR) == 0x4B00_343B


# 4.3.4 to 4.3.12: one bit an interrupt.


def test_at_reset_only_sgis_are_enabled(board: Board) -> None:
    assert [board.read(Gicd.ISENABLER), board.read(Gicd.ISENABLER + 4)] == [0xFFFF, 0]


def test_writing_ones_enables_and_disables(board: Board) -> None:
    board.write(Gicd.ISENABLER + 4, 0x0F)
    board.write(Gicd.ICENABLER + 4, 0x05)
    assert board.read(Gicd.ISENABLER + 4) == board.read(Gicd.ICENABLER + 4) == 0x0A


def test_registers_of_private_interrupts_are_banked(board: Board) -> None:
    board.write(Gicd.ISENABLER, 1 << 20, cpu=1)
    board.write(Gicd.ICENABLER, 1 << 3, cpu=1)
    assert board.read(Gicd.ISENABLER, cpu=0) == 0xFFFF
    assert board.read(Gicd.ISENABLER, cpu=1) == 0x10_FFF7


def test_registers_of_shared_interrupts_are_not_banked(board: Board) -> None:
    board.write(Gicd.ISENABLER + 4, 1, cpu=1)
    assert board.read(Gicd.ISENABLER + 4, cpu=0) == 1


def test_groups_keep_what_is_written(board: Board) -> None:
    board.write(Gicd.IGROUPR + 4, 0xA5A5_A5A5)
    assert board.read(Gicd.IGROUPR + 4) == 0xA5A5_A5A5


def test_writing_ones_sets_and_clears_pending(board: Board) -> None:
    board.write(Gicd.ISPENDR + 4, 0x0F)
    board.write(Gicd.ICPENDR + 4, 0x05)
    assert board.read(Gicd.ISPENDR + 4) == board.read(Gicd.ICPENDR + 4) == 0x0A


def test_a_guest_cannot_make_an_sgi_pending_without_a_source(board: Board) -> None:
    board.write(Gicd.ISPENDR, 0xFFFF)
    assert board.read(Gicd.ISPENDR) == 0
    board.write(Gicd.SGIR, 2 << 24 | 5)
    board.write(Gicd.ICPENDR, 0xFFFF)
    assert board.read(Gicd.ISPENDR) == 1 << 5


def test_writing_ones_sets_and_clears_active(board: Board) -> None:
    board.write(Gicd.ISACTIVER + 4, 0x0F)
    board.write(Gicd.ICACTIVER + 4, 0x05)
    assert board.read(Gicd.ISACTIVER + 4) == board.read(Gicd.ICACTIVER + 4) == 0x0A


def test_the_active_register_leaves_the_running_priority_alone(board: Board) -> None:
    board.enable_everything()
    board.write(Gicd.ISACTIVER + 4, 1)
    assert board.read_cpu(Gicc.RPR) == 0xFF
    board.write(Gicd.ICACTIVER + 4, 1)
    board.edge(33)
    assert board.acknowledge() == 33
    board.write(Gicd.ICACTIVER + 4, 2)
    assert board.read_cpu(Gicc.RPR) == 0x80


# 4.3.11 to 4.3.13: bytes and pairs.


def test_priorities_have_five_bits(board: Board) -> None:
    board.write(Gicd.IPRIORITYR + 32, 0xFF07_4A80)
    assert board.read(Gicd.IPRIORITYR + 32) == 0xF800_4880
    assert board.read(Gicd.IPRIORITYR + 33, size=1) == 0x48


def test_an_spi_goes_to_the_first_cpu_until_a_target_is_chosen(board: Board) -> None:
    board.enable_everything()
    assert board.read(Gicd.ITARGETSR + 40, size=1) == 0
    board.edge(40)
    assert board.acknowledge(cpu=0) == 40


@pytest.mark.parametrize(("targets", "kept", "cpu"), [(2, 2, 1), (3, 3, 0), (0xFE, 2, 1), (0xFC, 0, 0), (0, 0, 0)])
def test_the_lowest_target_gets_an_spi(board: Board, targets: int, kept: int, cpu: int) -> None:
    board.enable_everything()
    board.write(Gicd.ITARGETSR + 40, targets, size=1)
    assert board.read(Gicd.ITARGETSR + 40, size=1) == kept
    board.edge(40)
    assert board.acknowledge(cpu=1 - cpu) == NONE
    assert board.acknowledge(cpu=cpu) == 40


def test_the_targets_of_private_interrupts_say_who_reads(board: Board) -> None:
    board.write(Gicd.ITARGETSR, 0)
    assert board.read(Gicd.ITARGETSR, cpu=0) == 0x0101_0101
    assert board.read(Gicd.ITARGETSR + 28, cpu=1) == 0x0202_0202


def test_a_cpus_bit_is_its_place_in_the_order_of_creation() -> None:
    board = Board(cpus=0)
    for cpu_id in (5, 2):
        board.gic.add_cpu(cpu_id)
    assert board.read(Gicd.ITARGETSR, cpu=0) == 0x0101_0101
    assert board.read(Gicd.ITARGETSR, cpu=1) == 0x0202_0202


def test_at_reset_sgis_and_spis_are_edge_triggered_and_ppis_level_triggered(board: Board) -> None:
    assert [board.read(Gicd.ICFGR + 4 * n) for n in range(4)] == [0xAAAA_AAAA, 0, 0xAAAA_AAAA, 0xAAAA_AAAA]


def test_only_spis_can_be_configured(board: Board) -> None:
    for n in range(4):
        board.write(Gicd.ICFGR + 4 * n, 0x5555_7777)
    assert [board.read(Gicd.ICFGR + 4 * n) for n in range(4)] == [0xAAAA_AAAA, 0, 0x2222, 0x2222]


# Sizes, holes and limits.


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_register_with_bits_takes_words_only(board: Board, size: int) -> None:
    board.write(Gicd.ISENABLER, ONES, size=size)
    assert board.read(Gicd.ISENABLER, size=size) == 0
    assert board.read(Gicd.ISENABLER) == 0xFFFF


@pytest.mark.parametrize("size", [2, 8])
def test_a_register_with_bytes_takes_bytes_and_words_only(board: Board, size: int) -> None:
    board.write(Gicd.IPRIORITYR + 32, ONES, size=size)
    assert board.read(Gicd.IPRIORITYR + 32) == board.read(Gicd.IPRIORITYR + 32, size=size) == 0


@pytest.mark.parametrize(
    "offset", [Gicd.ISENABLER + 8, Gicd.IPRIORITYR + 64, Gicd.ICFGR + 16, 0x00C, 0x040, 0xD00, 0xFE8]
)
def test_what_does_not_exist_reads_zero_and_ignores_writes(board: Board, offset: int) -> None:
    board.write(offset, ONES)
    assert board.read(offset) == 0


# 4.3.15 to 4.3.17: SGIs.


@pytest.mark.parametrize(
    ("filter_", "listed", "reached"), [(0, 0b110, [1, 2]), (1, 0b001, [0, 2]), (2, 0b101, [1]), (3, 7, [])]
)
def test_the_filter_chooses_the_cpus_of_an_sgi(filter_: int, listed: int, reached: list[int]) -> None:
    board = Board(cpus=3)
    board.write(Gicd.SGIR, filter_ << 24 | listed << 16 | 1 << 15 | 7, cpu=1)
    assert [cpu for cpu in range(3) if board.read(Gicd.ISPENDR, cpu) == 1 << 7] == reached
    assert board.read(Gicd.SGIR) == 0


def test_an_sgi_is_pending_per_source_and_comes_lowest_source_first(board: Board) -> None:
    board = Board(cpus=4)
    board.enable_everything()
    for source in (3, 0, 2):
        board.write(Gicd.SGIR, 1 << 17 | 9, cpu=source)
    assert board.read(Gicd.SPENDSGIR + 8, cpu=1) == 0b1101 << 8
    assert board.acknowledge_all(cpu=1) == [9, 2 << 10 | 9, 3 << 10 | 9]


def test_another_source_waits_until_the_first_one_s_sgi_ends(board: Board) -> None:
    board.enable_everything()
    board.write(Gicd.SGIR, 1 << 16 | 9, cpu=0)
    assert board.acknowledge() == 9
    board.write(Gicd.SGIR, 1 << 16 | 9, cpu=1)
    assert board.acknowledge() == NONE
    board.end(9)
    assert board.acknowledge() == 1 << 10 | 9


def test_all_sources_of_an_sgi_come_before_what_is_less_urgent(board: Board) -> None:
    board.enable_everything()
    board.set_priority(9, 0x40)
    board.edge(40)
    for source in (1, 0):
        board.write(Gicd.SGIR, 1 << 16 | 9, cpu=source)
    assert board.acknowledge_all() == [9, 1 << 10 | 9, 40]


def test_sources_are_set_and_cleared(board: Board) -> None:
    board.write(Gicd.SPENDSGIR + 4, 0x83_0000)
    assert board.read(Gicd.ISPENDR) == 1 << 6
    board.write(Gicd.CPENDSGIR + 6, 0x02, size=1)
    assert board.read(Gicd.CPENDSGIR + 4) == 0x81_0000
    board.write(Gicd.CPENDSGIR + 4, ONES)
    assert board.read(Gicd.ISPENDR) == 0


# User space.


def test_user_space_merges_enabled_and_active(board: Board) -> None:
    for offset in (Gicd.ISENABLER + 4, Gicd.ISACTIVER + 4):
        board.user_write(offset, 0xF0)
        board.user_write(offset, 0x0F)
        board.user_write(offset, 0)
        assert board.user_read(offset) == 0xFF


def test_user_space_makes_a_cpu_its_own_source(board: Board) -> None:
    board.user_write(Gicd.ISPENDR, 1 << 4, cpu=1)
    assert board.user_read(Gicd.SPENDSGIR + 4, cpu=1) == 0x02
    board.write(Gicd.SPENDSGIR + 4, 0xFF, cpu=1)
    board.user_write(Gicd.ICPENDR, 1 << 4, cpu=1)
    assert board.user_read(Gicd.SPENDSGIR + 4, cpu=1) == 0


def test_user_space_writes_groups_after_the_implementer_only(board: Board) -> None:
    board.user_write(Gicd.IGROUPR, ONES)
    assert board.user_read(Gicd.IGROUPR) == 0
    board.user_write(Gicd.IIDR, 0x4B00_243B)
    board.user_write(Gicd.IGROUPR, ONES)
    assert board.user_read(Gicd.IGROUPR) == ONES
    assert board.read(Gicd.IIDR) == 0x4B00_243B


@pytest.mark.parametrize("value", [0, 0x4B00_043B, 0x4B00_143B, 0x4B00_443B, 0x4B00_343A])
def test_another_implementer_is_refused(board: Board, value: int) -> None:
    with pytest.raises(AccessRefused, match=r"GICD_IIDR cannot be .*; 0x4b00243b or 0x4b00343b is allowed"):
        board.user_write(Gicd.IIDR, value)
    assert board.user_read(Gicd.IIDR) == 0x4B00_343B
    board.user_write(Gicd.IGROUPR, ONES)
    assert board.user_read(Gicd.IGROUPR) == 0


@pytest.mark.parametrize("offset", [Gicd.ISENABLER + 1, Gicd.ISENABLER + 8, 0xE00, 0x1000])
def test_user_space_finds_no_register_and_nothing_fails(board: Board, offset: int) -> None:
    board.user_write(offset, ONES)
    assert board.user_read(offset) == 0
    assert not board.gic.distributor.has(offset)


def test_user_space_sees_five_bits_of_the_priority_mask(board: Board) -> None:
    board.user_write_cpu(Gicc.PMR, 0xF8)
    assert board.user_read_cpu(Gicc.PMR) == 0x18
    assert board.read_cpu(Gicc.PMR) == 0xC0


def test_user_space_s_view_of_the_cpu_interface(board: Board) -> None:
    for offset, value in (
        (Gicc.CTLR, ONES),
        (Gicc.BPR, 0xFC),
        (Gicc.ABPR, 0xFF),
        (Gicc.APR0, 0x10),
        (Gicc.APR0 + 4, 7),
    ):
        board.user_write_cpu(offset, value)
    read = [board.user_read_cpu(offset) for offset in (Gicc.CTLR, Gicc.BPR, Gicc.ABPR, Gicc.APR0, Gicc.APR0 + 4)]
    assert read == [0x21F, 4, 7, 0x10, 0]
    assert board.user_read_cpu(Gicc.IIDR) == 0x04B2_043B
    assert not board.gic.cpu_registers.has(Gicc.IAR)
