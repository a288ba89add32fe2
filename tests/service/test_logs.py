"""What the daemon logs: no more than a reader can bear, and nothing of what is a client's own affair."""

from __future__ import annotations

import logging
import socket
import threading
import time

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._daemon import Daemon, start_daemon
from irqchipd import logs


def test_repetitions_are_held_back_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    repetitions = logs.Repetitions()

    def passes(line: int, text: str) -> str | None:
        record = logging.LogRecord("name", logging.WARNING, "path", line, "%s", (text,), None)
        return record.getMessage() if repetitions.filter(record) else None

    assert [passes(1, f"client {n}") for n in range(8)] == [f"client {n}" for n in range(5)] + [None] * 3
    assert passes(2, "another kind") == "another kind"
    now = 1.0
    assert passes(1, "later") == "later (3 more like this were not logged)"
    assert passes(1, "again") == "again"


def test_clients_that_give_up_leave_nothing_in_the_log() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm("vm")
        vm.create_irqchip()
        vm.create_vcpu(0)
        vm.create_vcpu(1)
        batch = pb.Batch(serial=1, operations=[pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))] * 50)
        messages = [pb.SessionRequest(open=pb.SessionOpen(vm="vm")), pb.SessionRequest(batch=batch)]
        with grpc.insecure_channel(daemon.target) as channel:
            stub = IrqchipServiceStub(channel)
            for round_ in range(150):
                patience = 0.001 * (1 + round_ % 8)
                stub.Watch(pb.WatchRequest(vm="vm"), timeout=patience)
                stub.Watch(pb.WatchRequest(vm="none"), timeout=patience)
                stub.Session(iter(messages), timeout=patience)
                stub.Halt.future(pb.HaltRequest(vm="vm", vcpu=1), timeout=patience)
                stub.GetLapic.future(pb.GetLapicRequest(vm="vm"), timeout=patience)
                channel.stream_stream("/no/Method")(iter(()), timeout=patience)
            time.sleep(0.5)
        assert client.vms()
        assert daemon.stderr == ""


def test_calls_that_are_given_up_as_they_are_answered_leave_nothing_in_the_log() -> None:
    with start_daemon() as daemon, daemon.connect() as client, grpc.insecure_channel(daemon.target) as channel:
        vm = client.create_vm("vm")
        vm.create_irqchip()
        for vcpu in range(64):
            vm.create_vcpu(vcpu)
        stub = IrqchipServiceStub(channel)
        for _ in range(20):
            halts = [
                stub.Halt.future(
                    pb.HaltRequest(vm="vm", vcpu=vcpu, timeout_ns=5_000_000 + vcpu * 30_000), timeout=0.006
                )
                for vcpu in range(64)
            ]
            for halt in halts:
                halt.exception()
        assert client.vms()
        assert daemon.stderr == ""


def http2_call(daemon: Daemon, path: bytes, name: bytes, value: bytes) -> bytes:
    """What the daemon answers to a call with such a path and metadatum."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    fields = [(b":path", path), (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    literals = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in [*fields, (name, value)]
    )
    headers = frame(1, 4, 1, b"\x83\x86" + literals)  # POST, http, and these
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(daemon.target.removeprefix("unix://"))
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + headers + frame(0, 1, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer:
            answer += client.recv(4096)
        return answer


@pytest.mark.parametrize(
    "path", [b"/irqchip.v1.IrqchipService/\xff", b"/\xc3\x28", b"\xff\xfe", b"/a\n\x1b[31m", b"/x/y"]
)
def test_a_method_of_any_name_is_refused_and_hurts_nobody(irqchip_server: Daemon, path: bytes) -> None:
    with irqchip_server.connect() as other:
        before = irqchip_server.stderr
        assert b"grpc-status\x0212" in http2_call(irqchip_server, path, b"x", b"y")  # UNIMPLEMENTED
        assert isinstance(other.vms(), list)
        assert irqchip_server.stderr == before


def test_metadata_that_is_not_text_is_not_logged(irqchip_server: Daemon) -> None:
    before = irqchip_server.stderr
    http2_call(irqchip_server, b"/irqchip.v1.IrqchipService/ListVms", b"x", b"\xff\xfe")
    assert irqchip_server.stderr == before


def test_calls_that_wait_are_neither_refused_nor_ended_for_their_number() -> None:
    with start_daemon() as daemon, daemon.connect() as other:
        other.create_vm("storm").create_irqchip()
        channels = [
            grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(35)
        ]
        calls = [
            IrqchipServiceStub(channel).GetIrqchip.future(pb.GetIrqchipRequest(vm="storm"))
            for channel in channels
            for _ in range(100)
        ]
        finished = threading.Event()

        def others() -> None:
            while not finished.is_set():
                other.vms()

        thread = threading.Thread(target=others)
        thread.start()
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}
        finished.set()
        thread.join()
        other.vms()
        for channel in channels:
            channel.close()


def test_more_calls_than_a_connection_may_have_wait_for_their_turn(irqchip_server: Daemon) -> None:
    with irqchip_server.connect() as client, grpc.insecure_channel(irqchip_server.target) as channel:
        client.create_vm("busy").create_irqchip()
        stub = IrqchipServiceStub(channel)
        calls = [stub.GetIrqchip.future(pb.GetIrqchipRequest(vm="busy")) for _ in range(2000)]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}
        client.delete_vm("busy")
