"""Golden traces: sequences of operations with the kernel's answers, one JSON object a line.

    {"family": "pic", "seed": 1, "vcpus": 1, "ops": [["irq_line", 4, 1, 1], ["take_extint", 0, null]]}

An operation is its name, its arguments and the kernel's answer. An answer that is a string beginning with "-" is an
errno; "time" stands for a number that depends on the time, and "GP" for a fault of the guest. A trace starts from a new
VM with an irqchip and `vcpus` vCPUs that run.

A trace with "gic" (2 or 3) is of arm64, and starts from a new VM in which nothing has been done. A new operation needs
its arguments in OPERATIONS of x86.py or arm64.py, and an entry in each of the tables that execute them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import arm64, x86
from .kinds import HEX, Operations

MAX_VCPUS = 255
MAX_SHOWN = 1000  # characters of an operation or an answer; the longest of the kernel's are about half of it
TIME = "time"  # the answer that is any number
_GZIP_MAGIC = b"\x1f\x8b"


class TraceError(Exception):
    """A file that holds no usable traces; the message names file and line."""


class Operation(NamedTuple):
    """An operation, and the kernel's answer."""

    name: str
    arguments: list[Any]
    expected: Any

    def __str__(self) -> str:
        """As in the file, without the answer."""
        return as_json([self.name, *self.arguments])


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace. Operations are numbered from 0, by their place in ops."""

    family: str
    seed: int
    vcpus: int
    operations: tuple[Operation, ...]
    gic: int | None = None  # 2 or 3: arm64, on a host with this GIC

    @property
    def architecture(self) -> str:
        """The architecture of the operations."""
        return "x86" if self.gic is None else "arm64"


def as_expected(expected: Any, actual: Any) -> bool:
    """Whether an answer is the kernel's."""
    return bool(actual == expected or (expected == TIME and type(actual) is int))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An operation that was not answered as the kernel did."""

    trace: Trace
    number: int
    actual: Any

    @property
    def operation(self) -> Operation:
        """The operation, with the kernel's answer."""
        return self.trace.operations[self.number]

    def __str__(self) -> str:
        return (
            f"family {self.trace.family}, seed {self.trace.seed},"
            f" operation {self.number}: {_shorten(str(self.operation))}\n"
            f"  expected {_shorten(as_json(self.operation.expected))}\n"
            f"  actual   {_shorten(as_json(self.actual))}{_where(self.operation.expected, self.actual)}"
        )


Done = Callable[[Trace, list[Mismatch]], None]  # Called for every trace that has run to its end.


def as_json(value: Any) -> str:
    """In one line, as in a trace."""
    return json.dumps(value, separators=(",", ":"))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _where(expected: Any, actual: Any) -> str:
    """The places in which two long answers differ."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        names = [name for name in actual if name not in expected or expected[name] != actual[name]]
        names += [name for name in expected if name not in actual]
        return _shorten(f"\n  differ in {', '.join(names)}")
    if HEX.accepts(expected) and HEX.accepts(actual) and len(expected) == len(actual):
        pairs = zip(bytes.fromhex(expected), bytes.fromhex(actual), strict=True)
        bytes_ = (str(at) for at, (one, other) in enumerate(pairs) if one != other)
        return _shorten(f"\n  differ in byte {', '.join(bytes_)}")
    if arm64.STATE.accepts(expected) and arm64.STATE.accepts(actual) and len(expected) == len(actual):
        return _shorten(f"\n  differ in {', '.join(arm64.differing_attributes(expected, actual))}")
    return ""


def load_traces(path: Path) -> list[Trace]:
    """The traces of a .jsonl or .jsonl.gz file. TraceError if it can't be read or a line is malformed."""
    traces = []
    try:
        for at, line in enumerate(_lines(path), 1):
            try:
                if not line.isspace():
                    traces.append(parse_trace(line))
            except TraceError as error:
                raise TraceError(f"{path}:{at}: {error}") from error
    except OSError as error:
        raise TraceError(f"{path}: can't be read: {error.strerror or error}; check the path") from error
    except (EOFError, zlib.error) as error:  # also of a file that is cut off or damaged within
        raise TraceError(f"{path}: can't be read: {error}") from error
    if not traces:
        raise TraceError(f"{path}: holds no traces")
    return traces


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if compressed:
            with gzip.open(file) as plain:
                yield from plain
        else:
            yield from file


def parse_trace(line: bytes | str) -> Trace:
    """One line. TraceError if it is malformed."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a monstrous number
        raise TraceError(f"is not JSON: {error}; write one object a line") from error
    return as_trace(found)


def as_trace(found: Any) -> Trace:
    """The trace in a line's JSON value. TraceError if it is malformed."""
    if not isinstance(found, dict):
        raise TraceError("is not a JSON object")
    family, seed, vcpus, ops = (found.get(name) for name in ("family", "seed", "vcpus", "ops"))
    if not isinstance(family, str) or not family.isprintable() or type(seed) is not int:
        raise TraceError("family must be a printable string and seed a number")
    fewest = 0 if "gic" in found else 1
    if type(vcpus) is not int or not fewest <= vcpus <= MAX_VCPUS:
        raise TraceError(f"vcpus must be a number, {fewest} to {MAX_VCPUS}")
    if not isinstance(ops, list):
        raise TraceError("ops must be a list of operations")
    if "gic" not in found:
        return Trace(family, seed, vcpus, tuple(_operations(x86.OPERATIONS, ops)))
    if found["gic"] not in (2, 3) or isinstance(found["gic"], bool | float):
        raise TraceError("gic must be 2 or 3, or be left out for x86")
    return Trace(family, seed, vcpus, tuple(_operations(arm64.OPERATIONS, ops)), found["gic"])


def _operations(operations: Operations, ops: Iterable[Any]) -> Iterator[Operation]:
    for at, op in enumerate(ops):
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            raise TraceError(f"operation {at}: must be a list of a name, arguments and an answer")
        kinds = operations.get(op[0])
        name, *arguments = arm64.with_arguments(op) if operations is arm64.OPERATIONS else op
        if kinds is None:
            raise TraceError(f"operation {at}: {name!r:.100} is unknown; there are {', '.join(operations)}")
        if len(arguments) != len(kinds) + 1:
            wanted = f"{', '.join(kinds)} and the answer" if kinds else "the answer"
            raise TraceError(f"operation {at}: {name} takes {wanted}, not {len(arguments)} values")
        answer = arguments.pop()
        if isinstance(answer, bool | float):  # No answer of the kernel's is true, which equals 1 in Python.
            raise TraceError(f"operation {at}: an answer can't be {as_json(answer)}")
        for (argument, kind), value in zip(kinds.items(), arguments, strict=True):
            if not kind.accepts(value):
                raise TraceError(f"operation {at}: {name}'s {argument} must be {kind.description}")
        yield Operation(name, arguments, answer)
