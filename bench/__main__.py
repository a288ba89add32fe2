"""`make bench`: measures the daemon beside its references, round by round, and prints medians and ratios."""

from __future__ import annotations

import os
import platform
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from irqchip_client import Vm, ops
from irqchip_client._daemon import start_daemon
from irqchipd.vm.machine import Vm as Machine

ROUNDS = 25
BATCH = 256


def timed(work: Callable[[], object], count: int) -> float:
    """Microseconds of one of so many."""
    started = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - started) / count * 1e6


def ping_pong() -> Callable[[], object]:
    """One byte to another thread and back over AF_UNIX: the least that a hop can cost in Python."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def echo() -> None:
        while data := there.recv(64):
            there.send(data)

    threading.Thread(target=echo, daemon=True).start()

    def hop() -> None:
        here.send(b"x")
        here.recv(64)

    return hop


def machine() -> Machine:
    """An irqchip in this process, without a daemon."""
    vm = Machine("bench")
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


def main() -> None:
    """Measure and print."""
    with ExitStack() as stack:
        daemon = stack.enter_context(start_daemon())
        client = stack.enter_context(daemon.connect())
        vm: Vm = client.create_vm("bench")
        vm.create_irqchip()
        session = stack.enter_context(vm.session("bench"))
        health = health_pb2_grpc.HealthStub(stack.enter_context(grpc.insecure_channel(daemon.target)))
        line, session_line, local = vm.line(21), session.line(22), machine()
        batch = [ops.irq_line(22, level) for level in (True, False)] * (BATCH // 2)
        request = health_pb2.HealthCheckRequest()

        # What, how often a round, operations each.
        measurements: dict[str, tuple[Callable[[], object], int, int]] = {
            "AF_UNIX ping-pong, another thread": (ping_pong(), 200, 1),
            "no-op unary RPC (health check)": (lambda: health.Check(request), 40, 1),
            "unary IrqLine": (line.raise_, 40, 1),
            "Session, a batch of one": (session_line.raise_, 40, 1),
            f"Session, a batch of {BATCH}, a change": (lambda: session.run(batch), 4, BATCH),
            "the chips alone, a change": (lambda: local.irq_line(22, True), 2000, 1),
        }
        times: dict[str, list[float]] = {name: [] for name in measurements}
        for _ in range(ROUNDS + 1):
            for name, (work, count, each) in measurements.items():
                times[name].append(timed(work, count) / each)

    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up
    reference = medians["no-op unary RPC (health check)"]
    table = Table("measured beside each other", "median, us", "/ no-op RPC")
    for name, median in medians.items():
        table.add_row(name, f"{median:.2f}", f"{median / reference:.3f}")
    console = Console()
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}, {ROUNDS} rounds")
    console.print(table)


if __name__ == "__main__":
    main()
