"""Carries a Session's messages, and makes threads wait for them."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from irqchip.builds import mypyc_attr
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._call import Call, time_allowed
from irqchip_client._channels import Peer
from irqchip_client._errors import IrqchipError, TimedOut, timed_out
from irqchip_client._session import Promise, SessionCore

T = TypeVar("T")


class Answer:
    """A promise without a lock of its own: Transport.result() waits for it."""

    __slots__ = ("_done", "_exception", "_result")

    def __init__(self) -> None:
        self._done = False
        self._result: list[Any] = []
        self._exception: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: list[Any], /) -> None:
        self._result, self._done = result, True

    def set_exception(self, exception: BaseException, /) -> None:
        self._exception, self._done = exception, True

    def result(self) -> list[Any]:
        if self._exception is not None:
            raise self._exception
        return self._result


@mypyc_attr(allow_interpreted_subclasses=True)
class Transport:
    """A Session's core with the I/O around it. Any number of threads may use it.

    lock     guards the core
    changed  the lock's condition, notified when the core has changed
    reader   the thread that does nothing but read, if there is one: it must not wait for an answer
    """

    name: str  # the value of Session.transport
    reader: threading.Thread | None = None

    def __init__(self, core: SessionCore, peer: Peer) -> None:
        self.core = core
        self.peer = peer
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)

    # Each transport has its own version of these methods.

    def send(self, request: pb.SessionRequest | bytes, *, waits: bool = True) -> None:
        """Sends a request behind those before it; within `changed`. Without `waits` it may be sent later."""
        raise NotImplementedError

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Waits, within `changed`, until the core is ready. TimedOut after `timeout` seconds."""
        raise NotImplementedError

    def poll(self) -> None:
        """Receives the messages that have come, without waiting."""

    def expect_answers(self) -> None:
        """Makes a thread receive answers from now on, even while no caller waits."""

    def run_with_descriptors(self, call: Call[T], descriptors: Sequence[int]) -> T:  # noqa: ARG002 - the port's
        """Makes a call that carries file descriptors."""
        raise IrqchipError(
            errno.EOPNOTSUPP,
            "gRPC carries no descriptors: irqfds and shared memory need the port, on the daemon's host",
        )

    def close(self) -> None:
        """Ends the Session, after waiting up to a second for the answers to batches."""
        raise NotImplementedError

    # All transports share these.

    def open(self, deadline: float) -> None:
        """Opens the Session, and waits until the daemon has answered: until `deadline`, of time.monotonic()."""
        core = self.core
        try:
            with self.changed:
                self.send(core.open_request())
                try:
                    self.wait(lambda: core.is_open or core.ended, max(deadline - time.monotonic(), 0), "opening")
                except TimedOut:
                    raise timed_out("opening the Session", self.peer.timeout) from None
                if not core.is_open:
                    raise core.open_error()
        except BaseException:
            self.close()
            raise

    def call(self, call: Call[T]) -> T:
        """Makes one call, and returns its result."""
        answer = Answer()
        serial = self.submit((call,), answer, False)
        result: T = self.result(answer, serial, time_allowed((call,), self.peer.timeout))[0]
        return result

    def submit(self, calls: Sequence[Call[Any]], promise: Promise, return_errors: object) -> int:
        """Sends a batch, and returns its serial. Waits only while too many batches are in flight."""
        with self.lock:
            if not self.core.has_room:
                self.wait_for_room()
            request, serial = self.core.submit(calls, promise, return_errors)
            self.send(request)
        return serial

    def wait_for_room(self) -> None:
        """Waits, within `changed`, while too many batches are in flight. The reader makes room, and does not wait."""
        if not self.core.has_room and threading.current_thread() is not self.reader:
            self.wait(lambda: self.core.has_room, self.peer.timeout, "an answer to any of the batches in flight")

    def future(self, calls: Sequence[Call[Any]], return_errors: object) -> Future[list[Any]]:
        """Sends a batch, and returns the future of its results."""
        self.expect_answers()
        future: Future[list[Any]] = Future()
        future.set_running_or_notify_cancel()  # The batch goes out at once: too late to cancel it.
        self.submit(calls, future, return_errors)
        return future

    def new_answer(self) -> Answer:
        """A promise for submit() and result()."""
        return Answer()

    def result(self, answer: Answer, serial: int, timeout: float | None) -> list[Any]:
        """Waits for the results of a batch. A halt whose caller stops waiting is given up."""
        try:
            with self.lock:
                self.wait(answer.done, timeout, "a batch")
        except BaseException:  # also Ctrl-C
            if not answer.done():
                self.give_up(serial)
            raise
        return answer.result()

    def give_up(self, serial: int) -> None:
        """Gives up the halt that ends a batch, if a halt does. From any thread."""
        with self.changed:
            if request := self.core.give_up(serial):
                self.send(request, waits=False)
