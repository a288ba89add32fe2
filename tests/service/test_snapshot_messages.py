"""A VM's state and its message are equal field by field, in both directions."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.gic.gicv2 import SavedGicV2
from irqchipd.chips.gic.gicv3 import SavedGicV3, SavedRedistributor
from irqchipd.chips.gic.saving import SavedGicCpu, SavedInterrupt, SavedListRegister
from irqchipd.chips.i8254_state import SavedPit
from irqchipd.edge.snapshot import snapshot_from, snapshot_to
from irqchipd.limits import Limits
from irqchipd.vm import snapshot as plain
from irqchipd.vm.arm64.states import Arm64State, Arm64VcpuState, ItsState, PlaceState, RegionState
from irqchipd.vm.arm64.timer import SavedTimer
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.notices import MAX_UNREPORTED
from irqchipd.vm.routing import MAX_GSIS, MsiRoute, PinRoute
from irqchipd.vm.saving import MAX_SOURCE
from irqchipd.vm.snapshot import X86, ChipsState, SourceState, VmState
from irqchipd.vm.sources import MAX_SOURCES, SOURCES_BYTES, bytes_of, reach_for
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET, MpState
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.saving import check_state
from irqchipd.vm.x86.vcpu_state import MAX_QUEUED, SavedVcpu

U32, U64, S32 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1), st.integers(-(1 << 31), (1 << 31) - 1)
FLAG, DATA = st.booleans(), st.binary(max_size=64)


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A short tuple."""
    return st.lists(values, max_size=3).map(tuple)


ROUTES = st.builds(PinRoute, U32, U32, U32, U32) | st.builds(MsiRoute, U32, U64, U32, U32)
CHIPS = st.builds(
    ChipsState,
    primary=DATA,
    secondary=DATA,
    output=FLAG,
    ioapic=DATA,
    irr_delivered=U32,
    rtc_vectors=st.dictionaries(U32, U32, max_size=3),
    rtc_pending_eoi=S32,
    successive_eois=few(U32),
    delayed_eoi_ns=st.none() | U64,
    sources=few(DATA),
)
PITS = st.builds(
    SavedPit,
    state=DATA,
    speaker=FLAG,
    reinject=FLAG,
    acknowledged=FLAG,
    pending=U64,
    period_ns=U64,
    periodic=FLAG,
    expires_ns=st.none() | U64,
    running=FLAG,
)
VCPUS = st.builds(
    SavedVcpu,
    vcpu=U32,
    mp_state=st.integers(1, 5),
    lapic=st.none() | DATA,
    apic_base=U64,
    tsc_offset=U64,
    timer_period_ns=U64,
    timer_target_ns=U64,
    tsc_deadline=U64,
    timer_expires_ns=st.none() | U64,
    handled=DATA,
    stale=S32,
    scan=FLAG,
    queued=st.lists(st.tuples(U32, FLAG), max_size=2).map(tuple),
    external_vector=st.none() | U32,
    nmis=U32,
    smi=FLAG,
    init=FLAG,
    sipi_vector=st.none() | U32,
    timer_pending=FLAG,
    nmi_watchdog=st.none() | FLAG,
    lacks_x2apic=FLAG,
    lacks_tsc_deadline=FLAG,
    lacks_tsc_adjust=FLAG,
    address_bits=U32,
    timer_mode=st.none() | U32,
    tsc_adjust=U64,
    last_sipi=U32,
    nmi_masked=FLAG,
    nmi_injected=FLAG,
    unhalted=FLAG,
)
SOURCES = st.builds(
    SourceState,
    source=U32,
    client=st.text(max_size=8),
    resampled_gsis=st.dictionaries(U32, U64, max_size=3),
    asserted=DATA,
)
ARM64_PARTS: dict[str, type[Any]] = {
    "Arm64Snapshot": Arm64State,
    "Arm64VcpuSnapshot": Arm64VcpuState,
    "TimerSnapshot": SavedTimer,
    "GicRegionSnapshot": RegionState,
    "GicPlaceSnapshot": PlaceState,
    "ItsSnapshot": ItsState,
    "GicV2Snapshot": SavedGicV2,
    "GicV3Snapshot": SavedGicV3,
    "RedistributorSnapshot": SavedRedistributor,
    "GicCpuSnapshot": SavedGicCpu,
    "GicInterruptSnapshot": SavedInterrupt,
    "GicListRegisterSnapshot": SavedListRegister,
}


def arm64_parts(name: str) -> st.SearchStrategy[Any]:
    """Any state of an arm64 message: its fields as the contract has them."""
    message = getattr(pb, name).DESCRIPTOR

    def values(field: Any) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            one = st.deferred(lambda: arm64_parts(field.message_type.name))
        elif field.enum_type is not None:
            one = st.sampled_from([value.number for value in field.enum_type.values if value.number])
        else:
            one = {field.TYPE_BOOL: FLAG, field.TYPE_UINT32: U32, field.TYPE_UINT64: U64}[field.type]
        if field.is_repeated:
            return st.lists(one, max_size=2).map(tuple)
        return st.none() | one if field.has_presence and name not in NEVER_ABSENT.get(field.name, ()) else one

    return st.builds(ARM64_PARTS[name], **{field.name: values(field) for field in message.fields})


# Messages that their state always has.
NEVER_ABSENT = {"virtual_timer": ("Arm64VcpuSnapshot",), "physical_timer": ("Arm64VcpuSnapshot",)}
STATES = st.builds(
    VmState,
    arm64=st.none() | arm64_parts("Arm64Snapshot"),
    architecture=st.integers(1, 3),
    clock=st.integers(1, 2),
    now_ns=U64,
    tsc_khz=U32,
    irqchip_mode=st.integers(1, 3),
    reserved_gsis=U32,
    routing=few(ROUTES),
    chips=st.none() | CHIPS,
    pit=st.none() | PITS,
    vcpus=few(VCPUS),
    mapped_vcpus=st.none() | U32,
    sources=few(SOURCES),
    asserted_gsis=few(U32),
    disabled_quirks=U64,
    boot_vcpu=U32,
    max_vcpu_ids=U32,
    x2apic_api=U32,
    apic_bus_ns=U64,
)

VCPU = SavedVcpu(
    vcpu=4095,
    mp_state=MP_STATE_OFFSET + MpState.HALTED,
    lapic=b"\xff" * 1024,
    apic_base=1 << 63,
    tsc_offset=(1 << 64) - 1,
    timer_period_ns=(1 << 64) - 1,
    timer_target_ns=1 << 62,
    tsc_deadline=(1 << 64) - 1,
    timer_expires_ns=1 << 62,
    handled=b"\xff" * 32,
    stale=255,
    scan=True,
    queued=((255, True),),
    external_vector=255,
    nmis=2,
    smi=True,
    init=True,
    sipi_vector=255,
    timer_pending=True,
    nmi_watchdog=True,
    lacks_x2apic=True,
    lacks_tsc_deadline=True,
    lacks_tsc_adjust=True,
    address_bits=52,
    timer_mode=3,
    tsc_adjust=(1 << 64) - 1,
    last_sipi=255,
    nmi_masked=True,
    nmi_injected=True,
    unhalted=True,
)
EMPTY = VmState(
    architecture=X86,
    clock=plain.CLOCK_REAL,
    now_ns=0,
    tsc_khz=1_000_000,
    irqchip_mode=plain.IRQCHIP_NONE,
    reserved_gsis=0,
    routing=(),
    chips=None,
    pit=None,
    vcpus=(),
    mapped_vcpus=None,
    sources=(),
    asserted_gsis=(),
)


@given(STATES)
def test_a_state_round_trips_through_its_message(state: VmState) -> None:
    data = snapshot_to(state).SerializeToString()
    assert snapshot_from(pb.VmSnapshot.FromString(data)) == state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (VmState, pb.VmSnapshot),
        (ChipsState, pb.ChipsSnapshot),
        (SavedPit, pb.PitSnapshot),
        (SavedVcpu, pb.VcpuSnapshot),
        (SourceState, pb.SourceSnapshot),
    ],
)
def test_every_field_of_a_message_is_used(state: Any, message: type[Message]) -> None:
    assert {field.name for field in fields(state)} == {
        field.name for field in message.DESCRIPTOR.fields if field.name != "version"
    }


def test_the_enums_of_a_state_have_the_contracts_numbers() -> None:
    assert (plain.CLOCK_REAL, plain.CLOCK_VIRTUAL) == (pb.CLOCK_KIND_REAL, pb.CLOCK_KIND_VIRTUAL)
    assert (plain.IRQCHIP_NONE, plain.IRQCHIP_FULL, plain.IRQCHIP_SPLIT) == (
        pb.IRQCHIP_MODE_NONE,
        pb.IRQCHIP_MODE_FULL,
        pb.IRQCHIP_MODE_SPLIT,
    )
    assert {f"MP_STATE_{state.name}": state + MP_STATE_OFFSET for state in MpState} == {
        name: number for name, number in pb.MpState.items() if number
    }


def test_absent_and_zero_are_distinguished() -> None:
    zero = replace(VCPU, queued=((0, False),), external_vector=0, sipi_vector=0, timer_expires_ns=0, lapic=b"")
    absent = replace(VCPU, queued=(), external_vector=None, sipi_vector=None, timer_expires_ns=None, lapic=None)
    state = replace(EMPTY, vcpus=(zero, absent), mapped_vcpus=0)
    assert snapshot_from(snapshot_to(state)) == state


VALID = snapshot_to(replace(EMPTY, vcpus=(VCPU,), routing=(PinRoute(1, 2, 1),)))


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("version", 0, "version 0"),
        ("version", 3, "takes version 2"),
        ("clock", 0, "ClockKind 0 is invalid; there are 1, 2"),
        ("clock", 3, "ClockKind 3"),
        ("irqchip_mode", 0, "IrqchipMode 0 is invalid; there are 1, 2, 3"),
        ("irqchip_mode", -1, "IrqchipMode -1"),
        ("vcpus.mp_state", 0, "MpState 0 is invalid; there are 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
        ("vcpus.mp_state", 12, "MpState 12"),
        ("vcpus.queued.source", 0, "1 the PIC, 2 the local APIC"),
        ("vcpus.queued.source", 3, "1 the PIC, 2 the local APIC"),
        ("routing.irqchip", None, "no destination"),
    ],
)
def test_a_value_that_no_state_can_hold_is_refused(path: str, value: int | None, hint: str) -> None:
    snapshot = pb.VmSnapshot.FromString(VALID.SerializeToString())
    part: Any = snapshot
    *parents, name = path.split(".")
    for parent in parents:
        part = getattr(part, parent)
        part = part[0] if parent in ("vcpus", "routing", "queued") else part
    if value is None:
        part.ClearField(name)
    else:
        setattr(part, name, value)
    with pytest.raises(VmError) as caught:
        snapshot_from(snapshot)
    assert caught.value.reason == "EINVAL"
    assert hint in caught.value.message


def sources(client: str, asserted: bytes, resampled: int) -> tuple[SourceState, ...]:
    """As many sources of one kind as a VM can have."""
    each = bytes_of(client, reach_for(8 * len(asserted) - 1), resampled)
    return tuple(
        SourceState(
            source=MAX_SOURCE - number,
            client=client,
            resampled_gsis={4095 - gsi: MAX_UNREPORTED for gsi in range(resampled)},
            asserted=asserted,
        )
        for number in range(min(SOURCES_BYTES // each, MAX_SOURCES))
    )


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
def test_the_largest_vm_fits_into_a_message(client: str, asserted: bytes, resampled: int) -> None:
    most = sources(client, asserted, resampled)
    vcpu = replace(VCPU, queued=((255, True),) * MAX_QUEUED)
    vm = X86Vm("largest")
    vm.create_irqchip()
    vm.create_pit()
    for number in range(MAX_VCPUS):
        vm.create_vcpu(number)
    empty = vm.save()
    assert empty.chips is not None
    largest = replace(
        empty,
        routing=tuple(MsiRoute(gsi, (1 << 64) - 1, (1 << 32) - 1, 1) for gsi in range(MAX_GSIS)),
        chips=replace(
            empty.chips,
            rtc_vectors=dict.fromkeys(range(MAX_VCPUS), 255),
            sources=(b"\xff" * (MAX_SOURCE // 8 + 1),) * len(empty.chips.sources),
        ),
        vcpus=(vcpu,) * MAX_VCPUS,
        sources=most,
        asserted_gsis=tuple(range(MAX_GSIS)),
        disabled_quirks=5,
        boot_vcpu=4095,
        max_vcpu_ids=4096,
        x2apic_api=3,
        apic_bus_ns=33_554_432,
    )
    request = pb.RestoreVmRequest(vm="x" * 64, snapshot=snapshot_to(largest))
    assert request.ByteSize() < Limits().message_bytes
    plain_state = snapshot_from(request.snapshot)
    assert plain_state == largest
    check_state(replace(empty, sources=most), MAX_VCPUS)
    with pytest.raises(VmError, match="sources"):
        check_state(replace(empty, sources=(*most, replace(most[0], source=1))), MAX_VCPUS)
