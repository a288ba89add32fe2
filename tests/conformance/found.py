"""Differences found by comparing with a live kernel: operations with the kernel's answers, one JSON line each.

    {"about": "what it shows", "kernel": "6.18.44", "ops": [[op, arguments..., answer], ...]}

The operations are those of machines.py. standard.jsonl has the answers of the kernel that tests/nested boots, where
irqchipd answers differently for one of the reasons in hosts.py.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.machines import Answer, Machine, Op


@dataclass(frozen=True, slots=True)
class Found:
    """One recorded difference."""

    about: str
    ops: tuple[Op, ...]
    answers: tuple[Answer, ...]

    def __str__(self) -> str:
        return self.about

    def answers_of(self, machine: Machine) -> tuple[Answer, ...]:
        """A machine's answers; closes the machine."""
        with closing(machine):
            return tuple(machine.perform(op) for op in self.ops)


def _load(path: Path) -> list[Found]:
    found = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        ops, answers = zip(*((op[:-1], op[-1]) for op in record["ops"]), strict=True)
        found.append(Found(record["about"], ops, answers))
    return found


FOUND = _load(Path(__file__).with_name("found.jsonl"))
STANDARD_FOUND = _load(Path(__file__).with_name("standard.jsonl"))
