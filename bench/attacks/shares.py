"""Row 5: one client of one VM that sends as much as possible."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from itertools import cycle

import grpc

from bench.attacks.common import PATIENCE, VM, Act, Attack, Foe, batch, in_threads, once, pump, records, stream
from irqchip.port import SUFFIX
from irqchip.v1 import irqchip_pb2 as pb

GET_LAPIC = pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


def _grpc_sessions(foe: Foe, count: int, operation: pb.Operation, operations: int) -> Act:
    foe.make(VM, 8)
    request = pb.SessionRequest(batch=pb.Batch(serial=1, operations=[operation] * operations))

    def start() -> None:
        for _ in range(count):
            stream(foe.rpcs, request, 4, vm=VM)

    return once(start)


def _calls(foe: Foe, count: int, channels: int) -> Act:
    """Keep `count` unary calls in flight over `channels` connections."""
    foe.make()
    stubs = [foe.stub() for _ in range(channels)]
    request = pb.GetVmRequest(vm=VM)

    def flood(stub: int) -> None:
        calls = [stubs[stub].GetVm.future(request) for _ in range(count // channels)]
        while True:
            for number, call in enumerate(calls):
                with suppress(grpc.RpcError):
                    call.result()
                calls[number] = stubs[stub].GetVm.future(request)

    def start() -> None:
        for stub in range(channels):
            threading.Thread(target=flood, args=(stub,), daemon=True).start()

    return once(start)


def _port_clients(foe: Foe, count: int, data: bytes) -> Act:
    foe.make(VM, 8)
    connections = foe.ports(count)
    return lambda: pump(connections, data)


def _halts(foe: Foe) -> Act:
    """Halt each of 255 vCPUs for one nanosecond, from 8 Sessions, again and again."""
    foe.make(VM, 255)
    connections = foe.ports(8)
    halts = cycle([records("halt", 1, index=vcpu, value=1) for vcpu in range(255)])

    def act() -> None:
        for _ in range(32):
            pump(connections, next(halts))

    return act


def _unary_halts(foe: Foe) -> Act:
    foe.make(VM, 255)

    def start() -> None:
        for vcpu in range(255):
            request = pb.HaltRequest(vm=VM, vcpu=vcpu, timeout_ns=1)

            def again(request: pb.HaltRequest = request) -> None:
                while True:
                    with suppress(grpc.RpcError):
                        foe.rpcs.Halt(request, timeout=PATIENCE)

            threading.Thread(target=again, daemon=True).start()

    return once(start)


def _churn(path: str, family: socket.SocketKind, data: bytes) -> Act:
    """Connect, optionally send, and close."""

    def work() -> None:
        with socket.socket(socket.AF_UNIX, family) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            if data:
                connection.send(data)

    return in_threads(2, work)


def _session_churn(foe: Foe) -> Act:
    foe.make(VM, 8)
    return in_threads(4, lambda: foe.port(vcpus=range(8), gsis=range(24)).close())


def _watch_churn(foe: Foe) -> Act:
    """Watches that are cancelled at once."""
    foe.make()
    return in_threads(4, lambda: foe.rpcs.Watch(pb.WatchRequest(vm=VM), timeout=0.003).initial_metadata())


def _never_read(foe: Foe) -> Act:
    """Clients of both edges that send and subscribe to events, and never read."""
    foe.make(VM, 4)
    connections = foe.ports(64, vcpus=range(4), gsis=range(24))
    for connection in connections:
        connection.setblocking(False)
    asking = batch(*[GET_LAPIC] * 20)
    message = pb.SessionRequest(batch=pb.Batch(serial=1, operations=[GET_LAPIC] * 100))
    opening = pb.SessionRequest(open=pb.SessionOpen(vm=VM, vcpus=range(4), gsis=range(24)))
    for _ in range(64):
        foe.kept.append(foe.rpcs.Session(iter([opening, *[message] * 50])))

    def act() -> None:
        for connection in connections:
            with suppress(BlockingIOError):
                connection.send(asking)
        foe.rpcs.SignalMsi(pb.SignalMsiRequest(vm=VM, address=0xFEEF_F000, data=0x400), timeout=PATIENCE)

    return act


def _refused(foe: Foe) -> Act:
    """Messages of almost a megabyte that the daemon refuses."""
    foe.make()
    request = pb.IrqLinesRequest(vm=VM, changes=[3] * 1_000_000)
    return in_threads(8, lambda: foe.rpcs.IrqLines(request, timeout=PATIENCE))


def _health(foe: Foe) -> Act:
    """2,000 calls in flight to gRPC's health service."""
    channel = grpc.insecure_channel(foe.target)
    foe.kept.append(channel)
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)

    def act() -> None:
        for call in [check.future(b"") for _ in range(2000)]:
            call.result()

    return act


def _unopened(foe: Foe) -> Act:
    """Connections to the port that send nothing, as many as the port accepts."""

    def act() -> None:
        for _ in range(64):
            if len(foe.kept) >= PLACES:
                time.sleep(0.05)
                return
            foe.kept.append(foe.connection())

    return act


PLACES = 4200
LINE = pb.Operation(irq_line=pb.IrqLineRequest(gsi=4, level=True))
LONG = records("irq_line", 2700, index=4, value=1)
ATTACKS = (
    Attack(5, "300 gRPC Sessions, batches of 256 get_lapic", lambda foe: _grpc_sessions(foe, 300, GET_LAPIC, 256)),
    Attack(5, "a gRPC Session, batches of 4,096 irq_line", lambda foe: _grpc_sessions(foe, 1, LINE, 4096)),
    Attack(5, "10,000 unary calls on one connection", lambda foe: _calls(foe, 10_000, 1)),
    Attack(5, "10,000 unary calls on 20 connections", lambda foe: _calls(foe, 10_000, 20)),
    Attack(5, "100 clients of the port, batches of 2,700 records", lambda foe: _port_clients(foe, 100, LONG)),
    Attack(
        5,
        "100 clients of the port, batches of 60 get_lapic",
        lambda foe: _port_clients(foe, 100, batch(*[GET_LAPIC] * 60)),
    ),
    Attack(5, "a client of the port, single records", lambda foe: _port_clients(foe, 1, records("pio_read", 1, 1)), 2),
    Attack(5, "halts of 1 ns on 255 vCPUs, by the port", _halts),
    Attack(5, "halts of 1 ns on 255 vCPUs, unary", _unary_halts),
    Attack(5, "connecting and closing, the port", lambda foe: _churn(foe.path + SUFFIX, socket.SOCK_SEQPACKET, b"")),
    Attack(5, "connecting and closing, gRPC", lambda foe: _churn(foe.path, socket.SOCK_STREAM, PREFACE)),
    Attack(5, "Sessions opened and closed, the port", _session_churn),
    Attack(5, "Watches cancelled at once", _watch_churn),
    Attack(5, "messages of 1 MB that are refused", _refused),
    Attack(5, "2,000 calls of the health service under way", _health),
    Attack(5, "4,200 connections that are never opened", _unopened),
    Attack(5, "128 clients that never read", _never_read),
)
