"""The common part of both Clients of a daemon in this process: the daemon's beginning and end."""

from __future__ import annotations

import atexit
import errno
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from irqchip_client._call import Call
from irqchip_client._channels import Peer
from irqchip_client._errors import IrqchipError, Unavailable, client_closed, make_error
from irqchip_client._target import Target
from irqchipd.edge import errors
from irqchipd.edge.operations import HALT, RECORDS, Caller, Result
from irqchipd.edge.records import halt_result
from irqchipd.embedded import Embedded
from irqchipd.listen import ListenError
from irqchipd.vm.errors import VmError
from irqchipd.vm.regions import Access
from irqchipd.vm.vcpu_state import Outcome

T = TypeVar("T")

# The functions of the operations on plain values, by the names of calls that have fields.
FUNCTIONS: Final[dict[str, Callable[..., Result | Access]]] = {
    operation.name: operation.call for operation in RECORDS.values() if operation is not HALT
}


def error_of(error: Exception) -> IrqchipError:
    """The SDK's error for an exception of the daemon."""
    refusal = errors.refusal(error)
    return make_error(refusal.number, refusal.message)


def wake_of(call: Call[T], outcome: Outcome) -> T:
    """The result of a halt."""
    if isinstance(outcome, VmError):
        raise error_of(outcome)
    return call.parse_record(*halt_result(outcome))


def forked() -> Unavailable:
    return Unavailable(
        errno.ESHUTDOWN, "this Client belongs to the process that forked this one: connect() in this process"
    )


class Part(Protocol):
    """A connection, or a Session's transport: a part that a forked process must disable."""

    def forked(self) -> None:
        """Disables the part: this process lacks the other threads of its parent, and locks may be held for ever."""


class Lifetime:
    """The life of an embedded daemon and its Client. The daemon ends at close(), or with its connection."""

    def __init__(self, target: Target, timeout: float) -> None:
        assert target.listen is not None
        self.peer = Peer(target.uri, timeout)
        self._is_forked = False
        _JANITOR.start()
        try:
            self.embedded = Embedded(target.listen)
        except ListenError as error:
            raise make_error(errno.EADDRINUSE, str(error)) from None
        _DAEMONS.add(self.embedded)
        _PARTS.add(self)
        collect_later(self, self.embedded.stop)

    def check(self) -> None:
        """Raise the error of a Client that can't be used any more."""
        if self._is_forked:
            raise forked()
        if self.peer.closed:
            raise client_closed()

    def caller(self, call: Call[Any], name: str) -> Caller:
        """The side that a unary call's operation is executed for."""
        try:
            return Caller(self.embedded.registry.get(name))
        except VmError as error:
            call.request_for(name)  # raises another error if the name is not a possible name
            raise error_of(error) from None

    def forked(self) -> None:
        self._is_forked = True


class _Janitor:
    """Ends objects that were collected as garbage, in a thread: the thread that collects may hold any lock."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()  # whose put() is reentrant
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a garbage collection can't begin a thread."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="irqchip embedded", daemon=True)
                self._thread.start()

    def later(self, work: Callable[[], object]) -> None:
        """Do some work soon."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()


_JANITOR = _Janitor()
_DAEMONS: weakref.WeakSet[Embedded] = weakref.WeakSet()
_PARTS: weakref.WeakSet[Any] = weakref.WeakSet()


def collect_later(owner: object, end: Callable[[], object]) -> None:
    """Have something ended soon after its owner is collected. At the process's own end, this is not needed."""
    weakref.finalize(owner, _JANITOR.later, end).atexit = False


def notice_fork(part: Part) -> None:
    """Have forked() called in forked processes."""
    _PARTS.add(part)


def _after_fork() -> None:
    global _JANITOR  # The child lacks the thread.
    _JANITOR = _Janitor()
    for part in list(_PARTS):
        part.forked()


@atexit.register
def _remove_sockets() -> None:
    for embedded in list(_DAEMONS):
        embedded.remove_sockets()


os.register_at_fork(after_in_child=_after_fork)
