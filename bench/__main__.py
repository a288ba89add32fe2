"""`make bench`: measures the daemon beside its references, round by round, and prints medians and ratios.

If irqchipd is compiled in another environment, the same is measured there, each thing after the other. Each takes about
a minute. The reports are bench/out/latest.json and bench/out/latest.svg. The goals are the compiled build's.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import grpc

from bench import virtio
from bench.builds import CORE, Build, measure_in, write_measured
from bench.measure import PAUSE, Figure, Series, Work, round_robin
from bench.peers import PingPong, pin, pinned, qtest
from bench.report import print_report, write_plot, write_report
from bench.server import NOOP_CALL, NOOP_VM
from bench.ticks import cpu_share
from bench.virtio import by_virtio
from bench.watching import FIGURES, metered, unobserved, watched
from bench.workers import (
    ANSWERED_PORT,
    BATCH,
    answerer,
    device,
    embedded_vcpu,
    flooder,
    prepare,
    session_over,
    vcpu,
    worker,
)
from irqchip.builds import is_compiled
from irqchip.ring import OFFERED
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, Session, embedded, ops
from irqchip_client._daemon import start_daemon
from irqchip_client.replay.in_process import replay
from irqchip_client.replay.traces import load_traces
from irqchipd.vm.x86.machine import X86Vm
from tests.conformance.kvm import Kvm, KvmVm

POLL_US = 100  # the time that both sides poll, if they poll
IN_FLIGHT = 8
REPEATED = 200
VMS, SESSIONS, FLOODERS = 10_000, 200, 4
GOLDEN = Path(__file__).parents[1] / "tests/conformance/golden/kvm-6.18.jsonl.gz"
EVERY = 40  # the bench replays every 40th golden trace; the file has a family's traces one after the other
CHANGES = [ops.irq_lines([(21, level) for level in (True, False)] * (BATCH // 2))]


def main() -> None:
    """Run the benchmarks and write the reports."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--compiled", metavar="PYTHON", help="measure also in this environment")
    parser.add_argument("--only", metavar="NAME", choices=[measure.__name__ for measure in MEASURES])
    parser.add_argument("--write", metavar="PATH", type=Path, help="write the measurements, and no report")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    series: dict[str, Series] = {}
    compiled = Build() if arguments.compiled else None
    for measure in MEASURES:
        if arguments.only in (None, measure.__name__):
            measure(figures, series)
            if compiled is not None:
                measure_in(arguments.compiled, measure.__name__, compiled)
    if arguments.write:
        write_measured(figures, series, arguments.write)
        return
    if compiled is not None and REPLAYED in compiled.series:
        ratio = Figure.ratio(ORDER[18], series[REPLAYED], compiled.series[REPLAYED], 2.5, at_least=True)
        figures.append(ratio)
        compiled.figures[ratio.name] = ratio.value
    by_name = {figure.name: figure for figure in figures}
    figures = [by_name[name] for name in ORDER if name in by_name]
    print_report(figures, series, compiled)
    write_report(figures, series, compiled)
    write_plot(series if compiled is None else compiled.series)


ORDER = (
    "unary IrqLine / no-op unary RPC",
    "Session, 256 line changes a batch, per change / the same stream with a no-op executor",
    "Session, 256 line changes a batch, changes a second on one stream",
    "port, polling off: PioRead round trip / bare Python ping-pong, blocking",
    "port, polling on: PioRead round trip / bare Python ping-pong, both polling",
    "port, polling on: PioRead round trip / QEMU qtest inb round trip",
    "from the assert in a device process to the end of Halt in a vCPU, polling off / bare ping-pong, blocking",
    "from the assert in a device process to the end of Halt in a vCPU, polling on / bare ping-pong, both polling",
    "from an irqfd write in a device process to the end of Halt, polling on / bare ping-pong, both polling",
    "CPU time of a daemon with 200 idle Sessions / wall clock",
    "one operation with 10,000 VMs / with 1 VM",
    "one operation with 200 open Sessions / with 1",
    "p99 of a quiet VM's port round trip while another VM is flooded by 4 clients / undisturbed",
    "embedded: PioRead / the same PioRead of its VM, called in a loop",
    "ring: PioRead round trip / bare Python ping-pong, both polling",
    "ring: PioRead round trip / QEMU qtest inb round trip",
    "by rings, from the assert in a device process to the end of Halt in a vCPU / bare ping-pong, both polling",
    "from the assert in a device process to the end of Halt in an embedded daemon / bare ping-pong, both polling",
    "in-process replay of golden traces, pure / compiled",
    *FIGURES,
    *virtio.FIGURES,
)
REPLAYED = "an operation of the golden traces, in this process"


def over_grpc(figures: list[Figure], series: dict[str, Series]) -> None:
    """Unary calls and one stream, against no-op calls and empty batches on the same server."""
    with ExitStack() as stack:
        daemon = stack.enter_context(start_daemon(module="bench.server"))
        client = stack.enter_context(daemon.connect())
        line = prepare(client, "vm").line(21)
        prepare(client, NOOP_VM)
        channel = stack.enter_context(grpc.insecure_channel(daemon.target))
        noop: grpc.UnaryUnaryMultiCallable[pb.IrqLineRequest, pb.IrqLineResponse] = channel.unary_unary(
            NOOP_CALL, pb.IrqLineRequest.SerializeToString, pb.IrqLineResponse.FromString
        )
        request = pb.IrqLineRequest(vm="vm", gsi=21, level=True)
        sessions = [stack.enter_context(session_over(client, name, "grpc")) for name in ("vm", NOOP_VM)]
        measured = round_robin(
            {
                "no-op unary RPC": (lambda: noop(request, timeout=10), 40, 1),
                "unary IrqLine": (line.raise_, 40, 1),
                "stream, no-op executor, a change": (lambda: pipelined(sessions[1]), 1, 16 * BATCH),
                "stream, a change": (lambda: pipelined(sessions[0]), 1, 16 * BATCH),
            },
            rounds=40,
        )
    series.update(measured)
    figures += [
        Figure.ratio(ORDER[0], measured["unary IrqLine"], measured["no-op unary RPC"], 1.10),
        Figure(ORDER[2], 1e6 / measured["stream, a change"].median, "1/s", 400_000, at_least=True),
    ]
    if not is_compiled(CORE):  # The compiled executor can't be replaced: the reference executes as well.
        noop_change = measured["stream, no-op executor, a change"]
        figures.append(Figure.ratio(ORDER[1], measured["stream, a change"], noop_change, 3.0))


def pipelined(session: Session) -> None:
    """Send 16 batches and keep them all in flight."""
    futures = [session.submit(CHANGES) for _ in range(IN_FLIGHT)]
    for future in [*futures, *(session.submit(CHANGES) for _ in range(16 - IN_FLIGHT))]:
        future.result(10)


def by_port(figures: list[Figure], series: dict[str, Series]) -> None:
    """A round trip over the port, against bare ping-pongs and QEMU."""
    for polling, rounds, count in ((False, 25, 40), (True, 60, 200)):
        with ExitStack() as stack:
            poll = POLL_US if polling else 0
            bare = PingPong(polling)
            stack.callback(bare.close)
            daemon = stack.enter_context(start_daemon(arguments=["--poll", str(poll)]))
            pin(daemon.pid, 1)
            stack.enter_context(pinned(0))
            client = stack.enter_context(daemon.connect())
            prepare(client, "vm")
            session = stack.enter_context(session_over(client, "vm", "port", poll))
            kind = "both polling" if polling else "blocking"
            work: dict[str, Work] = {
                f"bare ping-pong, {kind}": (bare.hop, count, 1),
                f"port, PioRead, {kind}": (reads(session), count, 1),
                f"port, MmioWrite, always another value, {kind}": (different_writes(session), count, 1),
            }
            if polling and OFFERED:
                ring = stack.enter_context(session_over(client, "vm", "ring", poll))
                work["ring, PioRead, both polling"] = (reads(ring), count, 1)
            qemu = stack.enter_context(qtest()) if polling else None
            if qemu is not None:
                work["QEMU qtest, inb"] = (qemu.inb, 50, 1)
            measured = round_robin(work, rounds=rounds, pause=0.0 if polling else PAUSE)
        series.update(measured)
        reference, read = measured[f"bare ping-pong, {kind}"], measured[f"port, PioRead, {kind}"]
        figures.append(Figure.ratio(ORDER[3 + polling], read, reference, 2.0 if polling else 1.5))
        if "QEMU qtest, inb" in measured:
            figures.append(Figure.ratio(ORDER[5], read, measured["QEMU qtest, inb"], 0.4))
        by_ring = measured.get("ring, PioRead, both polling")
        if by_ring is not None:
            figures.append(Figure.ratio(ORDER[14], by_ring, reference, 0.6))
            if "QEMU qtest, inb" in measured:
                figures.append(Figure.ratio(ORDER[15], by_ring, measured["QEMU qtest, inb"], 0.15))


def by_device(figures: list[Figure], series: dict[str, Series]) -> None:  # noqa: ARG001 - it has no figure
    """A round trip to a chip, and one to a device in a process of its own, which takes two more hops."""
    for polling in (False, True):
        with ExitStack() as stack:
            poll = POLL_US if polling else 0
            kind = "both polling" if polling else "blocking"
            daemon = stack.enter_context(start_daemon(arguments=["--poll", str(poll)]))
            pin(daemon.pid, 1)
            stack.enter_context(pinned(0))
            client = stack.enter_context(daemon.connect())
            prepare(client, "vm")
            session = stack.enter_context(session_over(client, "vm", "port", poll))
            stack.enter_context(worker(answerer, daemon.target, "vm", poll_us=poll))
            work: dict[str, Work] = {
                f"a chip's PioRead beside a device's, {kind}": (reads(session), 50, 1),
                f"a device's PioRead, {kind}": (reads(session, ANSWERED_PORT), 50, 1),
                f"128 PioReads of a device in a batch, each, {kind}": (string(session), 1, 128),
            }
            series.update(round_robin(work, rounds=20, pause=0.0 if polling else PAUSE))


def different_writes(session: Session) -> Callable[[], object]:
    """Stores with ever different values."""
    cpu, values = session.vcpu(0), itertools.count(1)
    return lambda: cpu.mmio_write(0xFEE0_0080, next(values) & 0xFFFF_FFFF)


def by_interrupt(figures: list[Figure], series: dict[str, Series]) -> None:
    """From a device's process to a vCPU's, through the daemon."""
    for polling, rings in ((False, False), (True, False), (True, True))[: 2 + OFFERED]:
        kind = ("both polling" if polling else "blocking") + (", by rings" if rings else "")
        poll = 2 * POLL_US if polling else 0  # a vCPU waits for the device's pause, too
        with ExitStack() as stack:
            memory = SharedMemory(create=True, size=64)
            stack.callback(memory.unlink)
            stack.callback(memory.close)
            bare = PingPong(polling)
            stack.callback(bare.close)
            daemon = stack.enter_context(start_daemon(arguments=["--poll", str(poll)]))
            # The daemon has one processor. The other processes share the other: only one of them is busy at a time.
            pin(daemon.pid, 1)
            stack.enter_context(pinned(0))
            client = stack.enter_context(daemon.connect())
            prepare(client, "vm")
            halting = stack.enter_context(worker(vcpu, daemon.target, "vm", memory.name, poll_us=poll, rings=rings))
            pause = 20e-6 if polling else PAUSE
            asserting = stack.enter_context(
                worker(device, daemon.target, "vm", memory.name, pause, polling, poll_us=poll, rings=rings)
            )
            times: dict[str, list[float]] = {f"{how}, {kind}": [] for how in ("assert to Halt", "irqfd to Halt")}
            reference = f"bare ping-pong beside interrupts, {kind}"
            times[reference] = []
            for _ in range(15):
                for how in ("assert to Halt", "irqfd to Halt"):
                    asserting.send((how, 100))
                    times[f"{how}, {kind}"] += asserting.recv()
                for _ in range(100):
                    if not polling:
                        time.sleep(PAUSE)
                    begun = time.perf_counter_ns()
                    bare.hop()
                    times[reference].append((time.perf_counter_ns() - begun) / 1e3)
            halting.send("enough")
            asserting.send(("assert to Halt", 1))
            asserting.recv()
        measured = {name: Series(values[100:]) for name, values in times.items()}
        series.update(measured)
        bare_hop = measured[reference]
        if rings:
            figures.append(Figure.ratio(ORDER[16], measured[f"assert to Halt, {kind}"], bare_hop, 3.5))
            continue
        figures.append(
            Figure.ratio(ORDER[6 + polling], measured[f"assert to Halt, {kind}"], bare_hop, 3.5 if polling else 2.0)
        )
        if polling:
            figures.append(Figure.ratio(ORDER[8], measured[f"irqfd to Halt, {kind}"], bare_hop, 3.5))


def by_embedded(figures: list[Figure], series: dict[str, Series]) -> None:
    """From a device's process to a vCPU whose process holds the daemon."""
    poll = 2 * POLL_US
    with ExitStack() as stack:
        memory = SharedMemory(create=True, size=64)
        stack.callback(memory.unlink)
        stack.callback(memory.close)
        bare = PingPong(polling=True)
        stack.callback(bare.close)
        socket = f"{stack.enter_context(tempfile.TemporaryDirectory())}/socket"
        halting = stack.enter_context(worker(embedded_vcpu, socket, memory.name))
        stack.enter_context(pinned(0))
        asserting = stack.enter_context(
            worker(device, f"unix://{socket}", "vm", memory.name, 20e-6, True, poll_us=poll)
        )
        name = "assert to Halt of an embedded daemon, both polling"
        times: dict[str, list[float]] = {name: [], "bare": []}
        for _ in range(15):
            asserting.send(("assert to Halt", 100))
            times[name] += asserting.recv()
            for _ in range(100):
                begun = time.perf_counter_ns()
                bare.hop()
                times["bare"].append((time.perf_counter_ns() - begun) / 1e3)
        halting.send("enough")
        asserting.send(("assert to Halt", 1))
        asserting.recv()
    series[name] = Series(times[name][100:])
    figures.append(Figure.ratio(ORDER[17], series[name], Series(times["bare"][100:]), 2.0))


def at_rest(figures: list[Figure], series: dict[str, Series]) -> None:
    """The cost of many idle VMs and Sessions."""
    with ExitStack() as stack:
        stack.enter_context(pinned(0))
        sessions: dict[str, Session] = {}
        for name, vms, others in (("1 VM", 1, 0), (f"{VMS} VMs", VMS, 0), (f"{SESSIONS} Sessions", 1, SESSIONS - 1)):
            daemon = stack.enter_context(start_daemon(arguments=["--poll", str(POLL_US)]))
            pin(daemon.pid, 1)
            client = stack.enter_context(daemon.connect(timeout=60))
            create(client, vms)
            for _ in range(others):
                stack.enter_context(session_over(client, "vm-1", "port"))
            sessions[name] = stack.enter_context(session_over(client, "vm-1", "port", POLL_US))
            if others:
                cpu = cpu_share(daemon, 10)
        work: dict[str, Work] = {name: (reads(session), 200, 1) for name, session in sessions.items()}
        measured = round_robin(work, rounds=60)
    series.update({f"port, PioRead with {name}": values for name, values in measured.items()})
    figures += [
        Figure(ORDER[9], cpu, "ratio", 0.01),
        Figure.ratio(ORDER[10], measured[f"{VMS} VMs"], measured["1 VM"], 1.2),
        Figure.ratio(ORDER[11], measured[f"{SESSIONS} Sessions"], measured["1 VM"], 1.2),
    ]


def reads(session: Session, port: int = 0x21) -> Callable[[], object]:
    """Repeat one read."""
    cpu = session.vcpu(0)
    return lambda: cpu.pio_read(port)


def string(session: Session) -> Callable[[], object]:
    """Read as a string instruction does, in one batch."""
    calls = [ops.pio_read(0, ANSWERED_PORT)] * 128
    return lambda: session.run(calls)


def create(client: Client, count: int) -> None:
    """Create `count` VMs; the first has a vCPU."""
    first = client.create_vm("vm-1")
    first.create_irqchip()
    first.create_vcpu(0)
    for _ in range(count - 1):
        client.create_vm().create_irqchip()


def in_this_process(figures: list[Figure], series: dict[str, Series]) -> None:
    """A read of a daemon in this process, beside the VM's own function and the chip's."""
    with ExitStack() as stack:
        stack.enter_context(pinned(0))
        client = stack.enter_context(embedded())
        session = stack.enter_context(prepare(client, "vm").session())
        vm = X86Vm("vm")
        vm.create_irqchip()
        vm.create_vcpu(0)
        pic = vm._pc.pic
        assert pic is not None
        measured = round_robin(
            {
                "the PIC's read": (repeated(lambda: pic.read(0x21, 1)), 20, REPEATED),
                "a VM's PioRead": (repeated(lambda: vm.pio_read(0, 0x21, 1)), 20, REPEATED),
                "embedded, PioRead": (repeated(reads(session)), 20, REPEATED),
            },
            rounds=20,
        )
    series.update(measured)
    figures.append(Figure.ratio(ORDER[13], measured["embedded, PioRead"], measured["a VM's PioRead"], 3.0))


def replayed(figures: list[Figure], series: dict[str, Series]) -> None:  # noqa: ARG001 - main makes the figure
    """The golden traces on a VM in this process. Traces are of several lengths, so each round is one measurement."""
    traces = load_traces(GOLDEN)[::EVERY]
    operations = sum(len(trace.operations) for trace in traces)
    gc.collect()
    gc.freeze()  # As irqchipctl replay does.

    def run() -> None:
        for trace in traces:
            assert not replay(trace)

    series.update(round_robin({REPLAYED: (run, 1, operations)}, rounds=10))
    gc.unfreeze()


def repeated(do: Callable[[], object]) -> Callable[[], None]:
    """Work that repeats `do` until the clock's own time does not count."""

    def repeat() -> None:
        for _ in range(REPEATED):
            do()

    return repeat


def in_the_kernel(figures: list[Figure], series: dict[str, Series]) -> None:  # noqa: ARG001 - it has no figure
    """The time of the kernel's own irqchip, for comparison, if there is /dev/kvm."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    kvm = Kvm()
    with KvmVm(kvm) as vm:
        vm.create_irqchip()
        eventfd = os.eventfd(0)
        vm.irqfd(eventfd, 21)
        work: dict[str, Work] = {
            "KVM_IRQ_LINE ioctl": (lambda: vm.irq_line_without_status(22, 1), 200, 1),
            "KVM irqfd, the write": (lambda: os.eventfd_write(eventfd, 1), 200, 1),
        }
        series.update(round_robin(work, rounds=10))
        os.close(eventfd)
    kvm.close()


def under_flood(figures: list[Figure], series: dict[str, Series]) -> None:
    """The latency of a nearly idle VM while another VM floods the daemon."""
    quiet: list[float] = []
    flooded: list[float] = []
    with ExitStack() as stack:
        daemon = stack.enter_context(start_daemon())
        client = stack.enter_context(daemon.connect())
        prepare(client, "busy")
        prepare(client, "vm")
        read = reads(stack.enter_context(session_over(client, "vm", "port")))
        flood = [stack.enter_context(worker(flooder, daemon.target, "busy")) for _ in range(FLOODERS)]
        for _ in range(10):
            quiet += paced(read, 200)
            for pipe in flood:
                pipe.send("flood")
            time.sleep(0.05)
            flooded += paced(read, 200)
            for pipe in flood:
                pipe.send("stop")
            for pipe in flood:
                assert pipe.recv() == "quiet"
    series["a quiet VM's PioRead, undisturbed"] = Series(quiet)
    series["a quiet VM's PioRead, flooded by 4 clients"] = Series(flooded)
    value = Series(flooded).p99 / Series(quiet).p99
    figures.append(Figure(ORDER[12], value, "ratio", 3.0))


def paced(read: Callable[[], object], count: int) -> list[float]:
    """The time of each of `count` reads, in microseconds, one read per millisecond."""
    times = []
    for _ in range(count):
        time.sleep(0.001)
        begun = time.perf_counter_ns()
        read()
        times.append((time.perf_counter_ns() - begun) / 1e3)
    return times


MEASURES = (
    over_grpc,
    by_port,
    by_device,
    by_interrupt,
    by_embedded,
    at_rest,
    under_flood,
    in_this_process,
    replayed,
    watched,
    unobserved,
    metered,
    by_virtio,
    in_the_kernel,
)

if __name__ == "__main__":
    main()
