"""The local APIC's timer over time, on the kernel of this machine and on irqchipd. timed.py explains the comparison."""

from __future__ import annotations

import pytest

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU, BASE_ENABLED, BASE_X2APIC, LVT_MASKED, LapicRegisters, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_timer import ONE_SHOT, PERIODIC, TSC_DEADLINE
from irqchipd.vm.x86.capabilities import Cap
from tests.conformance.machines import Answer, Machine
from tests.conformance.timed import Step, TimedComparison, count, op, wait

VECTOR = 0x31
MODES = {"one-shot": ONE_SHOT, "periodic": PERIODIC, "deadline": TSC_DEADLINE, "reserved": 3 << 17}
BY_1, BY_2, BY_16 = 0xB, 0x0, 0x3  # values of the divide configuration register
MS = 1_000_000  # counts, undivided
NEW_VM = [op("create_irqchip"), op("create_vcpu", 0)]


def write(register: int, value: int, *, sets_time: bool = False) -> Step:
    return op("mmio_write", 0, LAPIC_BASE + register, 4, value, sets_time=sets_time)


def read(register: int) -> Step:
    return op("mmio_read", 0, LAPIC_BASE + register, 4)


def msr(number: int, value: int) -> Step:
    return op("msr_write", 0, number, value)


def start(mode: int, initial: int, divide: int = BY_1, *, masked: int = 0) -> list[Step]:
    """A local APIC with a running timer."""
    setup = [write(Reg.SVR, 0x1FF), write(Reg.LVT_TIMER, masked | mode | VECTOR), write(Reg.TIMER_DIVIDE, divide)]
    return [*NEW_VM, *setup, write(Reg.TIMER_INITIAL_COUNT, initial, sets_time=True)]


def current_count(turn: int = 1 << 40) -> Step:
    """Read the current count, which starts over from `turn`, or never."""
    register = read(Reg.TIMER_CURRENT_COUNT)
    return Step("current count", register.do, count(turn))


def _take(machine: Machine) -> Answer:
    machine.perform(["visit", 0])
    return machine.perform(["take", 0])


def _arm(milliseconds: float) -> Step:
    def do(machine: Machine) -> Answer:
        now = machine.perform(["msr_read", 0, Msr.TSC])
        return machine.perform(["msr_write", 0, Msr.TSC_DEADLINE, now + int(milliseconds * machine.tsc_khz)])

    return Step(f"a deadline in {milliseconds} ms", do, sets_time=True)


def _is_armed(machine: Machine) -> Answer:
    return machine.perform(["msr_read", 0, Msr.TSC_DEADLINE]) != 0


TAKE = Step("take", _take)
ARMED = Step("a deadline is there", _is_armed)
COUNTS = [read(Reg.TIMER_INITIAL_COUNT), current_count(), ARMED]


@pytest.mark.parametrize("divide", range(16))
def test_it_counts_at_1_ghz_through_the_divider(timed: TimedComparison, divide: int) -> None:
    counted = current_count()
    timed.check(*start(ONE_SHOT, 0xFFFF_FFFF, divide, masked=LVT_MASKED), counted, wait(2), counted, wait(5), counted)


@pytest.mark.parametrize("cycle", [1, 7, 40])
def test_the_bus_may_be_slower(timed: TimedComparison, cycle: int) -> None:
    """KVM_CAP_X86_APIC_BUS_CYCLES_NS: the nanoseconds per count."""
    first, second, *rest = start(ONE_SHOT, 12 * MS // cycle)
    bus = op("enable_cap", Cap.X86_APIC_BUS_CYCLES_NS, cycle)
    counted = current_count()
    timed.check(first, bus, second, *rest, counted, wait(4), TAKE, counted, wait(9), TAKE, counted)
    first, second, *rest = start(PERIODIC, 5 * MS // cycle, BY_2)
    counted = current_count(5 * MS // cycle)
    timed.check(first, bus, second, *rest, counted, *3 * [wait(7), TAKE, counted], write(Reg.TIMER_DIVIDE, BY_1), TAKE)


def test_a_one_shot_expires_once(timed: TimedComparison) -> None:
    timed.check(*start(ONE_SHOT, 8 * MS), TAKE, *COUNTS, wait(4), TAKE, *COUNTS, wait(8), TAKE, *COUNTS, wait(9), TAKE)


def test_a_periodic_one_starts_over(timed: TimedComparison) -> None:
    counted = current_count(8 * MS)
    timed.check(*start(PERIODIC, 8 * MS), counted, wait(4), TAKE, *5 * [wait(8), TAKE, counted])


def test_a_short_period_is_lengthened(timed: TimedComparison) -> None:
    counted = current_count(200_000)
    timed.check(*start(PERIODIC, 1000), *10 * [counted, wait(0.3)], TAKE, read(Reg.TIMER_INITIAL_COUNT))


@pytest.mark.parametrize("after", [3, 9])
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_its_mode_changes(timed: TimedComparison, first: str, second: str, after: int) -> None:
    change = write(Reg.LVT_TIMER, MODES[second] | VECTOR)
    rest = [*COUNTS[::2], current_count(6 * MS), *2 * [wait(3), TAKE], *2 * [wait(6), TAKE]]
    timed.check(*start(MODES[first], 6 * MS), wait(after), TAKE, change, *rest)


@pytest.mark.parametrize(("before", "then"), [(BY_1, BY_2), (BY_2, BY_1), (BY_1, BY_1), (BY_2, BY_16)])
@pytest.mark.parametrize("after", [4, 20])
@pytest.mark.parametrize("mode", ["one-shot", "periodic", "reserved"])
def test_the_divider_changes(timed: TimedComparison, mode: str, after: int, before: int, then: int) -> None:
    """This includes an expired one-shot, which expires again."""
    initial = 8 * MS if before == BY_1 else 4 * MS
    change = write(Reg.TIMER_DIVIDE, then, sets_time=True)
    timed.check(*start(MODES[mode], initial, before), wait(after), TAKE, change, *2 * [TAKE, *COUNTS[:1], wait(6)])


FORGETTING = {
    "nothing": [],
    "an initial count of 0": [write(Reg.TIMER_INITIAL_COUNT, 0)],
    "an initial count": [write(Reg.TIMER_INITIAL_COUNT, 400 * MS, sets_time=True)],
    "another divider": [write(Reg.TIMER_DIVIDE, BY_2, sets_time=True)],
    "the same divider": [write(Reg.TIMER_DIVIDE, BY_1)],
    "the other mode": [write(Reg.LVT_TIMER, LVT_MASKED | PERIODIC | VECTOR)],
    "TSC-deadline mode and back": [write(Reg.LVT_TIMER, mode) for mode in (LVT_MASKED | TSC_DEADLINE, LVT_MASKED)],
    "a disabled APIC": [write(Reg.SVR, 0xFF), write(Reg.SVR, 0x1FF)],
    "IA32_APIC_BASE": [msr(Msr.APIC_BASE, LAPIC_BASE), msr(Msr.APIC_BASE, LAPIC_BASE | BASE_ENABLED)],
}


@pytest.mark.parametrize("between", FORGETTING)
@pytest.mark.parametrize("mode", ["one-shot", "periodic"])
def test_a_masked_expiry_waits(timed: TimedComparison, mode: str, between: str) -> None:
    timed.check(
        *start(MODES[mode], 6 * MS, masked=LVT_MASKED),
        wait(20),
        TAKE,
        *FORGETTING[between],
        write(Reg.LVT_TIMER, MODES[mode] | VECTOR),
        *[TAKE, current_count(6 * MS), wait(3.5), TAKE, wait(5), TAKE],
    )


X2APIC = LAPIC_BASE | BASE_BOOT_CPU | BASE_ENABLED | BASE_X2APIC
STATES = {
    "disabled by SVR": ([write(Reg.SVR, 0xFF)], [write(Reg.SVR, 0x1FF)]),
    "disabled by IA32_APIC_BASE": (
        [msr(Msr.APIC_BASE, LAPIC_BASE)],
        [msr(Msr.APIC_BASE, LAPIC_BASE | BASE_ENABLED)],
    ),
    "an x2APIC": ([msr(Msr.APIC_BASE, X2APIC)], []),
}


@pytest.mark.parametrize("mode", ["one-shot", "periodic"])
@pytest.mark.parametrize("state", STATES)
def test_the_timer_runs_on_when_its_apic_changes_state(timed: TimedComparison, state: str, mode: str) -> None:
    there, back = STATES[state]
    through_msr = op("msr_read", 0, Msr.X2APIC + (Reg.TIMER_CURRENT_COUNT >> 4))
    counted = Step("current count", through_msr.do, count(8 * MS)) if not back else current_count(8 * MS)
    unmask = [write(Reg.LVT_TIMER, MODES[mode] | VECTOR)]
    timed.check(
        *start(MODES[mode], 8 * MS),
        wait(2),
        *there,
        counted,
        wait(9),
        TAKE,
        *back,
        *unmask,
        counted,
        *3 * [TAKE, wait(6)],
    )


def test_it_counts_while_its_apic_is_disabled(timed: TimedComparison) -> None:
    begin = write(Reg.TIMER_INITIAL_COUNT, 6 * MS, sets_time=True)
    enable = [write(Reg.SVR, 0x1FF), write(Reg.LVT_TIMER, VECTOR)]
    timed.check(*NEW_VM, write(Reg.TIMER_DIVIDE, BY_1), begin, wait(3), current_count(), wait(6), TAKE, *enable, TAKE)


@pytest.mark.parametrize(("initial", "current"), [(8, 0), (8, 3), (8, 20), (0, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_a_restored_timer_goes_on(timed: TimedComparison, mode: str, initial: int, current: int) -> None:
    registers = LapicRegisters(svr=0x1FF, lvt_timer=MODES[mode] | VECTOR, timer_divide=BY_1)
    registers.timer_initial_count, registers.timer_current_count = initial * MS, current * MS
    restore = op("set_lapic", 0, registers.pack().hex(), sets_time=True)
    timed.check(*NEW_VM, restore, *COUNTS[::2], *3 * [current_count(8 * MS), TAKE, wait(4.7)])


@pytest.mark.parametrize("after", [3, 12])
def test_a_saved_and_restored_timer_goes_on(timed: TimedComparison, after: int) -> None:
    """A one-shot that has expired expires again."""
    pages: dict[Machine, bytearray] = {}

    def take(machine: Machine) -> Answer:
        pages[machine] = page = bytearray.fromhex(machine.perform(["get_lapic_page", 0]))
        # The page lacks the current count, which depends on time.
        left = machine.perform(["mmio_read", 0, LAPIC_BASE + Reg.TIMER_CURRENT_COUNT, 4])
        page[Reg.TIMER_CURRENT_COUNT : Reg.TIMER_CURRENT_COUNT + 4] = left.to_bytes(4, "little")

    def restore(machine: Machine) -> Answer:
        return machine.perform(["set_lapic", 0, pages[machine].hex()])

    there_and_back = [Step("GET", take, sets_time=True), wait(2), Step("SET", restore, sets_time=True)]
    timed.check(*start(ONE_SHOT, 8 * MS), wait(after), TAKE, *there_and_back, current_count(), TAKE, wait(9), TAKE)


def test_writing_the_initial_count_starts_or_stops_it(timed: TimedComparison) -> None:
    again = write(Reg.TIMER_INITIAL_COUNT, 8 * MS, sets_time=True)
    stop = write(Reg.TIMER_INITIAL_COUNT, 0)
    timed.check(*start(ONE_SHOT, 8 * MS), wait(5), again, wait(5), TAKE, *COUNTS, stop, *COUNTS, wait(9), TAKE)


# Deadlines.

DEADLINES = [*NEW_VM, write(Reg.SVR, 0x1FF), write(Reg.LVT_TIMER, TSC_DEADLINE | VECTOR)]


def test_a_deadline_comes(timed: TimedComparison) -> None:
    timed.check(*DEADLINES, _arm(6), TAKE, *COUNTS, wait(9), TAKE, *COUNTS, wait(8), TAKE)


@pytest.mark.parametrize("deadline", [0, 1, 1 << 63, (1 << 64) - 1])
def test_deadlines_of_0_in_the_past_and_far_away(timed: TimedComparison, deadline: int) -> None:
    timed.check(*DEADLINES, _arm(6), msr(Msr.TSC_DEADLINE, deadline), TAKE, ARMED, wait(9), TAKE, ARMED)


@pytest.mark.parametrize("mode", ["one-shot", "reserved"])
def test_a_deadline_does_not_survive_its_mode(timed: TimedComparison, mode: str) -> None:
    there, back = (write(Reg.LVT_TIMER, which | VECTOR) for which in (MODES[mode], TSC_DEADLINE))
    timed.check(*DEADLINES, _arm(4), there, ARMED, back, ARMED, wait(6), TAKE, ARMED)


def test_a_deadline_comes_while_masked(timed: TimedComparison) -> None:
    mask, unmask = (write(Reg.LVT_TIMER, masked | TSC_DEADLINE | VECTOR) for masked in (LVT_MASKED, 0))
    timed.check(*DEADLINES, mask, _arm(3), wait(6), TAKE, ARMED, unmask, TAKE, ARMED)
    timed.check(*DEADLINES, mask, _arm(3), wait(6), TAKE, msr(Msr.TSC_DEADLINE, 0), unmask, TAKE, ARMED)


@pytest.mark.parametrize("mode", ["one-shot", "periodic", "reserved"])
def test_a_deadline_in_another_mode_is_ignored(timed: TimedComparison, mode: str) -> None:
    timed.check(
        *NEW_VM,
        write(Reg.SVR, 0x1FF),
        write(Reg.LVT_TIMER, MODES[mode] | VECTOR),
        _arm(1),
        ARMED,
        write(Reg.LVT_TIMER, TSC_DEADLINE | VECTOR),
        ARMED,
        wait(3),
        TAKE,
    )


@pytest.mark.parametrize("state", ["disabled by SVR", "disabled by IA32_APIC_BASE", "an x2APIC"])
def test_a_deadline_survives_a_change_of_its_apics_state(timed: TimedComparison, state: str) -> None:
    there, back = STATES[state]
    unmask = [write(Reg.LVT_TIMER, TSC_DEADLINE | VECTOR)]
    timed.check(*DEADLINES, _arm(8), *there, ARMED, wait(11), TAKE, ARMED, *back, *unmask, TAKE, ARMED)
    timed.check(*DEADLINES, *there, _arm(2), ARMED, wait(5), *back, *unmask, TAKE, ARMED)
