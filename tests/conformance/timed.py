"""The same steps on the kernel and on irqchipd, where the answers depend on when they are taken.

The kernel does its steps in real time, and of each it is known between which times it was done. irqchipd does them at
times that its clock is told: again and again, each step as early or as late as it may have been. An answer of the
kernel's is right if it lies among irqchipd's. So nothing here depends on how busy this machine is: if it is, more is
right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from tests.conformance.machines import Answer, Machine

# Nanoseconds. KVM: lapic.c LAPIC_TIMER_ADVANCE_NS_INIT; a deadline may come early by so much.
SLACK = 2_000
POLL = 1_000_000
SECOND = 1_000_000_000

# On a busy machine it happens that something is due while a step is under way, and while a later one is, too; and not
# every combination of what came first is tried.
ATTEMPTS = 5

Action = Callable[[Machine], Answer]


class TimedMachine(Machine, Protocol):
    """A machine whose time is told."""

    def advance_to(self, time: int) -> None:
        """Its time goes on, nanoseconds from its beginning."""


# Whether an answer lies among others, which were taken at times that are so many nanoseconds apart at most.
Among = Callable[[Answer, Sequence[Answer], int], bool]


def one_of(answer: Answer, answers: Sequence[Answer], _apart: int) -> bool:
    """Whether an answer is one of those there are."""
    return answer in answers


def count(modulus: int, frequency: int = SECOND) -> Among:
    """Whether a count that starts over lies between others; if these are half a turn apart, there is no saying."""
    half = modulus // 2

    def among(answer: Answer, answers: Sequence[Answer], apart: int) -> bool:
        if apart * frequency >= half * SECOND:
            return True
        ahead, *others = ((other - answers[0] + half) % modulus - half for other in (answer, *answers))
        return bool(min(others) <= ahead <= max(others))

    return among


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do."""

    name: str
    do: Action
    among: Among = one_of
    # Whether the time at which it is done decides what later steps answer.
    sets_time: bool = False
    # Whether it goes on doing it, and gives the sum.
    lasts: bool = False


def op(*operation: object, sets_time: bool = False) -> Step:
    """A step of one operation."""
    return Step(str(list(operation)), lambda machine: machine.perform(list(operation)), sets_time=sets_time)


def wait(milliseconds: float) -> Step:
    """Time goes by."""

    def do(machine: Machine) -> None:
        if not hasattr(machine, "advance_to"):
            time.sleep(milliseconds / 1000)

    return Step(f"{milliseconds} ms go by", do)


@dataclass(frozen=True, slots=True)
class Done:
    """A step that the kernel did."""

    step: Step
    before: int
    after: int
    answer: Answer

    def __str__(self) -> str:
        return f"{self.before / 1e6:9.3f} to {self.after / 1e6:9.3f} ms: {self.step.name}: {self.answer}"


class TimedComparison:
    """Compares the kernel's machine with some of irqchipd's, on new ones each time."""

    def __init__(self, new_kernel: Callable[[], Machine], *new_daemons: Callable[[], TimedMachine]) -> None:
        self.new_kernel = new_kernel
        self.new_daemons = new_daemons

    def check(self, *steps: Step) -> None:
        """Fail if an answer is not irqchipd's, time and again."""
        differences: list[str] = []
        for _ in range(ATTEMPTS):
            done = self._perform(steps)
            differences = [found for new_daemon in self.new_daemons if (found := self._difference(done, new_daemon))]
            if not differences:
                return
        raise AssertionError(differences[0])

    def _difference(self, done: Sequence[Done], new_daemon: Callable[[], TimedMachine]) -> str | None:
        """The first answer of the kernel's that is not among irqchipd's, and what led to it."""
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
        """What irqchipd answers; late is which steps are as late as can be: those that set times, then all others."""
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
