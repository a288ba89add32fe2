"""Rounds of fuzzing: three workers send while another VM is checked; after each the daemon must be unchanged."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from irqchip.ring import OFFERED
from irqchip_client._daemon import Daemon, start_daemon
from tests.fuzz.by_grpc import GrpcFuzzer
from tests.fuzz.by_port import PortFuzzer
from tests.fuzz.by_ring import RingFuzzer
from tests.fuzz.findings import Report
from tests.fuzz.machines import clear
from tests.fuzz.vitals import Vitals, first_traceback, settled, vitals
from tests.fuzz.witness import NAME, Witness, witness

MEMORY = 1.10  # relative to the memory after the warm-up
ROUND = 25_000  # messages
BY_GRPC, BY_RING = 0.3, 0.2  # the shares of messages sent over gRPC, and in rings
WARM_UP, LEAST_WARM_UP = 0.2, 4  # the share of warm-up rounds, and their least number
STUCK = 300.0  # seconds without a report from a worker
ASK_EVERY = 0.01

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class Outcome:
    """The result of a campaign."""

    report: Report = field(default_factory=Report)
    findings: list[str] = field(default_factory=list)
    rounds: list[Vitals] = field(default_factory=list)
    asked: int = 0
    slowest: float = 0.0

    def judge_memory(self) -> None:
        """Check that the memory is as it was after the warm-up."""
        if len(self.rounds) < 2 * LEAST_WARM_UP:  # too few rounds to judge
            return
        warm = max(int(len(self.rounds) * WARM_UP), LEAST_WARM_UP)
        before = max(now.rss_kib for now in self.rounds[:warm])
        after = int(statistics.median(now.rss_kib for now in self.rounds[-3:]))
        if after > before * MEMORY:
            self.findings.append(f"memory: {before} KiB after the warm-up, {after} KiB in the end")


def run(seed: int, messages: int, show: Callable[[str], None]) -> Outcome:
    """Send `messages` messages to a new daemon; stops early if the daemon ends or cannot be used."""
    outcome = Outcome()
    with start_daemon() as fuzzed, start_daemon() as alone:
        try:
            with witness(fuzzed, alone, f"{seed}/witness") as other, _workers(fuzzed.target) as workers:
                _rounds(outcome, fuzzed, other, workers, seed, messages, show)
        except Exception as error:
            outcome.findings.append(f"the fuzzer could not go on: {type(error).__name__}: {error}")
        now = vitals(fuzzed)
        if not now.alive:
            outcome.findings.append(
                f"the daemon has ended, status {fuzzed.process.returncode}: {fuzzed.stderr[-3000:]}"
            )
        if now.tracebacks:
            outcome.findings.append(f"{now.tracebacks} tracebacks in the log, the first:\n{first_traceback(fuzzed)}")
    outcome.judge_memory()
    outcome.findings += [f"{count} x {kind}" for kind, count in outcome.report.kinds.most_common()]
    return outcome


def _rounds(
    outcome: Outcome,
    fuzzed: Daemon,
    other: Witness,
    workers: list[Connection],
    seed: int,
    messages: int,
    show: Callable[[str], None],
) -> None:
    total = max(round(messages / ROUND), 1)
    clear(fuzzed.target, [NAME])
    before = vitals(fuzzed)
    for number in range(total):
        share = messages * (number + 1) // total - messages * number // total
        by_grpc = int(share * BY_GRPC)
        by_ring = int(share * BY_RING) if OFFERED else 0
        begun = time.monotonic()
        for worker, count in zip(workers, (by_grpc, share - by_grpc - by_ring, by_ring), strict=True):
            worker.send((f"{seed}/{number}", count))
        _watch_until_done(outcome, other, workers)
        took = time.monotonic() - begun
        other.compare_states()
        clear(fuzzed.target, [NAME])
        if number == 0:  # by now its event loop and gRPC have allocated what they need
            before = settled(fuzzed, 0, patience=2.0)
        now = settled(fuzzed, before.descriptors)
        outcome.rounds.append(now)
        outcome.asked, outcome.slowest = other.asked, other.slowest
        if now.descriptors > before.descriptors:
            outcome.findings.append(f"round {number}: {now.descriptors} descriptors, {before.descriptors} before")
        outcome.findings += [f"round {number}: another VM: {found}" for found in other.differences]
        other.differences.clear()
        sent = outcome.report.sent
        show(
            f"{sent:,} messages, {share / took:,.0f}/s; {now.rss_kib / 1024:.1f} MiB, {now.descriptors} descriptors,"
            f" {now.tracebacks} tracebacks, log {now.log_bytes:,} bytes; another VM answered {other.asked:,} times, in"
            f" {other.slowest:.2f} s at the most; found {outcome.report.kinds.total() + len(outcome.findings)}"
        )
        if now.tracebacks and number and not outcome.rounds[-2].tracebacks:
            show(first_traceback(fuzzed))
        if not now.alive:
            return


def _watch_until_done(outcome: Outcome, other: Witness, workers: list[Connection]) -> None:
    """Check the other VM while the workers send."""
    pending = list(workers)
    deadline = time.monotonic() + STUCK
    while pending:
        other.ask()
        for worker in [worker for worker in pending if worker.poll(ASK_EVERY / len(pending))]:
            report: Report = worker.recv()
            outcome.report.add(report)
            pending.remove(worker)
            deadline = time.monotonic() + STUCK
        if time.monotonic() > deadline:
            raise TimeoutError(f"a worker has said nothing for {STUCK:g} s")


@contextmanager
def _workers(target: str) -> Iterator[list[Connection]]:
    pipes, processes = [], []
    for work in (_send_by_grpc, _send_by_port, _send_by_ring):
        here, there = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=work, args=(there, target), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(5)
            process.kill()


def _send_by_grpc(pipe: Connection, target: str) -> None:
    async def work() -> None:
        fuzzer = GrpcFuzzer(target, "by-grpc")
        while (order := _next(pipe)) is not None:
            report = Report()
            await fuzzer.run(*order, report)
            pipe.send(report)
        await fuzzer.close()

    asyncio.run(work())


def _send_by_port(pipe: Connection, target: str) -> None:
    _send_by(PortFuzzer(target, "by-port"), pipe)


def _send_by_ring(pipe: Connection, target: str) -> None:
    _send_by(RingFuzzer(target, "by-ring"), pipe)


def _send_by(fuzzer: PortFuzzer | RingFuzzer, pipe: Connection) -> None:
    while (order := _next(pipe)) is not None:
        report = Report()
        fuzzer.run(*order, report)
        pipe.send(report)
    fuzzer.close()


def _next(pipe: Connection) -> tuple[str, int] | None:
    """The next seed and count; None at the end."""
    try:
        order: tuple[str, int] = pipe.recv()
    except EOFError:
        return None
    return order
