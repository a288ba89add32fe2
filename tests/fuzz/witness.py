"""A VM that exists on two daemons, the fuzzed one and an undisturbed one, and must give the same answers on both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import grpc

from irqchip.records import HEADER, NUMBERS, OPERATION
from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._daemon import Daemon
from tests.fuzz.findings import KEPT
from tests.fuzz.machines import CHANNEL_OPTIONS, PATIENCE
from tests.fuzz.messages import IOAPIC, LAPIC
from tests.fuzz.port_client import PortClient

NAME = "the-witness"
VECTORS = tuple(range(0x31, 0x91, 7))
REGISTERS = tuple(LAPIC + offset for offset in (0x20, 0x80, 0xA0, 0xD0, 0xF0, 0x280, 0x320, 0x350, 0x390))


class Witness:
    """A VM on a virtual clock, so that the same operations give the same answers on both daemons."""

    def __init__(self, fuzzed: Daemon, alone: Daemon, seed: str) -> None:
        self._random = Random(seed)
        self._sides = [_Side(fuzzed), _Side(alone)]
        self.asked = 0
        self.slowest = 0.0
        self.differences: list[str] = []

    def ask(self) -> None:
        """Send a few operations over one edge to both daemons, and compare the answers."""
        operations = [_operation(self._random) for _ in range(self._random.randint(1, 8))]
        how = self._random.choice(("grpc", "port", "records"))
        begun = time.monotonic()
        answers = [side.ask(how, operations, self._random.getrandbits(0)) for side in self._sides]
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.asked += len(operations)
        self._compare(f"{how} {' '.join(str(operations).split())}", answers)

    def compare_states(self) -> None:
        """Compare the two VMs' whole states."""
        self._compare("SaveVm", [side.state() for side in self._sides])

    def _compare(self, what: str, answers: list[bytes]) -> None:
        if answers[0] != answers[1] and len(self.differences) < KEPT:  # later answers may all differ
            self.differences.append(f"{what}: {answers[0].hex()} where an undisturbed VM has {answers[1].hex()}")

    def close(self) -> None:
        """Close the connections."""
        for side in self._sides:
            side.close()


class _Side:
    def __init__(self, daemon: Daemon) -> None:
        self._channel = grpc.insecure_channel(daemon.target, options=CHANNEL_OPTIONS)
        self._rpcs = IrqchipServiceStub(self._channel)
        rpcs = self._rpcs
        rpcs.CreateVm(pb.CreateVmRequest(vm=NAME, clock=pb.CLOCK_KIND_VIRTUAL), timeout=PATIENCE)
        rpcs.CreateIrqchip(pb.CreateIrqchipRequest(vm=NAME), timeout=PATIENCE)
        rpcs.CreatePit(pb.CreatePitRequest(vm=NAME), timeout=PATIENCE)
        for vcpu in (0, 1):
            rpcs.CreateVcpu(pb.CreateVcpuRequest(vm=NAME, vcpu=vcpu), timeout=PATIENCE)
        self._port = PortClient(daemon, NAME)

    def ask(self, how: str, operations: list[pb.Operation], serial: int) -> bytes:
        """Send operations; returns the answers."""
        if how == "records":
            packed = [_record(operation) for operation in operations]
            return self._port.ask(HEADER.pack(0, serial) + b"".join(record for record in packed if record))
        if how == "port":
            batch = pb.Batch(serial=serial, operations=operations)
            return self._port.ask(pb.SessionRequest(batch=batch).SerializeToString())
        answers = b""
        for operation in operations:
            name = operation.WhichOneof("operation") or ""
            request = getattr(operation, name)
            request.vm = NAME
            method = getattr(self._rpcs, name.title().replace("_", ""))
            try:
                answers += method(request, timeout=PATIENCE).SerializeToString(deterministic=True) + b"|"
            except grpc.RpcError as error:
                answers += f"{error.code().name} {error.details()}|".encode()
            request.vm = ""
        return answers

    def state(self) -> bytes:
        snapshot = self._rpcs.SaveVm(pb.SaveVmRequest(vm=NAME), timeout=PATIENCE).snapshot
        return snapshot.SerializeToString(deterministic=True)

    def close(self) -> None:
        self._port.close()
        self._channel.close()


def _record(operation: pb.Operation) -> bytes:
    """An operation as a record."""
    name = operation.WhichOneof("operation") or ""
    request = getattr(operation, name)
    if name == "irq_line":
        fields = (0, request.gsi, 0, request.level)
    elif name == "signal_msi":
        fields = (0, 0, request.address, request.data)
    elif name == "ack_interrupt":
        fields = (request.source, request.vcpu, 0, 0)
    elif name in ("pio_read", "pio_write"):
        fields = (request.size, request.vcpu, request.port, getattr(request, "data", 0))
    elif name in ("mmio_read", "mmio_write"):
        fields = (request.size, request.vcpu, request.address, getattr(request, "data", 0))
    else:
        return OPERATION.pack(NUMBERS["ack_interrupt"], 0, 0, 0, 0)
    return OPERATION.pack(NUMBERS[name], *fields)


def _operation(random: Random) -> pb.Operation:
    """A random operation of a device, guest or vCPU."""
    vcpu = random.randrange(2)
    match random.randrange(11):
        case 0 | 1:
            return pb.Operation(irq_line=pb.IrqLineRequest(gsi=random.randrange(24), level=random.random() < 0.5))
        case 2:
            address = LAPIC | random.choice((0, 0x1000, 0xFF000))
            return pb.Operation(signal_msi=pb.SignalMsiRequest(address=address, data=random.choice(VECTORS)))
        case 3 | 4:
            return pb.Operation(ack_interrupt=pb.AckInterruptRequest(vcpu=vcpu, source=random.randrange(3)))  # type: ignore[arg-type]
        case 5:
            return pb.Operation(pio_read=pb.PioReadRequest(vcpu=vcpu, port=random.choice((0x20, 0x21, 0x40)), size=1))
        case 6:
            port, data = random.choice(((0x20, 0x20), (0x21, random.getrandbits(8)), (0x20, 0x11), (0x43, 0x34)))
            return pb.Operation(pio_write=pb.PioWriteRequest(vcpu=vcpu, port=port, size=1, data=data))
        case 7:
            return pb.Operation(mmio_read=pb.MmioReadRequest(vcpu=vcpu, address=random.choice(REGISTERS), size=4))
        case 8:
            return _write(
                vcpu, *random.choice(((0xB0, 0), (0x80, random.getrandbits(7)), (0xF0, 0x1FF), (0x350, 0x700)))
            )
        case 9:
            return _program(random, vcpu)
        case _:
            return pb.Operation(advance_clock=pb.AdvanceClockRequest(nanoseconds=random.choice((1, 1000, 100_000))))


def _write(vcpu: int, offset: int, data: int) -> pb.Operation:
    return pb.Operation(mmio_write=pb.MmioWriteRequest(vcpu=vcpu, address=LAPIC + offset, size=4, data=data))


def _program(random: Random, vcpu: int) -> pb.Operation:
    """Program an entry of the IOAPIC, or the APIC timer."""
    if random.random() < 0.3:
        return _write(vcpu, *random.choice(((0x320, 0x20040), (0x3E0, 0xB), (0x380, 50_000))))
    address, data = random.choice(((IOAPIC, 0x10 + random.randrange(48)), (IOAPIC + 0x10, random.choice(VECTORS))))
    return pb.Operation(mmio_write=pb.MmioWriteRequest(vcpu=vcpu, address=address, size=4, data=data))


@contextmanager
def witness(fuzzed: Daemon, alone: Daemon, seed: str) -> Iterator[Witness]:
    """A witness, for the duration of a `with`."""
    made = Witness(fuzzed, alone, seed)
    try:
        yield made
    finally:
        made.close()
