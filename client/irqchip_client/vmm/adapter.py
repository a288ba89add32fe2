"""What the vCPUs of KVM and of Unicorn have in common."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from irqchip_client._errors import Busy, SessionClosed
from irqchip_client._events import Event, InterruptPending, VcpuSignal
from irqchip_client._model import MpState, Wake

if TYPE_CHECKING:
    from irqchip_client import Halt, Session

_WAITS = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


class Adapter:
    """A vCPU that executes a guest, one thread at a time. Close it, or use it in a with statement.

    session  for its operations; who made it closes it
    vcpu     its id
    """

    def __init__(self, session: Session, vcpu: int) -> None:
        self.id = vcpu
        self._vcpu = session.vcpu(vcpu)
        self._session = session
        self._halt: Halt | None = None  # under way
        # It executes nothing: it is in HLT, or waits for INIT or SIPI.
        self._idle = False
        # The daemon may have an interrupt to acknowledge; a signal to take.
        self._interrupted = False
        self._signalled = False
        self._stop = threading.Event()
        self._closed = False
        self._running = threading.Lock()

    def stop(self) -> None:
        """Ends run(), or the next one where none is under way. From any thread, a local device, a signal handler."""
        self._stop.set()
        self._interrupt_guest()
        if (halt := self._halt) is not None:
            halt.end()

    def close(self) -> None:
        """Ends run(), and the vCPU. Not from a local device."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        with self._running:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # An adapter's own.

    def _interrupt_guest(self) -> None:
        """Whoever executes the guest looks at _stop, soon. From any thread."""
        raise NotImplementedError

    def _accept(self, wake: Wake) -> None:
        """It has taken something."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """It is closed, and nobody runs it."""
        raise NotImplementedError

    # For all of them.

    def _begin(self) -> None:
        """It is going to run. What was told while nobody ran it is not known."""
        self._idle = self._idle or self._vcpu.mp_state() in _WAITS
        self._interrupted = self._signalled = True

    def _wait(self, interrupts_masked: bool) -> None:
        """Executes nothing until there is something to take, or until stop()."""
        self._halt = halt = self._session.begin_halt(self.id, interrupts_masked=interrupts_masked)
        try:
            if self._stop.is_set():  # stop() may have come before _halt was set
                halt.end()
            wake = halt.wait()
        finally:
            self._halt = None
        if wake is not None:
            self._accept(wake)

    def _take_signals(self) -> None:
        self._signalled = False
        while (signal := self._vcpu.take_signal()) is not None:
            self._accept(signal)

    @contextmanager
    def _not_running(self) -> Iterator[None]:
        """Nobody runs it for as long."""
        if not self._running.acquire(blocking=False):
            raise Busy(errno.EBUSY, f"vCPU {self.id} runs already")
        try:
            if self._closed:
                raise SessionClosed(errno.EPIPE, f"vCPU {self.id} is closed")
            yield
        finally:
            self._running.release()


def told_by(events: Iterable[Event]) -> tuple[bool, bool]:
    """Whether events say that there is an interrupt, and a signal; what was dropped may have been either."""
    interrupt = signal = False
    for event in events:
        interrupt |= not isinstance(event, VcpuSignal)
        signal |= not isinstance(event, InterruptPending)
    return interrupt, signal
