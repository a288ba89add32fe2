"""Run states, signals, and the halt: it ends with what the vCPU takes next, and nothing is lost."""

from __future__ import annotations

import threading
from dataclasses import replace
from queue import SimpleQueue

import pytest

from irqchipd.chips.i8259 import I8259
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import DFR_FLAT, LVT_MASKED, Reg
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import VcpuSignal
from irqchipd.vm.vcpu_state import MpState, Outcome, Signal
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from irqchipd.vm.x86.vcpu_state import MP_STATES
from tests.vm.pc import EOI, LEVEL, PRIMARY, SECONDARY, Ear, Pc, refused, to
from tests.waiting import PATIENCE

MS = 1_000_000
NMI, SMI, INIT = Signal(DeliveryMode.NMI), Signal(DeliveryMode.SMI), Signal(DeliveryMode.INIT)
TO_SELF, TO_ALL, TO_OTHERS = 1 << 18, 2 << 18, 3 << 18
AUTO_EOI = 0x03  # ICW4
IPI_NMI, IPI_SMI, IPI_INIT, IPI_STARTUP = 0x4400, 0x4200, 0x4500, 0x4600


def sipi(page: int) -> Signal:
    return Signal(DeliveryMode.STARTUP, page)


class Hlt:
    """A halt and its outcome."""

    def __init__(self, pc: Pc, vcpu: int = 0, *, interrupts_masked: bool = False, timeout_ns: int = 0) -> None:
        self._vm = pc.vm
        self.outcomes: list[Outcome] = []
        self.halt: Halt = pc.vm.halt(vcpu, self.outcomes.append, interrupts_masked, timeout_ns)

    @property
    def waits(self) -> bool:
        return not self.outcomes

    @property
    def outcome(self) -> Outcome:
        """The outcome; the halt must have ended exactly once."""
        (outcome,) = self.outcomes
        return outcome

    def abandon(self) -> None:
        self._vm.abandon(self.halt)


@pytest.fixture
def pc() -> Pc:
    """A PC with two running vCPUs, a PIT, and PICs with nothing masked."""
    pc = Pc(2, pit=True)
    pc.start(1)
    pc.initialise_pics()
    return pc


def state(pc: Pc, vcpu: int) -> int:
    return pc.vm.get_mp_state(vcpu)


# What ends a halt.


def test_a_pending_interrupt_ends_it_at_once(pc: Pc) -> None:
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    assert hlt.outcome == (0x31, False)
    assert state(pc, 0) == MpState.RUNNABLE
    assert pc.take() is None
    pc.eoi()
    assert Hlt(pc).waits


def test_the_highest_pending_interrupt_is_taken_and_the_pics_before_it(pc: Pc) -> None:
    pc.msi(0, 0x31)
    pc.msi(0, 0x41)
    pc.line(1, 1)
    assert [Hlt(pc).outcome for _ in range(2)] == [(PRIMARY + 1, True), (0x41, False)]
    hlt = Hlt(pc)
    assert hlt.waits  # 31h is below 41h, which is in service
    pc.eoi()
    assert hlt.outcome == (0x31, False)


def test_it_waits_and_the_vcpu_is_halted(pc: Pc) -> None:
    hlt = Hlt(pc, 1)
    assert hlt.waits
    assert (state(pc, 0), state(pc, 1)) == (MpState.RUNNABLE, MpState.HALTED)
    pc.msi(1, 0x31)
    assert hlt.outcome == (0x31, False)
    assert state(pc, 1) == MpState.RUNNABLE
    pc.eoi(1)
    pc.msi(1, 0x31)
    assert hlt.outcomes == [(0x31, False)]
    assert pc.take(1) == 0x31


def test_an_msi_ends_it(pc: Pc) -> None:
    hlt = Hlt(pc)
    pc.msi(1, 0x31)
    assert hlt.waits
    pc.msi(0, 0x41)
    assert hlt.outcome == (0x41, False)


@pytest.mark.parametrize("trigger", [0, LEVEL])
def test_a_line_ends_it(pc: Pc, trigger: int) -> None:
    pc.program(16, to(1) | trigger | 0x31)
    hlts = Hlt(pc, 0), Hlt(pc, 1)
    pc.line(16, 1)
    assert hlts[0].waits
    assert hlts[1].outcome == (0x31, False)


def test_a_level_that_is_still_high_at_its_eoi_ends_it(pc: Pc) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert Hlt(pc).outcome == (0x31, False)
    hlt = Hlt(pc)
    assert hlt.waits
    pc.eoi()
    assert hlt.outcome == (0x31, False)


def test_a_halt_that_ends_is_an_entry_into_the_guest(pc: Pc) -> None:
    """At an entry the vCPU learns which EOIs to report."""
    pc.program(16, LEVEL | to(1) | 0x31)
    hlt = Hlt(pc, 1)
    assert pc.vm.save().vcpus[1].scan
    pc.line(16, 1)
    assert hlt.outcome == (0x31, False)
    assert not pc.vm.save().vcpus[1].scan
    pc.line(16, 0)
    pc.eoi(1)
    pc.line(16, 1)
    assert Hlt(pc, 1).outcome == (0x31, False)


@pytest.mark.parametrize(
    ("gsi", "vector"), [(1, PRIMARY + 1), (9, SECONDARY + 1)], ids=["the primary", "the secondary"]
)
def test_the_pic_ends_it(pc: Pc, gsi: int, vector: int) -> None:
    hlts = Hlt(pc, 0), Hlt(pc, 1)
    pc.line(gsi, 1)
    assert hlts[0].outcome == (vector, True)
    assert hlts[1].waits


def test_a_pic_that_interrupts_two_vcpus_ends_one_s(pc: Pc) -> None:
    pc.lapic_write(1, Reg.LVT_LINT0, 0x700)
    hlts = Hlt(pc, 0), Hlt(pc, 1)
    pc.line(1, 1)
    assert (hlts[0].outcome, hlts[1].waits) == ((PRIMARY + 1, True), True)
    pc.line(3, 1, 0)
    assert hlts[1].waits  # IRQ 3 is below IRQ 1
    pc.out(0x20, EOI)
    assert hlts[1].outcome == (PRIMARY + 3, True)


@pytest.mark.parametrize("shorthand", [0, TO_OTHERS])
def test_an_ipi_ends_it(pc: Pc, shorthand: int) -> None:
    hlt = Hlt(pc, 1)
    pc.ipi(0, 0x4000 | shorthand | 0x51, destination=1)
    assert hlt.outcome == (0x51, False)


def test_timers_end_it(pc: Pc) -> None:
    hlts = Hlt(pc, 0), Hlt(pc, 1)
    pc.count_pit(1193)
    pc.count_apic(1, 0x31, MS)
    pc.vm.advance(999_846)
    assert hlts[0].waits
    pc.vm.advance(1)
    assert (hlts[0].outcome, hlts[1].waits) == ((PRIMARY, True), True)
    pc.vm.advance(MS)
    assert hlts[1].outcome == (0x31, False)


def test_a_waiting_tick_comes_when_a_halt_acknowledges_the_last_one() -> None:
    pc = Pc(pit=True)
    pc.initialise_pics(icw4=AUTO_EOI)
    pc.count_pit(1193)
    hlt = Hlt(pc)
    pc.vm.advance(999_847)
    assert hlt.outcome == (PRIMARY, True)
    assert pc.take() is None
    pc.out(0x21, 0x01)
    pc.vm.advance(3 * 999_847)
    hlt = Hlt(pc)
    pc.vm.set_irqchip(ChipId.PIC_PRIMARY, replace(primary(pc), imr=0))  # this forgets no tick
    assert hlt.outcome == (PRIMARY, True)
    assert [pc.take() for _ in range(3)] == [PRIMARY, PRIMARY, None]


def primary(pc: Pc) -> I8259:
    state = pc.vm.get_irqchip(ChipId.PIC_PRIMARY)
    assert isinstance(state, I8259)
    return state


def test_a_guests_other_actions_can_end_it(pc: Pc) -> None:
    """The actions are: lowering the task priority, unmasking a line, restoring a state."""
    pc.lapic_write(0, Reg.TPR, 0x40)
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    assert hlt.waits
    pc.lapic_write(0, Reg.TPR, 0)
    assert hlt.outcome == (0x31, False)
    saved = pc.vm.get_lapic(0)
    pc.eoi()
    pc.out(0x21, 0xFF)
    pc.line(1, 1, 0)
    hlt = Hlt(pc)
    assert hlt.waits
    pc.out(0x21, 0x00)
    assert hlt.outcome == (PRIMARY + 1, True)
    hlt = Hlt(pc)
    saved.irr, saved.isr = 1 << 0x61, 0
    pc.vm.set_lapic(0, saved)
    assert hlt.outcome == (0x61, False)


def test_a_vcpu_with_a_disabled_local_apic_gets_the_pics_interrupts() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.lapic_write(0, Reg.LVT_LINT0, LVT_MASKED)
    hlt = Hlt(pc)
    pc.line(1, 1)
    assert hlt.waits
    assert pc.vm.msr_write(0, Msr.APIC_BASE, 0xFEE0_0100) == 0
    assert hlt.outcome == (PRIMARY + 1, True)


@pytest.mark.parametrize(("low", "signal"), [(IPI_NMI, NMI), (IPI_SMI, SMI), (IPI_INIT, INIT)])
@pytest.mark.parametrize("masked", [False, True])
def test_signals_end_it_whether_interrupts_are_masked_or_not(pc: Pc, low: int, signal: Signal, masked: bool) -> None:
    hlt = Hlt(pc, 1, interrupts_masked=masked)
    pc.ipi(0, low, destination=1)
    assert hlt.outcome == signal
    assert state(pc, 1) == (MpState.INIT_RECEIVED if signal == INIT else MpState.RUNNABLE)
    assert pc.vm.take_signal(1) is None


def test_masked_interrupts_wait_for_the_next_halt(pc: Pc) -> None:
    hlt = Hlt(pc, interrupts_masked=True)
    pc.msi(0, 0x31)
    pc.line(1, 1)
    pc.count_apic(0, 0x41, 10)
    pc.vm.advance(10)
    assert hlt.waits
    pc.vm.nmi(0)
    assert hlt.outcome == NMI
    assert [Hlt(pc).outcome for _ in range(2)] == [(PRIMARY + 1, True), (0x41, False)]


def test_a_signal_comes_before_an_interrupt(pc: Pc) -> None:
    pc.msi(0, 0x31)
    pc.vm.nmi(0)
    assert [Hlt(pc).outcome for _ in range(2)] == [NMI, (0x31, False)]


def test_a_self_ipi_ends_a_halt_of_another_thread(pc: Pc) -> None:
    hlt = Hlt(pc)
    pc.ipi(0, TO_SELF | 0x4000 | 0x31)
    assert hlt.outcome == (0x31, False)


def test_the_end_of_a_halt_may_start_the_next(pc: Pc) -> None:
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) < 3:
            pc.eoi()
            pc.vm.halt(0, done)

    pc.msi(0, 0x41)
    pc.msi(0, 0x31)
    pc.vm.halt(0, done)
    assert outcomes == [(0x41, False), (0x31, False)]
    pc.msi(0, 0x51)
    assert outcomes == [(0x41, False), (0x31, False), (0x51, False)]


def test_a_timeout_ends_it_with_nothing_taken(pc: Pc) -> None:
    hlt = Hlt(pc, timeout_ns=5 * MS)
    pc.deadlines.move(5 * MS - 1)
    assert hlt.waits
    pc.deadlines.move(1)
    assert hlt.outcome is None
    assert state(pc, 0) == MpState.HALTED
    pc.msi(0, 0x31)
    assert pc.take() == 0x31
    assert state(pc, 0) == MpState.RUNNABLE
    assert hlt.outcomes == [None]


@pytest.mark.parametrize("pending", [True, False])
def test_an_ended_halt_does_not_time_out(pc: Pc, pending: bool) -> None:
    if pending:
        pc.msi(0, 0x31)
    first = Hlt(pc, timeout_ns=10 * MS)
    if not pending:
        pc.msi(0, 0x31)
    second = Hlt(pc)
    pc.deadlines.move(30 * MS)
    assert (first.outcomes, second.outcomes) == ([(0x31, False)], [])


def test_timeouts_leave_nothing_behind(pc: Pc) -> None:
    for _ in range(100):
        Hlt(pc, timeout_ns=3600 * 1000 * MS).abandon()
        hlt = Hlt(pc, timeout_ns=3600 * 1000 * MS)
        pc.vm.nmi(0)
        assert hlt.outcome == NMI
    assert pc.deadlines.alarms.earliest() is None


# vCPUs that may halt.


def test_a_vcpu_has_one_halt_at_a_time(pc: Pc) -> None:
    hlt = Hlt(pc)
    with refused("EBUSY"):
        pc.vm.halt(0, hlt.outcomes.append)
    assert Hlt(pc, 1).waits
    pc.msi(0, 0x31)
    assert hlt.outcome == (0x31, False)
    assert Hlt(pc).waits


def test_vcpus_that_cannot_halt() -> None:
    outcomes: list[Outcome] = []
    vm = X86Vm("bare")
    with refused("ENOENT"):
        vm.halt(0, outcomes.append)
    vm.create_vcpu(0)
    for operation in (lambda: vm.halt(0, outcomes.append), lambda: vm.nmi(0), lambda: vm.take_signal(0)):
        with refused("ENXIO"):
            operation()
    vm.delete()
    with refused("ENOENT"):
        vm.halt(0, outcomes.append)
    assert outcomes == []


def test_deleting_the_vm_ends_all(pc: Pc) -> None:
    hlts = Hlt(pc, 0), Hlt(pc, 1, timeout_ns=5 * MS)
    pc.vm.delete()
    for hlt in hlts:
        assert isinstance(hlt.outcome, VmError)
        assert hlt.outcome.reason == "ENOENT"
        hlt.abandon()
    pc.deadlines.move(20 * MS)
    assert [len(hlt.outcomes) for hlt in hlts] == [1, 1]


# Abandoned.


def test_an_abandoned_halt_takes_nothing(pc: Pc) -> None:
    hlt = Hlt(pc, timeout_ns=5 * MS)
    hlt.abandon()
    pc.msi(0, 0x31)
    pc.deadlines.move(20 * MS)
    assert hlt.outcomes == []
    assert Hlt(pc).outcome == (0x31, False)


def test_an_abandoned_halt_s_vcpu_can_halt_again_and_is_still_halted(pc: Pc) -> None:
    Hlt(pc).abandon()
    assert state(pc, 0) == MpState.HALTED
    hlt = Hlt(pc)
    pc.msi(0, 0x31)
    assert hlt.outcome == (0x31, False)


def take_any(pc: Pc, vcpu: int) -> Outcome:
    """A vCPU's next interrupt or signal, taken without a halt that waits."""
    return pc.vm.take_signal(vcpu) or pc.vm.ack_interrupt(vcpu)


@pytest.mark.parametrize("again", [False, True], ids=["by asking", "by halting"])
@pytest.mark.parametrize("what", ["msi", "pic", "nmi", "smi", "init", "sipi"])
def test_what_an_abandoned_halt_took_is_taken_next(pc: Pc, what: str, again: bool) -> None:
    vcpu = 0
    match what:
        case "msi":
            pc.msi(0, 0x31)
        case "pic":
            pc.line(1, 1)
        case "nmi":
            pc.vm.nmi(0)
        case "smi":
            pc.ipi(1, IPI_SMI, destination=0)
        case "init":
            pc.ipi(1, IPI_INIT, destination=0)
        case "sipi":
            vcpu = 1
            pc.vm.set_mp_state(1, MpState.INIT_RECEIVED)
            pc.ipi(0, IPI_STARTUP | 0x9A, destination=1)
    hlt = Hlt(pc, vcpu)
    outcome = hlt.outcome
    assert (
        outcome
        == {
            "msi": (0x31, False),
            "pic": (PRIMARY + 1, True),
            "nmi": NMI,
            "smi": SMI,
            "init": INIT,
            "sipi": sipi(0x9A),
        }[what]
    )
    assert take_any(pc, vcpu) is None
    hlt.abandon()
    hlt.abandon()  # nothing is given back twice
    assert (Hlt(pc, vcpu).outcome if again else take_any(pc, vcpu)) == outcome
    assert take_any(pc, vcpu) is None


def test_what_is_given_back_ends_a_later_halt(pc: Pc) -> None:
    pc.msi(0, 0x31)
    first, second = Hlt(pc), Hlt(pc)
    assert second.waits
    first.abandon()
    assert second.outcome == (0x31, False)


def test_listeners_are_notified_of_what_is_given_back(pc: Pc) -> None:
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    ear = Ear(pc.vm, [0])
    assert ear.heard() == []
    hlt.abandon()
    assert [type(event).__name__ for event in ear.heard()] == ["InterruptPending"]


def test_listeners_are_notified_of_what_is_left_behind_what_was_given_back(pc: Pc) -> None:
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    pc.msi(0, 0x41)
    hlt.abandon()
    ear = Ear(pc.vm, [0])
    assert len(ear.heard()) == 1
    assert pc.take() == 0x31
    assert [type(event).__name__ for event in ear.heard()] == ["InterruptPending"]


def test_what_is_given_back_comes_before_a_higher_vector_and_stays_in_service(pc: Pc) -> None:
    """The local APIC and the PIC consider it acknowledged."""
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    pc.msi(0, 0x41)
    hlt.abandon()
    assert pc.vm.ack_interrupt(0, lapic=False) is None  # it came from the local APIC
    assert [pc.take() for _ in range(3)] == [0x31, 0x41, None]
    assert pc.vm.get_lapic(0).isr == 1 << 0x31 | 1 << 0x41


def test_halts_in_a_row_that_are_all_abandoned_give_everything_back(pc: Pc) -> None:
    """This is the case at the end of a Session that had sent several batches."""
    for vector in (0x31, 0x41, 0x51):
        pc.msi(0, vector)
        pc.vm.nmi(0)
    hlts = [Hlt(pc) for _ in range(2)]  # at most two NMIs are pending
    pc.vm.nmi(0)
    for hlt in hlts:
        assert hlt.outcome == NMI
        hlt.abandon()
    assert [Hlt(pc).outcome for _ in range(2)] == [NMI, NMI]


def test_interrupts_of_halts_in_a_row_that_are_all_abandoned_are_all_given_back(pc: Pc) -> None:
    hlts = []
    for vector in (0x31, 0x41):
        pc.msi(0, vector)
        hlts.append(Hlt(pc))
    assert [hlt.outcome for hlt in hlts] == [(0x31, False), (0x41, False)]
    for hlt in hlts:
        hlt.abandon()
    assert sorted(vector for vector in (pc.take(), pc.take()) if vector is not None) == [0x31, 0x41]


def test_a_halt_that_timed_out_gives_nothing_back(pc: Pc) -> None:
    hlt = Hlt(pc, timeout_ns=1)
    pc.deadlines.move(1)
    assert hlt.outcome is None
    hlt.abandon()
    assert take_any(pc, 0) is None


def test_nothing_is_given_back_to_a_vcpu_that_was_reset_since(pc: Pc) -> None:
    pc.msi(0, 0x31)
    hlt = Hlt(pc)
    pc.vm.reset()
    hlt.abandon()
    assert take_any(pc, 0) is None


@pytest.mark.parametrize("what", ["msi", "nmi", "sipi"])
def test_nothing_is_given_back_to_a_vcpu_that_was_sent_init_since(pc: Pc, what: str) -> None:
    match what:
        case "msi":
            pc.msi(1, 0x31)
        case "nmi":
            pc.vm.nmi(1)
        case _:
            pc.vm.set_mp_state(1, MpState.SIPI_RECEIVED)
    hlt = Hlt(pc, 1)
    assert not hlt.waits
    pc.ipi(0, IPI_INIT, destination=1)
    hlt.abandon()
    assert [take_any(pc, 1) for _ in range(2)] == [INIT, None]
    pc.ipi(0, IPI_STARTUP | 0x12, destination=1)
    assert [take_any(pc, 1) for _ in range(2)] == [sipi(0x12), None]


# Run states.


def test_the_boot_cpu_runs_and_the_others_wait_to_be_started() -> None:
    pc = Pc(3)
    assert [state(pc, vcpu) for vcpu in range(3)] == [
        MpState.RUNNABLE,
        MpState.UNINITIALIZED,
        MpState.UNINITIALIZED,
    ]


def test_without_a_local_apic_all_run_and_can_do_nothing_else() -> None:
    vm = X86Vm("bare")
    for vcpu in (0, 1):
        vm.create_vcpu(vcpu)
        assert vm.get_mp_state(vcpu) == MpState.RUNNABLE
        vm.set_mp_state(vcpu, MpState.RUNNABLE)
        for other in set(MP_STATES) - {MpState.RUNNABLE}:
            with refused("EINVAL"):
                vm.set_mp_state(vcpu, other)


@pytest.mark.parametrize("other", [-1, 5, 10])
def test_an_invalid_run_state_is_refused(pc: Pc, other: int) -> None:
    with refused("EINVAL"):
        pc.vm.set_mp_state(0, other)
    for operation in (lambda: pc.vm.set_mp_state(7, 0), lambda: pc.vm.get_mp_state(7)):
        with refused("ENOENT"):
            operation()


@pytest.mark.parametrize("vcpu", [0, 1])
@pytest.mark.parametrize("before", set(MP_STATES) - {MpState.SIPI_RECEIVED})
@pytest.mark.parametrize("after", MP_STATES)
def test_any_run_state_can_be_set(pc: Pc, vcpu: int, before: MpState, after: MpState) -> None:
    pc.vm.set_mp_state(vcpu, before)
    assert state(pc, vcpu) == before
    pc.vm.set_mp_state(vcpu, after)
    if after == MpState.SIPI_RECEIVED:
        assert pc.vm.take_signal(vcpu) == sipi(0)
        after = MpState.RUNNABLE
    assert state(pc, vcpu) == after
    assert pc.vm.take_signal(vcpu) is None


WAITING = [MpState.UNINITIALIZED, MpState.INIT_RECEIVED]


@pytest.mark.parametrize("waiting", WAITING)
def test_a_vcpu_that_waits_to_be_started_takes_init_and_sipi_alone(pc: Pc, waiting: MpState) -> None:
    pc.vm.set_mp_state(1, waiting)
    hlt = Hlt(pc, 1)
    pc.msi(1, 0x31)
    pc.ipi(0, IPI_NMI, destination=1)
    pc.ipi(0, IPI_SMI, destination=1)
    assert hlt.waits
    assert state(pc, 1) == waiting
    assert pc.vm.take_signal(1) is None
    pc.ipi(0, IPI_INIT, destination=1)
    assert hlt.outcome == INIT
    assert state(pc, 1) == MpState.INIT_RECEIVED
    hlt = Hlt(pc, 1)
    assert hlt.waits  # signals pending before INIT are lost
    pc.ipi(0, IPI_STARTUP | 0x12, destination=1)
    assert hlt.outcome == sipi(0x12)
    assert state(pc, 1) == MpState.RUNNABLE
    assert Hlt(pc, 1).waits


def test_interrupts_pending_before_the_start_are_taken_once_it_runs(pc: Pc) -> None:
    pc.vm.set_mp_state(1, MpState.UNINITIALIZED)
    hlt = Hlt(pc, 1)
    pc.msi(1, 0x31)
    pc.vm.nmi(1)
    assert hlt.waits
    pc.vm.set_mp_state(1, MpState.RUNNABLE)
    assert hlt.outcome == NMI
    assert Hlt(pc, 1).outcome == (0x31, False)


@pytest.mark.parametrize("running", [MpState.RUNNABLE, MpState.HALTED, MpState.UNINITIALIZED])
def test_a_start_up_for_a_running_vcpu_is_ignored(pc: Pc, running: MpState) -> None:
    ear = Ear(pc.vm, [1])
    pc.vm.set_mp_state(1, running)
    hlt = Hlt(pc, 1)
    pc.ipi(0, IPI_STARTUP | 0x12, destination=1)
    assert hlt.waits
    assert ear.heard() == [VcpuSignal(1, DeliveryMode.STARTUP, 0x12, ignored=True)]
    assert state(pc, 1) == (MpState.HALTED if running == MpState.RUNNABLE else running)
    assert pc.vm.take_signal(1) is None


def test_the_second_start_up_of_the_customary_two_is_ignored(pc: Pc) -> None:
    ear = Ear(pc.vm, [1])
    pc.ipi(0, IPI_INIT, destination=1)
    for page in (0x12, 0x34):
        pc.ipi(0, IPI_STARTUP | page, destination=1)
    assert ear.heard() == [
        VcpuSignal(1, DeliveryMode.INIT, 0),
        VcpuSignal(1, DeliveryMode.STARTUP, 0x12),
        VcpuSignal(1, DeliveryMode.STARTUP, 0x34, ignored=True),
    ]
    assert [pc.vm.take_signal(1) for _ in range(3)] == [INIT, sipi(0x12), None]


def test_signals_are_taken_in_the_order_init_sipi_smi_nmi(pc: Pc) -> None:
    pc.ipi(0, IPI_INIT, destination=1)
    pc.ipi(0, IPI_NMI, destination=1)
    pc.ipi(0, IPI_SMI, destination=1)
    pc.ipi(0, IPI_STARTUP | 0x12, destination=1)
    pc.ipi(0, IPI_NMI, destination=1)
    assert [pc.vm.take_signal(1) for _ in range(6)] == [INIT, sipi(0x12), SMI, NMI, NMI, None]


def test_two_nmis_wait_at_most_and_one_smi(pc: Pc) -> None:
    for _ in range(5):
        pc.vm.nmi(0)
        pc.ipi(1, IPI_SMI, destination=0)
    assert [pc.vm.take_signal(0) for _ in range(4)] == [SMI, NMI, NMI, None]


@pytest.mark.parametrize("signal", [NMI, SMI])
def test_a_signal_that_is_taken_ends_the_halted_state_and_so_does_an_interrupt(pc: Pc, signal: Signal) -> None:
    pc.vm.set_mp_state(0, MpState.HALTED)
    pc.ipi(1, 0x4000 | signal.delivery_mode << 8, destination=0)
    assert state(pc, 0) == MpState.HALTED
    assert pc.vm.take_signal(0) == signal
    assert state(pc, 0) == MpState.RUNNABLE
    pc.vm.set_mp_state(0, MpState.HALTED)
    pc.msi(0, 0x31)
    assert state(pc, 0) == MpState.HALTED
    assert pc.take() == 0x31
    assert state(pc, 0) == MpState.RUNNABLE


# INIT and RESET.


def disturb(pc: Pc, vcpu: int) -> None:
    """Change all state of a vCPU, and leave an interrupt or signal of every kind pending."""
    pc.lapic_write(vcpu, Reg.TPR, 0x20)
    pc.lapic_write(vcpu, Reg.LDR, 0x0400_0000)
    pc.lapic_write(vcpu, Reg.DFR, 0)
    for register in (Reg.LVT_LINT0, Reg.LVT_LINT1, Reg.LVT_ERROR, Reg.LVT_THERMAL, Reg.LVT_PERFORMANCE):
        pc.lapic_write(vcpu, register, 0x61)
    pc.count_apic(vcpu, 0x71, MS, periodic=True)
    pc.msi(vcpu, 0x31)
    assert pc.take(vcpu) == 0x31
    for vector in (0x41, 0x51):
        pc.msi(vcpu, vector)
    hlt = Hlt(pc, vcpu)
    assert hlt.outcome == (0x51, False)
    hlt.abandon()
    pc.ipi(1 - vcpu, IPI_SMI, destination=vcpu)
    pc.vm.nmi(vcpu)


def assert_reset(pc: Pc, vcpu: int) -> None:
    """Check that a vCPU's local APIC is in its initial state, and that nothing is pending."""
    registers, fresh = pc.vm.get_lapic(vcpu), X86Vm("fresh")
    fresh.create_irqchip()
    fresh.create_vcpu(vcpu)
    assert registers == fresh.get_lapic(vcpu)
    assert registers.dfr == DFR_FLAT
    assert pc.vm.describe().next_timer is None
    pc.vm.advance(10 * MS)
    assert pc.vm.ack_interrupt(vcpu) is None


@pytest.mark.parametrize("vcpu", [0, 1])
def test_init_resets_the_local_apic_and_clears_pending_signals(pc: Pc, vcpu: int) -> None:
    disturb(pc, vcpu)
    pc.ipi(1 - vcpu, IPI_INIT, destination=vcpu)
    assert state(pc, vcpu) == (MpState.INIT_RECEIVED if vcpu else MpState.RUNNABLE)
    assert [pc.vm.take_signal(vcpu) for _ in range(2)] == [INIT, None]
    assert_reset(pc, vcpu)


def test_init_leaves_the_id_the_base_and_the_tsc(pc: Pc) -> None:
    pc.lapic_write(1, Reg.ID, 7 << 24)
    pc.vm.msr_write(1, Msr.TSC, 1 << 40)
    pc.vm.msr_write(1, Msr.APIC_BASE, 0xFEE1_0800)
    pc.ipi(0, IPI_INIT, destination=7)
    assert pc.vm.take_signal(1) == INIT
    assert pc.vm.mmio_read(1, 0xFEE1_0000 + Reg.ID, 4) == 7 << 24
    assert pc.vm.msr_read(1, Msr.TSC) == 1 << 40
    assert pc.vm.msr_read(1, Msr.APIC_BASE) == 0xFEE1_0800


def test_init_deassert_does_nothing(pc: Pc) -> None:
    pc.ipi(0, 0x8500, destination=1)
    assert pc.vm.take_signal(1) is None
    assert state(pc, 1) == MpState.RUNNABLE


def test_a_vcpu_that_sends_itself_init_has_finished_sending(pc: Pc) -> None:
    """Its local APIC is reset after the write that sent INIT is done, when all other destinations have got it too."""
    pc.ipi(1, TO_ALL | IPI_INIT)
    assert [pc.vm.take_signal(vcpu) for vcpu in (0, 1)] == [INIT, INIT]
    assert pc.lapic_read(1, Reg.ICR) == 0
    assert pc.lapic_read(1, Reg.SVR) == 0xFF
    assert [state(pc, vcpu) for vcpu in (0, 1)] == [MpState.RUNNABLE, MpState.INIT_RECEIVED]


def test_init_clears_a_pending_start_up(pc: Pc) -> None:
    pc.vm.set_mp_state(1, MpState.SIPI_RECEIVED)
    pc.ipi(0, IPI_INIT, destination=1)
    assert [pc.vm.take_signal(1) for _ in range(2)] == [INIT, None]


def test_a_reset_restores_everything_but_time_routes_and_lines(pc: Pc) -> None:
    for vcpu in (0, 1):
        disturb(pc, vcpu)
    pc.count_pit(1193)
    pc.vm.set_pit_reinject(False)
    pc.program(16, LEVEL | 0x31)
    source = pc.vm.open_source("device")
    pc.line(17, 1, source=source)
    pc.line(5, 1)
    pc.vm.set_routing([*pc.vm.routing()[:-1]])
    pc.vm.advance(100)
    before = pc.vm.describe()
    routes = pc.vm.routing()

    pc.vm.reset()

    after = pc.vm.describe()
    assert (after.now, after.sources, after.asserted) == (before.now, before.sources, before.asserted)
    assert pc.vm.routing() == routes
    assert [state(pc, vcpu) for vcpu in (0, 1)] == [MpState.RUNNABLE, MpState.UNINITIALIZED]
    assert [pc.vm.take_signal(vcpu) for vcpu in (0, 1)] == [None, None]
    fresh = Pc(2, pit=True)
    fresh.vm.advance(100)
    fresh.line(5, 1)
    fresh.line(17, 1)
    for chip in range(3):
        assert pc.vm.get_irqchip(chip) == fresh.vm.get_irqchip(chip)
    assert pc.vm.get_pit().channels[0] == fresh.vm.get_pit().channels[0]
    assert pc.take(0) == 5  # from an uninitialised PIC
    for vcpu in (0, 1):
        assert_reset(pc, vcpu)


def test_a_halt_survives_a_reset_and_ends_with_the_next_interrupt(pc: Pc) -> None:
    hlts = Hlt(pc, 0), Hlt(pc, 1)
    pc.vm.reset()
    assert all(hlt.waits for hlt in hlts)
    pc.ipi(0, IPI_INIT, destination=1)
    assert hlts[1].outcome == INIT
    pc.line(1, 1)
    assert hlts[0].outcome == (1, True)


def test_a_reset_ends_a_halt_where_a_line_is_high(pc: Pc) -> None:
    pc.out(0x21, 0xFF)
    pc.line(1, 1)
    hlt = Hlt(pc)
    assert hlt.waits
    pc.vm.reset()
    assert hlt.outcome == (1, True)


# Threads.


def test_a_halt_that_a_thread_waits_for_is_ended_by_another(pc: Pc) -> None:
    pc = Pc(real=True)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    for turn in range(50):
        pc.vm.halt(0, outcomes.put)
        threading.Thread(target=pc.msi, args=(0, 0x30 + turn)).start()
        assert outcomes.get(timeout=PATIENCE) == (0x30 + turn, False)
        pc.eoi()
