"""The modes of a local APIC: IA32_APIC_BASE, x2APIC and its MSRs, disabled, and the effects of INIT and RESET."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic import Lapic, Msr
from irqchipd.chips.lapic_registers import DEFAULT_BASE, LVT_MASKED, VERSION, LapicRegisters, Reg
from irqchipd.chips.message import DeliveryMode, Message, Shorthand
from tests.chips.lapicboard import ENABLED, Board, fixed, mode

BOOT_CPU = 1 << 8
XAPIC, X2APIC, DISABLED = DEFAULT_BASE | 0x800, DEFAULT_BASE | 0xC00, DEFAULT_BASE
INVALID = DEFAULT_BASE | 0x400  # an x2APIC that is disabled
# How to reach a mode from RESET.
WAYS: dict[int, list[int]] = {XAPIC: [], X2APIC: [X2APIC], DISABLED: [DISABLED]}
MODES = {XAPIC: "xAPIC", X2APIC: "x2APIC", DISABLED: "disabled", INVALID: "invalid"}
SVR = 0x1FF


def rdmsr(board: Board, msr: int) -> int | None:
    return board.lapic.read_msr(msr)


def wrmsr(board: Board, msr: int, value: int) -> int | None:
    return board.lapic.write_msr(msr, value)


def number(register: int) -> int:
    """The MSR of a register of the page."""
    return Msr.X2APIC + (register >> 4)


def switch(board: Board, *bases: int) -> None:
    for base in bases:
        assert wrmsr(board, Msr.APIC_BASE, base) == 0


def in_mode(base: int, *, apic_id: int = 3, enabled: bool = True) -> Board:
    board = Board(apic_id=apic_id, enabled=enabled)
    switch(board, *WAYS[base])
    board.events.clear()
    return board


@pytest.fixture
def board() -> Board:
    """A board in xAPIC mode."""
    return in_mode(XAPIC)


@pytest.fixture
def x2apic() -> Board:
    return in_mode(X2APIC)


# IA32_APIC_BASE.


def test_at_reset_the_base_says_which_cpu_boots() -> None:
    assert rdmsr(Board(apic_id=0), Msr.APIC_BASE) == 0xFEE0_0900
    assert rdmsr(Board(apic_id=1), Msr.APIC_BASE) == 0xFEE0_0800


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (XAPIC, XAPIC, 0),
        (XAPIC, X2APIC, 0),
        (XAPIC, DISABLED, 0),
        (XAPIC, INVALID, FAULT),
        (X2APIC, XAPIC, FAULT),
        (X2APIC, X2APIC, 0),
        (X2APIC, DISABLED, 0),
        (X2APIC, INVALID, FAULT),
        (DISABLED, XAPIC, 0),
        (DISABLED, X2APIC, FAULT),
        (DISABLED, DISABLED, 0),
        (DISABLED, INVALID, FAULT),
    ],
    ids=lambda value: MODES.get(value),
)
@pytest.mark.parametrize("address", [0, 0x1000], ids=["", "moved"])
def test_the_modes_are_entered_in_one_order(before: int, after: int, answer: int, address: int) -> None:
    board = in_mode(before)
    assert wrmsr(board, Msr.APIC_BASE, after + address) == answer
    assert rdmsr(board, Msr.APIC_BASE) == (after + address if answer == 0 else before)
    now = after if answer == 0 else before
    assert board.lapic.x2apic == (now == X2APIC)
    assert board.lapic.hardware_enabled == (now != DISABLED)


@pytest.mark.parametrize("bit", [*range(8), 9, *range(52, 64)])
@pytest.mark.parametrize("base", WAYS, ids=lambda value: MODES.get(value))
def test_the_bases_reserved_bits_fault(base: int, bit: int) -> None:
    board = in_mode(base)
    assert wrmsr(board, Msr.APIC_BASE, base | 1 << bit) == FAULT
    assert rdmsr(board, Msr.APIC_BASE) == base
    assert board.events == []


@pytest.mark.parametrize("bit", [8, *range(12, 52)])
def test_the_bases_other_bits_do_not(board: Board, bit: int) -> None:
    assert wrmsr(board, Msr.APIC_BASE, XAPIC ^ 1 << bit) == 0
    assert rdmsr(board, Msr.APIC_BASE) == XAPIC ^ 1 << bit


def test_writing_the_bases_own_value_never_faults(board: Board) -> None:
    board.lapic.base = XAPIC | 1
    assert wrmsr(board, Msr.APIC_BASE, XAPIC | 1) == 0
    assert wrmsr(board, Msr.APIC_BASE, DISABLED | 1) == FAULT


def test_the_page_moves_with_the_base(board: Board) -> None:
    board.write(Reg.TPR, 0x20)
    switch(board, 0xFED0_0800)
    assert [board.lapic.claims(address) for address in (DEFAULT_BASE, 0xFED0_0000, 0xFED0_0FFF, 0xFED0_1000)] == [
        False,
        True,
        True,
        False,
    ]
    assert board.lapic.read(0xFED0_0000 + Reg.TPR, 4) == 0x20
    board.lapic.write(0xFED0_0000 + Reg.TPR, 4, 0x30)
    assert board.lapic.read(0xFED0_0000 + Reg.TPR, 4) == 0x30


def test_the_page_is_anywhere_in_52_bits_of_address(board: Board) -> None:
    # KVM: MSR_IA32_APICBASE_BASE, a negative int, is not truncated to 32 bits.
    base = 0xF_0002_FEE0_0000
    switch(board, base | 0x800)
    assert rdmsr(board, Msr.APIC_BASE) == base | 0x800
    assert board.lapic.claims(base + Reg.VERSION)
    assert not board.lapic.claims(DEFAULT_BASE + Reg.VERSION)
    assert board.lapic.read(base + Reg.VERSION, 4) == VERSION


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (XAPIC, X2APIC, ["addressing", "priorities"]),
        (XAPIC, DISABLED, ["addressing", "priorities"]),
        (X2APIC, DISABLED, ["addressing", "priorities"]),
        (DISABLED, XAPIC, ["addressing", "priorities"]),
        (XAPIC, XAPIC + 0x1000, ["priorities"]),
        (X2APIC, X2APIC + 0x1000, ["priorities"]),
        (XAPIC, XAPIC, []),
    ],
)
def test_a_change_of_the_base_reports_what_it_may_have_changed(before: int, after: int, told: list[str]) -> None:
    board = in_mode(before)
    switch(board, after)
    assert board.events == told


# IDs.


@pytest.mark.parametrize(
    ("apic_id", "logical_id"),
    [(0, 0x0000_0001), (5, 0x0000_0020), (15, 0x0000_8000), (16, 0x0001_0001), (0xFE, 0x000F_4000)],
)
def test_an_x2apics_ids_come_from_its_cpu(apic_id: int, logical_id: int) -> None:
    board = Board(apic_id=apic_id)
    board.write(Reg.ID, 0x7700_0000)
    board.write(Reg.LDR, 0x8800_0000)
    switch(board, X2APIC)
    assert rdmsr(board, number(Reg.ID)) == apic_id
    assert rdmsr(board, number(Reg.LDR)) == logical_id


def test_an_apic_that_is_enabled_again_has_its_first_id_and_the_logical_one_it_had(board: Board) -> None:
    board.write(Reg.ID, 0x7700_0000)
    board.write(Reg.LDR, 0x8800_0000)
    switch(board, DISABLED)
    switch(board, XAPIC)
    assert board.read(Reg.ID) == 0x0300_0000
    assert board.read(Reg.LDR) == 0x8800_0000


def test_an_apic_that_was_an_x2apic_has_its_first_id_and_the_x2apics_logical_one() -> None:
    # KVM: lapic.c kvm_apic_set_xapic_id leaves the LDR.
    board = in_mode(X2APIC, apic_id=0x13)
    switch(board, DISABLED, XAPIC)
    assert board.read(Reg.ID) == 0x1300_0000
    assert board.read(Reg.LDR) == 0x0001_0008


def test_the_other_registers_outlive_a_change_of_the_mode(board: Board) -> None:
    board.write(Reg.TPR, 0x20)
    board.write(Reg.LVT_LINT1, 0x400)
    board.accept(0x31, 0x45)
    assert board.take() == 0x45
    switch(board, X2APIC)
    assert rdmsr(board, number(Reg.TPR)) == 0x20
    switch(board, DISABLED, XAPIC)
    assert [board.read(register) for register in (Reg.TPR, Reg.SVR, Reg.LVT_LINT1)] == [0x20, SVR, 0x400]
    assert board.vectors(Reg.IRR) == [0x31]
    assert board.vectors(Reg.ISR) == [0x45]


# In another mode than xAPIC the register page is a hole.


@pytest.mark.parametrize("base", [X2APIC, DISABLED], ids=lambda value: MODES.get(value))
@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF), (8, 0xFFFF_FFFF_FFFF_FFFF)])
@pytest.mark.parametrize("offset", [Reg.ID, Reg.TPR + 3, Reg.EOI, 0xFF0])
def test_the_page_of_another_mode_reads_ones(base: int, size: int, ones: int, offset: int) -> None:
    board = in_mode(base)
    assert board.lapic.claims(DEFAULT_BASE + offset)
    assert board.read(offset, size) == ones


@pytest.mark.parametrize("base", [X2APIC, DISABLED], ids=lambda value: MODES.get(value))
def test_the_page_of_another_mode_ignores_writes(base: int) -> None:
    board = in_mode(base)
    before = board.lapic.registers()
    board.write(Reg.TPR, 0x20)
    board.write(Reg.ICR, 0x31)
    board.write(Reg.SVR, 0)
    assert board.lapic.registers() == before
    assert board.ipis == []
    assert board.events == []


# The x2APIC's MSRs.

READABLE = {
    *(0x802, 0x803),  # ID, version
    *(0x808, 0x80A, 0x80D, 0x80F),  # TPR, PPR, LDR, SVR
    *range(0x810, 0x828),  # ISR, TMR, IRR
    *(0x828, 0x830),  # ESR, ICR
    *range(0x832, 0x838),  # LVT
    *(0x838, 0x839, 0x83E),  # the timer
}
WRITABLE = {
    *(0x808, 0x80B, 0x80F),  # TPR, EOI, SVR
    *(0x828, 0x830),
    *range(0x832, 0x838),
    *(0x838, 0x83E),
    0x83F,  # self IPI
}
ALL = range(0x800, 0x900)


def hexadecimal(msrs: Iterable[int]) -> list[str]:
    return [f"{msr:x}" for msr in sorted(msrs)]


def test_which_msrs_can_be_read(x2apic: Board) -> None:
    assert hexadecimal(msr for msr in ALL if rdmsr(x2apic, msr) != FAULT) == hexadecimal(READABLE)


def test_which_msrs_can_be_written() -> None:
    assert hexadecimal(msr for msr in ALL if wrmsr(in_mode(X2APIC), msr, 0) != FAULT) == hexadecimal(WRITABLE)


@pytest.mark.parametrize("base", [XAPIC, DISABLED], ids=lambda value: MODES.get(value))
def test_the_msrs_fault_in_the_other_modes(base: int) -> None:
    board = in_mode(base)
    assert {rdmsr(board, msr) for msr in ALL} == {FAULT}
    assert {wrmsr(board, msr, 0) for msr in ALL} == {FAULT}
    assert board.ipis == []


@pytest.mark.parametrize("msr", [0x00, 0x1A, 0x1C, 0x6DF, 0x6E1, 0x7FF, 0x900])
def test_other_msrs_are_not_the_apics(x2apic: Board, msr: int) -> None:
    assert rdmsr(x2apic, msr) is None
    assert wrmsr(x2apic, msr, 0) is None


@pytest.mark.parametrize("msr", sorted(WRITABLE - {0x830}), ids=hex)
@pytest.mark.parametrize("bit", [32, 63])
def test_the_upper_halves_are_reserved(msr: int, bit: int) -> None:
    board = in_mode(X2APIC)
    board.accept(0x31)
    assert board.take() == 0x31
    before = board.lapic.registers()
    assert wrmsr(board, msr, 1 << bit | 0x40) == FAULT
    assert board.lapic.registers() == before
    assert board.ipis == []


@pytest.mark.parametrize(
    ("register", "kept"),
    [
        (Reg.TPR, 0x0000_00FF),
        (Reg.SVR, 0x0000_03FF),
        (Reg.LVT_TIMER, 0x0007_10FF),
        (Reg.LVT_THERMAL, 0x0001_17FF),
        (Reg.LVT_PERFORMANCE, 0x0001_17FF),
        (Reg.LVT_LINT0, 0x0001_F7FF),
        (Reg.LVT_LINT1, 0x0001_F7FF),
        (Reg.LVT_ERROR, 0x0001_10FF),
        (Reg.TIMER_INITIAL_COUNT, 0xFFFF_FFFF),
        (Reg.TIMER_DIVIDE, 0x0000_000B),
    ],
)
def test_an_msr_keeps_the_same_bits_as_the_page(x2apic: Board, register: int, kept: int) -> None:
    assert wrmsr(x2apic, number(register), 0xFFFF_FFFF) == 0
    assert rdmsr(x2apic, number(register)) == kept


def test_the_vector_registers_are_read_one_word_per_msr(x2apic: Board) -> None:
    for vector in (0x31, 0x45, 0xFE):
        x2apic.lapic.accept(fixed(vector, level_triggered=True))
    assert x2apic.take() == 0xFE
    read = {msr: value for msr in range(0x810, 0x828) if (value := rdmsr(x2apic, msr))}
    assert read == {
        0x817: 1 << 0x1E,  # ISR: FEh
        0x819: 1 << 0x11,  # TMR: 31h, 45h, FEh
        0x81A: 1 << 0x05,
        0x81F: 1 << 0x1E,
        0x821: 1 << 0x11,  # IRR: 31h, 45h
        0x822: 1 << 0x05,
    }
    assert rdmsr(x2apic, number(Reg.PPR)) == 0xF0


@pytest.mark.parametrize("value", [0, 0x1234_5678])
def test_an_eoi_ends_whatever_is_written(x2apic: Board, value: int) -> None:
    # KVM: lapic.c kvm_lapic_reg_write ignores the value; a processor faults on all but 0.
    x2apic.lapic.accept(fixed(0x31, level_triggered=True))
    assert x2apic.take() == 0x31
    assert wrmsr(x2apic, number(Reg.EOI), value) == 0
    assert x2apic.ended == [(0x31, True)]


def test_the_error_status_can_only_be_cleared(x2apic: Board) -> None:
    assert wrmsr(x2apic, number(Reg.ESR), 0) == 0
    for value in (1, 0x80, 0xFFFF_FFFF):
        assert wrmsr(x2apic, number(Reg.ESR), value) == FAULT


def test_the_timer_is_programmed_by_msrs(x2apic: Board) -> None:
    wrmsr(x2apic, number(Reg.TIMER_DIVIDE), 0xB)
    wrmsr(x2apic, number(Reg.LVT_TIMER), 0x31)
    wrmsr(x2apic, number(Reg.TIMER_INITIAL_COUNT), 1000)
    x2apic.advance(400)
    assert rdmsr(x2apic, number(Reg.TIMER_CURRENT_COUNT)) == 600
    x2apic.advance(600)
    assert x2apic.take() == 0x31


# The x2APIC's interrupt command register.


def test_the_command_register_has_64_bits(x2apic: Board) -> None:
    assert wrmsr(x2apic, number(Reg.ICR), 0x1234_5678_0000_4931) == 0
    assert x2apic.ipis == [
        (
            0x0000_4931,
            Message(0x31, DeliveryMode.LOWEST_PRIORITY, 0x1234_5678, logical=True, level_triggered=False),
        )
    ]
    assert rdmsr(x2apic, number(Reg.ICR)) == 0x1234_5678_0000_4931


def test_a_shorthand_goes_with_its_destination(x2apic: Board) -> None:
    assert wrmsr(x2apic, number(Reg.ICR), 0xFFFF_FFFF_000C_C500) == 0
    assert x2apic.ipis[0][1] == Message(
        0,
        DeliveryMode.INIT,
        0xFFFF_FFFF,
        logical=False,
        level_triggered=True,
        shorthand=Shorthand.ALL_EXCLUDING_SELF,
    )


@pytest.mark.parametrize("bit", [13, 16, 17, *range(20, 32)])
def test_the_command_registers_reserved_bits_fault(x2apic: Board, bit: int) -> None:
    wrmsr(x2apic, number(Reg.ICR), 0x0000_0007_0000_4031)
    x2apic.ipis.clear()
    assert wrmsr(x2apic, number(Reg.ICR), 1 << bit | 0x0000_0005_0000_4051) == FAULT
    assert x2apic.ipis == []
    assert rdmsr(x2apic, number(Reg.ICR)) == 0x0000_0007_0000_4031


@pytest.mark.parametrize("bit", [*range(13), 14, 15, 18, 19, *range(32, 64)])
def test_the_command_registers_other_bits_do_not_and_busy_is_not_kept(x2apic: Board, bit: int) -> None:
    assert wrmsr(x2apic, number(Reg.ICR), 1 << bit) == 0
    kept = 0 if bit == 12 else 1 << bit
    assert rdmsr(x2apic, number(Reg.ICR)) == kept
    assert [icr for icr, _ in x2apic.ipis] == [kept & 0xFFFF_FFFF]


def test_a_self_ipi_is_a_vector(x2apic: Board) -> None:
    assert wrmsr(x2apic, number(Reg.SELF_IPI), 0xE1) == 0
    assert x2apic.ipis == [
        (
            0x0004_00E1,
            Message(0xE1, 0, 0, logical=False, level_triggered=False, asserted=False, shorthand=Shorthand.SELF),
        )
    ]
    assert rdmsr(x2apic, number(Reg.ICR)) == 0


@pytest.mark.parametrize("bit", range(8, 32))
def test_a_self_ipi_that_is_more_than_a_vector_faults(x2apic: Board, bit: int) -> None:
    assert wrmsr(x2apic, number(Reg.SELF_IPI), 1 << bit | 0xE1) == FAULT
    assert x2apic.ipis == []


def test_an_xapic_has_no_self_ipi(board: Board) -> None:
    board.write(Reg.SELF_IPI, 0xE1)
    assert board.ipis == []


# KVM_GET_LAPIC and KVM_SET_LAPIC: the layout is an xAPIC's. KVM: lapic.c kvm_apic_state_fixup.


def word(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 4], "little")


def test_a_saved_x2apic_has_its_id_and_its_icr_where_an_xapic_has_them() -> None:
    board = in_mode(X2APIC, apic_id=0x13)
    wrmsr(board, number(Reg.ICR), 0x1234_5678_0000_4031)
    page = board.lapic.registers().pack()
    assert {offset: word(page, offset) for offset in (0x020, 0x0D0, 0x300, 0x304, 0x310)} == {
        0x020: 0x1300_0000,
        0x0D0: 0x0001_0008,
        0x300: 0x0000_4031,
        0x304: 0x1234_5678,  # KVM: the upper half is also where KVM keeps it
        0x310: 0x1234_5678,
    }
    assert rdmsr(board, number(Reg.ID)) == 0x13


def test_a_restored_x2apic_keeps_its_ids_and_takes_its_icr_from_both_halves() -> None:
    board = in_mode(X2APIC, apic_id=0x13)
    state = LapicRegisters(id=0x7700_0000, ldr=0x8800_0000, svr=SVR, icr=0x4051, icr2=0x99, icr_high=0x55)
    board.lapic.restore(LapicRegisters.unpack(state.pack()))
    assert rdmsr(board, number(Reg.ID)) == 0x13
    assert rdmsr(board, number(Reg.LDR)) == 0x0001_0008
    assert rdmsr(board, number(Reg.ICR)) == 0x0000_0099_0000_4051


def test_a_saved_x2apic_is_restored_as_it_was(x2apic: Board) -> None:
    wrmsr(x2apic, number(Reg.ICR), 0x1234_5678_0000_4031)
    wrmsr(x2apic, number(Reg.TPR), 0x20)
    x2apic.accept(0x31, 0x45)
    assert x2apic.take() == 0x45
    other = in_mode(X2APIC)
    other.lapic.restore(LapicRegisters.unpack(x2apic.lapic.registers().pack()))
    assert {msr: rdmsr(other, msr) for msr in READABLE} == {msr: rdmsr(x2apic, msr) for msr in READABLE}
    assert other.lapic.registers().pack() == x2apic.lapic.registers().pack()


def test_a_restored_xapic_takes_its_ids_from_the_state(board: Board) -> None:
    board.lapic.restore(LapicRegisters(id=0x7700_0000, ldr=0x8800_0000, svr=SVR, icr2=0x0900_0000))
    assert [board.read(register) for register in (Reg.ID, Reg.LDR, Reg.ICR2)] == [0x7700_0000, 0x8800_0000, 0x0900_0000]


def test_restoring_an_x2apics_own_ids_changes_no_address(x2apic: Board) -> None:
    x2apic.lapic.restore(LapicRegisters(id=0x7700_0000, ldr=0x8800_0000, svr=SVR))
    assert x2apic.events == ["scan", "priorities"]


# An APIC that is disabled takes no interrupt and gives none.


@pytest.mark.parametrize("delivery_mode", [DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY])
def test_a_disabled_apic_accepts_no_interrupt(board: Board, delivery_mode: int) -> None:
    switch(board, DISABLED)
    assert board.lapic.accept(mode(delivery_mode, vector=0x31)) == 0
    switch(board, XAPIC)
    assert board.take() is None


@pytest.mark.parametrize("delivery_mode", [DeliveryMode.NMI, DeliveryMode.SMI, DeliveryMode.INIT])
def test_a_disabled_apic_accepts_signals(board: Board, delivery_mode: int) -> None:
    # KVM: lapic.c __apic_accept_irq; the bus offers a disabled APIC no signals.
    switch(board, DISABLED)
    assert board.lapic.accept(mode(delivery_mode)) == 1
    assert board.signals == [(delivery_mode, 0)]


def test_a_request_waits_while_the_apic_is_disabled(board: Board) -> None:
    board.accept(0x31)
    switch(board, DISABLED)
    assert board.lapic.interrupt() == -1
    assert board.take() is None
    switch(board, XAPIC)
    assert board.lapic.interrupt() == 0x31
    assert board.take() == 0x31


def test_a_request_is_taken_in_x2apic_mode(board: Board) -> None:
    board.accept(0x31)
    switch(board, X2APIC)
    assert board.take() == 0x31


@pytest.mark.parametrize("lint0", [0x1_0000, 0x31, 0x400, 0x1_0700, 0x700])
def test_a_disabled_apic_passes_the_pic_on_whatever_lint0_is(board: Board, lint0: int) -> None:
    board.write(Reg.LVT_LINT0, lint0)
    assert board.lapic.passes_extint == (lint0 == 0x700)
    switch(board, DISABLED)
    assert board.lapic.passes_extint
    switch(board, XAPIC)
    assert board.lapic.passes_extint == (lint0 == 0x700)


@pytest.mark.parametrize(
    ("lint0", "nmi"), [(0x400, True), (0x431, True), (0x1_0400, False), (0x700, False), (0, False)]
)
def test_lint0_makes_the_pits_ticks_nmis_where_it_says_nmi(board: Board, lint0: int, nmi: bool) -> None:
    board.write(Reg.LVT_LINT0, lint0)
    assert board.lapic.nmi_watchdog == nmi
    board.lapic.deliver_local(board.lapic.lvt_lint0)
    assert ((DeliveryMode.NMI, 0) in board.signals) == nmi


def test_the_nmi_watchdog_follows_the_last_write_to_lint0(board: Board) -> None:
    """It does not follow LINT0's value, which a software disable masks. KVM: lapic.c apic_manage_nmi_watchdog."""
    board.write(Reg.LVT_LINT0, 0x400)
    board.write(Reg.SVR, 0xFF)
    assert board.read(Reg.LVT_LINT0) == 0x1_0400
    assert board.lapic.nmi_watchdog
    board.write(Reg.LVT_LINT0, 0x1_0400)
    assert not board.lapic.nmi_watchdog
    board.write(Reg.LVT_LINT0, 0x400)
    assert board.read(Reg.LVT_LINT0) == 0x1_0400
    assert board.lapic.nmi_watchdog
    board.lapic.restore(board.lapic.registers())
    assert not board.lapic.nmi_watchdog
    board.write(Reg.LVT_LINT0, 0x400)
    board.lapic.reset(init=True)
    assert not board.lapic.nmi_watchdog


def test_a_disabled_apic_sends_itself_nothing(board: Board) -> None:
    board.write(Reg.LVT_LINT0, 0x400)
    switch(board, DISABLED)
    board.lapic.deliver_local(board.lapic.lvt_lint0)
    assert board.signals == []


# INIT and RESET. KVM: lapic.c kvm_lapic_reset.

BOTH = pytest.mark.parametrize("init", [True, False], ids=["INIT", "RESET"])


def scribble(board: Board) -> None:
    """Write everything that can be written, and leave one interrupt requested and one in service."""
    board.accept(0x31, 0x45)
    board.lapic.accept(fixed(0x32, level_triggered=True))
    assert board.take() == 0x45
    values = {
        Reg.ID: 0x7700_0000,
        Reg.TPR: 0x20,
        Reg.LDR: 0x8800_0000,
        Reg.DFR: 0x0FFF_FFFF,
        Reg.ICR2: 0x0900_0000,
        Reg.ICR: 0x4031,
        Reg.TIMER_INITIAL_COUNT: 1000,
        Reg.TIMER_DIVIDE: 0xB,
        **dict.fromkeys(range(Reg.LVT_TIMER, Reg.LVT_ERROR + 1, 0x10), 0x41),
    }
    for register, value in values.items():
        board.write(register, value)
    board.events.clear()


@BOTH
@pytest.mark.parametrize("apic_id", [0, 3])
def test_init_and_reset_leave_an_xapic_as_at_power_on_except_for_its_id(apic_id: int, init: bool) -> None:
    board = Board(apic_id=apic_id)
    scribble(board)
    board.lapic.reset(init=init)
    fresh = Board(apic_id=apic_id, enabled=False).lapic.registers()
    fresh.id = 0x7700_0000 if init else apic_id << 24
    assert board.lapic.registers() == fresh
    assert board.events[-2:] == ["addressing", "priorities"]
    board.write(Reg.SVR, ENABLED)
    assert board.take() is None
    board.eoi()
    assert board.ended == []


@BOTH
def test_the_boot_cpus_lint0_passes_the_pic_on_again(init: bool) -> None:
    for apic_id in (0, 1):
        board = Board(apic_id=apic_id)
        board.write(Reg.LVT_LINT0, LVT_MASKED if not apic_id else 0x700)
        board.lapic.reset(init=init)
        assert board.read(Reg.LVT_LINT0) == (LVT_MASKED if apic_id else 0x700)
        assert board.lapic.passes_extint == (not apic_id)


@pytest.mark.parametrize("base", [XAPIC + 0x1000, X2APIC, DISABLED], ids=["moved", "x2APIC", "disabled"])
@pytest.mark.parametrize("apic_id", [0, 3])
def test_init_keeps_the_base_and_reset_does_not(base: int, apic_id: int) -> None:
    board = Board(apic_id=apic_id)
    switch(board, base)
    board.lapic.reset(init=True)
    assert rdmsr(board, Msr.APIC_BASE) == base
    assert board.lapic.x2apic == (base == X2APIC)
    board.lapic.reset(init=False)
    assert rdmsr(board, Msr.APIC_BASE) == XAPIC | (0 if apic_id else BOOT_CPU)
    assert board.read(Reg.ID) == apic_id << 24
    assert board.read(Reg.LDR) == 0
    assert board.read(Reg.SVR) == 0xFF
    assert board.lapic.claims(DEFAULT_BASE)


def test_init_keeps_an_x2apics_ids() -> None:
    board = in_mode(X2APIC, apic_id=0x13)
    wrmsr(board, number(Reg.TPR), 0x20)
    wrmsr(board, number(Reg.ICR), 0x1234_5678_0000_4031)
    board.lapic.reset(init=True)
    assert rdmsr(board, number(Reg.ID)) == 0x13
    assert rdmsr(board, number(Reg.LDR)) == 0x0001_0008
    assert rdmsr(board, number(Reg.TPR)) == 0
    assert rdmsr(board, number(Reg.SVR)) == 0xFF
    assert rdmsr(board, number(Reg.ICR)) == 0


@BOTH
def test_an_icr_of_the_other_mode_is_kept(init: bool) -> None:
    # KVM: an x2APIC's ICR is the 64 bits at 300h, an xAPIC's the words at 300h and 310h, and only its own are cleared.
    board = Board(apic_id=3)
    board.write(Reg.ICR2, 0x0900_0000)
    switch(board, X2APIC)
    wrmsr(board, number(Reg.ICR), 0x1234_5678_0000_4031)
    board.lapic.reset(init=init)
    kept = LapicRegisters.unpack(board.lapic.pack())
    assert (kept.icr, kept.icr_high, kept.icr2) == ((0, 0, 0x0900_0000) if init else (0, 0x1234_5678, 0))


@BOTH
def test_words_outside_the_registers_survive_init_and_reset(board: Board, init: bool) -> None:
    page = bytearray(board.lapic.pack())
    page[0x010:0x014] = b"\x01\x02\x03\x04"
    board.lapic.restore(LapicRegisters.unpack(bytes(page)))
    board.lapic.reset(init=init)
    assert board.lapic.pack()[0x010:0x014] == b"\x01\x02\x03\x04"


# Directed EOI comes with x2APIC, but not together with KVM's IOAPIC, which has no EOI register.


@pytest.mark.parametrize(("ioapic", "version", "svr"), [(True, 0x0005_0014, 0x3FF), (False, 0x0105_0014, 0x13FF)])
def test_directed_eoi_exists_without_the_kernels_ioapic(ioapic: bool, version: int, svr: int) -> None:
    board = Board()
    board.lapic = Lapic.at_reset(board, 0, ioapic=ioapic)
    assert not board.lapic.directed_eoi
    for reset in (False, True):
        if reset:
            board.lapic.reset(init=True)
        assert board.read(Reg.VERSION) == version
        board.write(Reg.SVR, 0xFFFF_FFFF)
        assert board.read(Reg.SVR) == svr
        assert board.lapic.directed_eoi == (not ioapic)
