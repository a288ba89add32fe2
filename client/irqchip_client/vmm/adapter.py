"""The base of all vCPU adapters: everything but guest code and the parts of one architecture."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from irqchip_client._errors import Busy, SessionClosed
from irqchip_client._model import MpState, Wake

from .exit_stats import CountedSession, ExitStats, Recorder

if TYPE_CHECKING:
    from irqchip_client import Halt, Session, Vm

StartT = TypeVar("StartT")  # a vCPU's state at its start


class Adapter(Generic[StartT]):
    """A vCPU that executes a guest, on one thread at a time. Close it, or use a with statement."""

    def __init__(self, vm: Vm, vcpu: int, made: ExitStack, exits: ExitStats | None = None) -> None:
        """`made` closes the adapter's parts. The adapter keeps it as `_made` when it is complete.

        exits  counts the guest's exits; None: no counting
        """
        self.id = vcpu
        self._recorder: Recorder | None = None if exits is None else exits.recorder()
        self._session: Session = made.enter_context(vm.session(f"vcpu {vcpu}"))
        if self._recorder is not None:
            self._session = CountedSession(self._session, self._recorder)
        self._vcpu = self._session.vcpu(vcpu)
        self._made = ExitStack()
        self._halt: Halt | None = None  # under way
        # The vCPU executes nothing: it is in HLT or WFI, or waits to be started.
        self._idle = False
        # The daemon may have an interrupt for the vCPU.
        self._interrupted = False
        self._stop = threading.Event()
        self._closed = False
        self._running = threading.Lock()

    def start(self, start: StartT) -> None:
        """Sets where the vCPU starts, even if it waits to be started. Busy while it runs."""
        with self._not_running():
            self._start_at(start)
            self._forget()
            self._vcpu.set_mp_state(MpState.RUNNABLE)

    def run(self) -> None:
        """Executes guest code until stop(). A later run() continues there.

        Raises GuestError if the guest cannot continue; the exception of a local device in an access; SessionClosed if
        the daemon has ended; SessionClosed or NotFound if the VM is deleted; Busy if the vCPU runs already.
        """
        with self._not_running():
            self._begin()
            self._execute()
            self._stop.clear()

    def stop(self) -> None:
        """Ends run(), or the next run() if none is under way. From any thread, local device or signal handler."""
        self._stop.set()
        self._interrupt_guest()
        if (halt := self._halt) is not None:
            halt.end()

    def close(self) -> None:
        """Ends run(), and closes the vCPU. Do not call it from a local device."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        with self._running:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Each adapter implements these.

    def _execute(self) -> None:
        """Executes guest code until _stop is set."""
        raise NotImplementedError

    def _interrupt_guest(self) -> None:
        """Makes the thread in _execute() look at _stop soon. From any thread."""
        raise NotImplementedError

    def _start_at(self, start: StartT) -> None:
        """Sets the registers for a guest's start."""
        raise NotImplementedError

    def _accept(self, wake: Wake) -> None:
        """The vCPU goes on, and has taken what ended its halt."""
        raise NotImplementedError

    def _close(self) -> None:
        """Closes the adapter's parts. No thread runs the vCPU."""
        self._made.close()

    # All adapters share these.

    def _begin(self) -> None:
        """Before the vCPU executes: events that came while the vCPU did not run were not heard."""
        self._interrupted = True

    def _wait(self, interrupts_masked: bool) -> None:
        """Executes nothing until an interrupt or a signal can be taken, or until stop()."""
        self._halt = halt = self._session.begin_halt(self.id, interrupts_masked=interrupts_masked)
        try:
            if self._stop.is_set():  # stop() may have come before _halt was set.
                halt.end()
            wake = halt.wait()
        finally:
            self._halt = None
        if wake is not None:
            self._accept(wake)

    def _forget(self) -> None:
        """The vCPU begins anew: nothing waits to be delivered."""
        self._idle = False

    @contextmanager
    def _not_running(self) -> Iterator[None]:
        """Keeps the vCPU from running during the body. Busy, SessionClosed."""
        if not self._running.acquire(blocking=False):
            raise Busy(errno.EBUSY, f"vCPU {self.id} runs already")
        try:
            if self._closed:
                raise SessionClosed(errno.EPIPE, f"vCPU {self.id} is closed")
            yield
        finally:
            self._running.release()
