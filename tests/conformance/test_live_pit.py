"""The PIT over time, on the kernel of this machine and on irqchipd. timed.py explains the comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from irqchipd.chips.i8254 import Port as PitPort
from irqchipd.chips.i8254_state import FREQUENCY, MAX_COUNT, Mode, PitChannel, PitState
from irqchipd.chips.i8259 import Port as PicPort
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from tests.conformance.machines import Answer, Machine
from tests.conformance.timed import Step, TimedComparison, count, op, wait

SPEAKER_DUMMY = 1
NEW_VM = [op("create_irqchip"), op("create_pit", SPEAKER_DUMMY), op("create_vcpu", 0)]
REFRESH = 0x10  # of port 61h: it toggles every 16 us
START_OVER = (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE)
QUIET = 0.015  # seconds: if no tick comes in this time, none is waiting


def out(port: int, value: int, *, sets_time: bool = False) -> Step:
    return op("pio_write", 0, port, 1, value, sets_time=sets_time)


def load(channel: int, mode: int, initial: int) -> list[Step]:
    """Start a channel: it counts from the time at which the high half is written."""
    port = PitPort.CHANNEL_0 + channel
    return [
        out(PitPort.CONTROL, channel << 6 | 0x30 | mode << 1),
        out(port, initial & 0xFF),
        out(port, initial >> 8, sets_time=True),
    ]


def look(channel: int, turn: int) -> Step:
    """Latch a channel's status and count together, and read both; the count starts over after `turn`."""

    def do(machine: Machine) -> Answer:
        machine.perform(["pio_write", 0, PitPort.CONTROL, 1, 0xC0 | 2 << channel])
        status, low, high = (machine.perform(["pio_read", 0, PitPort.CHANNEL_0 + channel, 1]) for _ in range(3))
        return high << 8 | low, status

    among_counts = count(turn, 2 * FREQUENCY)  # mode 3 counts by two

    def among(answer: Answer, answers: Sequence[Answer], apart: int) -> bool:
        counts, statuses = zip(*answers, strict=True)
        # OUT changes only when the count starts over; in the strobe modes for one clock.
        turned = max(counts) - min(counts) > turn // 2
        return among_counts(answer[0], counts, apart) and (turned or answer[1] in statuses)

    return Step(f"look at channel {channel}", do, among)


def look_now_and_then(channel: int, turn: int) -> list[Step]:
    this = look(channel, turn)
    return [this, wait(2), this, wait(3), this, wait(7), this, wait(20), this]


def turn_of(mode: int, initial: int) -> int:
    return initial if mode in START_OVER else MAX_COUNT


@pytest.mark.parametrize("initial", [20_000, 5_001])
@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("channel", [0, 2])
def test_a_channel_counts_and_drives_its_output(timed: TimedComparison, channel: int, mode: int, initial: int) -> None:
    timed.check(*NEW_VM, *load(channel, mode, initial), *look_now_and_then(channel, turn_of(mode, initial)))


@pytest.mark.parametrize("first", range(6))
def test_channel_0_is_given_another_mode(timed: TimedComparison, first: int) -> None:
    for mode in (Mode.TERMINAL_COUNT, Mode.RATE_GENERATOR, Mode.HARDWARE_STROBE):
        this = look(0, turn_of(mode, 9_000))
        timed.check(*NEW_VM, *load(0, first, 7_000), wait(2), *load(0, mode, 9_000), this, wait(10), this)


@pytest.mark.parametrize("mode", range(6))
def test_the_gate_of_channel_2_restarts_it(timed: TimedComparison, mode: int) -> None:
    this = look(2, turn_of(mode, 30_000))
    gates = [step for level in (1, 0, 1, 1) for step in (out(PitPort.SPEAKER, level, sets_time=True), wait(3), this)]
    timed.check(*NEW_VM, *load(2, mode, 30_000), wait(2), *gates)


def test_the_speakers_port_shows_gate_and_output(timed: TimedComparison) -> None:
    def do(machine: Machine) -> Answer:
        return machine.perform(["pio_read", 0, PitPort.SPEAKER, 1]) & ~REFRESH

    port = Step("port 61h", do)
    timed.check(
        *NEW_VM, port, out(PitPort.SPEAKER, 0xFF), port, *load(2, Mode.TERMINAL_COUNT, 6_000), port, wait(8), port
    )


@pytest.mark.parametrize("mode", [0, 2, 3, 5, 0xFF])
def test_a_restored_pit_restarts_its_counts(timed: TimedComparison, mode: int) -> None:
    channel = PitChannel(count=20_000, mode=mode, rw_mode=3, read_state=3, write_state=3, count_load_time=1)
    state = PitState((channel, channel, channel)).pack().hex()
    turn = 20_000 if mode in (*START_OVER, 0xFF) else MAX_COUNT
    timed.check(
        *NEW_VM,
        *load(0, Mode.RATE_GENERATOR, 3_000),
        wait(1),
        op("set_pit", state, sets_time=True),
        *look_now_and_then(0, turn),
        *look_now_and_then(2, turn),
        op("get_pit"),
    )


# Ticks, of 20 ms.

PERIOD = 23_864
LONG = 110  # milliseconds: five periods and a half
PIC_INIT = [
    out(port, value)
    for port, *values in ((PicPort.PRIMARY_COMMAND, 0x11), (PicPort.PRIMARY_DATA, 0x20, 4, 1, 0xFE))
    for value in values
]


def write_ioapic(register: int, value: int) -> list[Step]:
    return [op("mmio_write", 0, IOAPIC_BASE, 4, register), op("mmio_write", 0, IOAPIC_BASE + 0x10, 4, value)]


IOAPIC_INIT = [
    out(PicPort.PRIMARY_DATA, 0xFF),
    op("mmio_write", 0, LAPIC_BASE + Reg.SVR, 4, 0x1FF),
    *write_ioapic(0x10, 0x31),
]
MASK_AND_UNMASK = {
    "pic": [out(PicPort.PRIMARY_DATA, 0xFF), out(PicPort.PRIMARY_DATA, 0xFE)],
    "ioapic": write_ioapic(0x10, 0x1_0031) + write_ioapic(0x10, 0x31),
}
INIT = {"pic": PIC_INIT, "ioapic": IOAPIC_INIT}


def take_all(machine: Machine) -> Answer:
    """Take and end ticks until none comes for a while; returns their number."""
    ticks, last = 0, time.monotonic()
    while time.monotonic() - last < QUIET:
        if machine.perform(["take", 0]) is not None:
            ticks, last = ticks + 1, time.monotonic()
            machine.perform(["pio_write", 0, PicPort.PRIMARY_COMMAND, 1, 0x20])
        elif hasattr(machine, "advance_to"):
            break
    return ticks


TICKS = Step("take all ticks", take_all, lambda ticks, others, _apart: min(others) <= ticks <= max(others), lasts=True)


@pytest.mark.parametrize("chip", ["pic", "ioapic"])
@pytest.mark.parametrize("reinject", [1, 0])
def test_missed_ticks_wait_if_reinjection_is_on(timed: TimedComparison, chip: str, reinject: int) -> None:
    start = [*NEW_VM, *INIT[chip], op("pit_reinject", reinject), *load(0, Mode.RATE_GENERATOR, PERIOD)]
    timed.check(*start, wait(LONG), TICKS, wait(LONG / 2), TICKS)


@pytest.mark.parametrize("chip", ["pic", "ioapic"])
def test_unmasking_drops_waiting_ticks(timed: TimedComparison, chip: str) -> None:
    start = [*NEW_VM, *INIT[chip], *load(0, Mode.RATE_GENERATOR, PERIOD)]
    timed.check(*start, wait(LONG), *MASK_AND_UNMASK[chip], TICKS)


def test_a_new_count_drops_waiting_ticks(timed: TimedComparison) -> None:
    start = [*NEW_VM, *PIC_INIT, *load(0, Mode.RATE_GENERATOR, PERIOD)]
    timed.check(*start, wait(LONG), *load(0, Mode.RATE_GENERATOR, MAX_COUNT - 1), TICKS)


@pytest.mark.parametrize("mode", range(6))
def test_a_mode_ticks_once_or_repeatedly(timed: TimedComparison, mode: int) -> None:
    timed.check(*NEW_VM, *PIC_INIT, *load(0, mode, PERIOD), wait(3), TICKS, wait(LONG / 2), TICKS)


# The NMI watchdog: if one LINT0 turns the PIT's ticks into NMIs, every LINT0 does so whatever its own value.


def lint0(vcpu: int, value: int) -> Step:
    return op("mmio_write", vcpu, LAPIC_BASE + Reg.LVT_LINT0, 4, value)


def svr(vcpu: int, value: int) -> Step:
    return op("mmio_write", vcpu, LAPIC_BASE + Reg.SVR, 4, value)


WATCHDOGS = {
    "set": [],
    "software-disabled": [svr(0, 0xFF)],
    "software-disabled, and enabled": [svr(0, 0xFF), svr(0, 0x1FF)],
    "written while software-disabled": [lint0(0, 0x1_0400), svr(0, 0xFF), lint0(0, 0x400)],
    "masked": [lint0(0, 0x1_0400)],
    "restored": [lint0(0, 0), op("set_lapic", 0, LapicRegisters(svr=0xFF, lvt_lint0=0x400).pack().hex())],
    "restored masked": [op("set_lapic", 0, LapicRegisters(svr=0xFF, lvt_lint0=0x1_0400).pack().hex())],
    "another's, which gets INIT": [lint0(0, 0x41), lint0(1, 0x400), op("signal_msi", LAPIC_BASE | 1 << 12, 0x500, 0)],
}


@pytest.mark.parametrize("change", WATCHDOGS)
def test_the_nmi_watchdog_survives_what_masks_it(timed: TimedComparison, change: str) -> None:
    setup = [*NEW_VM, op("create_vcpu", 1), svr(0, 0x1FF), svr(1, 0x1FF), lint0(1, 0x41), lint0(0, 0x400)]
    pages = [op("get_lapic_page", vcpu) for vcpu in (0, 1)]
    timed.check(*setup, *WATCHDOGS[change], *pages, *load(0, Mode.TERMINAL_COUNT, 2000), wait(30), *pages)
