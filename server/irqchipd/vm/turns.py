"""The common part of a VM's operations: time, turns and checks."""

from __future__ import annotations

import errno
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from irqchipd.vm.agenda import TURN_WORK, Agenda
from irqchipd.vm.backlog import Backlog
from irqchipd.vm.board import Board
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.errors import VmError, invalid

_T = TypeVar("_T")

MAX_TIME: Final = 1 << 62  # nanoseconds, of a virtual clock
MAX_EXPIRATIONS: Final = 10_000  # of timers, in one advance of a virtual clock
_SHOWN: Final = 8  # vCPU ids in a message


@dataclass(frozen=True, slots=True)
class Advance:
    """The time of a virtual clock, the time left to advance, and when the next timer is due; nanoseconds."""

    now: int
    remaining: int
    next_timer: int | None


def finish(work: Generator[Any, None, _T]) -> _T:
    """Do all turns of some work, one after the other."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: _T = done.value
            return result


class Turns:
    """The base of a VM's operations: the agenda, the board and the vCPUs."""

    def __init__(self, agenda: Agenda, board: Board) -> None:
        self.name = agenda.name
        self.agenda = self._turn = agenda  # `with self._turn:` is an operation
        self.share = agenda.share
        self._board = board
        self._cpus: dict[int, Vcpu] = {}

    # Time.

    def advance(self, nanoseconds: int) -> Advance:
        """Move a virtual clock, and ring alarms in order; EINVAL for a real clock.

        The clock stops short after MAX_EXPIRATIONS.
        """
        return finish(self.advancing(nanoseconds))

    def advancing(self, nanoseconds: int) -> Generator[Backlog | None, None, Advance]:
        """As advance, in turns of TURN_WORK. Between turns other operations run, and the caller waits for a backlog."""
        expirations = MAX_EXPIRATIONS
        while True:
            with self._turn:
                agenda, clock = self.agenda, self.agenda.clock
                if not isinstance(clock, VirtualClock):
                    raise invalid(f"the clock of VM {self.name!r} is real; only a virtual clock can be advanced")
                if not 0 <= nanoseconds <= MAX_TIME - clock.time:
                    raise invalid(f"{nanoseconds} ns after {clock.time} ns is beyond a clock's end, 2^62 ns")
                end = clock.time + nanoseconds
                most = agenda.work + TURN_WORK
                while expirations and agenda.work < most:
                    due = agenda.alarms.earliest()
                    if due is None or due > end:
                        clock.time = end
                        break
                    clock.time = max(clock.time, due)
                    expirations -= agenda.ring_first(clock.time)
                advance = Advance(clock.time, end - clock.time, agenda.alarms.earliest())
            nanoseconds = advance.remaining
            if not nanoseconds or not expirations:
                return advance
            yield agenda.backlog

    # Checks.

    def check_alive(self) -> None:
        """Refuse an operation on a dead VM: EIO."""
        with self._turn:
            self._check_alive()

    def _check_alive(self) -> None:
        """A dead VM (the kernel's word) can only be described and deleted."""

    def _cpu(self, vcpu: int) -> Vcpu:
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _no_vcpu(self, vcpu: int) -> VmError:
        ids = ", ".join(map(str, list(self._cpus)[:_SHOWN])) + (", ..." if len(self._cpus) > _SHOWN else "")
        what = f"it has {ids}: use one of these, or create" if ids else "it has none: create"
        return VmError(errno.ENOENT, f"VM {self.name!r} has no vCPU {vcpu}; {what} vCPU {vcpu} first")

    def _enter(self, vcpu: int) -> Vcpu:
        """The vCPU enters its guest."""
        return self._cpu(vcpu)

    def _no_irqchip(self) -> VmError:
        """The error of an operation that needs an irqchip: it says what to do."""
        return VmError(errno.ENXIO, f"VM {self.name!r} has no irqchip; create it first")
