"""`make ticks`: hundreds of VMs on real clocks, each with a 100 Hz APIC timer. How late are ticks, and are any lost?

In some of the VMs a vCPU halts, takes its tick and ends it; in the others no vCPU takes the ticks. CPU time is the
daemon's, as a share of one processor.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from irqchip_client import Client, Interrupt, Session, Vm, ops
from irqchip_client._daemon import Daemon, start_daemon

PERIOD = 10_000_000  # nanoseconds
VECTOR = 0x40
LAPIC = 0xFEE0_0000
SVR, EOI, LVT_TIMER, INITIAL_COUNT, DIVIDE = (LAPIC + offset for offset in (0xF0, 0xB0, 0x320, 0x380, 0x3E0))
PERIODIC, BY_ONE = 1 << 17, 0b1011


@dataclass
class Observed:
    """A VM whose vCPU takes the ticks."""

    ticks: int = 0
    # Microseconds from when a tick was due until the vCPU had taken it.
    late: list[float] = field(default_factory=list)
    # The possible numbers of ticks, by the clocks read before and after the timer started and ended.
    at_least: int = 0
    at_most: int = 0

    @property
    def complete(self) -> bool:
        """Whether every tick came exactly once."""
        return self.at_least <= self.ticks <= self.at_most

    @property
    def dawdled(self) -> bool:
        """Whether the vCPU was so late that the next tick was due: then it may have lost a tick itself."""
        return max(self.late, default=0.0) * 1e3 > PERIOD


@dataclass
class Result:
    """The result. CPU is a share of one processor."""

    observed: list[Observed]
    cpu_empty: float
    cpu_idle: float
    cpu_ticking: float

    @property
    def late(self) -> list[float]:
        """The lateness of all ticks, ascending, in microseconds."""
        return sorted(late for vm in self.observed for late in vm.late)


def measure(daemon: Daemon, *, vms: int, observed: int, seconds: float, quiet_seconds: float) -> Result:
    """Create the VMs on a new daemon, and let them tick."""
    with daemon.connect(timeout=60) as client:
        cpu_empty = cpu_share(daemon, quiet_seconds)
        machines = [new_vm(client) for _ in range(vms)]
        time.sleep(1)
        cpu_idle = cpu_share(daemon, quiet_seconds)
        for vm in machines[observed:]:
            with vm.session("timer") as session:
                session.run(timer())
        results = [Observed() for _ in range(observed)]
        stop = threading.Event()
        threads = [
            threading.Thread(target=observe, args=(vm, result, stop))
            for vm, result in zip(machines, results, strict=False)
        ]
        for thread in threads:
            thread.start()
        cpu_ticking = cpu_share(daemon, seconds)
        stop.set()
        for thread in threads:
            thread.join()
    return Result(results, cpu_empty, cpu_idle, cpu_ticking)


def new_vm(client: Client) -> Vm:
    """A VM whose local APIC is enabled."""
    vm = client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(SVR, 0x1FF)
    return vm


def timer() -> Sequence[ops.Call[object]]:
    """Start the APIC timer."""
    writes = ((DIVIDE, BY_ONE), (LVT_TIMER, PERIODIC | VECTOR), (INITIAL_COUNT, PERIOD))
    return [ops.mmio_write(0, address, value) for address, value in writes]


def observe(vm: Vm, result: Observed, stop: threading.Event) -> None:
    """Take a VM's ticks until `stop` is set."""
    with vm.session("cpu") as session:
        before = time.monotonic_ns()
        session.run(timer())
        after = time.monotonic_ns()
        while not stop.is_set():
            take_tick(session)
            now = time.monotonic_ns()
            result.ticks += 1
            result.late.append((now - before - result.ticks * PERIOD) / 1e3)
        # The last tick taken may be the last there was, or one more may be pending.
        result.at_least = (now - after) // PERIOD - 1
        result.at_most = (now - before) // PERIOD


def take_tick(session: Session) -> None:
    """End the last tick and halt until the next tick."""
    *_, wake = session.run([ops.mmio_write(0, EOI, 0), ops.halt(0, timeout=5)])
    assert isinstance(wake, Interrupt), wake
    assert wake.vector == VECTOR, wake


def cpu_share(daemon: Daemon, seconds: float) -> float:
    """The daemon's share of a processor over a while."""
    before = cpu_seconds(daemon)
    time.sleep(seconds)
    return (cpu_seconds(daemon) - before) / seconds


def cpu_seconds(daemon: Daemon) -> float:
    """The CPU time a daemon has used so far, user and system."""
    with open(f"/proc/{daemon.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=500)
    parser.add_argument("--observed", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with start_daemon() as daemon:
        result = measure(
            daemon, vms=arguments.vms, observed=arguments.observed, seconds=arguments.seconds, quiet_seconds=10
        )
    late = result.late
    print(f"{arguments.vms} VMs, 100 Hz each, {arguments.seconds:g} s; {os.cpu_count()} processors")
    for number, vm in enumerate(result.observed):
        verdict = "none lost or doubled" if vm.complete else "LOST OR DOUBLED"
        print(f"VM {number}: {vm.ticks} ticks, {vm.at_least} to {vm.at_most} due: {verdict}")
    quantiles = ", ".join(f"p{share:g} {late[int(len(late) * share / 100)]:.0f}" for share in (50, 99, 99.9))
    print(f"ticks' lateness when taken, us: {quantiles}, at most {late[-1]:.0f}")
    print(
        f"the daemon's CPU: {result.cpu_empty:.2%} empty, {result.cpu_idle:.2%} with idle VMs,"
        f" {result.cpu_ticking:.1%} while they tick"
    )


if __name__ == "__main__":
    main()
