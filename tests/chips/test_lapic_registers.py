"""The local APIC's register page: reset values, the bits that a write changes, accesses, and the kernel's structure."""

from __future__ import annotations

from dataclasses import fields

import pytest

from irqchipd.chips.lapic_registers import DEFAULT_BASE, STATE_SIZE, LapicRegisters, Reg
from tests.chips.lapicboard import Board, fixed

LVTS = (
    Reg.LVT_TIMER,
    Reg.LVT_THERMAL,
    Reg.LVT_PERFORMANCE,
    Reg.LVT_LINT0,
    Reg.LVT_LINT1,
    Reg.LVT_ERROR,
)
TSC_DEADLINE = 0x0004_0000


@pytest.fixture
def board() -> Board:
    return Board()


# Reset.


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (Reg.ID, 0x0300_0000),
        (Reg.VERSION, 0x0005_0014),
        (Reg.TPR, 0),
        (Reg.LDR, 0),
        (Reg.DFR, 0xFFFF_FFFF),
        (Reg.SVR, 0xFF),
        (Reg.ESR, 0),
        (Reg.ICR, 0),
        (Reg.ICR2, 0),
        *((lvt, 0x0001_0000) for lvt in LVTS),
        (Reg.TIMER_INITIAL_COUNT, 0),
        (Reg.TIMER_CURRENT_COUNT, 0),
        (Reg.TIMER_DIVIDE, 0),
    ],
)
def test_reset_values(register: int, value: int) -> None:
    assert Board(apic_id=3, enabled=False).read(register) == value


def test_only_the_boot_cpus_lint0_lets_the_pic_through_at_reset() -> None:
    assert Board(apic_id=0, enabled=False).read(Reg.LVT_LINT0) == 0x700
    assert Board(apic_id=1, enabled=False).read(Reg.LVT_LINT0) == 0x1_0000


# Writes.


@pytest.mark.parametrize(
    ("register", "kept"),
    [
        (Reg.ID, 0xFF00_0000),
        (Reg.VERSION, 0x0005_0014),
        (Reg.TPR, 0x0000_00FF),
        (Reg.ARBITRATION, 0),
        (Reg.EOI, 0),
        (Reg.LDR, 0xFF00_0000),
        (Reg.DFR, 0xFFFF_FFFF),
        (Reg.SVR, 0x0000_03FF),  # directed EOI, bit 12, is not there while KVM's IOAPIC is
        (Reg.ISR, 0),
        (Reg.TMR, 0),
        (Reg.IRR, 0),
        (Reg.ESR, 0),
        (Reg.ICR, 0xFFFF_EFFF),
        (Reg.ICR2, 0xFF00_0000),
        (Reg.LVT_TIMER, 0x0007_10FF),
        (Reg.LVT_THERMAL, 0x0001_17FF),
        (Reg.LVT_PERFORMANCE, 0x0001_17FF),
        (Reg.LVT_LINT0, 0x0001_F7FF),
        (Reg.LVT_LINT1, 0x0001_F7FF),
        (Reg.LVT_ERROR, 0x0001_10FF),
        (Reg.TIMER_INITIAL_COUNT, 0xFFFF_FFFF),
        (Reg.TIMER_CURRENT_COUNT, 0),
        (Reg.TIMER_DIVIDE, 0x0000_000B),
        (0x010, 0),
        (0x2F0, 0),
        (0x3F0, 0),
    ],
)
def test_the_bits_that_a_register_keeps(board: Board, register: int, kept: int) -> None:
    board.write(register, 0xFFFF_FFFF)
    assert board.read(register) == kept


def test_the_destination_format_keeps_its_reserved_bits_set(board: Board) -> None:
    board.write(Reg.DFR, 0x0000_0000)
    assert board.read(Reg.DFR) == 0x0FFF_FFFF


@pytest.mark.parametrize("lvt", LVTS)
def test_an_lvt_entry_written_while_disabled_is_masked(lvt: int) -> None:
    board = Board(enabled=False)
    board.write(lvt, 0x31)
    assert board.read(lvt) == 0x0001_0031


@pytest.mark.parametrize("lvt", LVTS)
def test_disabling_masks_every_lvt_entry_and_enabling_leaves_it_so(board: Board, lvt: int) -> None:
    board.write(lvt, 0x31)
    assert board.read(lvt) == 0x31
    board.write(Reg.SVR, 0x0FF)
    assert board.read(lvt) == 0x0001_0031
    board.write(Reg.SVR, 0x1FF)
    assert board.read(lvt) == 0x0001_0031


# Accesses.


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (0x0, 4, 0xAB00_01CD),
        (0x0, 2, 0x01CD),
        (0x2, 2, 0xAB00),
        (0x0, 1, 0xCD),
        (0x1, 1, 0x01),
        (0x3, 1, 0xAB),
        (0x2, 4, 0),  # crosses the end of the word
        (0x3, 2, 0),
        (0x4, 4, 0),  # outside the register, which is only its first word
        (0x0, 8, 0),
        (0x8, 1, 0),
    ],
)
def test_a_read_stays_within_its_word(board: Board, offset: int, size: int, value: int) -> None:
    board.write(Reg.TIMER_INITIAL_COUNT, 0xAB00_01CD)
    assert board.read(Reg.TIMER_INITIAL_COUNT + offset, size) == value


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (0, 8), (4, 4), (1, 4), (8, 4)])
def test_a_write_other_than_an_aligned_word_is_dropped(board: Board, offset: int, size: int) -> None:
    board.write(Reg.TPR, 0x20)
    board.write(Reg.TPR + offset, 0x30, size)
    assert board.read(Reg.TPR) == 0x20


def test_a_byte_written_to_the_eoi_register_ends_nothing(board: Board) -> None:
    board.accept(0x31)
    board.take()
    board.write(Reg.EOI, 0, 1)
    assert board.ended == []


def test_the_page_is_4096_bytes(board: Board) -> None:
    assert [board.lapic.claims(DEFAULT_BASE + offset) for offset in (-1, 0, 0xFFF, 0x1000)] == [
        False,
        True,
        True,
        False,
    ]


# The timer's registers.


def test_the_initial_count_cannot_be_written_in_tsc_deadline_mode(board: Board) -> None:
    board.write(Reg.LVT_TIMER, TSC_DEADLINE | 0x31)
    board.write(Reg.TIMER_INITIAL_COUNT, 1000)
    assert board.read(Reg.TIMER_INITIAL_COUNT) == 0


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [(0x0_0031, TSC_DEADLINE, 0), (TSC_DEADLINE, 0x0_0031, 0), (0x0_0031, 0x2_0031, 1000), (0x2_0031, 0x0_0031, 1000)],
)
def test_going_to_or_from_tsc_deadline_mode_forgets_the_count(
    board: Board, before: int, after: int, count: int
) -> None:
    board.lapic.restore(LapicRegisters(svr=0x1FF, lvt_timer=before, timer_initial_count=1000))
    board.lapic.timer_initial_count = 1000
    board.write(Reg.LVT_TIMER, after)
    assert board.read(Reg.TIMER_INITIAL_COUNT) == count


@pytest.mark.parametrize(("mode", "count"), [(0x2_0000, 1000), (TSC_DEADLINE, 0)])
def test_a_restored_timer_that_changes_to_tsc_deadline_mode_forgets_the_count(
    board: Board, mode: int, count: int
) -> None:
    board.lapic.restore(LapicRegisters(lvt_timer=mode, timer_initial_count=1000))
    assert board.read(Reg.TIMER_INITIAL_COUNT) == count


# The kernel's structure.


def word(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 4], "little")


def test_the_structure_is_the_register_page(board: Board) -> None:
    board.write(Reg.TPR, 0x23)
    board.write(Reg.LDR, 0x0400_0000)
    for vector in (0x31, 0x45, 0xFE):
        board.lapic.accept(fixed(vector, level_triggered=True))
    board.take()
    page = board.lapic.pack()
    assert len(page) == STATE_SIZE == 1024
    assert {offset: word(page, offset) for offset in range(0, 1024, 4) if word(page, offset)} == {
        0x030: 0x0005_0014,
        0x080: 0x23,
        0x0A0: 0xF0,  # the processor priority, worked out
        0x0D0: 0x0400_0000,
        0x0E0: 0xFFFF_FFFF,
        0x0F0: 0x1FF,
        0x170: 1 << 0x1E,  # ISR: FEh
        0x190: 1 << 0x11,  # TMR: 31h, 45h, FEh
        0x1A0: 1 << 0x05,
        0x1F0: 1 << 0x1E,
        0x210: 1 << 0x11,  # IRR: 31h, 45h
        0x220: 1 << 0x05,
        0x320: 0x1_0000,
        0x330: 0x1_0000,
        0x340: 0x1_0000,
        0x350: 0x700,
        0x360: 0x1_0000,
        0x370: 0x1_0000,
    }


def test_every_word_has_its_offset_in_the_structure() -> None:
    page = b"".join((offset if offset % 16 == 0 else 0).to_bytes(4, "little") for offset in range(0, 1024, 4))
    registers = LapicRegisters.unpack(page)
    places = {field.name: getattr(registers, field.name) for field in fields(registers)}
    for wide in ("isr", "tmr", "irr"):
        del places[wide]
    assert places.pop("page") == page
    assert places == {
        "id": 0x020,
        "version": 0x030,
        "tpr": 0x080,
        "ldr": 0x0D0,
        "dfr": 0x0E0,
        "svr": 0x0F0,
        "esr": 0x280,
        "icr": 0x300,
        "icr_high": 0,  # 0x304, which is no register of an xAPIC
        "icr2": 0x310,
        "lvt_timer": 0x320,
        "lvt_thermal": 0x330,
        "lvt_performance": 0x340,
        "lvt_lint0": 0x350,
        "lvt_lint1": 0x360,
        "lvt_error": 0x370,
        "timer_initial_count": 0x380,
        "timer_current_count": 0x390,
        "timer_divide": 0x3E0,
    }
    for name, start in (("isr", 0x100), ("tmr", 0x180), ("irr", 0x200)):
        assert getattr(registers, name) == sum(start + 0x10 * word << 32 * word for word in range(8))


@pytest.mark.parametrize("vector", [0x00, 0x1F, 0x20, 0x5E, 0x80, 0xE0, 0xFF])
def test_a_vector_reads_back_in_its_own_bit(board: Board, vector: int) -> None:
    board.lapic.restore(LapicRegisters(svr=0x1FF, isr=1 << vector))
    board.lapic.accept(fixed(vector, level_triggered=True))
    for register in (Reg.ISR, Reg.TMR, Reg.IRR):
        assert board.vectors(register) == [vector]


def test_restored_registers_interrupt(board: Board) -> None:
    board.accept(0x31, 0x45)
    assert board.take() == 0x45
    other = Board(apic_id=1, enabled=False)
    other.lapic.restore(LapicRegisters.unpack(board.lapic.pack()))
    assert other.take() is None
    other.eoi()
    assert other.ended == [(0x45, False)]
    assert other.take() == 0x31
    assert other.read(Reg.ID) == 0


def test_words_outside_the_registers_are_kept(board: Board) -> None:
    page = bytearray(board.lapic.pack())
    page[0x010:0x014] = b"\x01\x02\x03\x04"
    page[0x084:0x088] = b"\x05\x06\x07\x08"
    board.lapic.restore(LapicRegisters.unpack(bytes(page)))
    assert board.lapic.pack() == page


def test_a_restored_current_count_is_not_kept(board: Board) -> None:
    page = bytearray(board.lapic.pack())
    page[0x390] = 0x12
    board.lapic.restore(LapicRegisters.unpack(bytes(page)))
    assert board.read(Reg.TIMER_CURRENT_COUNT) == 0
    assert word(board.lapic.pack(), 0x390) == 0


def test_all_256_vectors_in_service_count_as_none(board: Board) -> None:
    # KVM: lapic.c count_vectors counts them in 8 bits.
    board.lapic.restore(LapicRegisters(svr=0x1FF, tpr=0x20, isr=(1 << 256) - 1))
    assert board.read(Reg.PPR) == 0x20
    board.eoi()
    assert board.ended == []
    board.accept(0x31)
    assert board.take() == 0x31


def test_restoring_does_not_change_the_version(board: Board) -> None:
    board.lapic.restore(LapicRegisters(version=0x1234))
    assert board.read(Reg.VERSION) == 0x0005_0014


def test_values_that_no_guest_can_write_are_kept(board: Board) -> None:
    state = LapicRegisters(id=0x12345678, tpr=0xFFFF_FF10, svr=0xFFFF_FFFF, ldr=1, dfr=0, icr=0x1000, esr=0xAA)
    board.lapic.restore(state)
    assert board.lapic.registers() == state
    assert board.read(Reg.ESR) == 0xAA
    board.accept(0x15, 0x21)
    assert board.take() == 0x21
    board.eoi()
    assert board.take() is None  # the task priority is a byte: 10h


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (LapicRegisters(svr=0x1FF, tpr=0x20), "scan"),
        (LapicRegisters(svr=0x0FF), "addressing"),
        (LapicRegisters(svr=0x1FF, id=0x0100_0000), "addressing"),
        (LapicRegisters(svr=0x1FF, ldr=0x0100_0000), "addressing"),
        (LapicRegisters(svr=0x1FF, dfr=0x0FFF_FFFF), "addressing"),
    ],
)
def test_restoring_reports_whether_the_addressing_changed(board: Board, state: LapicRegisters, told: str) -> None:
    board.lapic.restore(state)
    assert board.events == [told, "priorities"]
