"""`make stall`: how much a hostile client or guest slows down others, and whether the daemon still stops.

Each attack has a daemon of its own. Five processes that take no part in the attack use VMs of their own: they send
requests over the port and over gRPC, connect anew, halt for 10 ms, and take the 10 ms ticks of a PIT. They measure
first without the attack, then during it. SIGTERM comes while the attack still runs. The whole takes less than six
minutes and writes bench/out/stall.json."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from bench.attacks import ATTACKS
from bench.attacks.common import Foe
from bench.stall_report import Result, print_report, write_report
from bench.victims import KINDS, Samples, Victim, prepare
from irqchip_client import IrqchipError
from irqchip_client._daemon import Daemon, start_daemon

SECONDS, QUIET = 2.0, 0.8
PREPARATION = 30.0
STOP_PATIENCE = 10.0
ATTACKER_LIFE = 120  # seconds, after which an attacker ends in any case
MEMORY = 4 << 30  # the limit of the daemon's address space, to protect this machine
DESCRIPTORS = 1024  # the usual limit, for attacks with descriptors
_CONTEXT = multiprocessing.get_context("spawn")


# The attacker's process.


def attack(pipe: Connection, target: str, number: int) -> None:
    """Prepare the attack; repeat it from the first message on. Report after each act how long it held a vCPU."""
    signal.alarm(ATTACKER_LIFE)
    os.nice(10)  # the attacker's own computing is not part of the attack
    with suppress(ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    act = ATTACKS[number].prepare(Foe(target))
    pipe.send("ready")
    pipe.recv()
    held: float | None = None
    while True:
        try:
            took = act()
            held = took if held is None or took is None else max(held, took)
        except (grpc.RpcError, OSError):
            time.sleep(0.01)
        if pipe.poll():
            pipe.recv()
            pipe.send(held)


@contextmanager
def attackers(result: Result, target: str, number: int) -> Iterator[list[Connection]]:
    """The processes of an attack, prepared."""
    pipes, processes = [], []
    for _ in range(result.attack.processes):
        here, there = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=attack, args=(there, target, number), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        yield [pipe for pipe in pipes if _is_ready(result, pipe)]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _is_ready(result: Result, pipe: Connection) -> bool:
    with suppress(EOFError, ConnectionResetError):
        if pipe.poll(PREPARATION):
            pipe.recv()
            return True
    result.trouble.append("preparation")
    return False


# The measurement.


def measure(number: int, victims: Mapping[str, Victim], seconds: float) -> Result:
    """Run one attack and measure it."""
    result = Result(ATTACKS[number])
    try:
        _measure(result, number, victims, seconds)
    except IrqchipError as error:  # the daemon does not start, or does not answer
        result.trouble.append(f"{type(error).__name__}: {str(error)[:60]}")
    return result


def _measure(result: Result, number: int, victims: Mapping[str, Victim], seconds: float) -> None:
    few = result.attack.row == 4
    # The daemon raises its limit itself if it starts with so few descriptors.
    with start_daemon(arguments=["--max-irqfds", str(DESCRIPTORS // 8)] if few else []) as daemon:
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        if few:
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        before = _memory(daemon, "VmRSS")
        with daemon.connect() as client:
            prepare(client)
        for victim in victims.values():
            victim.connect(daemon.target)
        result.trouble += [f"{kind} can't connect" for kind, victim in victims.items() if not victim.connected()]
        with attackers(result, daemon.target, number) as pipes:
            result.quiet = _pings(victims, QUIET)
            for pipe in pipes:
                pipe.send("go")
            result.attacked = _pings(victims, seconds)
            result.held = _held(pipes) if result.attack.row == 13 else None
            result.growth_mib = _memory(daemon, "VmHWM") - before
            result.stop_seconds = _stop(result, daemon)


def _pings(victims: Mapping[str, Victim], seconds: float) -> dict[str, Samples]:
    for victim in victims.values():
        victim.begin()
    time.sleep(seconds)
    for victim in victims.values():
        victim.end()
    return {kind: victim.samples() for kind, victim in victims.items()}


def _held(pipes: Sequence[Connection]) -> float | None:
    """The longest time that a vCPU of the attacker's own waited."""
    longest: float | None = None
    for pipe in pipes:
        pipe.send("report")
        held: float | None = pipe.recv() if pipe.poll(20) else float("inf")
        longest = held if longest is None or held is None else max(longest, held)
    return longest


def _stop(result: Result, daemon: Daemon) -> float:
    """The seconds that the daemon takes to stop during the attack."""
    if daemon.process.poll() is not None:
        result.trouble.append(f"the daemon ended with status {daemon.process.returncode}")
        return 0.0
    if tracebacks := daemon.stderr.count("Traceback"):
        result.trouble.append(f"{tracebacks} tracebacks")
    begun = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    try:
        if status := daemon.process.wait(STOP_PATIENCE):
            result.trouble.append(f"status {status}")
    except subprocess.TimeoutExpired:
        daemon.process.kill()
        daemon.process.wait()
        return float("inf")
    took = time.monotonic() - begun
    path = daemon.target.removeprefix("unix://")
    if os.path.exists(path) or os.path.exists(path + ".port"):
        result.trouble.append("a socket was left behind")
    return took


def _memory(daemon: Daemon, name: str) -> float:
    """A value of the daemon's /proc status, in MiB; VmHWM is the peak."""
    with suppress(OSError):
        for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Measure and report. The exit status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.stall", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of each phase of an attack")
    parser.add_argument("--only", default="", help="run only the attacks whose names contain this")
    parser.add_argument("--row", type=int, help="run only the attacks of this row")
    arguments = parser.parse_args()
    chosen = [
        number
        for number, found in enumerate(ATTACKS)
        if arguments.only in found.name and arguments.row in (None, found.row)
    ]
    victims = {kind: Victim(kind) for kind in KINDS}
    results = []
    begun = time.monotonic()
    try:
        for number in chosen:
            result = measure(number, victims, arguments.seconds)
            results.append(result)
            verdict = f"missed: {', '.join(result.missed)}" if result.missed else "met"
            print(f"{time.monotonic() - begun:4.0f} s  {result.attack.name}: {verdict}", file=sys.stderr, flush=True)
    finally:
        for victim in victims.values():
            victim.close()
    print_report(results)
    write_report(results)
    return 1 if any(result.missed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
