"""An s390 VM's state and its message are equal field by field; and any other message is refused, or makes a VM."""

from __future__ import annotations

import errno
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.s390.adapters import Adapter
from irqchipd.chips.s390.flic import SavedFlic
from irqchipd.chips.s390.floating import SavedFloating
from irqchipd.chips.s390.irq import External, Io, Irq, Kind, pack, short, word_of
from irqchipd.chips.s390.local import MAX_CPUS, SavedLocal
from irqchipd.chips.s390.pending import Pend
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError
from irqchipd.vm.routing import MAX_GSIS, S390Route
from irqchipd.vm.s390.cpu import SavedS390Vcpu
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.s390.saving import MAX_SAVED
from irqchipd.vm.snapshot import CLOCK_VIRTUAL, S390, S390State, VmState
from tests.service.test_snapshot_messages import sources
from tests.vm.s390.machine import Machine, io, refused
from tests.vm.s390.test_saving import saved

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
FLAG, DATA = st.booleans(), st.binary(max_size=80)


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3).map(tuple)


FLOATING = st.builds(SavedFloating, few(DATA), U64, U32, U64, U64)
ADAPTERS = st.builds(Adapter, U32, U32, FLAG, FLAG, FLAG, FLAG)
LOCALS = st.builds(SavedLocal, U64, FLAG, DATA, U32, U32, U32, DATA, DATA, DATA)
VCPUS = st.builds(
    SavedS390Vcpu,
    vcpu=U32,
    psw_mask=U64,
    cr0=U64,
    cr6=U64,
    cr14=U64,
    local=LOCALS,
    accepted=st.lists(DATA, max_size=1).map(tuple),
)
STATES = st.builds(
    S390State,
    can_create_irqchip=FLAG,
    irqchip=FLAG,
    user_controls=FLAG,
    device=FLAG,
    flic=st.builds(SavedFlic, FLOATING, few(ADAPTERS), FLAG, U32, U32, FLAG),
    vcpus=few(VCPUS),
)
ROUTES = st.builds(S390Route, U32, U64, U64, U64, U32, U32, U32)


def state_of(s390: S390State | None, routing: tuple[Any, ...] = ()) -> VmState:
    return VmState(
        architecture=S390,
        clock=CLOCK_VIRTUAL,
        now_ns=0,
        routing=routing,
        asserted_gsis=(),
        sources=(),
        s390=s390,
    )


@given(STATES, few(ROUTES))
def test_a_state_round_trips_through_its_message(s390: S390State, routes: tuple[S390Route, ...]) -> None:
    state = state_of(s390, routes)
    data = snapshot_to(state).SerializeToString()
    assert snapshot_from(pb.VmSnapshot.FromString(data)) == state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (S390State, pb.S390Snapshot),
        (SavedFlic, pb.FlicSnapshot),
        (SavedFloating, pb.FloatingSnapshot),
        (Adapter, pb.AdapterSnapshot),
        (SavedS390Vcpu, pb.S390VcpuSnapshot),
        (SavedLocal, pb.LocalSnapshot),
    ],
)
def test_every_field_of_a_message_is_used(state: Any, message: type[Message]) -> None:
    assert {field.name for field in fields(state)} == {field.name for field in message.DESCRIPTOR.fields}


@given(STATES, few(ROUTES))
def test_any_state_is_refused_or_makes_a_vm(s390: S390State, routes: tuple[S390Route, ...]) -> None:
    try_to_restore(state_of(s390, routes))


def try_to_restore(state: VmState) -> bool:
    vm = None
    number = 0
    try:
        vm = S390Vm.restored("restored", MAX_CPUS, state)
    except VmError as error:
        number = error.number
    if vm is None:
        assert number == errno.EINVAL
        return False
    for vcpu in vm.describe().vcpus:
        vm.get_irq_state(vcpu, 1 << 20)
        vm.set_mp_state(vcpu, 7)
        while (irq := vm.take_irq(vcpu)) is not None and irq.kind != Kind.SIGP_STOP:
            pass
    vm.reset()
    vm.save()
    return True


@settings(max_examples=300)
@given(st.integers(0, (1 << 32) - 1))
def test_a_changed_message_is_refused_or_makes_a_vm(seed: int) -> None:
    random = Random(seed)
    data = bytearray(snapshot_to(saved()).SerializeToString())
    for _ in range(random.randrange(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    try:
        state = snapshot_from(pb.VmSnapshot.FromString(bytes(data)))
    except (DecodeError, VmError):
        return
    if state.architecture == S390:
        try_to_restore(state)


def test_parts_that_are_absent_are_no_state() -> None:
    for message in (pb.S390Snapshot(), pb.S390Snapshot(vcpus=[pb.S390VcpuSnapshot()])):
        snapshot = snapshot_to(state_of(None))
        snapshot.s390.CopyFrom(message)
        made = try_to_restore(snapshot_from(snapshot))
        assert made == (not message.vcpus)


@pytest.mark.parametrize(
    ("client", "asserted", "resampled"),
    [
        ("x" * 8, b"\xff" * 4, 0),
        ("\U0001f600" * 64, b"", 0),
        ("x", b"\xff" * 512, 0),
        ("", b"", 24),
        ("x" * 8, b"\xff" * 512, 4096),
    ],
)
def test_the_largest_snapshot_fits_into_a_message(client: str, asserted: bytes, resampled: int) -> None:
    program = pack(Irq(Kind.PROGRAM))[:8].ljust(72, b"\xff")
    local = SavedLocal(
        1 << Pend.EMERGENCY, False, b"\xff" * 31 + b"\x7f", 0xFFFF, 0xFFFF_FFFF, 1, program, program, program
    )
    vcpus = tuple(
        SavedS390Vcpu(
            vcpu=vcpu,
            psw_mask=(1 << 64) - 1,
            cr0=(1 << 64) - 1,
            cr6=(1 << 64) - 1,
            cr14=(1 << 64) - 1,
            local=local,
            accepted=(bytes(72),),
        )
        for vcpu in range(MAX_CPUS)
    )
    virtio = short(Irq(Kind.VIRTIO, External(1, 1, 1)))
    floating = SavedFloating((virtio,) * MAX_SAVED, (1 << 64) - 1, (1 << 32) - 1, 1 << 28, (1 << 64) - 1)
    adapters = tuple(Adapter(number, 255, True, True, True, True) for number in range(64))
    s390 = S390State(
        can_create_irqchip=True,
        irqchip=True,
        user_controls=True,
        device=True,
        flic=SavedFlic(floating, adapters, True, 255, 255, True),
        vcpus=vcpus,
    )
    routes = tuple(
        S390Route(gsi, (1 << 64) - 1, (1 << 64) - 1, 4096 * 8 - 1, 4096 * 8 - 1, (1 << 32) - 1)
        for gsi in range(MAX_GSIS)
    )
    state = replace(
        state_of(s390, routes),
        now_ns=1 << 62,
        asserted_gsis=tuple(range(MAX_GSIS)),
        sources=sources(client, asserted, resampled),
    )
    assert (
        len(pb.RestoreVmRequest(vm="x" * 64, snapshot=snapshot_to(state)).SerializeToString()) < Limits().message_bytes
    )


def test_more_interrupts_than_a_snapshot_has_are_not_saved() -> None:
    machine = Machine()
    machine.enqueue(*[io(3)] * MAX_SAVED)
    machine.vm.save()
    machine.enqueue(Irq(5, Io(word=word_of(1))))
    assert refused(machine.vm.save) == errno.E2BIG
    machine.vm.set_device_attr(0, None, 3, 0, b"")
    machine.vm.save()
