"""Gets a thread out of KVM_RUN, and loses no request to do so.

The thread blocks a signal, except in KVM_RUN, for which KVM_SET_SIGNAL_MASK unblocks it. A signal at any other moment
stays pending, and KVM_RUN returns at once with EINTR until the thread has consumed it. So no kick is lost, no system
call but KVM_RUN is interrupted, and no handler is installed, which only a program's main thread could do.
kvm_run.immediate_exit would need a handler as well.
"""

from __future__ import annotations

import signal
import threading

from .ioctls import SIGNAL_MASK, Request, ioctl

KICK = signal.SIGRTMIN
KERNEL_SIGSET_BYTES = 8


class Kick:
    """The kicks of a vCPU. `pending` is set from a kick until take()."""

    def __init__(self, fd: int) -> None:
        self.pending = False
        self._fd = fd
        self._thread: int | None = None
        self._mask: set[int] = set()
        # Keeps `pending` set if and only if the signal is pending in the thread. Reentrant: a Python signal handler may
        # kick while this thread holds it.
        self._lock = threading.RLock()

    def enter(self) -> None:
        """From now on, this thread is kicked."""
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, [KICK]))
        bits = sum(1 << number - 1 for number in self._mask - {KICK})
        ioctl(self._fd, Request.SET_SIGNAL_MASK, SIGNAL_MASK.pack(KERNEL_SIGSET_BYTES, bits))
        with self._lock:
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """From now on, no thread is kicked."""
        with self._lock:  # A later kick sends no signal: once unblocked, it would kill the process.
            self.take()
            self._thread = None
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def kick(self) -> None:
        """Makes KVM_RUN return at once, until take(). From any thread."""
        with self._lock:
            if self._thread is not None and not self.pending:
                self.pending = True
                signal.pthread_kill(self._thread, KICK)

    def take(self) -> None:
        """The kicked thread calls this first, and then reads what was set before the kick."""
        with self._lock:
            if self.pending:
                signal.sigtimedwait([KICK], 0)
                self.pending = False
