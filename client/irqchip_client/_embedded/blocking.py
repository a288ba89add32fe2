"""The blocking Client of a daemon in this process: a call is a call of the daemon's function."""

from __future__ import annotations

import os
import threading
import time
import weakref
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._call import Call, time_allowed
from irqchip_client._errors import IrqchipError, client_closed, timed_out
from irqchip_client._session import Posted, Promise, SessionCore
from irqchip_client._sync.packets import Channel, PacketTransport
from irqchip_client._sync.streams import Watch
from irqchip_client._target import Target
from irqchipd.edge.batch import caught_up
from irqchipd.edge.operations import Caller, access_result
from irqchipd.embedded import LocalSession, LocalWatch
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.pending import Pending, Slices
from irqchipd.vm.vcpu_state import Outcome

from .daemon import FUNCTIONS, Lifetime, collect_later, error_of, forked, notice_fork, wake_of

T = TypeVar("T")


class EmbeddedConnection:
    """Makes a Client's calls, and opens its Sessions and Watches."""

    def __init__(self, target: Target, timeout: float) -> None:
        self._lifetime = Lifetime(target, timeout)
        self.peer = self._lifetime.peer
        self._halts = Halts()
        self._transports: weakref.WeakSet[EmbeddedTransport] = weakref.WeakSet()
        self._watches: weakref.WeakSet[_WatchStream] = weakref.WeakSet()

    def unary(self, call: Call[T], vm: str = "") -> T:
        """Makes a call outside of any Session."""
        timeout = time_allowed((call,), self.peer.timeout)
        lifetime = self._lifetime
        lifetime.check()
        fields = call.fields
        if fields is None:
            request = call.request_for(vm)
            work = lifetime.embedded.unary(call.operation, call.method, request)
            return call.parse(finish(work, timeout))
        on = lifetime.caller(call, vm)
        if on.vm.agenda.backlog is not None:
            finish(caught_up(on.vm), timeout)
        if call.is_halt:
            return self._halts.run(on, call, timeout)
        return call.parse_record(*execute(on, FUNCTIONS[call.operation], fields, timeout))

    def transport(self, core: SessionCore) -> EmbeddedTransport:
        """What carries a new Session, which is then open."""
        self._lifetime.check()
        transport = EmbeddedTransport(self._lifetime, core)
        transport.open(time.monotonic() + self.peer.timeout)
        self._transports.add(transport)
        if self.peer.closed:  # Just now, and close() did not see it.
            transport.close()
            raise client_closed()
        return transport

    def watch(self, request: pb.WatchRequest) -> Watch:
        """Opens a Watch."""
        self._lifetime.check()
        stream = _WatchStream(self._lifetime, request)
        self._watches.add(stream)
        return Watch(cast(Any, stream), self.peer)

    def close(self) -> None:
        """Ends all calls and streams, and the daemon."""
        self.peer.closed = True
        self._halts.end(client_closed())
        for transport in list(self._transports):
            transport.disconnect(client_closed())
        for watch in list(self._watches):
            watch.disconnect(client_closed())
        self._lifetime.embedded.stop()


def execute(
    on: Caller, function: Callable[..., Any], fields: tuple[int, int, int, int], timeout: float | None
) -> tuple[int, int, int]:
    """Executes an operation on plain values, to its end."""
    try:
        result = function(on, *fields)
        if type(result) is not tuple:  # An Access.
            wait_for(result, timeout)
            result = access_result(result)
    except Exception as error:
        raise _translated(error) from None
    if on.vm.agenda.backlog is not None:
        finish(caught_up(on.vm), timeout)
    return cast("tuple[int, int, int]", result)


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
    """Halts that threads wait for, outside of batches."""

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
    """A thread that waits for what ends a halt: without polling, and without any lock of others."""

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


class EmbeddedTransport(PacketTransport):
    """A Session of the daemon in this process.

    Single operations on plain values go straight to the daemon's functions. Batches, halts at their ends and events are
    the port's packets, without a socket.
    """

    def __init__(self, lifetime: Lifetime, core: SessionCore) -> None:
        channel = _Channel(lifetime)
        super().__init__("embedded", channel, core, lifetime.peer)
        self._local = channel.local
        self._lifetime = lifetime
        self._halts = Halts()
        notice_fork(self)

    def call(self, call: Call[T]) -> T:
        on, fields = self._local.direct, call.fields
        if on is None or fields is None or on.vm.agenda.backlog is not None:
            return super().call(call)
        function = FUNCTIONS.get(call.operation)
        if function is None:
            return self._halts.run(on, call, time_allowed((call,), self.peer.timeout))
        try:
            result = function(on, *fields)
        except Exception as error:
            if self._local.direct is None:  # The Session has ended meanwhile, and why is the better answer.
                return super().call(call)
            raise error_of(error) from None
        if type(result) is tuple and on.vm.agenda.backlog is None:
            return call.parse_record(*result)
        return call.parse_record(*execute(on, lambda *_: result, fields, self.peer.timeout))

    def submit(self, calls: Sequence[Call[Any]], promise: Promise, return_errors: object) -> int:
        serial = super().submit(calls, promise, return_errors)
        if isinstance(promise, Posted) and self._local.direct is None:
            self.expect_answers()  # Nobody waits, and the batch waits for something: a thread has to go on with it.
        return serial

    def close(self) -> None:
        self.core.close()
        self._halts.end(self.core.closed_error())
        super().close()

    def _end(self, failure: IrqchipError | None) -> None:
        super()._end(failure)
        self._halts.end(self.core.closed_error())

    def forked(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._channel = _Channel(self._lifetime)
        self._local = self._channel.local
        self._halts = Halts()
        with self.changed:
            self._end(forked())


class _Channel(Channel):
    """A Channel whose other end is in this process."""

    def __init__(self, lifetime: Lifetime) -> None:
        woken = allocate_lock()  # Held, unless there may be something to take.
        self._woken = woken
        self.local = LocalSession(lifetime.embedded, partial(_wake, woken))
        collect_later(self, partial(self.local.close, "its client has gone"))

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.local.send(packet, [os.dup(descriptor) for descriptor in descriptors])

    def receive(self, timeout: float | None = None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (packet := self.local.take()) is None:
            left = -1.0
            if deadline is not None and (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._woken.acquire(True, left)
        return packet

    def receive_soon(self) -> bytes | None:
        return self.local.take()

    def receive_now(self) -> bytes:
        packet = self.local.take()
        if packet is None:
            raise BlockingIOError
        return packet

    def wait_for_room(self, timeout: float | None) -> bool:  # noqa: ARG002 - there is always room to send
        return False

    def finish(self) -> None:
        self.local.finish()

    def disconnect(self) -> None:
        self.local.close("its client closed it")

    def close(self) -> None:
        self.local.close("its client closed it")


def _wake(woken: Any) -> None:
    with suppress(RuntimeError):  # Awake already.
        woken.release()


class _WatchStream:
    """What a Watch reads, in the place of gRPC's stream."""

    def __init__(self, lifetime: Lifetime, request: pb.WatchRequest) -> None:
        self._lifetime = lifetime
        self._woken = allocate_lock()
        self._failure: IrqchipError | None = None
        self._cancelled = False
        try:
            self._watch = LocalWatch(lifetime.embedded, request, partial(_wake, self._woken))
        except VmError as error:
            raise error_of(error) from None
        collect_later(self, self._watch.close)

    def initial_metadata(self) -> None:
        """It watches already."""

    def is_active(self) -> bool:
        return True

    def __iter__(self) -> _WatchStream:
        return self

    def __next__(self) -> pb.WatchResponse:
        while True:
            if self._cancelled:
                raise self._failure or StopIteration
            try:
                response = self._watch.take()
            except VmError as error:
                raise error_of(error) from None
            if response is not None:
                return response
            self._woken.acquire()

    def cancel(self) -> None:
        """End it, also for a thread that waits in it."""
        self._cancelled = True
        self._watch.close()
        _wake(self._woken)

    def disconnect(self, failure: IrqchipError) -> None:
        """End it at once, for this reason."""
        self._failure = failure
        self.cancel()
