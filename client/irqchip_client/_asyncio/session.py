"""The streams: a Session and a Watch, driven by the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from typing import Any, Self, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import ops
from irqchip_client._call import Call, as_list, time_allowed
from irqchip_client._channels import Peer
from irqchip_client._errors import TimedOut, client_closed, error_from_rpc, timed_out
from irqchip_client._events import Event, EventsDropped, TraceEvent, trace_from_proto
from irqchip_client._model import Space
from irqchip_client._session import CLOSE_GRACE, SessionCore

from .machine import Machine

SessionStream = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]
WatchStream = grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]


class Session(Machine):
    """A client's connection to one VM: a line source, whose levels drop when it ends, however it ends.

    Any number of tasks may use it. Made by Vm.session(), and opened by `async with` or `await`.
    """

    transport = "grpc"  # What it goes over.

    def __init__(
        self,
        start: Callable[[AsyncIterator[pb.SessionRequest]], SessionStream],
        core: SessionCore,
        peer: Peer,
    ) -> None:
        self._core = core
        self._peer = peer
        self._timeout = peer.timeout
        self._changed = asyncio.Condition()  # Tells that the core has changed.
        self._outbox: asyncio.Queue[pb.SessionRequest | None] = asyncio.Queue()  # None: no more.
        self._outbox.put_nowait(core.open_request())
        self._start = start
        self._stream: SessionStream | None = None
        self._reader: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

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

    async def run(
        self, calls: Iterable[Call[Any]], *, return_errors: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Runs a batch of irqchip_client.ops, in order, and returns one result a call.

        An operation that fails does not keep the next from being executed. The first error is raised, or, with
        `return_errors`, each stands in its operation's place. TimedOut after `timeout` seconds, by default the
        Client's and what a halt at the batch's end may take: the batch may still be executed. A halt that is given up
        so, or by the task's cancellation, has taken nothing.
        """
        calls = as_list(calls)
        timeout = time_allowed(calls, self._timeout) if timeout is None else timeout
        future, serial = await self._submit(calls, return_errors)
        try:
            return await asyncio.wait_for(future, timeout)
        except asyncio.CancelledError:
            self._give_up(serial)  # Again, where its answer came with the cancellation.
            raise
        except TimeoutError:
            raise timed_out("a batch", timeout) from None

    async def submit(self, calls: Iterable[Call[Any]], *, return_errors: bool = False) -> asyncio.Future[list[Any]]:
        """As run(), but without waiting for the answer: batches may follow each other closely.

        Waits only while max_in_flight batches are in flight: TimedOut if that lasts for the Client's timeout. To cancel
        the future gives up a halt at the batch's end.
        """
        return (await self._submit(as_list(calls), return_errors))[0]

    async def next_event(self, timeout: float | None = None) -> Event:
        """Waits for an event. TimedOut after `timeout` seconds; SessionClosed once the Session has ended."""
        async with self._changed:
            await self._wait(lambda: self._core.has_event, timeout, "an event")
            return self._core.take_event()

    async def events(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """Iterates over events as they come, and stops when none has come for `timeout` seconds.

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
        """Answers for a range of ports or addresses: a RegionAccess comes, and complete_access() answers it.

        Where the Session ends first, or takes longer than the daemon allows (see RegionsLost), vCPUs read all ones. A
        device and a vCPU need a Session each: a vCPU's operations wait for its accesses.

        doorbell   a Doorbell tells of writes, and no vCPU waits: KVM_IOEVENTFD; reads are unclaimed
        datamatch  only writes of this value, and of the range's length, ring; others are unclaimed

        AlreadyExists where part of the range is claimed; InvalidArgument; LimitReached.
        """
        await self._call(ops.register_region(space, address, length, doorbell=doorbell, datamatch=datamatch))

    async def unregister_region(self, space: Space, address: int, datamatch: int | None = None) -> None:
        """The reverse; what of it waits for an answer is completed as unanswered. NotFound where there is none."""
        await self._call(ops.unregister_region(space, address, datamatch=datamatch))

    async def complete_access(self, access: int, data: int = 0, *, unanswered: bool = False) -> bool:
        """Answers a RegionAccess, with what is read. Whether the access was still waiting for it.

        unanswered  there is no answer, as the device is broken say: the vCPU reads all ones, and is told so

        InvalidArgument where the data does not fit the access's size, or is unanswered: the vCPU still waits.
        """
        return await self._call(ops.complete_access(access, data, unanswered=unanswered))

    async def close(self) -> None:
        """Ends the Session. Batches in flight are still answered, if that takes no more than a second."""
        async with self._changed:
            self._core.close()
            self._changed.notify_all()
        self._outbox.put_nowait(None)
        if self._reader is None or self._stream is None:
            self._core.end(None, self._peer)
            return
        try:
            await asyncio.wait([self._reader], timeout=CLOSE_GRACE)
        finally:
            self._stream.cancel()
        await asyncio.wait([self._reader], timeout=CLOSE_GRACE)

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return await self.run(calls)

    async def _submit(self, calls: Sequence[Call[Any]], return_errors: bool) -> tuple[asyncio.Future[list[Any]], int]:
        """The answer to come, and the batch's serial."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        async with self._changed:
            await self._wait(lambda: self._core.has_room, self._timeout, "an answer to any of the batches in flight")
            request, serial = self._core.submit(calls, future, return_errors)
            self._outbox.put_nowait(cast(pb.SessionRequest, request))  # Only the port's are packed.
        if calls and calls[-1].is_halt:
            future.add_done_callback(lambda future: self._give_up(serial) if future.cancelled() else None)
        return future, serial

    def _give_up(self, serial: int) -> None:
        if request := self._core.give_up(serial):
            self._outbox.put_nowait(request)

    async def _open(self) -> Self:
        if self._reader is None:
            self._stream = self._start(self._requests())
            self._reader = asyncio.create_task(self._read(self._stream), name=f"irqchip session {self.vm}")
        try:
            async with self._changed:
                await self._wait(lambda: self._core.is_open or self._core.ended, self._timeout, "opening the Session")
                if not self._core.is_open:
                    raise self._core.open_error()
        except BaseException:
            await self.close()
            raise
        return self

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait_for(ready)
        except TimeoutError:
            raise timed_out(what, timeout) from None

    async def _read(self, stream: SessionStream) -> None:
        failure: BaseException | None = None
        try:
            async for response in stream:
                async with self._changed:
                    batch = self._core.receive(response)
                    self._changed.notify_all()
                if batch:
                    batch.settle()
        except (Exception, asyncio.CancelledError) as error:  # Whatever it is, it must reach those who wait.
            failure = error
        stream.cancel()
        self._outbox.put_nowait(None)
        for batch in self._core.end(failure, self._peer):
            batch.settle()
        async with self._changed:
            self._changed.notify_all()


class Watch:
    """A VM's trace events, as they happen: an iterator. Made by Vm.watch(), and opened by `async with` or `await`.

    It ends when it is closed. When the VM goes it raises NotFound, and when the daemon goes, Unavailable.
    """

    def __init__(self, start: Callable[[], WatchStream], peer: Peer) -> None:
        self._start = start
        self._peer = peer
        self._stream: WatchStream | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TraceEvent | EventsDropped:
        await self._open()
        if self._closed or self._stream is None:
            raise StopAsyncIteration
        # Shielded: gRPC would take the cancellation of a reader, by a timeout say, for that of the stream.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._stream.read())
        try:
            response = await asyncio.shield(self._reading)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._peer.target, closed=self._peer.closed) from error
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            if self._closed:
                raise StopAsyncIteration from None
            raise client_closed() from None
        self._reading = None
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        return trace_from_proto(response)

    async def close(self) -> None:
        """Ends it, also for a task that waits in it."""
        self._closed = True
        if self._stream is not None:
            self._stream.cancel()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> Self:
        if self._stream is None and not self._closed:
            self._stream = self._start()
            # The daemon answers with its initial metadata when it is watching: what is done from now on is traced.
            try:
                async with asyncio.timeout(self._peer.timeout):
                    await self._stream.wait_for_connection()
            except TimeoutError:
                await self.close()
                raise timed_out("the Watch", self._peer.timeout) from None
            except grpc.RpcError as error:
                await self.close()
                raise error_from_rpc(error, self._peer.target, closed=self._peer.closed) from error
        return self


def task_is_cancelled() -> bool:
    """Whether a CancelledError is the caller's: gRPC also raises it where the channel was closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
