"""The streams: a Session and a Watch, driven by threads."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, Self, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import _calls, ops
from irqchip_client._call import Call, as_list, time_allowed
from irqchip_client._channels import Peer
from irqchip_client._errors import IrqchipError, SessionClosed, TimedOut, error_from_rpc, timed_out
from irqchip_client._events import Event, EventsDropped, TraceEvent, trace_from_proto
from irqchip_client._model import Space
from irqchip_client._session import CLOSE_GRACE, Promise, SessionCore

from .irqfd import Irqfd
from .machine import Machine

KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE = 1, 2  # <linux/kvm.h>


class Answer(Promise, Protocol):
    """A promise whose result can be waited for."""

    def result(self, timeout: float | None = None, /) -> list[Any]: ...


Start = Callable[[Iterator[pb.SessionRequest]], "grpc._CallIterator[pb.SessionResponse]"]


class _Told:
    """A promise that tells of its results, and nothing of its failure."""

    def __init__(self, answered: Callable[[list[Any]], None]) -> None:
        self._answered = answered

    def done(self) -> bool:
        return False

    def set_result(self, result: list[Any], /) -> None:
        self._answered(result)

    def set_exception(self, exception: BaseException, /) -> None:
        pass


class Session(Machine):
    """A client's connection to one VM: a line source, whose levels drop when it ends, however it ends.

    Any number of threads may use it. Made by Vm.session().
    """

    transport = "grpc"  # What it goes over; "port": the daemon's AF_UNIX port.
    _reader: threading.Thread | None

    def __init__(self, start: Start, core: SessionCore, peer: Peer, deadline: float) -> None:
        self._core = core
        self._peer = peer
        self._timeout = peer.timeout
        self._changed = threading.Condition()  # Guards the core, and tells that it has changed.
        self._outbox: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()  # None: no more.
        self._stream = start(iter(self._outbox.get, None))
        # A daemon thread: a program that forgets close() still exits.
        self._reader = threading.Thread(target=self._read, name=f"irqchip session {core.vm}", daemon=True)
        self._reader.start()
        self._open(deadline)

    def _open(self, deadline: float) -> None:
        """Sends the first message, and waits until it is answered: until `deadline`, of time.monotonic()."""
        core = self._core
        try:
            with self._changed:
                self._send(core.open_request())
                try:
                    self._wait(lambda: core.is_open or core.ended, max(deadline - time.monotonic(), 0), "opening")
                except TimedOut:
                    raise timed_out("opening the Session", self._timeout) from None
                if not core.is_open:
                    raise core.open_error()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        core = self._core
        state = "ended" if core.ended else f"source {core.source}" if core.is_open else "not open"
        return f"<Session {core.client!r} on VM {core.vm!r} of {self._peer.target}, {state}>"

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self._core.vm

    @property
    def source(self) -> int:
        """Its line source, 1 or more."""
        return self._core.source

    @property
    def max_operations(self) -> int:
        """How many operations a batch may have."""
        return self._core.max_operations

    @property
    def max_message_bytes(self) -> int:
        """How many bytes a batch may have, and its results."""
        return self._core.max_message_bytes

    @property
    def dropped_events(self) -> int:
        """Events lost because they were not read in time, in the daemon and here; an EventsDropped stood for them."""
        return self._core.events.dropped

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._core.ended

    def run(
        self, calls: Iterable[Call[Any]], *, return_errors: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Runs a batch of irqchip_client.ops, in order, and returns one result a call.

        An operation that fails does not keep the next from being executed. The first error is raised, or, with
        `return_errors`, each stands in its operation's place. TimedOut after `timeout` seconds, by default the
        Client's and what a halt at the batch's end may take: the batch may still be executed. A halt that is given up
        so, or by Ctrl-C, has taken nothing.
        """
        calls = as_list(calls)
        timeout = time_allowed(calls, self._timeout) if timeout is None else timeout
        answer = self._new_answer()
        serial = self._submit(calls, answer, return_errors)
        try:
            return self._wait_for(answer, timeout)
        except TimeoutError:
            self._give_up(serial)
            raise timed_out("a batch", timeout) from None
        except BaseException:
            if not answer.done():  # Ctrl-C
                self._give_up(serial)
            raise

    def submit(self, calls: Iterable[Call[Any]], *, return_errors: bool = False) -> Future[list[Any]]:
        """As run(), but without waiting for the answer: batches may follow each other closely.

        Waits only while max_in_flight batches are in flight: TimedOut if that lasts for the Client's timeout. The
        future's callbacks run on the thread that reads the Session: they may submit, which then raises LimitReached
        rather than wait, and must not wait for an answer.
        """
        self._expect_answers()
        future: Future[list[Any]] = Future()
        future.set_running_or_notify_cancel()  # It goes out at once: too late to cancel it.
        self._submit(as_list(calls), future, return_errors)
        return future

    def next_event(self, timeout: float | None = None) -> Event:
        """Waits for an event. TimedOut after `timeout` seconds; SessionClosed once the Session has ended."""
        with self._changed:
            self._wait(lambda: self._core.has_event, timeout, "an event")
            return self._core.take_event()

    def _take_events(self) -> list[Event]:
        """Those that have come, without waiting. SessionClosed once the Session has ended, and all are read."""
        _ = self.closed  # Over the port this receives what has come.
        core = self._core
        with self._changed:
            taken = [core.take_event()] if core.has_event else []
            while core.events:
                taken.append(core.take_event())
            return taken

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Iterates over events as they come, and stops when none has come for `timeout` seconds.

        Each event goes to one reader. SessionClosed once the Session has ended.
        """
        with suppress(TimedOut):
            while True:
                yield self.next_event(timeout)

    def register_region(
        self, space: Space, address: int, length: int, *, doorbell: bool = False, datamatch: int | None = None
    ) -> None:
        """Answers for a range of ports or addresses: a RegionAccess comes, and complete_access() answers it.

        Where the Session ends first, or takes longer than the daemon allows (see RegionsLost), vCPUs read all ones. A
        device and a vCPU need a Session each: a vCPU's operations wait for its accesses.

        doorbell   a Doorbell tells of writes, and no vCPU waits: KVM_IOEVENTFD; reads are unclaimed
        datamatch  only writes of this value, and of the range's length, ring; others are unclaimed

        AlreadyExists where part of the range is claimed; InvalidArgument; LimitReached.
        """
        self._call(ops.register_region(space, address, length, doorbell=doorbell, datamatch=datamatch))

    def unregister_region(self, space: Space, address: int, datamatch: int | None = None) -> None:
        """The reverse; what of it waits for an answer is completed as unanswered. NotFound where there is none."""
        self._call(ops.unregister_region(space, address, datamatch=datamatch))

    def complete_access(self, access: int, data: int = 0, *, unanswered: bool = False) -> bool:
        """Answers a RegionAccess, with what is read. Whether the access was still waiting for it.

        unanswered  there is no answer, as the device is broken say: the vCPU reads all ones, and is told so

        InvalidArgument where the data does not fit the access's size, or is unanswered: the vCPU still waits.
        """
        return self._call(ops.complete_access(access, data, unanswered=unanswered))

    def irqfd(self, gsi: int, *, resample: bool = False) -> Irqfd:
        """KVM_IRQFD: an eventfd whose writes interrupt a GSI, which takes a device no message and no answer.

        With `resample` a write raises the GSI until it is acknowledged. Only over the port: IrqchipError(EOPNOTSUPP)
        elsewhere. NotReady without an irqchip.
        """
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        resamplefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if resample else None
        try:
            self.assign_irqfd(eventfd, gsi, resamplefd)
        except BaseException:
            os.close(eventfd)
            if resamplefd is not None:
                os.close(resamplefd)
            raise

        def deassign() -> None:
            if not self.closed:
                with suppress(SessionClosed):
                    self.deassign_irqfd(eventfd, gsi)

        return Irqfd(gsi, eventfd, resamplefd, deassign)

    def assign_irqfd(self, eventfd: int, gsi: int, resamplefd: int | None = None) -> None:
        """irqfd() of an eventfd that is there. It stays the caller's, and the daemon's as long as the Session lasts.

        Busy where it is an irqfd already; InvalidArgument where it is no eventfd, or can't be resampled.
        """
        flags = 0 if resamplefd is None else KVM_IRQFD_FLAG_RESAMPLE
        descriptors = [eventfd] if resamplefd is None else [eventfd, resamplefd]
        self._run_with([_calls.irqfd(gsi, flags)], descriptors)

    def deassign_irqfd(self, eventfd: int, gsi: int) -> None:
        """The reverse of assign_irqfd(); nothing where the eventfd is not this GSI's irqfd, and of this Session."""
        self._run_with([_calls.irqfd(gsi, KVM_IRQFD_FLAG_DEASSIGN)], [eventfd])

    def assign_ioeventfd(
        self, eventfd: int, space: Space, address: int, length: int, datamatch: int | None = None
    ) -> None:
        """KVM_IOEVENTFD: a doorbell that adds 1 to an eventfd, and sends no event; unregister_region() ends it.

        Only over the port: IrqchipError(EOPNOTSUPP) elsewhere. AlreadyExists, InvalidArgument, LimitReached as of
        register_region().
        """
        self._run_with([_calls.register_ioeventfd(space, address, length, datamatch=datamatch)], [eventfd])

    def _post(self, calls: Sequence[Call[Any]], answered: Callable[[list[Any]], None] | None = None) -> None:
        """Runs a batch for whose results nobody waits; `answered` may have them, and must not wait either."""
        self._submit(calls, self._new_answer() if answered is None else _Told(answered), True)

    def _run_with(self, calls: Sequence[Call[Any]], descriptors: Sequence[int]) -> None:  # noqa: ARG002 - the port's
        raise IrqchipError(errno.EOPNOTSUPP, "gRPC carries no eventfd: irqfds need the port, on the daemon's own host")

    def close(self) -> None:
        """Ends the Session. Batches in flight are still answered, if that takes no more than a second."""
        with self._changed:
            self._core.close()
            self._changed.notify_all()
        self._outbox.put(None)
        if self._reader is not None and threading.current_thread() is not self._reader:
            self._reader.join(CLOSE_GRACE)
            self._stream.cancel()
            self._reader.join(CLOSE_GRACE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return self.run(calls)

    def _submit(self, calls: Sequence[Call[Any]], answer: Promise, return_errors: bool) -> int:
        """Returns the batch's serial."""
        with self._changed:
            self._wait_for_room()
            request, serial = self._core.submit(calls, answer, return_errors)
            self._send(request)
        return serial

    def _wait_for_room(self) -> None:
        if not self._core.has_room and threading.current_thread() is not self._reader:
            self._wait(lambda: self._core.has_room, self._timeout, "an answer to any of the batches in flight")

    def _give_up(self, serial: int) -> None:
        with self._changed:
            if request := self._core.give_up(serial):
                self._send(request)

    def _send(self, request: pb.SessionRequest | bytes) -> None:
        self._outbox.put(cast(pb.SessionRequest, request))  # Only the port's are packed.

    def _expect_answers(self) -> None:
        """Answers may come while nobody waits for one."""

    def _new_answer(self) -> Answer:
        """What run() waits for."""
        return Future()

    def _wait_for(self, answer: Answer, timeout: float | None) -> list[Any]:
        return answer.result(timeout)

    def _wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        if not self._changed.wait_for(ready, timeout):
            raise timed_out(what, timeout)

    def _read(self) -> None:
        failure: Exception | None = None
        try:
            for response in self._stream:
                with self._changed:
                    batch = self._core.receive(response)
                    self._changed.notify_all()
                if batch:
                    batch.settle()
        except Exception as error:  # Whatever it is, it must reach those who wait.
            failure = error
        self._stream.cancel()
        self._outbox.put(None)  # gRPC's thread waits for a request, and would for ever.
        with self._changed:
            batches = self._core.end(failure, self._peer)
            self._changed.notify_all()
        for batch in batches:
            batch.settle()


class Watch:
    """A VM's trace events, as they happen: an iterator. Made by Vm.watch().

    It ends when it is closed. When the VM goes it raises NotFound, and when the daemon goes, Unavailable.
    """

    def __init__(self, stream: grpc._CallIterator[pb.WatchResponse], peer: Peer) -> None:
        self._stream = stream
        self._responses = iter(stream)
        self._peer = peer
        self._closed = False
        self._late = False
        # The daemon answers with its initial metadata when it is watching: what is done from now on is traced.
        too_late = threading.Timer(peer.timeout, self._too_late)
        too_late.daemon = True
        too_late.start()
        stream.initial_metadata()
        too_late.cancel()
        if not stream.is_active() and stream.code() is not grpc.StatusCode.OK:
            if self._late:
                raise timed_out("the Watch", peer.timeout)
            raise self._error(cast(grpc.RpcError, stream))  # A finished call is its own error.

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TraceEvent | EventsDropped:
        try:
            return trace_from_proto(next(self._responses))
        except grpc.RpcError as error:
            if self._closed:
                raise StopIteration from None
            raise self._error(error) from error

    def _error(self, error: grpc.RpcError) -> IrqchipError:
        return error_from_rpc(error, self._peer.target, closed=self._peer.closed)

    def _too_late(self) -> None:
        self._late = True
        self._stream.cancel()

    def close(self) -> None:
        """Ends it, also for a thread that waits in it."""
        self._closed = True
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
