"""Finds the windows for interrupts where KVM emulates the guest: KVM looks for one every thousand instructions or so.

It would then miss `sti; nop; cli`. So while an interrupt waits for the guest to be ready, the guest runs by single
steps, within a bound: a step costs some 50 us in place of 1. A processor that virtualises the guest exits at the very
instruction, and needs none of this.
"""

from __future__ import annotations

import functools
import time

from .ioctls import GUEST_DEBUG, GUEST_DEBUG_BREAK, GUEST_DEBUG_ENABLE, GUEST_DEBUG_STEP, Exit, Request, Run, ioctl
from .trial import first_exit, trial

# The most seconds of steps at a time, and their share in the long run: a guest that is seldom ready still gets on.
# Steps count by the thread's own time: other processes that keep the processor busy do not end them.
MOST, SHARE = 2.0, 0.05
PAUSE = 0.01  # seconds of steps that must be left before steps begin again
DR7_BREAK = 1 << 10 | 1 << 1  # enables the first breakpoint register, for an instruction
WINDOW = bytes.fromhex("fb 90 90 fa f4")  # sti; nop; nop; cli; hlt


class Stepping:
    """The single steps of a vCPU. For the thread that runs the vCPU."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._on = False
        self._left = MOST
        self._looked = _now()
        self._spent = False
        self._break: int | None = None

    def step(self) -> bool:
        """Makes the next KVM_RUN execute one instruction. Returns False after too many steps."""
        self._count()
        self._set(not self._spent)
        return self._on

    def break_at(self, address: int | None) -> None:
        """Makes KVM_RUN return before the instruction at a linear address; with None, at no address."""
        if address != self._break:
            self._break = address
            self._apply()

    def _count(self) -> None:
        wall_before, own_before = self._looked
        self._looked = wall, own = _now()
        wall, own = wall - wall_before, own - own_before
        if self._on:
            self._left -= min(max(own, 0), wall)  # Another thread may have run the vCPU before.
        else:
            self._left = min(self._left + wall * SHARE, MOST)
        self._spent = self._left < (PAUSE if self._spent else 0)

    def run_on(self) -> None:
        """Ends the single steps."""
        if self._on:
            self._count()
            self._set(False)

    def _set(self, on: bool) -> None:
        if on is not self._on:
            self._on = on
            self._apply()

    def _apply(self) -> None:
        stops = self._break is not None
        control = (GUEST_DEBUG_STEP if self._on else 0) | (GUEST_DEBUG_BREAK if stops else 0)
        control |= GUEST_DEBUG_ENABLE if control else 0
        registers = (self._break or 0, 0, 0, 0, 0, 0, 0, DR7_BREAK if stops else 0)
        ioctl(self._fd, Request.SET_GUEST_DEBUG, GUEST_DEBUG.pack(control, *registers))


def _now() -> tuple[float, float]:
    """The machine's and the thread's time, in seconds."""
    return time.monotonic(), time.thread_time()


@functools.cache
def windows_are_exact() -> bool:
    """Tests whether this machine's KVM exits for a window that is two instructions wide."""
    try:
        with trial(WINDOW) as (fd, run):
            run[Run.REQUEST_INTERRUPT_WINDOW] = 1
            return first_exit(fd, run) in (None, Exit.IRQ_WINDOW_OPEN)
    except OSError:
        return True
