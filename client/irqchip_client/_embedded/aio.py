"""asyncio's Client of a daemon in this process. Work that needs no waiting is done in the event loop's thread."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Self, TypeVar, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._asyncio.streams import GrpcTransport, Watch
from irqchip_client._call import Call, time_allowed
from irqchip_client._errors import IrqchipError, client_closed, error_from_message, timed_out
from irqchip_client._session import SessionCore
from irqchip_client._target import Target
from irqchipd.edge.batch import caught_up
from irqchipd.edge.daemon_calls import LONG_CALLS
from irqchipd.edge.loop import call as call_in_loop
from irqchipd.edge.loop import ended, resolve
from irqchipd.edge.operations import Caller, access_result
from irqchipd.embedded import LocalSession, LocalWatch
from irqchipd.vm.errors import VmError
from irqchipd.vm.pending import Slices
from irqchipd.vm.regions import Access
from irqchipd.vm.vcpu_state import Outcome

from .daemon import FUNCTIONS, Lifetime, collect_later, error_of, wake_of
from .transport import finish

T = TypeVar("T")


class EmbeddedConnection:
    """Makes a Client's calls, and its Sessions and Watches."""

    def __init__(self, target: Target, timeout: float) -> None:
        self._lifetime = Lifetime(target, timeout)
        self.peer = self._lifetime.peer
        self._halts: set[asyncio.Future[Outcome | IrqchipError]] = set()
        self._streams: weakref.WeakSet[_Stream | _WatchStream] = weakref.WeakSet()

    async def unary(self, call: Call[T], vm: str = "") -> T:
        """Makes a call outside of any Session."""
        timeout = time_allowed((call,), self.peer.timeout)
        self._lifetime.check()
        try:
            async with asyncio.timeout(timeout):
                return await self._unary(call, vm)
        except TimeoutError:
            raise timed_out("an answer", timeout) from None

    async def _unary(self, call: Call[T], vm: str) -> T:
        lifetime, fields = self._lifetime, call.fields
        if fields is None:
            work = lifetime.embedded.unary(call.operation, call.method, call.request_for(vm))
            if call.method in LONG_CALLS:
                return call.parse(await asyncio.to_thread(finish, work, None))
            return call.parse(await _finish(work))
        on = lifetime.caller(call, vm)
        await _finish(caught_up(on.vm))
        if call.is_halt:
            return await self._halt(on, call)
        return await _execute(on, call)

    async def _halt(self, on: Caller, call: Call[T]) -> T:
        assert call.fields is not None
        interrupts_masked, vcpu, _, timeout_ns = call.fields
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome | IrqchipError] = loop.create_future()
        done: Callable[[Outcome], None] = partial(call_in_loop, loop, resolve, future)
        try:
            halt = on.vm.halt(vcpu, done, interrupts_masked != 0, timeout_ns)
        except Exception as error:
            raise error_of(error) from None
        self._halts.add(future)
        try:
            outcome = await future
            if isinstance(outcome, IrqchipError):
                raise outcome
        except BaseException:  # The task is cancelled, or the Client closed.
            on.vm.abandon(halt)
            raise
        finally:
            self._halts.discard(future)
        return wake_of(call, outcome)

    def transport(self, core: SessionCore) -> EmbeddedTransport:
        """The transport for a new Session, which is not open yet."""
        self._lifetime.check()
        return EmbeddedTransport(self._lifetime, core, self._streams.add)

    def watch(self, request: pb.WatchRequest) -> Watch:
        """A Watch, which is not open yet."""
        return Watch(cast(Any, lambda: self._begin_watch(request)), self.peer)

    def _begin_watch(self, request: pb.WatchRequest) -> _WatchStream:
        self._lifetime.check()
        stream = _WatchStream(self._lifetime, request)
        self._streams.add(stream)
        return stream

    async def close(self) -> None:
        """Ends all calls and streams, and the daemon."""
        self.peer.closed = True
        for future in self._halts:
            resolve(future, client_closed())
        for stream in self._streams:
            stream.fail(client_closed())
        await asyncio.to_thread(self._lifetime.embedded.stop)


async def _execute(on: Caller, call: Call[T]) -> T:
    """Executes an operation on plain values, to its end."""
    assert call.fields is not None
    try:
        result = FUNCTIONS[call.operation](on, *call.fields)
        if isinstance(result, Access):
            await ended(result)
            result = access_result(result)
    except Exception as error:
        raise error_of(error) from None
    if on.vm.agenda.backlog is not None:
        await _finish(caught_up(on.vm))
    return call.parse_record(*result)


async def _finish(work: Slices[T]) -> T:
    """Does some work of the daemon's; between two slices other tasks have their turn."""
    try:
        while True:
            pending = next(work)
            if pending is not None:
                await ended(pending)
            else:
                await asyncio.sleep(0)
    except StopIteration as done:
        result: T = done.value
        return result
    except Exception as error:
        raise error_of(error) from None


class EmbeddedTransport(GrpcTransport):
    """A Session of the daemon in this process: its messages go to the daemon's own Session."""

    name = "embedded"

    def __init__(self, lifetime: Lifetime, core: SessionCore, began: Callable[[_Stream], None]) -> None:
        super().__init__(cast(Any, self._begin), core, lifetime.peer)
        self._lifetime = lifetime
        self._began = began
        self._local: LocalSession | None = None

    def _begin(self, requests: AsyncIterator[pb.SessionRequest]) -> _Stream:
        self._lifetime.check()
        stream = _Stream(self._lifetime, requests)
        self._local = stream.local
        self._began(stream)
        return stream

    async def call(self, call: Call[T]) -> T:
        on = self._local.direct if self._local is not None else None
        # The accesses of a region that is registered by a record come as records, which a stream lacks.
        direct = call.fields is not None and call.operation in FUNCTIONS and call.operation != "register_region"
        if on is None or not direct or on.vm.agenda.backlog is not None:
            return await super().call(call)
        try:
            async with asyncio.timeout(self.peer.timeout):
                return await _execute(on, call)
        except TimeoutError:
            raise timed_out("a batch", self.peer.timeout) from None


class _Stream:
    """A Session's messages, in the place of gRPC's stream."""

    def __init__(self, lifetime: Lifetime, requests: AsyncIterator[pb.SessionRequest]) -> None:
        self._lifetime = lifetime
        self._woken = asyncio.Event()
        self._failure: IrqchipError | None = None
        self.local = LocalSession(lifetime.embedded, partial(call_in_loop, asyncio.get_running_loop(), self._woken.set))
        collect_later(self, partial(self.local.close, "its client has gone"))
        self._sending = asyncio.create_task(_send(self.local, requests, self._woken))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.SessionResponse:
        while True:
            self._woken.clear()
            if self._failure is not None:
                raise self._failure
            packet = self.local.take()
            if packet is None:
                await self._woken.wait()
                continue
            if not packet:
                raise StopAsyncIteration
            response = pb.SessionResponse.FromString(packet)
            if response.HasField("ended"):
                raise error_from_message(response.ended)
            return response

    def cancel(self) -> None:
        """End it, also for a task that waits in it."""
        self._sending.cancel()
        self.local.close("its client closed it")

    def fail(self, failure: IrqchipError) -> None:
        """End it at once, for this reason."""
        self._failure = failure
        self.cancel()


async def _send(local: LocalSession, requests: AsyncIterator[pb.SessionRequest], woken: asyncio.Event) -> None:
    async for request in requests:
        local.send(request.SerializeToString())
        woken.set()
    local.finish()


class _WatchStream:
    """A Watch's messages, in the place of gRPC's stream."""

    def __init__(self, lifetime: Lifetime, request: pb.WatchRequest) -> None:
        self._lifetime = lifetime
        self._woken = asyncio.Event()
        self._failure: IrqchipError | None = None
        self._cancelled = False
        wake = partial(call_in_loop, asyncio.get_running_loop(), self._woken.set)
        try:
            self._watch = LocalWatch(lifetime.embedded, request, wake)
        except VmError as error:
            raise error_of(error) from None
        collect_later(self, self._watch.close)

    async def wait_for_connection(self) -> None:
        """Does nothing: it watches already."""

    async def read(self) -> object:
        """The next message, or gRPC's EOF."""
        while True:
            self._woken.clear()
            if self._failure is not None:
                raise self._failure
            if self._cancelled:
                return grpc.aio.EOF
            try:
                response = self._watch.take()
            except VmError as error:
                raise error_of(error) from None
            if response is not None:
                return response
            await self._woken.wait()

    def cancel(self) -> None:
        """End it, also for a task that waits in it."""
        self._cancelled = True
        self._watch.close()
        self._woken.set()

    def fail(self, failure: IrqchipError) -> None:
        """End it at once, for this reason."""
        self._failure = failure
        self.cancel()
