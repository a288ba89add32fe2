"""Runs the same operations on two machines, and minimises the sequence that shows a difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from tests.conformance.hosts import PLAIN, Host
from tests.conformance.machines import Answer, Machine, Op

MAX_SHOWN = 300  # characters per answer


@dataclass(frozen=True, slots=True)
class Difference:
    """A sequence of operations whose last one the kernel and irqchipd answer differently."""

    ops: Sequence[Op]
    kernel: Answer
    daemon: Answer

    def __str__(self) -> str:
        lines = [json.dumps(op) for op in self.ops]
        lines += [f"  the kernel: {_shorten(self.kernel)}", f"  irqchipd:   {_shorten(self.daemon)}"]
        if isinstance(self.kernel, str) and isinstance(self.daemon, str):
            places = [
                at // 2 for at in range(0, len(self.kernel), 2) if self.kernel[at : at + 2] != self.daemon[at:][:2]
            ]
            lines.append(f"  they differ at {', '.join(map(hex, places[:20]))}")
        return "\n".join(lines)


def _shorten(answer: Answer) -> str:
    text = json.dumps(answer)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _answer(machine: Machine, op: Op) -> Answer:
    """A machine's answer. An error other than an errno, which must not happen, counts as an answer too."""
    try:
        return machine.perform(op)
    except Exception as error:
        return f"raised {error!r}"


class Comparison:
    """Compares two kinds of machine, on new machines each time."""

    def __init__(
        self,
        new_kernel: Callable[[], Machine],
        new_daemon: Callable[[], Machine],
        host: Host = PLAIN,
    ) -> None:
        self.new_kernel = new_kernel
        self.new_daemon = new_daemon
        self.host = host
        self.filtered = 0  # answers that differ only in filtered parts

    def compare(self, ops: Sequence[Op]) -> Difference | None:
        """The first difference, or None."""
        with closing(self.new_kernel()) as kernel, closing(self.new_daemon()) as daemon:
            for number, op in enumerate(ops):
                answers = _answer(kernel, op), _answer(daemon, op)
                if answers[0] != answers[1]:
                    if answers[0] != self.host.filtered(op, answers[1]):
                        return Difference(ops[: number + 1], *answers)
                    self.filtered += 1
        return None

    def minimise(self, found: Difference) -> Difference:
        """Leave out operations while the same kind of operation still differs.

        Creations stay, because other operations refer to what they create.
        """
        return minimise(found, self.compare, stays=lambda op: op[0].startswith("create_"))


def minimise(
    found: Difference, compare: Callable[[Sequence[Op]], Difference | None], *, stays: Callable[[Op], bool]
) -> Difference:
    """Leave out operations while the same kind of operation still differs: first half of them, then fewer."""

    def without(start: int, size: int) -> Difference:
        end = min(start + size, len(found.ops) - 1)
        ops = [*found.ops[:start], *filter(stays, found.ops[start:end]), *found.ops[end:]]
        if len(ops) == len(found.ops):
            return found
        smaller = compare(ops)
        return found if smaller is None or smaller.ops[-1][0] != found.ops[-1][0] else smaller

    size = len(found.ops) // 2
    while size:
        start, last = 0, found
        while start < len(found.ops) - 1:
            smaller = without(start, size)
            start += size if smaller is found else 0
            found = smaller
        if size > 1 or found is last:
            size //= 2
    return found
