"""One vCPU's own interrupts. Source: interrupt.c do_inject_vcpu and its functions; selftest resets.c."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.irq import IRQ_SIZE, External, Io, Irq, Kind, MachineCheck, Program, pack, unpack_all
from irqchipd.chips.s390.local import MAX_STATE, LocalInterrupts, SavedLocal
from irqchipd.chips.s390.pending import Pend
from irqchipd.chips.saved import StateError

CPUS = (0, 1, 3)
ROOM = MAX_STATE
BARE = [Irq(Kind.RESTART), Irq(Kind.CLOCK_COMPARATOR), Irq(Kind.CPU_TIMER)]


@pytest.fixture
def local() -> LocalInterrupts:
    return LocalInterrupts(CPUS)


def refusal(local: LocalInterrupts, irq: Irq) -> int:
    before = local.save()
    with pytest.raises(RefusedError) as refused:
        local.add(irq)
    assert local.save() == before
    return refused.value.number


@pytest.mark.parametrize("irq", [*BARE, Irq(Kind.PFAULT_INIT, External(1, 0, 2)), Irq(Kind.EXTERNAL_CALL, 3)])
def test_an_interrupt_is_pending_until_it_is_taken(local: LocalInterrupts, irq: Irq) -> None:
    local.add(irq)
    assert local.take(local.pending.bit_length() - 1) == irq
    assert local.pending == 0


def test_emergency_signals_pend_for_each_sender(local: LocalInterrupts) -> None:
    for sender in (3, 0, 3):
        local.add(Irq(Kind.EMERGENCY, sender))
    assert [local.take_emergency(), local.take_emergency()] == [Irq(Kind.EMERGENCY, 0), Irq(Kind.EMERGENCY, 3)]
    assert local.pending == 0


@pytest.mark.parametrize("kind", [Kind.EMERGENCY, Kind.EXTERNAL_CALL])
def test_a_sender_must_exist(local: LocalInterrupts, kind: int) -> None:
    assert refusal(local, Irq(kind, 2)) == errno.EINVAL


def test_one_external_call_pends(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.EXTERNAL_CALL, 1))
    assert refusal(local, Irq(Kind.EXTERNAL_CALL, 3)) == errno.EBUSY


def test_a_prefix_is_set_while_the_vcpu_is_stopped(local: LocalInterrupts) -> None:
    assert refusal(local, Irq(Kind.SET_PREFIX, 0x4000)) == errno.EBUSY
    local.stopped = True
    local.add(Irq(Kind.SET_PREFIX, 0x4000))
    assert local.take(Pend.SET_PREFIX) == Irq(Kind.SET_PREFIX, 0x4000)


def test_one_stop_pends(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.SIGP_STOP, 1))
    assert refusal(local, Irq(Kind.SIGP_STOP, 0)) == errno.EBUSY
    assert local.take(Pend.SIGP_STOP) == Irq(Kind.SIGP_STOP, 1)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stop_has_one_flag(local: LocalInterrupts, stopped: bool) -> None:
    local.stopped = stopped
    assert refusal(local, Irq(Kind.SIGP_STOP, 2)) == errno.EINVAL


def test_a_stop_ends_when_the_vcpu_has_stopped(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.SIGP_STOP, 1))
    local.clear_stop()
    assert local.pending == 0
    local.add(Irq(Kind.SIGP_STOP, 0))
    assert local.take(Pend.SIGP_STOP) == Irq(Kind.SIGP_STOP, 0)


def test_a_stopped_vcpu_does_not_stop_again(local: LocalInterrupts) -> None:
    local.stopped = True
    local.add(Irq(Kind.SIGP_STOP, 1))
    assert local.pending == 0


@pytest.mark.parametrize(
    "irq",
    [Irq(Kind.SERVICE, External()), Irq(Kind.VIRTIO, External()), Irq(5, Io()), Irq(Kind.PFAULT_DONE, External())],
)
def test_a_vms_interrupt_is_refused(local: LocalInterrupts, irq: Irq) -> None:
    assert refusal(local, irq) == errno.EINVAL


# Program interrupts.

PER = Program(code=0x80, flags=1, per_address=1, per_code=2, per_atmid=3, per_access_id=4)
DATA = Program(code=7, flags=5, trans_exc_code=9, mon_code=8, data_exc_code=7, mon_class_nr=6)


def test_a_per_event_joins_a_program_interrupt(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.PROGRAM, DATA))
    local.add(Irq(Kind.PROGRAM, PER))
    both = replace(DATA, code=0x87, flags=1, per_address=1, per_code=2, per_atmid=3, per_access_id=4)
    assert local.take(Pend.PROGRAM) == Irq(Kind.PROGRAM, both)


def test_a_program_interrupt_joins_a_per_event(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.PROGRAM, PER))
    local.add(Irq(Kind.PROGRAM, DATA))
    both = replace(DATA, code=0x87, per_address=1, per_code=2, per_atmid=3, per_access_id=4)
    assert local.take(Pend.PROGRAM) == Irq(Kind.PROGRAM, both)
    local.add(Irq(Kind.PROGRAM, DATA))
    assert local.take(Pend.PROGRAM) == Irq(Kind.PROGRAM, DATA)


def test_a_combined_one_replaces_both(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.PROGRAM, DATA))
    local.add(Irq(Kind.PROGRAM, replace(PER, code=0x81)))
    assert local.take(Pend.PROGRAM) == Irq(Kind.PROGRAM, replace(PER, code=0x81))


def test_an_unknown_instruction_length_becomes_0(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.PROGRAM, Program(code=1, flags=0x06)))
    assert local.take(Pend.PROGRAM) == Irq(Kind.PROGRAM, Program(code=1, flags=0x01))


# Machine checks.


@pytest.mark.parametrize(
    ("mcic", "pending"),
    [
        (1 << 63, 1 << Pend.EXIGENT),
        (1 << 62 | 1 << 55, 1 << Pend.EXIGENT),
        (1 << 58, 1 << Pend.REPRESSIBLE),
        (1 << 56, 1 << Pend.REPRESSIBLE),
        (1 << 57, 0),
    ],
)
def test_a_machine_checks_code_says_its_kind(local: LocalInterrupts, mcic: int, pending: int) -> None:
    local.add(Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=mcic)))
    assert local.pending == pending


def test_machine_checks_are_combined(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.MACHINE_CHECK, MachineCheck(1, 1 << 57, 2, 1, b"a" * 16)))
    local.add(Irq(Kind.MACHINE_CHECK, MachineCheck(2, 1 << 55, 3, 2, b"b" * 16)))
    assert local.cr14 == 3
    assert local.take_machine_check() == MachineCheck(3, 1 << 57 | 1 << 55, 3, 3, b"b" * 16)
    assert (local.take_machine_check(), local.cr14) == (MachineCheck(), 0)


# KVM_S390_GET_IRQ_STATE and KVM_S390_SET_IRQ_STATE.


def test_the_state_is_in_kvms_order(local: LocalInterrupts) -> None:
    local.stopped = True
    # Ascending priority, and emergency signals last.
    irqs = [
        Irq(Kind.SET_PREFIX, 0x2000),
        Irq(Kind.RESTART),
        Irq(Kind.PFAULT_INIT, External(0, 0, 1)),
        Irq(Kind.CPU_TIMER),
        Irq(Kind.CLOCK_COMPARATOR),
        Irq(Kind.EXTERNAL_CALL, 3),
        Irq(Kind.PROGRAM, DATA),
        Irq(Kind.MACHINE_CHECK, MachineCheck(mcic=1 << 63)),
        Irq(Kind.EMERGENCY, 0),
        Irq(Kind.EMERGENCY, 3),
    ]
    for irq in reversed(irqs):
        local.add(irq)
    data = local.state(ROOM)
    assert unpack_all(data) == irqs
    other = LocalInterrupts(CPUS)
    other.stopped = True
    other.set_state(data)
    assert other.save() == local.save()


def test_a_buffer_may_be_too_small(local: LocalInterrupts) -> None:
    for sender in CPUS:
        local.add(Irq(Kind.EMERGENCY, sender))
    assert len(local.state(3 * IRQ_SIZE)) == 3 * IRQ_SIZE
    for length, number in (
        (3 * IRQ_SIZE - 1, errno.ENOBUFS),
        (1, errno.ENOBUFS),
        (0, errno.EINVAL),
        (-1, errno.EINVAL),
    ):
        with pytest.raises(RefusedError) as refused:
            local.state(length)
        assert refused.value.number == number
    local.clear()
    assert local.state(1) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(71),
        bytes(MAX_STATE + IRQ_SIZE),
        pack(Irq(Kind.EMERGENCY, 0)) + pack(Irq(Kind.EMERGENCY, 2)),
        pack(Irq(Kind.EMERGENCY, 0)) + pack(Irq(Kind.VIRTIO, External())),
        pack(Irq(Kind.EMERGENCY, 0)) + b"\xff" * IRQ_SIZE,
    ],
)
def test_a_wrong_state_changes_nothing(local: LocalInterrupts, data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        local.set_state(data)
    assert refused.value.number == errno.EINVAL
    assert local.pending == 0


def test_a_state_is_not_added_to_another(local: LocalInterrupts) -> None:
    local.add(Irq(Kind.RESTART))
    with pytest.raises(RefusedError) as refused:
        local.set_state(pack(Irq(Kind.EMERGENCY, 0)))
    assert refused.value.number == errno.EBUSY


def test_a_reset_clears_what_is_pending(local: LocalInterrupts) -> None:
    # Selftest resets.c: an emergency signal is gone after each reset.
    local.set_state(pack(Irq(Kind.EMERGENCY, 3)))
    local.clear()
    assert (local.state(ROOM), local.pending) == (b"", 0)


# Snapshots.

SAVED = SavedLocal(
    1 << Pend.EMERGENCY | 1 << Pend.PROGRAM,
    False,
    b"\x09",
    3,
    5,
    1,
    pack(Irq(Kind.PROGRAM, DATA)),
    pack(Irq(Kind.PFAULT_INIT, External(1, 2, 3))),
    pack(Irq(Kind.MACHINE_CHECK, MachineCheck(1))),
)


def test_what_is_saved_resumes(local: LocalInterrupts) -> None:
    local.check(SAVED)
    local.resume(SAVED)
    assert local.save() == SAVED
    assert unpack_all(local.state(ROOM)) == [Irq(Kind.PROGRAM, DATA), Irq(Kind.EMERGENCY, 0), Irq(Kind.EMERGENCY, 3)]


@pytest.mark.parametrize(
    "saved",
    [
        replace(SAVED, pending=1 << Pend.VIRTIO),
        replace(SAVED, pending=0),
        replace(SAVED, emergencies=b""),
        replace(SAVED, emergencies=b"\x09" + bytes(30) + b"\x80"),
        replace(SAVED, caller=0x1_0000),
        replace(SAVED, prefix=1 << 32),
        replace(SAVED, stop_flags=2),
        replace(SAVED, program=b""),
        replace(SAVED, program=SAVED.pfault),
        replace(SAVED, pfault=SAVED.pfault + b"\0"),
        replace(SAVED, stopped=True, pending=SAVED.pending | 1 << Pend.SIGP_STOP),
    ],
)
def test_what_cannot_be_is_not_resumed(local: LocalInterrupts, saved: SavedLocal) -> None:
    with pytest.raises(StateError):
        local.check(saved)
