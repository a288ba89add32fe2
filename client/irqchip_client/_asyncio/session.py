"""A Session: a core, which knows the protocol, and a transport, which carries messages."""

from __future__ import annotations

from asyncio import Future  # sync: from concurrent.futures import Future
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from typing import Any, Self, TypeVar

from irqchip_client import ops
from irqchip_client._call import Call, as_list, time_allowed
from irqchip_client._errors import TimedOut
from irqchip_client._events import Event
from irqchip_client._model import Space, Wake
from irqchip_client._session import Posted, SessionCore

# sync: from .irqfd import EventfdCalls
from .machine import Machine
from .streams import GrpcTransport as Transport  # sync: from .transport import Answer, Transport

Answer = Future[list[Any]]  # only async

T = TypeVar("T")


class Session(Machine):  # sync: class Session(EventfdCalls, Machine):
    """A client's connection to one VM, and a line source: when the Session ends, for any reason, its levels drop.

    Any number of tasks may use it. Made by Vm.session(), and opened by `async with` or `await`.
    """

    def __init__(self, core: SessionCore, transport: Transport) -> None:
        self._core = core
        self._transport = transport

    def __await__(self) -> Generator[Any, None, Self]:  # only async
        return self._open().__await__()  # only async

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
        """The Session's transport: "grpc", "port" (the AF_UNIX port) or "embedded" (a daemon in this process)."""
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
        """The most bytes of a batch, and the most bytes of its results."""
        return self._core.max_message_bytes

    @property
    def dropped_events(self) -> int:
        """The number of events that the daemon or this client dropped, because they were not read in time."""
        return self._core.events.dropped

    @property
    def closed(self) -> bool:
        """Whether the Session has ended."""
        self._transport.poll()
        return self._core.ended

    async def run(
        self, calls: Iterable[Call[Any]], *, return_errors: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Executes a batch of calls of irqchip_client.ops, in order, and returns their results.

        An operation that fails does not stop the next one. run() raises the first error. With `return_errors` it
        returns each error in the place of the result.

        TimedOut after `timeout` seconds; the daemon may still execute the batch. The default is the Client's timeout
        plus the timeout of a halt in the batch. A halt that ends by the timeout, or by the task's cancellation, has
        taken nothing.
        """
        calls = as_list(calls)
        timeout = time_allowed(calls, self._transport.peer.timeout) if timeout is None else timeout
        answer = self._transport.new_answer()
        serial = await self._transport.submit(calls, answer, return_errors)
        return await self._transport.result(answer, serial, timeout)

    async def submit(self, calls: Iterable[Call[Any]], *, return_errors: bool = False) -> Future[list[Any]]:
        """Sends a batch as run() does, and returns a future of the results.

        Waits only while max_in_flight batches wait for their answers: TimedOut if that lasts for the Client's timeout.
        Cancelling the future gives up a halt at the batch's end.
        """
        return await self._transport.future(as_list(calls), return_errors)

    async def post(self, calls: Iterable[Call[Any]], answered: Callable[[list[Any]], None] | None = None) -> None:
        """Sends a batch without waiting. `answered` is called with the results; an error is in its result's place.

        The call comes from whichever task reads the Session. Over the port, that is one that waits in another method.
        `answered` must not wait for an answer. It is not called if the Session ends first.
        """
        await self._transport.submit(as_list(calls), Posted(answered), True)

    async def begin_halt(self, vcpu: int, *, interrupts_masked: bool = False, timeout: float | None = None) -> Halt:
        """Begins a vCPU's HLT, as Vcpu.halt() does. Halt.wait() waits for the result; Halt.end() ends the halt."""
        call = ops.halt(vcpu, interrupts_masked=interrupts_masked, timeout=timeout)
        answer = self._transport.new_answer()
        return Halt(self._transport, answer, await self._transport.submit((call,), answer, False))

    async def next_event(self, timeout: float | None = None) -> Event:
        """Waits for an event. TimedOut after `timeout` seconds; SessionClosed once the Session has ended."""
        async with self._transport.changed:
            await self._transport.wait(lambda: self._core.has_event, timeout, "an event")
            return self._core.take_event()

    async def take_events(self) -> list[Event]:
        """Returns the unread events, without waiting. SessionClosed once the Session has ended and all are read."""
        core = self._core
        async with self._transport.changed:
            self._transport.poll()
            events = [core.take_event()] if core.has_event else []
            while core.events:
                events.append(core.take_event())
            return events

    async def events(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """Iterates over events as they arrive, and stops when no event has arrived for `timeout` seconds.

        Each event goes to one reader. SessionClosed once the Session has ended.
        """
        while True:
            try:
                event = await self.next_event(timeout)
            except TimedOut:
                return
            yield event

    async def register_region(
        self, space: Space, address: int, length: int, *, doorbell: bool = False, datamatch: int | None = None
    ) -> None:
        """Claims a range of ports or addresses. Each access is a RegionAccess event, which complete_access() answers.

        If the Session ends, or answers too late (see RegionsLost), the vCPU reads all ones. A device and a vCPU need a
        Session each, because a vCPU's later operations wait for its access.

        doorbell   a write is a Doorbell event, and no vCPU waits: KVM_IOEVENTFD; a read is unclaimed
        datamatch  only a write of this value, and of the range's length, rings; any other write is unclaimed

        AlreadyExists if part of the range is claimed; Busy if it is barred because its owners were too slow;
        InvalidArgument for an invalid range; LimitReached at the VM's limit of regions.
        """
        await self._call(ops.register_region(space, address, length, doorbell=doorbell, datamatch=datamatch))

    async def unregister_region(self, space: Space, address: int, datamatch: int | None = None) -> None:
        """Gives a region up. Accesses that wait for an answer are completed as unanswered.

        NotFound if the Session has no such region.
        """
        await self._call(ops.unregister_region(space, address, datamatch=datamatch))

    async def complete_access(self, access: int, data: int = 0, *, unanswered: bool = False) -> bool:
        """Answers a RegionAccess with the data that the vCPU reads. Returns whether the access was still waiting.

        unanswered  the device has no answer, for example because it is broken: the vCPU reads all ones, and its result
                    has `unanswered`

        InvalidArgument if the data does not fit the access's size, or comes with `unanswered`. Then the vCPU still
        waits.
        """
        return await self._call(ops.complete_access(access, data, unanswered=unanswered))

    async def close(self) -> None:
        """Ends the Session, after waiting up to a second for the answers to batches."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> Self:  # only async
        await self._transport.open()  # only async
        return self  # only async

    async def _call(self, call: Call[T]) -> T:
        return await self._transport.call(call)

    async def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return await self.run(calls)


class Halt:
    """A halt, which another task can end. Made by Session.begin_halt()."""

    def __init__(self, transport: Transport, answer: Answer, serial: int) -> None:
        self._transport = transport
        self._answer = answer
        self._serial = serial
        self._over = False
        self._ended = False

    async def wait(self) -> Wake | None:
        """Waits until the halt ends, and returns what the vCPU took. None after end(): the vCPU took nothing.

        Call it once. TimedOut after the halt's timeout.
        """
        wake: Wake | None = None
        try:
            wake = (await self._transport.result(self._answer, self._serial, None))[0]
        except TimedOut:  # also the answer to a halt that was given up
            if not self._ended:
                raise
        async with self._transport.changed:
            self._over = True
            # If the answer came before end(), the daemon takes it back, and delivers it next.
            return None if self._ended else wake

    async def end(self) -> None:
        """Ends the halt, unless it is over. May be called from any task."""
        async with self._transport.changed:
            if not (self._over or self._ended):
                self._ended = True
                self._transport.give_up(self._serial)
