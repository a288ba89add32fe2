"""A real KVM/arm64 beside irqchipd: the same programs on both, and the fewest operations that show a difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from irqchip_client.replay.arm64 import differing_attributes
from irqchip_client.replay.traces import Mismatch, Trace, as_trace
from tests.conformance.arm.machine import ArmKvm, Recorder
from tests.conformance.arm.program import Op, Program
from tests.conformance.compare import Difference, minimise

Replay = Callable[[Trace], list[Mismatch]]
MAX_SHOWN = 300  # characters of an answer


def without_answer(op: Op) -> Op:
    """An operation of a trace, as a program has it."""
    if op[0] == "state":
        return [*op[:2], [[*block[:3], len(block[3])] for block in op[2]]]
    return op[:-1]


@dataclass(frozen=True, slots=True)
class Found(Difference):
    """A difference, and the trace that ends with it."""

    program: Program
    kernel_ops: Sequence[Op]

    def __str__(self) -> str:
        """The trace, as in a file of traces, and what irqchipd answered."""
        trace = {name: getattr(self.program, name) for name in ("family", "seed", "gic", "vcpus")}
        head = json.dumps(trace | {"ops": []}).removesuffix("]}")
        lines = [f"{head}", ",\n".join(f"  {json.dumps(op)}" for op in self.kernel_ops), "]}"]
        if self.ops[-1][0] == "state":
            return "\n".join([*lines, f"  irqchipd: {', '.join(differing_attributes(self.kernel, self.daemon))}"])
        return "\n".join([*lines, f"  irqchipd: {json.dumps(self.daemon)[:MAX_SHOWN]}"])


class Judge:
    """Two machines, one of each GIC, and irqchipd. Use it in a with statement."""

    def __init__(self, kvm: ArmKvm, irqchipd: Replay) -> None:
        self._kvm = kvm
        self._irqchipd = irqchipd
        self._recorders: dict[int, Recorder] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for recorder in self._recorders.values():
            recorder.close()

    def recorder(self, gic: int) -> Recorder:
        """The running machine with this GIC."""
        if gic not in self._recorders:
            self._recorders[gic] = self._kvm.boot(gic)
        return self._recorders[gic]

    def compare(self, programs: Sequence[Program]) -> Iterator[tuple[Trace, Found | None]]:
        """Each program's trace, and its first difference."""
        for gic in sorted({program.gic for program in programs}):
            mine = [program for program in programs if program.gic == gic]
            for program, record in zip(mine, self.recorder(gic).record(mine), strict=True):
                trace = as_trace(record)
                mismatches = self._irqchipd(trace)
                yield trace, _found(program, record["ops"], mismatches[0]) if mismatches else None

    def minimise(self, found: Found) -> Found:
        """The fewest operations with this difference."""

        def compare(ops: Sequence[Op]) -> Found | None:
            ((_, smaller),) = self.compare([replace(found.program, ops=ops)])
            return smaller

        smallest = minimise(_of_an_attribute(found, compare), compare, stays=lambda _: False)
        assert isinstance(smallest, Found)
        return smallest


def _found(program: Program, ops: Sequence[Op], mismatch: Mismatch) -> Found:
    kernel_ops = ops[: mismatch.number + 1]
    bare = [without_answer(op) for op in kernel_ops]
    return Found(bare, mismatch.operation.expected, mismatch.actual, program, kernel_ops)


def _of_an_attribute(found: Found, compare: Callable[[Sequence[Op]], Found | None]) -> Found:
    """A difference of a state as one of the first attribute that differs, if that is one, too."""
    if found.ops[-1][0] != "state":
        return found
    device = found.ops[-1][1]
    for (group, first, step, theirs), (*_, ours) in zip(found.kernel, found.daemon, strict=True):
        for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            if their != our:
                attribute = ["get_attr", device, group, first + number * step, 0]
                return compare([*found.ops[:-1], attribute]) or found
    return found
