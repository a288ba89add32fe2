"""The daemon's log: bounded in size, and without lines about a client's own affairs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import Space, ops
from irqchip_client._daemon import Daemon, start_daemon
from irqchipd import daemon as daemon_module
from irqchipd import logs
from irqchipd.timers import Timers
from tests.waiting import PATIENCE, eventually

QUIET = ("--log-level", "warning")


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


def test_clients_that_give_up_are_not_logged() -> None:
    with start_daemon(arguments=QUIET) as daemon, daemon.connect() as client:
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


def test_calls_given_up_while_being_answered_are_not_logged() -> None:
    with (
        start_daemon(arguments=QUIET) as daemon,
        daemon.connect() as client,
        grpc.insecure_channel(daemon.target) as channel,
    ):
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


def test_calls_given_up_before_they_begin_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case depends on timing; test_hostile.py meets it now and then."""
    given_up = asyncio.CancelledError()
    record = logging.LogRecord(
        "grpc._cython.cygrpc", logging.ERROR, "", 1, "not handled", None, (type(given_up), given_up, None)
    )
    assert not logs._is_ours(record)
    monkeypatch.setattr(cygrpc, "traceback", cygrpc.traceback)  # gRPC prints errors with this module
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    logs.log_to_stderr("INFO")
    assert not hasattr(cygrpc.traceback, "format_exc"), "it is not the module any more"


def http2_call(daemon: Daemon, path: bytes, name: bytes, value: bytes) -> bytes:
    """The daemon's answer to a call with this path and metadatum."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    fields = [(b":path", path), (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    literals = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in [*fields, (name, value)]
    )
    headers = frame(1, 4, 1, b"\x83\x86" + literals)  # POST, http, and these
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(daemon.target.removeprefix("unix://"))
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + headers + frame(0, 1, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer:
            answer += client.recv(4096)
        return answer


def no_trouble(daemon: Daemon, before: str) -> bool:
    """Whether the log's new lines are all about VMs and Sessions of other tests."""
    return not any(level in daemon.stderr[len(before) :] for level in ("WARNING", "ERROR", "Traceback"))


@pytest.mark.parametrize(
    "path", [b"/irqchip.v1.IrqchipService/\xff", b"/\xc3\x28", b"\xff\xfe", b"/a\n\x1b[31m", b"/x/y"]
)
def test_a_method_of_any_name_is_refused_and_harmless(irqchip_server: Daemon, path: bytes) -> None:
    with irqchip_server.connect() as other:
        before = irqchip_server.stderr
        assert b"grpc-status\x0212" in http2_call(irqchip_server, path, b"x", b"y")  # UNIMPLEMENTED
        assert isinstance(other.vms(), list)
        assert no_trouble(irqchip_server, before)


def test_metadata_that_is_not_text_is_not_logged(irqchip_server: Daemon) -> None:
    before = irqchip_server.stderr
    http2_call(irqchip_server, b"/irqchip.v1.IrqchipService/ListVms", b"x", b"\xff\xfe")
    assert no_trouble(irqchip_server, before)


def test_many_waiting_calls_are_neither_refused_nor_ended() -> None:
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


def without_times(log: str) -> list[str]:
    return [re.sub(r"^\S+ \S+ ", "", line) for line in log.splitlines()]


def settled(daemon: Daemon, last: str) -> str:
    """The daemon's log, once it has this last line."""
    deadline = time.monotonic() + PATIENCE
    while last not in daemon.stderr.rsplit("\n", 2)[-2:][0]:
        assert time.monotonic() < deadline, daemon.stderr
        time.sleep(0.02)
    return daemon.stderr


def test_vms_and_sessions_are_logged_with_the_reason_of_their_end() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm("vm1")
        with vm.session("a uart") as session:
            session.register_region(Space.PIO, 0x3F8, 8)
        disk = vm.session("disk")
        vm.delete()
        assert disk.closed
        log = without_times(settled(daemon, "client=disk why="))
    us = f"transport=port pid={os.getpid()} uid={os.getuid()}"
    session_log = "INFO irqchipd.edge.session:"
    assert log == [
        f"INFO irqchipd.daemon: listening address={daemon.target}",
        "INFO irqchipd.vm.registry: VM made vm=vm1 vms=1",
        f"{session_log} Session opened vm=vm1 source=1 client='a uart' {us}",
        f"{session_log} region claimed vm=vm1 source=1 client='a uart' space=PIO address=0x3f8 length=8",
        f"{session_log} Session ended vm=vm1 source=1 client='a uart' why='its client closed it, or has gone'",
        f"{session_log} Session opened vm=vm1 source=1 client=disk {us}",
        "INFO irqchipd.vm.registry: VM deleted vm=vm1 vms=0",
        f"""{session_log} Session ended vm=vm1 source=1 client=disk why="VM 'vm1' has been deleted\"""",
    ]


def test_sessions_over_grpc_are_logged_with_the_reason_of_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with start_daemon() as daemon:
        with daemon.connect() as client:
            vm = client.create_vm("vm1")
            vm.session("one").close()
            two = vm.session("two")
        eventually(lambda: two.closed)
        log = settled(daemon, "client=two why=")
    assert "client=one transport=grpc" in log
    assert "client=one why='its client closed it, or has gone'" in log
    assert "client=two why='its client closed it, or has gone'" in log


def test_a_json_log_has_one_object_per_line() -> None:
    arguments = ("--log-level", "debug", "--log-format", "json", "--access-timeout", "50")
    with start_daemon(arguments=arguments) as daemon, daemon.connect() as client:
        vm = client.create_vm("vm1")
        vm.create_irqchip()
        vm.create_vcpu(0)
        with vm.session("slow") as session:
            session.register_region(Space.PIO, 0x300, 1)
            assert vm.vcpu(0).pio_read(0x300).unanswered
            with pytest.raises(grpc.RpcError), grpc.insecure_channel(daemon.target) as channel:
                IrqchipServiceStub(channel).CreateVcpu(pb.CreateVcpuRequest(vm="vm1"))
        records: list[dict[str, Any]] = [json.loads(line) for line in settled(daemon, "Session ended").splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    (lost,) = [record for record in records if record["message"].startswith("regions lost")]
    assert (lost["level"], lost["vm"], lost["client"], lost["address"]) == ("warning", "vm1", "slow", "0x300")
    (refused,) = [record for record in records if record["message"].startswith("refused: ")]
    assert (refused["level"], refused["errno"]) == ("debug", "EEXIST")


def test_dropped_events_are_logged() -> None:
    with start_daemon(arguments=("--max-events", "1")) as daemon, daemon.connect() as client:
        vm = client.create_vm("vm1")
        vm.create_vcpu(0)
        with vm.session("deaf") as session, vm.session("guest") as guest:
            for port in (0x300, 0x301):
                session.register_region(Space.PIO, port, 1, doorbell=True)
            while not vm.info().sessions[0].dropped_events:
                guest.run([ops.pio_write(0, 0x300 + n % 2, 0) for n in range(1000)])
            while not session.dropped_events:
                session.next_event(PATIENCE)
            log = settled(daemon, "events dropped")
            assert re.search(r"WARNING .* events dropped: not read in time vm=vm1 .*client=deaf dropped=\d+", log)


def test_a_client_can_not_flood_the_log() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        begun = time.monotonic()
        for _ in range(300):
            client.create_vm().delete()
        took = time.monotonic() - begun
        eventually(lambda: daemon.stderr.count("VM made") >= 4)
        assert daemon.stderr.count("VM made") <= 5 * (took + 2)


def test_clients_do_not_wait_for_the_logs_reader() -> None:
    program = """
import logging, os, time
from irqchipd import daemon as daemon_module
from irqchipd import logs
logs.log_to_stderr("INFO")
logging.getLogger().handlers[0].filters.clear()
begun = time.monotonic()
for _ in range(5000):
    logging.getLogger("x").info("a" * 200)
os.write(1, b"did not wait" if time.monotonic() - begun < 30 else b"waited")
os._exit(0)
"""
    reader, writer = os.pipe()  # a pipe without a reader, with room for a tenth of the log
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stderr=writer, stdout=subprocess.PIPE, timeout=60, check=True
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.stdout == b"did not wait"


def test_late_timers_are_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(daemon_module, "LATENESS_PERIOD", 0.01)
    timers = Timers()

    async def tell() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(daemon_module._report_lateness(timers), 0.2)

    timers.latest = daemon_module.LATE_NS - 1
    asyncio.run(tell())
    assert "late" not in caplog.text
    timers.latest = 3 * daemon_module.LATE_NS
    asyncio.run(tell())
    assert caplog.messages == ["timers are late: `irqchipctl show` says of which VM"]
    assert vars(caplog.records[0])["fields"] == {"milliseconds": 300}
