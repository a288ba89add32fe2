# Made from _asyncio/session.py by tools/unasync.py. Edit the original, then run `make proto`.
"""A Session: a core, which knows the protocol, and a transport, which carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from irqchip_client import ops
from irqchip_client._call import Call, as_list, time_allowed
from irqchip_client._errors import TimedOut
from irqchip_client._events import Event
from irqchip_client._model import Space, Wake
from irqchip_client._session import Posted, SessionCore

from .irqfd import EventfdCalls
from .machine import Machine
from .transport import Answer, Transport

T = TypeVar("T")


class Session(EventfdCalls, Machine):
    """A client's connection to one VM: a line source, whose levels drop when it ends, however it ends.

    Any number of threads may use it. Made by Vm.session().
    """

    def __init__(self, core: SessionCore, transport: Transport) -> None:
        self._core = core
        self._transport = transport

    def __repr__(self) -> str:
        core = self._core
        state = "ended" if core.ended else f"source {core.source}" if core.is_open else "not open"
        return f"<Session {core.client!r} on VM {core.vm!r} of {self._transport.peer.target}, {state}>"

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self._core.vm

    @property
    def transport(self) -> str:
        """The way the Session goes: "grpc", or "port", the daemon's AF_UNIX port."""
        return self._transport.name

    @property
    def source(self) -> int:
        """The Session's line source, 1 or more."""
        return self._core.source

    @property
    def max_operations(self) -> int:
        """The most operations that a batch may have."""
        return self._core.max_operations

    @property
    def max_message_bytes(self) -> int:
        """The most bytes that a batch may have, and its results."""
        return self._core.max_message_bytes

    @property
    def dropped_events(self) -> int:
        """Events lost because they were not read in time, in the daemon and here; an EventsDropped stood for them."""
        return self._core.events.dropped

    @property
    def closed(self) -> bool:
        """Whether the Session has ended."""
        self._transport.poll()
        return self._core.ended

    def run(
        self, calls: Iterable[Call[Any]], *, return_errors: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Runs a batch of irqchip_client.ops, in order, and returns one result a call.

        After an operation that fails the next ones are executed all the same. The first error is raised; with
        `return_errors`, each stands in its operation's place. TimedOut after `timeout` seconds, by default the
        Client's and what a halt at the batch's end may take: the batch may still be executed. A halt whose wait
        ends so, or by Ctrl-C, has taken nothing.
        """
        calls = as_list(calls)
        timeout = time_allowed(calls, self._transport.peer.timeout) if timeout is None else timeout
        answer = self._transport.new_answer()
        serial = self._transport.submit(calls, answer, return_errors)
        return self._transport.result(answer, serial, timeout)

    def submit(self, calls: Iterable[Call[Any]], *, return_errors: bool = False) -> Future[list[Any]]:
        """As run(), but without waiting for the answer: batches may follow each other closely.

        Waits only while max_in_flight batches are in flight: TimedOut if that lasts for the Client's timeout.
        The future's callbacks run on the thread that reads the Session: they may submit, which then raises
        LimitReached rather than wait, and must not wait for an answer.
        """
        return self._transport.future(as_list(calls), return_errors)

    def post(self, calls: Iterable[Call[Any]], answered: Callable[[list[Any]], None] | None = None) -> None:
        """Sends a batch without waiting: `answered` is called with the results, with errors in their places.

        The call comes from whichever thread reads the Session: over the port, one that waits in another method.
        `answered` must not wait for an answer. It is not called if the Session ends first.
        """
        self._transport.submit(as_list(calls), Posted(answered), True)

    def begin_halt(self, vcpu: int, *, interrupts_masked: bool = False, timeout: float | None = None) -> Halt:
        """Begins a vCPU's HLT, as Vcpu.halt() does. Halt.wait() waits for the result; Halt.end() ends the halt."""
        call = ops.halt(vcpu, interrupts_masked=interrupts_masked, timeout=timeout)
        answer = self._transport.new_answer()
        return Halt(self._transport, answer, self._transport.submit((call,), answer, False))

    def next_event(self, timeout: float | None = None) -> Event:
        """Waits for an event. TimedOut after `timeout` seconds; SessionClosed once the Session has ended."""
        with self._transport.changed:
            self._transport.wait(lambda: self._core.has_event, timeout, "an event")
            return self._core.take_event()

    def take_events(self) -> list[Event]:
        """The events that have come, without waiting. SessionClosed once the Session has ended and all are read."""
        core = self._core
        with self._transport.changed:
            self._transport.poll()
            events = [core.take_event()] if core.has_event else []
            while core.events:
                events.append(core.take_event())
            return events

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Iterates over events as they come, and stops when none has come for `timeout` seconds.

        Each event goes to one reader. SessionClosed once the Session has ended.
        """
        while True:
            try:
                event = self.next_event(timeout)
            except TimedOut:
                return
            yield event

    def register_region(
        self, space: Space, address: int, length: int, *, doorbell: bool = False, datamatch: int | None = None
    ) -> None:
        """Claims a range of ports or addresses: a RegionAccess comes, and complete_access() answers it.

        If the Session ends, or takes longer than the daemon allows (see RegionsLost), vCPUs read all ones. A
        device and a vCPU need a Session each: a vCPU's operations wait for its accesses.

        doorbell   a write becomes a Doorbell event, and no vCPU waits: KVM_IOEVENTFD; a read is unclaimed
        datamatch  only a write of this value and of the range's length rings; any other is unclaimed

        AlreadyExists where part of the range is claimed; InvalidArgument; LimitReached.
        """
        self._call(ops.register_region(space, address, length, doorbell=doorbell, datamatch=datamatch))

    def unregister_region(self, space: Space, address: int, datamatch: int | None = None) -> None:
        """Undoes register_region(); accesses that wait for an answer are completed as unanswered. NotFound."""
        self._call(ops.unregister_region(space, address, datamatch=datamatch))

    def complete_access(self, access: int, data: int = 0, *, unanswered: bool = False) -> bool:
        """Answers a RegionAccess with the data that the vCPU reads. Returns whether the access still waited.

        unanswered  the device has no answer (it is broken, say): the vCPU reads all ones, and its result says so

        InvalidArgument where the data does not fit the access's size, or comes with `unanswered`: the vCPU still waits.
        """
        return self._call(ops.complete_access(access, data, unanswered=unanswered))

    def close(self) -> None:
        """Ends the Session. Batches in flight are still answered, if that takes no more than a second."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, call: Call[T]) -> T:
        return self._transport.call(call)

    def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return self.run(calls)


class Halt:
    """A halt under way, which another thread can end. Made by Session.begin_halt()."""

    def __init__(self, transport: Transport, answer: Answer, serial: int) -> None:
        self._transport = transport
        self._answer = answer
        self._serial = serial
        self._over = False
        self._ended = False

    def wait(self) -> Wake | None:
        """Waits for what the vCPU takes, and returns it. None after end(): then the vCPU has taken nothing.

        Call it once. TimedOut after the halt's timeout.
        """
        wake: Wake | None = None
        try:
            wake = (self._transport.result(self._answer, self._serial, None))[0]
        except TimedOut:  # also the answer to a halt that was given up
            if not self._ended:
                raise
        with self._transport.changed:
            self._over = True
            # If the answer came before end(), the daemon takes it back, and delivers it next.
            return None if self._ended else wake

    def end(self) -> None:
        """Ends the halt, if it is not over. From any thread."""
        with self._transport.changed:
            if not (self._over or self._ended):
                self._ended = True
                self._transport.give_up(self._serial)
