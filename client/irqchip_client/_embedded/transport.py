"""A Session of the daemon in this process. Single operations are calls of the daemon's functions."""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from irqchip.builds import mypyc_attr
from irqchip_client._call import Call, Fields, time_allowed
from irqchip_client._channels import Peer
from irqchip_client._errors import IrqchipError, timed_out
from irqchip_client._session import Posted, Promise, SessionCore
from irqchip_client._sync.packets import Channel, PacketTransport
from irqchipd.edge.batch import caught_up
from irqchipd.edge.operations import Caller, Result, access_result
from irqchipd.embedded import LocalSession
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.pending import Pending, Slices
from irqchipd.vm.regions import Access
from irqchipd.vm.vcpu_state import Outcome

from .daemon import FUNCTIONS, error_of, wake_of

T = TypeVar("T")


def execute(on: Caller, function: Callable[..., Result | Access], fields: Fields, timeout: float | None) -> Result:
    """Executes an operation on plain values, to its end."""
    try:
        result = function(on, *fields)
    except Exception as error:
        raise error_of(error) from None
    return completed(on, result, timeout)


def completed(on: Caller, result: Result | Access, timeout: float | None) -> Result:
    """The result of an executed operation, after the work that it waits for, and the work that it leaves behind."""
    if isinstance(result, Access):
        wait_for(result, timeout)
        try:
            result = access_result(result)
        except VmError as error:  # The VM was deleted meanwhile.
            raise error_of(error) from None
    if on.vm.agenda.backlog is not None:
        finish(caught_up(on.vm), timeout)
    return result


def finish(work: Slices[T], timeout: float | None) -> T:
    """Does some work of the daemon's, slice after slice."""
    try:
        while True:
            if (pending := next(work)) is not None:
                wait_for(pending, timeout)
    except StopIteration as done:
        result: T = done.value
        return result
    except Exception as error:
        raise _translated(error) from None


def wait_for(pending: Pending, timeout: float | None) -> None:
    """Waits for something to end. TimedOut."""
    ended = allocate_lock()
    ended.acquire()
    pending.when_done(ended.release)
    if not ended.acquire(True, -1 if timeout is None else timeout):
        raise timed_out("an answer", timeout)


def _translated(error: Exception) -> IrqchipError:
    return error if isinstance(error, IrqchipError) else error_of(error)


class Halts:
    """Halts outside of batches, with threads that wait for them."""

    def __init__(self) -> None:
        self._waiting: set[_Waiting] = set()
        self._error: IrqchipError | None = None  # of halts that begin after end()

    def run(self, on: Caller, call: Call[T], timeout: float | None) -> T:
        """Halts a vCPU, and waits."""
        assert call.fields is not None
        interrupts_masked, vcpu, _, timeout_ns = call.fields
        waiting = _Waiting()
        self._waiting.add(waiting)
        halt: Halt | None = None
        try:
            if self._error is not None:  # Looked at now, so that end() either is seen here or sees this halt.
                raise self._error
            try:
                halt = on.vm.halt(vcpu, waiting.end, interrupts_masked != 0, timeout_ns)
            except Exception as error:
                raise error_of(error) from None
            outcome = waiting.wait(timeout)
        except BaseException:  # Also Ctrl-C.
            if halt is not None:
                on.vm.abandon(halt)
            raise
        finally:
            self._waiting.discard(waiting)
        return wake_of(call, outcome)

    def end(self, error: IrqchipError) -> None:
        """Ends all halts with an error, and those that begin later."""
        self._error = error
        for waiting in list(self._waiting):
            waiting.end(error)


class _Waiting:
    """A thread that waits for a halt's end: without polling, and without any lock of others."""

    def __init__(self) -> None:
        self._first = allocate_lock()
        self._ended = allocate_lock()
        self._ended.acquire()
        self._outcome: Outcome | IrqchipError = None

    def end(self, outcome: Outcome | IrqchipError) -> None:
        """The first outcome counts; from any thread."""
        if self._first.acquire(False):
            self._outcome = outcome
            self._ended.release()

    def wait(self, timeout: float | None) -> Outcome:
        if not self._ended.acquire(True, -1 if timeout is None else timeout):
            raise timed_out("an answer", timeout)
        if isinstance(self._outcome, IrqchipError):
            raise self._outcome
        return self._outcome


@mypyc_attr(allow_interpreted_subclasses=True)
class DirectTransport(PacketTransport):
    """A Session of the daemon in this process.

    Single operations on plain values go straight to the daemon's functions. Batches, halts at their ends and events are
    the port's packets, without a socket: the channel carries them to `local`.
    """

    def __init__(self, channel: Channel, local: LocalSession, core: SessionCore, peer: Peer) -> None:
        super().__init__("embedded", channel, core, peer)
        self._local = local
        self._halts = Halts()

    def call(self, call: Call[T]) -> T:
        on: Caller | None = self._local.direct
        fields = call.fields
        if on is None or fields is None or on.vm.agenda.backlog is not None:
            return super().call(call)
        function = FUNCTIONS.get(call.operation)
        if function is None:
            return self._halts.run(on, call, time_allowed((call,), self.peer.timeout))
        size, index, address, value = fields
        try:
            result = function(on, size, index, address, value)
        except Exception as error:
            if self._local.direct is None:  # The Session has ended meanwhile: raises the reason.
                return super().call(call)
            raise error_of(error) from None
        if isinstance(result, Access) or on.vm.agenda.backlog is not None:
            result = completed(on, result, self.peer.timeout)
        flags, status, answer = result
        return call.parse_record(flags, status, answer)

    def submit(self, calls: Sequence[Call[Any]], promise: Promise, return_errors: object) -> int:
        serial = super().submit(calls, promise, return_errors)
        if isinstance(promise, Posted) and self._local.direct is None:
            self.expect_answers()  # No thread waits, and the batch waits for something: a thread has to go on with it.
        return serial

    def close(self) -> None:
        self.core.close()
        self._halts.end(self.core.closed_error())
        super().close()

    def _end(self, failure: IrqchipError | None) -> None:
        super()._end(failure)
        self._halts.end(self.core.closed_error())

    def abandon(self, channel: Channel, local: LocalSession, failure: IrqchipError) -> None:
        """Ends the Session in a forked process, where other threads may hold its locks for ever."""
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._channel = channel
        self._local = local
        self._halts = Halts()
        with self.changed:
            self._end(failure)
