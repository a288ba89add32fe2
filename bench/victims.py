"""The victims: processes that each use a VM of their own during an attack, and measure how long they wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from irqchip_client import Client, Interrupt, IrqchipError, Session, TimedOut, Vm, connect, ops

PATIENCE = 5.0  # seconds to wait for an answer
HALT, TICK = 0.010, 0.010
PAUSES = {"port": 0.004, "grpc": 0.004, "new": 0.05}  # seconds between pings
LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
SVR, EOI = LAPIC + 0xF0, LAPIC + 0xB0
PIT_COUNT = 11932  # a period of 10 ms
VECTOR = 0x51

_CONTEXT = multiprocessing.get_context("spawn")

# Pings once, and returns how many seconds late the answer was.
Ping = Callable[[], float]


@dataclass
class Samples:
    """The times one victim measured."""

    late_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The longest time, in milliseconds."""
        return max(self.late_ms, default=float("inf"))

    @property
    def p99(self) -> float:
        """The p99, in milliseconds."""
        ordered = sorted(self.late_ms)
        return ordered[len(ordered) * 99 // 100] if ordered else float("inf")


def prepare(client: Client) -> None:
    """Create the victims' VMs."""
    for name in KINDS:
        vm = client.create_vm(name)
        vm.create_irqchip()
        if name == "tick":
            vm.create_pit()
            vm.set_pit_reinject(False)
        cpu = vm.create_vcpu(0)
        cpu.mmio_write(SVR, 0x1FF)


def _port(vm: Vm) -> Ping:
    session = _session(vm)
    return lambda: _timed(lambda: session.vcpu(0).pio_read(0x21))


def _grpc(vm: Vm) -> Ping:
    return lambda: _timed(lambda: vm.vcpu(0).pio_read(0x21))


def _halt(vm: Vm) -> Ping:
    session = _session(vm)
    calls = [ops.halt(0, timeout=HALT)]  # a halt whose time is up is an error in its place
    return lambda: _timed(lambda: session.run(calls, return_errors=True, timeout=PATIENCE)) - HALT


def _tick(vm: Vm) -> Ping:
    """The time from one tick of a PIT to the next, less the period."""
    session = _session(vm)
    writes = ((IOAPIC, 0x11), (IOAPIC + 0x10, 0), (IOAPIC, 0x10), (IOAPIC + 0x10, VECTOR))
    cpu = session.vcpu(0)
    for address, value in writes:
        cpu.mmio_write(address, value)
    for port, value in ((0x43, 0x34), (0x40, PIT_COUNT & 0xFF), (0x40, PIT_COUNT >> 8)):
        cpu.pio_write(port, value)
    calls = [ops.mmio_write(0, EOI, 0), ops.halt(0, timeout=PATIENCE)]

    def once() -> None:
        *_, wake = session.run(calls, timeout=PATIENCE)
        if not isinstance(wake, Interrupt):
            raise TimedOut(0, "no tick")

    def ping() -> float:
        return _timed(once) - TICK

    once()
    return ping


def _new(vm: Vm) -> Ping:
    """The time a new client takes to connect."""

    def ping() -> float:
        begun = time.perf_counter()
        with connect(vm._client.target, timeout=PATIENCE) as client, _session(client.vm(vm.name)) as session:
            session.vcpu(0).pio_read(0x21)
            return time.perf_counter() - begun

    return ping


KINDS: dict[str, Callable[[Vm], Ping]] = {"port": _port, "grpc": _grpc, "new": _new, "halt": _halt, "tick": _tick}


def _session(vm: Vm) -> Session:
    session = vm.session("victim")
    assert session.transport == "port"
    return session


def _timed(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def run(pipe: Connection, kind: str) -> None:
    """Connect to the target from the pipe, ping between `begin` and `end`, and send the results."""
    client: Client | None = None
    ping: Ping | None = None
    while True:
        try:
            message: str = pipe.recv()
        except EOFError:
            return
        if message != "begin":
            if client is not None:
                client.close()
            client = connect(message, timeout=PATIENCE)
            ping = KINDS[kind](client.vm(kind))
            pipe.send("ready")
            continue
        assert client is not None
        samples = Samples()
        if kind == "tick" and ping is not None:
            ping()  # the first interval includes a pause
        while not pipe.poll():
            try:
                if ping is None:
                    ping = KINDS[kind](client.vm(kind))
                samples.late_ms.append(max(ping(), 0.0) * 1e3)
            except TimedOut:
                samples.late_ms.append(PATIENCE * 1e3)
                samples.failures.append("TimedOut")
            except (IrqchipError, AssertionError) as error:  # the Session may have ended
                samples.failures.append(f"{type(error).__name__}: {str(error)[:80]}")
                ping = None
                time.sleep(0.02)
            time.sleep(PAUSES.get(kind, 0.0))
        pipe.recv()
        pipe.send(samples)


class Victim:
    """A victim's process. It is replaced if it hangs."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._start()

    def _start(self) -> None:
        self._pipe, there = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=run, args=(there, self.kind), daemon=True)
        self._process.start()
        there.close()

    def connect(self, target: str) -> None:
        """Connect to a daemon."""
        self._pipe.send(target)

    def connected(self) -> bool:
        """Whether the victim has connected."""
        try:
            return self._pipe.poll(4 * PATIENCE) and self._pipe.recv() == "ready"
        except EOFError:
            return False

    def begin(self) -> None:
        """Start pinging."""
        self._pipe.send("begin")

    def end(self) -> None:
        """Stop pinging."""
        self._pipe.send("end")

    def samples(self) -> Samples:
        """The times measured; empty if the victim hangs."""
        try:
            if self._pipe.poll(4 * PATIENCE):
                samples: Samples = self._pipe.recv()
                return samples
        except EOFError:
            pass
        self.close()
        self._start()
        return Samples(failures=["it hangs"])

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
