"""The same steps on the kernel and on irqchipd, where the answers depend on time.

The kernel does its steps in real time, and each step is known to have been done between two times. irqchipd repeats
the steps on a clock that the test sets, each step as early or as late as it may have been. An answer of the kernel is
right if it lies among irqchipd's answers. A busy machine therefore causes no failures: it only makes more answers
acceptable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from tests.conformance.machines import Answer, Machine

# Nanoseconds. KVM: lapic.c LAPIC_TIMER_ADVANCE_NS_INIT; a deadline may come early by this time.
SLACK = 2_000
POLL = 1_000_000
SECOND = 1_000_000_000

# On a busy machine something may fall due during one step and again during a later one. Not every combination of
# orders is tried.
ATTEMPTS = 20

Action = Callable[[Machine], Answer]


class TimedMachine(Machine, Protocol):
    """A machine whose time the test sets."""

    def advance_to(self, time: int) -> None:
        """Advance the time, in nanoseconds from the machine's creation."""


# Whether an answer lies among others that were taken at most this many nanoseconds apart.
Among = Callable[[Answer, Sequence[Answer], int], bool]


def one_of(answer: Answer, answers: Sequence[Answer], _apart: int) -> bool:
    """Whether an answer is one of the answers."""
    return answer in answers


def count(modulus: int, frequency: int = SECOND) -> Among:
    """Whether a count that starts over lies between others. If these are half a turn apart, any count is accepted."""
    half = modulus // 2

    def among(answer: Answer, answers: Sequence[Answer], apart: int) -> bool:
        if apart * frequency >= half * SECOND:
            return True
        ahead, *others = ((other - answers[0] + half) % modulus - half for other in (answer, *answers))
        return bool(min(others) <= ahead <= max(others))

    return among


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    do: Action
    among: Among = one_of
    # Whether the step's time decides what later steps answer.
    sets_time: bool = False
    # Whether to repeat the step and add up its answers.
    lasts: bool = False


def op(*operation: object, sets_time: bool = False) -> Step:
    """A step of one operation."""
    return Step(str(list(operation)), lambda machine: machine.perform(list(operation)), sets_time=sets_time)


def wait(milliseconds: float) -> Step:
    """Let time pass."""

    def do(machine: Machine) -> None:
        if not hasattr(machine, "advance_to"):
            time.sleep(milliseconds / 1000)

    return Step(f"{milliseconds} ms go by", do)


@dataclass(frozen=True, slots=True)
class Done:
    """A step that the kernel has done."""

    step: Step
    before: int
    after: int
    answer: Answer

    def __str__(self) -> str:
        return f"{self.before / 1e6:9.3f} to {self.after / 1e6:9.3f} ms: {self.step.name}: {self.answer}"


class TimedComparison:
    """Compares the kernel's machine with several of irqchipd's, on new machines each time."""

    def __init__(self, new_kernel: Callable[[], Machine], *new_daemons: Callable[[], TimedMachine]) -> None:
        self.new_kernel = new_kernel
        self.new_daemons = new_daemons

    def check(self, *steps: Step) -> None:
        """Fail if an answer is repeatedly not among irqchipd's."""
        differences: list[str] = []
        for _ in range(ATTEMPTS):
            done = self._perform(steps)
            differences = [found for new_daemon in self.new_daemons if (found := self._difference(done, new_daemon))]
            if not differences:
                return
        raise AssertionError(differences[0])

    def _difference(self, done: Sequence[Done], new_daemon: Callable[[], TimedMachine]) -> str | None:
        """The first answer of the kernel that is not among irqchipd's, and the steps before it."""
        free = sum(this.step.sets_time for this in done)
        replays = [self._replay(new_daemon(), done, late) for late in product((False, True), repeat=free + 1)]
        apart = 0
        for number, (this, *answers) in enumerate(zip(done, *replays, strict=True)):
            width = this.after - this.before
            apart += this.step.sets_time * width
            if not this.step.among(this.answer, answers, apart + width):
                steps_to_it = "\n".join(map(str, done[: number + 1]))
                return f"\n{steps_to_it}\nis not among irqchipd's {answers}"
        return None

    def _perform(self, steps: Sequence[Step]) -> list[Done]:
        done: list[Done] = []
        with closing(self.new_kernel()) as kernel:
            start = time.monotonic_ns() - SLACK
            for step in steps:
                before = time.monotonic_ns() - start - SLACK
                answer = step.do(kernel)
                after = time.monotonic_ns() - start + SLACK
                done.append(Done(step, max(before, done[-1].after if done else 0), after, answer))
        return done

    def _replay(self, daemon: TimedMachine, done: Sequence[Done], late: Sequence[bool]) -> list[Answer]:
        """irqchipd's answers. `late` selects steps to do as late as possible: those that set times, then all others."""
        *setting, others = late
        choices = iter(setting)
        answers = []
        with closing(daemon):
            for this in done:
                is_late = next(choices) if this.step.sets_time else others
                if not (is_late and this.step.lasts):
                    daemon.advance_to(this.after if is_late else this.before)
                    answers.append(this.step.do(daemon))
                    continue
                total = 0
                for now in (*range(this.before, this.after, POLL), this.after):
                    daemon.advance_to(now)
                    total += this.step.do(daemon)
                answers.append(total)
        return answers
