"""Getting a thread out of KVM_RUN, without losing one call for it.

The signal is blocked wherever the thread is, but in KVM_RUN, for which KVM_SET_SIGNAL_MASK unblocks it. A signal that
is sent at any other moment stays pending, and KVM_RUN returns at once with EINTR until the thread has consumed it. So
there is no moment at which a kick could be lost, no handler is installed (which only a program's main thread could do),
and no system call but KVM_RUN is ever interrupted. kvm_run.immediate_exit would need a handler as well.
"""

from __future__ import annotations

import signal
import threading

from .ioctls import SIGNAL_MASK, Request, ioctl

KICK = signal.SIGRTMIN
KERNEL_SIGSET_BYTES = 8


class Kick:
    """Of one vCPU. `pending` is set from a kick until take()."""

    def __init__(self, fd: int) -> None:
        self.pending = False
        self._fd = fd
        self._thread: int | None = None
        self._mask: set[int] = set()
        # Held so that `pending` is set if and only if one signal is pending in the thread, if there is one. Reentrant:
        # a Python signal handler may kick, in the middle of it.
        self._lock = threading.RLock()

    def enter(self) -> None:
        """This thread is the one to kick, from now on."""
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, [KICK]))
        bits = sum(1 << number - 1 for number in self._mask - {KICK})
        ioctl(self._fd, Request.SET_SIGNAL_MASK, SIGNAL_MASK.pack(KERNEL_SIGSET_BYTES, bits))
        with self._lock:
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """No thread is."""
        with self._lock:  # Who kicks after this sends nothing, which would kill the process once it is unblocked.
            self.take()
            self._thread = None
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def kick(self) -> None:
        """KVM_RUN returns, or will at once, until take(). From any thread."""
        with self._lock:
            if self._thread is not None and not self.pending:
                self.pending = True
                signal.pthread_kill(self._thread, KICK)

    def take(self) -> None:
        """The kicked thread has noticed: what was set before the kick can be seen after this."""
        with self._lock:
            if self.pending:
                signal.sigtimedwait([KICK], 0)
                self.pending = False
