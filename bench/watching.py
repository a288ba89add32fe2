"""The cost of observers to a VM: a Watch of everything, no Watch, and metrics."""

from __future__ import annotations

import ast
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from multiprocessing.connection import Connection
from typing import Any

from bench.measure import Figure, Series, Work, round_robin
from bench.workers import BATCH, EOI, GSI, prepare, session_over, worker
from irqchip.builds import is_compiled
from irqchip_client import Session, connect, ops
from irqchip_client._daemon import start_daemon

WATCHED = "Session over gRPC, changes a second with one Watch of everything / without a Watch"
UNOBSERVED = "a line change without a Watch / without tracepoints"
METERED = {
    "a change, Session over gRPC": "Session over gRPC, a line change with --metrics / without",
    "port, PioRead": "port, polling on: PioRead round trip with --metrics / without",
    "port, from assert to EOI": "port, polling on: assert, Halt, EOI with --metrics / without",
}
FIGURES = (WATCHED, UNOBSERVED, *METERED.values())
ROUNDS, BATCHES, IN_FLIGHT = 15, 300, 8
PAUSE = 0.05  # seconds after a Watch has begun or ended
POLL_US = 100
CHANGES = [(21, bool(number % 2)) for number in range(BATCH)]


def watcher(pipe: Connection, target: str, vm: str) -> None:
    """Read a Watch between the pipe's start and stop."""
    with connect(target) as client:
        pipe.send("ready")
        while True:
            try:
                probes = pipe.recv()
            except EOFError:
                return
            with client.vm(vm).watch(probes=probes) as watch:
                reader = threading.Thread(target=lambda watch=watch: [None for _ in watch])
                reader.start()
                pipe.send("watching")
                pipe.recv()
            reader.join()
            pipe.send("quiet")


def watched(figures: list[Figure], series: dict[str, Series]) -> None:
    """Batches of line changes, in turn without a Watch, with a Watch, and with a Watch of the probes, too."""
    with ExitStack() as stack:
        daemon = stack.enter_context(start_daemon())
        client = stack.enter_context(daemon.connect())
        prepare(client, "vm")
        session = stack.enter_context(session_over(client, "vm", "grpc"))
        watching = stack.enter_context(worker(watcher, daemon.target, "vm"))
        watches = {
            "a change, no Watch": None,
            "a change, one Watch of everything": False,
            "a change, one Watch of everything and the probes": True,
        }
        times: dict[str, list[float]] = {name: [] for name in watches}
        for _ in range(ROUNDS):
            for name, probes in watches.items():
                if probes is not None:
                    watching.send(probes)
                    watching.recv()
                time.sleep(PAUSE)
                _drive(session, IN_FLIGHT)
                begun = time.perf_counter_ns()
                _drive(session, BATCHES)
                times[name].append((time.perf_counter_ns() - begun) / 1e3 / BATCHES / BATCH)
                if probes is not None:
                    watching.send("enough")
                    watching.recv()
    measured = {name: Series(values) for name, values in times.items()}
    series.update(measured)
    without, one, _ = measured.values()
    figures.append(Figure.ratio(WATCHED, without, one, 0.5, at_least=True))


def metered(figures: list[Figure], series: dict[str, Series]) -> None:
    """Line changes, reads and interrupts on a daemon with --metrics, and on one without."""
    with ExitStack() as stack:
        work: dict[str, Work] = {}
        for kind, arguments in (("", []), (", --metrics", ["--metrics", "tcp://127.0.0.1:0"])):
            daemon = stack.enter_context(start_daemon(arguments=["--poll", str(POLL_US), *arguments]))
            client = stack.enter_context(daemon.connect())
            prepare(client, "vm")
            grpc = stack.enter_context(session_over(client, "vm", "grpc"))
            port = stack.enter_context(session_over(client, "vm", "port", POLL_US))
            done: dict[str, Work] = {
                "a change, Session over gRPC": (partial(_drive, grpc, 16), 1, 16 * BATCH),
                "port, PioRead": (partial(port.vcpu(0).pio_read, 0x21), 100, 1),
                "port, from assert to EOI": (partial(_interrupt, port), 50, 1),
            }
            work.update({name + kind: what for name, what in done.items()})
        measured = round_robin(dict(sorted(work.items())), rounds=40)
    series.update(measured)
    for name, figure in METERED.items():
        figures.append(Figure.ratio(figure, measured[f"{name}, --metrics"], measured[name], 1.05))


def _interrupt(session: Session) -> None:
    vcpu = session.vcpu(0)
    line = session.line(GSI)
    line.raise_()
    assert vcpu.halt() is not None
    line.lower()
    vcpu.mmio_write(EOI, 0)


def _drive(session: Session, batches: int) -> None:
    calls = [ops.irq_lines(CHANGES)]
    futures = [session.submit(calls) for _ in range(IN_FLIGHT)]
    for future in [*futures, *(session.submit(calls) for _ in range(batches - IN_FLIGHT))]:
        future.result(10)


def unobserved(figures: list[Figure], series: dict[str, Series]) -> None:
    """A VM's own function, beside one without any statement for observers."""
    if is_compiled("irqchipd.vm.machine"):  # its statements can't be removed
        return
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        pipes = {
            "a VM's line change, no Watch": stack.enter_context(worker(driver, False)),
            "a VM's line change, no tracepoints": stack.enter_context(worker(driver, True)),
        }
        for _ in range(20 * ROUNDS):
            for name, pipe in pipes.items():
                pipe.send("drive")
                times.setdefault(name, []).append(pipe.recv())
    measured = {name: Series(values) for name, values in times.items()}
    series.update(measured)
    observed, without = measured.values()
    figures.append(Figure.ratio(UNOBSERVED, observed, without, 1.02))


def driver(pipe: Connection, without: bool) -> None:
    """For each message, drive a line in this process and answer with a change's microseconds."""
    if without:
        for name in [name for name in sys.modules if name.startswith(("irqchipd.vm", "irqchipd.chips"))]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder())
    from irqchipd.vm.x86.machine import X86Vm

    vm = X86Vm("vm")
    vm.create_irqchip()
    vm.create_vcpu(0)
    changes = [gsi << 1 | level for gsi, level in CHANGES] * 8
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        begun = time.perf_counter_ns()
        vm.irq_lines(changes)
        pipe.send((time.perf_counter_ns() - begun) / 1e3 / len(changes))


class _Finder(MetaPathFinder):
    """Finds irqchipd's modules, to be loaded without tracepoints."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin and fullname.startswith(("irqchipd.vm", "irqchipd.chips")):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        tree = _Remover().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec")


class _Remover(ast.NodeTransformer):
    """Removes `if self.observer is not None: ...`, and the statements that only that needs."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        test = ast.unparse(node.test)
        if test.endswith("observer is None"):
            return node.body
        if test.endswith("observer is not None"):
            return node.orelse or ast.copy_location(ast.Pass(), node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if ast.unparse(node) == "observer = self.observer" else node
