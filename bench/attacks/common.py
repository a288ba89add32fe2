"""The common parts of the attacks: an attacker's connections and its VMs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc

from irqchip.port import MESSAGE_BYTES, SUFFIX
from irqchip.records import HEADER, NUMBERS, OPERATION
from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
BROADCAST, NMI = LAPIC | 0xFF000, 0x400
SVR, ICR, LVT_TIMER, LVT_LINT0, INITIAL_COUNT, DIVIDE = (
    LAPIC + offset for offset in (0xF0, 0x300, 0x320, 0x350, 0x380, 0x3E0)
)
BROADCAST_GSI = 5
VM = "foe"
PATIENCE = 30.0  # seconds
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

# One step of an attack. Returns how many seconds the attacker's own vCPU was held, if a bound is promised.
Act = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Attack:
    """One row of the attack table. prepare() sets up the attack and returns the act, which is then repeated."""

    row: int  # the kind: 1 timers, 2 work, 3 and 4 descriptors, 5 shares, 13 owners of regions
    name: str
    prepare: Callable[[Foe], Act]
    processes: int = 1


class Foe:
    """An attacker, connected to one daemon."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.path = target.removeprefix("unix://")
        self.rpcs = self.stub()
        self.kept: list[Any] = []

    def stub(self) -> IrqchipServiceStub:
        """The RPC stub, over a connection of its own."""
        return IrqchipServiceStub(grpc.insecure_channel(self.target, options=_OPTIONS))

    def connection(self) -> socket.socket:
        """A socket connected to the port, without a Session."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.settimeout(PATIENCE)
        made.connect(self.path + SUFFIX)
        return made

    def port(self, vm: str = VM, **opening: Any) -> socket.socket:
        """A Session over the port."""
        made = self.connection()
        made.send(pb.SessionRequest(open=pb.SessionOpen(vm=vm, **opening)).SerializeToString())
        answer = pb.SessionResponse.FromString(made.recv(MESSAGE_BYTES + 1))
        if not answer.HasField("opened"):
            raise ConnectionError(answer.ended.message)
        return made

    def ports(self, count: int, vm: str = VM, **opening: Any) -> list[socket.socket]:
        """Open `count` Sessions over the port and keep them open."""
        made = [self.port(vm, **opening) for _ in range(count)]
        self.kept.append(made)
        return made

    def make(
        self, name: str = VM, vcpus: int = 1, *, virtual: bool = False, pit: bool = False, broadcast: bool = False
    ) -> str:
        """Create a VM. With `broadcast`, a GSI sends an NMI to all vCPUs."""
        clock = pb.CLOCK_KIND_VIRTUAL if virtual else pb.CLOCK_KIND_REAL
        with suppress(grpc.RpcError):  # another process of the same attack created the VM
            self.rpcs.CreateVm(pb.CreateVmRequest(vm=name, clock=clock), timeout=PATIENCE)
            self.rpcs.CreateIrqchip(pb.CreateIrqchipRequest(vm=name), timeout=PATIENCE)
            if pit:
                self.rpcs.CreatePit(pb.CreatePitRequest(vm=name), timeout=PATIENCE)
            if broadcast:
                self.rpcs.SetGsiRouting(
                    pb.SetGsiRoutingRequest(
                        vm=name,
                        entries=[pb.RoutingEntry(gsi=BROADCAST_GSI, msi=pb.Msi(address=BROADCAST, data=NMI))],
                    ),
                    timeout=PATIENCE,
                )
            self.run(name, (pb.Operation(create_vcpu=pb.CreateVcpuRequest(vcpu=vcpu)) for vcpu in range(vcpus)))
        return name

    def run(self, vm: str, operations: Iterable[pb.Operation]) -> None:
        """Execute a batch on a new Session."""
        connection = self.port(vm)
        connection.send(batch(*operations))
        while pb.SessionResponse.FromString(connection.recv(MESSAGE_BYTES + 1)).WhichOneof("message") == "event":
            pass
        connection.close()


def batch(*operations: pb.Operation, serial: int = 1) -> bytes:
    """A batch, encoded as a packet."""
    return pb.SessionRequest(batch=pb.Batch(serial=serial, operations=operations)).SerializeToString()


def store(vcpu: int, address: int, data: int) -> pb.Operation:
    """A 4-byte store by the guest."""
    return pb.Operation(mmio_write=pb.MmioWriteRequest(vcpu=vcpu, address=address, size=4, data=data))


def out(port: int, data: int) -> pb.Operation:
    """A 1-byte OUT by the guest."""
    return pb.Operation(pio_write=pb.PioWriteRequest(port=port, size=1, data=data))


def records(name: str, count: int, size: int = 0, index: int = 0, address: int = 0, value: int = 0) -> bytes:
    """A batch that repeats one record."""
    return HEADER.pack(0, 1) + OPERATION.pack(NUMBERS[name], size, index, address, value) * count


def once(start: Callable[[], None]) -> Act:
    """An act that starts something on the first call; it then runs by itself."""
    started: list[bool] = []

    def act() -> None:
        if not started:
            started.append(True)
            start()
        time.sleep(0.02)

    return act


def pump(connections: Iterable[socket.socket], data: bytes) -> None:
    """Send to each connection as much as its socket takes, and discard the answers."""
    idle = True
    for connection in connections:
        connection.setblocking(False)
        with suppress(BlockingIOError):
            connection.send(data)
            idle = False
        with suppress(BlockingIOError):
            while connection.recv(MESSAGE_BYTES + 1):
                idle = False
    if idle:
        time.sleep(0.001)


def stream(rpcs: IrqchipServiceStub, request: pb.SessionRequest, in_flight: int, **opening: Any) -> None:
    """Start a thread with a Session over gRPC that keeps `in_flight` batches in flight."""
    outbox: SimpleQueue[pb.SessionRequest] = SimpleQueue()
    outbox.put(pb.SessionRequest(open=pb.SessionOpen(**opening)))
    for _ in range(in_flight):
        outbox.put(request)

    def work() -> None:
        with suppress(grpc.RpcError):
            for response in rpcs.Session(iter(outbox.get, None)):
                if response.HasField("batch_result"):
                    outbox.put(request)

    threading.Thread(target=work, daemon=True).start()


def in_threads(count: int, work: Callable[[], object]) -> Act:
    """Call a function repeatedly from `count` threads."""

    def loop() -> None:
        while True:
            with suppress(grpc.RpcError, OSError):
                work()

    def start() -> None:
        for _ in range(count):
            threading.Thread(target=loop, daemon=True).start()

    return once(start)
