"""The SDK's results, made from the contract's messages."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import InvalidArgument, IrqchipMode, SessionInfo, VmInfo, VmSnapshot


def test_vm_info_has_all_that_a_vmm_asks_for() -> None:
    message = pb.VmInfo(
        name="demo",
        irqchip=True,
        vcpus=[1, 0],
        sessions=[pb.SessionInfo(client="uart", source=1, asserted_gsis=[4], detached=True)],
        asserted_gsis=[9],
        irqchip_mode=pb.IRQCHIP_MODE_FULL,
        pit=True,
        asynchronous_interrupts=True,
        halt_in_kernel=True,
        clock=pb.CLOCK_KIND_VIRTUAL,
        now_ns=5,
        next_timer_ns=0,
        tsc_khz=2_000_000,
    )
    info = VmInfo.from_proto(message)
    assert info == VmInfo(
        "demo",
        irqchip=True,
        vcpus=(1, 0),
        sessions=(SessionInfo("uart", 1, (4,), 0, detached=True),),
        asserted_gsis=(9,),
        irqchip_mode=IrqchipMode.FULL,
        pit=True,
        asynchronous_interrupts=True,
        halt_in_kernel=True,
        virtual=True,
        next_timer_ns=0,
        tsc_khz=2_000_000,
    )
    assert info.now_ns == 5  # Equality ignores it: a running VM's time differs in every VmInfo.


@pytest.mark.parametrize(
    ("message", "mode"),
    [
        (pb.VmInfo(irqchip_mode=pb.IRQCHIP_MODE_NONE), IrqchipMode.NONE),
        (pb.VmInfo(irqchip=True, irqchip_mode=pb.IRQCHIP_MODE_SPLIT), IrqchipMode.SPLIT),
        (pb.VmInfo(irqchip=True), IrqchipMode.FULL),  # A daemon without modes.
        (pb.VmInfo(), IrqchipMode.NONE),
    ],
)
def test_a_vms_irqchip_is_full_split_or_none(message: pb.VmInfo, mode: IrqchipMode) -> None:
    info = VmInfo.from_proto(message)
    assert info.irqchip_mode is mode
    assert info.next_timer_ns is None
    assert not info.virtual


def test_a_snapshot_is_its_bytes() -> None:
    message = pb.VmSnapshot(version=2, now_ns=5, chips=pb.ChipsSnapshot(rtc_vectors={3: 1, 1: 2, 2: 3}))
    snapshot = VmSnapshot.from_proto(message)
    again = VmSnapshot.from_bytes(snapshot.to_bytes())
    assert again == snapshot
    assert hash(again) == hash(snapshot)
    assert again.to_proto() == message
    assert snapshot != VmSnapshot.from_proto(pb.VmSnapshot(version=2, now_ns=6))
    assert len(repr(snapshot)) < 100


def test_a_snapshot_of_a_newer_daemon_survives() -> None:
    newer = pb.VmSnapshot(version=3).SerializeToString() + b"\xfa\x3e\x03new"  # A field unknown to this version.
    assert VmSnapshot.from_bytes(newer).to_bytes() == newer


@given(st.binary(max_size=64))
def test_any_bytes_are_a_snapshot_or_refused(data: bytes) -> None:
    with suppress(InvalidArgument):
        assert VmSnapshot.from_bytes(data).to_proto().version


@pytest.mark.parametrize("data", [b"", b"\x08", b"nonsense", pb.VmSnapshot(now_ns=5).SerializeToString()])
def test_bytes_without_a_version_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match=f"these {len(data)} bytes are no snapshot of a VM"):
        VmSnapshot.from_bytes(data)
