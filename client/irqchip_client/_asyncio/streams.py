"""The gRPC streams of Sessions and of Watches. A task reads each Session's."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Self, TypeVar, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._call import Call, time_allowed
from irqchip_client._channels import Peer
from irqchip_client._errors import client_closed, error_from_rpc, timed_out
from irqchip_client._events import EventsDropped, ProbesChanged, TraceEvent, trace_from_proto
from irqchip_client._session import CLOSE_GRACE, Promise, SessionCore

T = TypeVar("T")
SessionStream = grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]
WatchStream = grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]


class GrpcTransport:
    """A Session's core with the I/O around it, over gRPC. Any number of tasks may use it.

    changed  is notified when the core has changed
    """

    name = "grpc"

    def __init__(
        self, start: Callable[[AsyncIterator[pb.SessionRequest]], SessionStream], core: SessionCore, peer: Peer
    ) -> None:
        self.core = core
        self.peer = peer
        self.changed = asyncio.Condition()
        self._outbox: asyncio.Queue[pb.SessionRequest | None] = asyncio.Queue()  # None: no more.
        self._outbox.put_nowait(core.open_request())
        self._start = start
        self._stream: SessionStream | None = None
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the Session, and waits until the daemon has answered."""
        core = self.core
        if self._reader is None:
            self._stream = self._start(self._requests())
            self._reader = asyncio.create_task(self._read(self._stream), name=f"irqchip session {core.vm}")
        try:
            async with self.changed:
                await self.wait(lambda: core.is_open or core.ended, self.peer.timeout, "opening the Session")
                if not core.is_open:
                    raise core.open_error()
        except BaseException:
            await self.close()
            raise

    async def call(self, call: Call[T]) -> T:
        """Makes one call, and returns its result."""
        answer = self.new_answer()
        serial = await self.submit((call,), answer, False)
        result: T = (await self.result(answer, serial, time_allowed((call,), self.peer.timeout)))[0]
        return result

    async def submit(self, calls: Sequence[Call[Any]], promise: Promise, return_errors: bool) -> int:
        """Sends a batch, and returns its serial. Waits only while too many batches are in flight."""
        core = self.core
        async with self.changed:
            await self.wait(lambda: core.has_room, self.peer.timeout, "an answer to any of the batches in flight")
            request, serial = core.submit(calls, promise, return_errors)
            self._outbox.put_nowait(cast(pb.SessionRequest, request))  # The core makes bytes only over the port.
        return serial

    async def future(self, calls: Sequence[Call[Any]], return_errors: bool) -> asyncio.Future[list[Any]]:
        """Sends a batch, and returns the future of its results."""
        future = self.new_answer()
        serial = await self.submit(calls, future, return_errors)
        if calls and calls[-1].is_halt:
            future.add_done_callback(lambda future: self.give_up(serial) if future.cancelled() else None)
        return future

    def new_answer(self) -> asyncio.Future[list[Any]]:
        """A promise for submit() and result()."""
        return asyncio.get_running_loop().create_future()

    async def result(self, answer: asyncio.Future[list[Any]], serial: int, timeout: float | None) -> list[Any]:
        """Waits for the results of a batch. A halt whose caller stops waiting is given up."""
        try:
            return await asyncio.wait_for(answer, timeout)
        except asyncio.CancelledError:
            self.give_up(serial)
            raise
        except TimeoutError:
            self.give_up(serial)
            raise timed_out("a batch", timeout) from None

    def give_up(self, serial: int) -> None:
        """Gives up the halt that ends a batch, if a halt does."""
        if request := self.core.give_up(serial):
            self._outbox.put_nowait(request)

    async def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Waits, within `changed`, until the core is ready. TimedOut after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.changed.wait_for(ready)
        except TimeoutError:
            raise timed_out(what, timeout) from None

    def poll(self) -> None:
        """Does nothing: a task receives all messages."""

    async def close(self) -> None:
        """Ends the Session. Batches in flight are still answered, if that takes no more than a second."""
        async with self.changed:
            self.core.close()
            self.changed.notify_all()
        self._outbox.put_nowait(None)
        if self._reader is None or self._stream is None:
            self.core.end(None, self.peer)
            return
        try:
            await asyncio.wait([self._reader], timeout=CLOSE_GRACE)
        finally:
            self._stream.cancel()
        await asyncio.wait([self._reader], timeout=CLOSE_GRACE)

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self, stream: SessionStream) -> None:
        failure: BaseException | None = None
        try:
            async for response in stream:
                async with self.changed:
                    batch = self.core.receive(response)
                    self.changed.notify_all()
                if batch:
                    batch.settle()
        except (Exception, asyncio.CancelledError) as error:  # Of any kind: the tasks that wait must learn of it.
            failure = error
        stream.cancel()
        self._outbox.put_nowait(None)
        for batch in self.core.end(failure, self.peer):
            batch.settle()
        async with self.changed:
            self.changed.notify_all()


class Watch:
    """A VM's trace events, as they happen: an iterator. Made by Vm.watch(), and opened by `async with` or `await`.

    It ends when it is closed. It raises NotFound when the VM is deleted, and Unavailable when the daemon ends.
    """

    def __init__(self, start: Callable[[], WatchStream], peer: Peer) -> None:
        self._start = start
        self._peer = peer
        self._stream: WatchStream | None = None
        self._reading: asyncio.Future[Any] | None = None
        self._more: deque[pb.WatchResponse] = deque()  # The further events of the last response.
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TraceEvent | EventsDropped | ProbesChanged:
        await self._open()
        if self._closed or self._stream is None:
            raise StopAsyncIteration
        if self._more:
            return trace_from_proto(self._more.popleft())
        # Shielded: gRPC would take a reader's cancellation, by a timeout for example, for the stream's.
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
        self._more.extend(response.more)
        return trace_from_proto(response)

    async def close(self) -> None:
        """Ends the Watch, even if another task waits in it."""
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
            # The daemon answers with its initial metadata when it is watching: later events are traced.
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
    """Whether a CancelledError is the caller's: gRPC also raises it if the channel was closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
