"""A VM's lock and its time: every operation is a turn, and what comes due has turns of its own."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from irqchipd.chips.lapic import Lapic
from irqchipd.vm.backlog import TOLD_A_TURN, Backlog, Telling, tell
from irqchipd.vm.board import Board
from irqchipd.vm.clock import SCHEDULER, Alarm, Clock, RealClock, VirtualClock
from irqchipd.vm.cpu import Cpu
from irqchipd.vm.errors import VmError, deleted, invalid

_T = TypeVar("_T")

MAX_TSC_KHZ = 100_000_000
MAX_TIME = 1 << 62  # nanoseconds, of a virtual clock
MAX_EXPIRATIONS = 10_000  # of timers, in one advance of a virtual clock
_SHOWN = 8  # vCPU ids in a message
WORK_A_TURN = 256  # what comes due in one turn does so much at the most (see Board.work), and a little more


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a virtual clock is, how far short it stopped, and when the next timer is due, if one runs; nanoseconds."""

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


class _Turn:
    """A VM's lock, held for one operation; what the operation left is done under it, and told without it."""

    __slots__ = ("_vm",)

    def __init__(self, vm: Turns) -> None:
        self._vm = vm

    def __enter__(self) -> None:
        vm = self._vm
        vm._lock.acquire()
        if vm._deleted:
            vm._lock.release()
            raise deleted(vm.name)
        if vm._next_wake is not None and vm._goes_by_itself:
            try:
                vm._catch_up()
            except BaseException:
                vm._lock.release()
                raise

    def __exit__(self, *_: object) -> None:
        vm = self._vm
        if not vm._board.unsettled:
            vm._lock.release()
            return
        try:
            outbox = vm._settle()
        finally:
            vm._lock.release()
        tell(outbox)


class Turns:
    """What a VM's operations stand on. A turn takes the lock, checks, changes, and tells when it has let go of it."""

    def __init__(self, name: str, clock: Clock | None, tsc_khz: int) -> None:
        if not 1 <= tsc_khz <= MAX_TSC_KHZ:
            raise invalid(f"a TSC of {tsc_khz} kHz; 1 to {MAX_TSC_KHZ} kHz are allowed")
        self.name = name
        self._lock = threading.Lock()
        self._turn = _Turn(self)
        self._deleted = False
        self._clock = clock if clock is not None else RealClock()
        self._board = Board(self._clock, tsc_khz)
        self._next_wake: int | None = None
        self._goes_by_itself = not self._clock.virtual
        # What turns left to be told later, and who sees to that.
        self.backlog: Backlog | None = None
        # Whose the VM's time is in every FairQueue. It is not the VM itself, which they would keep when it is deleted.
        self.share: object = self._clock
        self._tell_later = Alarm(0, self._tell_backlog, share=self.share)
        self._cpus: dict[int, Cpu] = {}

    # Time.

    def advance(self, nanoseconds: int) -> Advance:
        """Move a virtual clock, and do what comes due in order; EINVAL for a real one.

        It stops short after MAX_EXPIRATIONS.
        """
        return finish(self.advancing(nanoseconds))

    def advancing(self, nanoseconds: int) -> Generator[Backlog | None, None, Advance]:
        """As advance, in turns of WORK_A_TURN. Between them others have theirs, and a backlog is waited for."""
        expirations = MAX_EXPIRATIONS
        while True:
            with self._turn:
                clock, board = self._clock, self._board
                if not isinstance(clock, VirtualClock):
                    raise invalid(
                        f"the clock of VM {self.name!r} is real; only one that was made virtual can be advanced"
                    )
                if not 0 <= nanoseconds <= MAX_TIME - clock.time:
                    raise invalid(f"{nanoseconds} ns from {clock.time} ns on; a clock goes to 2^62 ns")
                end = clock.time + nanoseconds
                most = board.work + WORK_A_TURN
                while expirations and board.work < most:
                    due = board.alarms.earliest()
                    if due is None or due > end:
                        clock.time = end
                        break
                    clock.time = max(clock.time, due)
                    expirations -= self._ring_one(clock.time)
                advance = Advance(clock.time, end - clock.time, board.alarms.earliest())
            nanoseconds = advance.remaining
            if not nanoseconds or not expirations:
                return advance
            yield self.backlog

    def _ring_one(self, now: int) -> bool:
        """Do what is due first, if anything is."""
        alarm = self._board.alarms.pop_due(now)
        if alarm is None:
            return False
        self._board.rung += 1
        alarm.ring()
        # Before the next: a HLT that this ends takes its vector now.
        self._board.settle()
        return True

    def _ring(self) -> None:
        """A real clock says that something is due; called from its thread. Each turn begins with that."""
        with suppress(VmError), self._turn:
            self._next_wake = None  # it has rung, and must be told anew
            self._board.unsettled = True

    def _catch_up(self) -> None:
        """Do what is due before anything else: the clock's thread may be late, and nobody is to see a time when a timer
        has run out and has not interrupted.
        """
        now = self._clock.now()
        if self._next_wake is None or now < self._next_wake or self.backlog is not None:
            return
        board = self._board
        board.unsettled = True
        most = board.work + WORK_A_TURN
        while board.work < most and self._ring_one(now):
            pass

    # What is told.

    def _settle(self) -> Sequence[Telling]:
        """What to tell without the lock, now that an operation is done and nothing is left of it."""
        board = self._board
        board.settle()
        much = board.tellings > TOLD_A_TURN
        outbox = board.take_outbox()
        if much or (outbox and self.backlog is not None):
            self._leave(outbox)
            outbox = []
        # While there is a backlog nothing comes due: timers would make more of what can't be told yet.
        wake = None if self._deleted or self.backlog is not None else board.alarms.earliest()
        if wake != self._next_wake:
            self._next_wake = wake
            self._clock.wake(self._ring, wake)
        return outbox

    def _leave(self, outbox: Sequence[Telling]) -> None:
        """Tell this in later turns."""
        begins = self.backlog is None
        if self.backlog is None:
            self.backlog = Backlog()
        self.backlog.add(outbox)
        if begins:
            SCHEDULER.set(self._tell_later, time.monotonic_ns())

    def _tell_backlog(self) -> None:
        """Tell a piece of what was left; called by the scheduler's thread."""
        backlog = self.backlog
        if backlog is None:
            return
        with self._lock:
            tellings = backlog.take(TOLD_A_TURN)
        tell(tellings)
        with self._lock:
            if backlog:
                SCHEDULER.set(self._tell_later, time.monotonic_ns())
                return
            self.backlog = None
            waiting = backlog.end()
        self._ring()  # what came due meanwhile
        for go_on in waiting:
            go_on()

    # Checks.

    def _cpu(self, vcpu: int) -> Cpu:
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _no_vcpu(self, vcpu: int) -> VmError:
        ids = ", ".join(map(str, list(self._cpus)[:_SHOWN])) + (", ..." if len(self._cpus) > _SHOWN else "")
        return VmError(errno.ENOENT, f"VM {self.name!r} has no vCPU {vcpu}; it has {ids or 'none'}")

    def _enter(self, vcpu: int) -> Cpu:
        """The vCPU enters its guest, which is when it learns what it has to report at EOI."""
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        if cpu.scanned != self._board.generation:
            self._board.scan(cpu)
        return cpu

    def _lapic(self, vcpu: int, number: int = errno.EINVAL) -> Lapic:
        lapic = self._cpu(vcpu).lapic
        if lapic is None:
            raise VmError(number, f"vCPU {vcpu} of VM {self.name!r} has no local APIC: it came before the irqchip")
        return lapic
