"""Whatever arrives over either edge, the daemon survives, logs no traceback, and another VM is not affected."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from random import Random

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip.port import SUFFIX
from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._daemon import Daemon, start_daemon
from tests.fuzz import campaign
from tests.fuzz.by_grpc import METHODS, UNARY, restoring
from tests.fuzz.machines import Machines
from tests.fuzz.messages import Messages
from tests.fuzz.mutation import mutate
from tests.fuzz.packets import packet

quick = settings(max_examples=150, derandomize=True, database=None)
seeds = st.integers(0, 2**32)


def test_thousands_of_almost_valid_messages_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "ROUND", 2000)
    outcome = campaign.run(1, 8000, print)
    assert outcome.findings == [], outcome.report.examples
    assert outcome.report.sent == 8000
    assert outcome.asked > 50


# With hypothesis, which minimises failures.


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon for these tests alone, because their messages create VMs."""
    with start_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def vms(daemon: Daemon) -> Iterator[list[str]]:
    """A VM of each kind."""
    machines = Machines(daemon.target, "fuzzed")
    machines.make("hypothesis")
    yield machines.names
    machines.delete()
    machines.close()


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    """A channel without the SDK, which would refuse to send bad input."""
    with grpc.insecure_channel(daemon.target) as channel:
        yield channel


def answer(channel: grpc.Channel, method: str, request: bytes) -> str:
    """A call's outcome."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        f"/irqchip.v1.IrqchipService/{method}", None, None
    )
    try:
        call(request, timeout=0.05 if method == "Halt" else 30)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@quick
@given(st.sampled_from(sorted(set(UNARY) - {"DeleteVm"})), st.binary(max_size=80))
def test_a_call_with_any_bytes_ends_with_a_proper_status(
    daemon: Daemon, channel: grpc.Channel, method: str, request: bytes
) -> None:
    assert answer(channel, method, request) not in ("UNKNOWN", "INTERNAL", "UNAVAILABLE")
    assert daemon.process.poll() is None


@quick
@given(st.lists(st.binary(min_size=1, max_size=80), max_size=8), st.booleans())
def test_a_connection_to_the_port_with_any_packets_is_answered_or_ended(
    daemon: Daemon, vms: list[str], packets: list[bytes], opened: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(30)
        client.connect(daemon.target.removeprefix("unix://") + SUFFIX)
        if opened:
            client.send(pb.SessionRequest(open=pb.SessionOpen(vm=vms[0])).SerializeToString())
        # This packet is answered unless an earlier one has ended the connection.
        batch = pb.SessionRequest(batch=pb.Batch(serial=1)).SerializeToString()
        received = b""
        try:
            for data in [*packets, batch]:
                client.send(data)
            while (received := client.recv(1 << 17)) and received != b"\x12\x02\x08\x01":
                assert received[:1] == b"\0" or pb.SessionResponse.FromString(received)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert daemon.process.poll() is None


@quick
@given(seeds)
def test_a_changed_state_is_refused_or_restored(channel: grpc.Channel, vms: list[str], seed: int) -> None:
    rpcs = IrqchipServiceStub(channel)
    random = Random(seed)
    snapshot = rpcs.SaveVm(pb.SaveVmRequest(vm=vms[1]), timeout=30).snapshot
    try:
        changed = pb.RestoreVmRequest.FromString(restoring(random, Messages(random, [*vms, "restored"]), snapshot))
    except DecodeError:
        return
    changed.vm = "restored"
    if (status := answer(channel, "RestoreVm", changed.SerializeToString())) != "OK":
        assert status == "INVALID_ARGUMENT"
        return
    try:
        again = rpcs.SaveVm(pb.SaveVmRequest(vm="restored"), timeout=30).snapshot
        assert again.irqchip_mode == changed.snapshot.irqchip_mode
        assert len(again.vcpus) == len(changed.snapshot.vcpus)
        rpcs.GetVm(pb.GetVmRequest(vm="restored"), timeout=30)
    finally:
        rpcs.DeleteVm(pb.DeleteVmRequest(vm="restored"), timeout=30)


def test_no_failure_was_logged(daemon: Daemon) -> None:
    assert "Traceback" not in daemon.stderr


# The fuzzer's own parts.


@quick
@given(seeds, st.sampled_from(sorted(METHODS)))
def test_the_same_seed_makes_the_same_messages(seed: int, method: str) -> None:
    def made() -> list[bytes]:
        random = Random(seed)
        message: Message = Messages(random, ["a", "b", "c"]).make(METHODS[method].input_type)
        # Maps are unordered.
        return [message.SerializeToString(deterministic=True), packet(random), mutate(random, b"\x0a\x01a\x10\x05")]

    assert made() == made()


def test_most_but_not_all_mutated_messages_can_be_parsed() -> None:
    random = Random(1)
    whole = pb.PioReadRequest(vm="vm-1", vcpu=1, port=0x20, size=1).SerializeToString()
    good = 0
    for _ in range(1000):
        try:
            pb.PioReadRequest.FromString(mutate(random, whole))
            good += 1
        except DecodeError:
            pass
    assert 200 < good < 800


def test_every_operation_and_every_field_of_it_is_made() -> None:
    messages = Messages(Random(1), ["a"])
    seen: set[str] = set()
    for _ in range(3000):
        operation = messages.operation()
        name = operation.WhichOneof("operation") or ""
        seen |= {f"{name}.{field.name}" for field, _ in getattr(operation, name).ListFields()}
    fields = {
        f"{operation.name}.{field.name}"
        for operation in pb.Operation.DESCRIPTOR.fields
        for field in (operation.message_type.fields if operation.message_type else ())
        if field.name != "vm"  # operations use the Session's VM
    }
    assert fields <= seen
