"""A VM's lock and its time: every operation is a turn, and what comes due has turns of its own."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from irqchipd.chips.lapic import Lapic
from irqchipd.vm.board import Board
from irqchipd.vm.clock import Clock, RealClock, VirtualClock
from irqchipd.vm.cpu import Cpu
from irqchipd.vm.errors import VmError, deleted, invalid

log = logging.getLogger(__name__)

MAX_TSC_KHZ = 100_000_000
MAX_TIME = 1 << 62  # nanoseconds, of a virtual clock
MAX_EXPIRATIONS = 10_000  # of timers, in one turn


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a virtual clock is, how far short it stopped, and when the next timer is due, if one runs; nanoseconds."""

    now: int
    remaining: int
    next_timer: int | None


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
        for tell in outbox:
            try:
                tell()
            except Exception:  # one listener's trouble is not the others', nor the caller's
                log.exception("a listener failed")


class Turns:
    """What a VM's operations stand on. A turn takes the lock, checks, changes, and tells when it has let go of it."""

    def __init__(self, name: str, clock: Clock | None, tsc_khz: int) -> None:
        if not 1 <= tsc_khz <= MAX_TSC_KHZ:
            raise invalid(f"a TSC of {tsc_khz} kHz; 1 to {MAX_TSC_KHZ} are allowed")
        self.name = name
        self._lock = threading.Lock()
        self._turn = _Turn(self)
        self._deleted = False
        self._clock = clock if clock is not None else RealClock()
        self._board = Board(self._clock, tsc_khz)
        self._next_wake: int | None = None
        self._goes_by_itself = not self._clock.virtual
        self._cpus: dict[int, Cpu] = {}

    # Time.

    def advance(self, nanoseconds: int) -> Advance:
        """Move a virtual clock, and do what comes due in order; EINVAL for a real one.

        It stops short after MAX_EXPIRATIONS.
        """
        with self._turn:
            clock, board = self._clock, self._board
            if not isinstance(clock, VirtualClock):
                raise invalid(f"the clock of VM {self.name!r} is real; only a virtual one can be advanced")
            if not 0 <= nanoseconds <= MAX_TIME - clock.time:
                raise invalid(f"{nanoseconds} ns from {clock.time} ns on; a clock goes to 2^62 ns")
            end = clock.time + nanoseconds
            for _ in range(MAX_EXPIRATIONS):
                due = board.alarms.earliest()
                if due is None or due > end:
                    clock.time = end
                    break
                clock.time = max(clock.time, due)
                self._ring_one(clock.time)
            return Advance(clock.time, end - clock.time, board.alarms.earliest())

    def _ring_one(self, now: int) -> bool:
        """Do what is due first, if anything is."""
        alarm = self._board.alarms.pop_due(now)
        if alarm is None:
            return False
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
        if self._next_wake is None or now < self._next_wake:
            return
        self._board.unsettled = True
        for _ in range(MAX_EXPIRATIONS):
            if not self._ring_one(now):
                break

    def _settle(self) -> list[Callable[[], None]]:
        """What to call without the lock, now that an operation is done and nothing is left of it."""
        board = self._board
        board.settle()
        wake = None if self._deleted else board.alarms.earliest()
        if wake != self._next_wake:
            self._next_wake = wake
            self._clock.wake(self._ring, wake)
        return board.take_outbox()

    # Checks.

    def _cpu(self, vcpu: int) -> Cpu:
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            raise self._no_vcpu(vcpu)
        return cpu

    def _no_vcpu(self, vcpu: int) -> VmError:
        return VmError(errno.ENOENT, f"VM {self.name!r} has no vCPU {vcpu}")

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
