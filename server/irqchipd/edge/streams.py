"""The streams of the gRPC edge: Sessions and Watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.admission import (
    MAX_UNOPENED,
    OPENING_TIMEOUT,
    Peer,
    SessionQuota,
    not_opened,
    too_many_unopened,
)
from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.gate import Gate
from irqchipd.edge.loop import call, first_of
from irqchipd.edge.rpc import Context, abort, not_a_message
from irqchipd.edge.session import Session, opening
from irqchipd.edge.trace import TraceLog, filter_of
from irqchipd.edge.trace_filter import Filter
from irqchipd.edge.trace_ring import BATCH, TraceReader
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError, deleted
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Slices
from irqchipd.vm.registry import Registry


class Streams:
    """All open streams, on one event loop."""

    def __init__(self, registry: Registry, limits: Limits, quota: SessionQuota, gate: Gate) -> None:
        self._registry = registry
        self._limits = limits
        self._quota = quota
        self._gate = gate
        self._open: set[_Stream] = set()
        self._unopened: dict[_Stream, None] = {}  # Sessions that are not open yet, the oldest first
        self._traces: dict[Vm, _Trace] = {}  # of VMs that have Watches
        self._stopping = False

    def __bool__(self) -> bool:
        return bool(self._open)

    def end(self) -> None:
        """End every stream with STOPPING, also those that begin later."""
        self._stopping = True
        for stream in self._open:
            stream.end(errors.STOPPING)

    async def session(self, _: object, context: Context) -> None:
        """The RPC Session."""
        await self._serve(context, lambda stream: self._run_session(context, stream))

    async def watch(self, data: bytes, context: Context) -> None:
        """The RPC Watch."""
        await self._serve(context, lambda stream: self._run_watch(data, context, stream))

    async def _serve(self, context: Context, work: Callable[[_Stream], Coroutine[Any, Any, None]]) -> None:
        """Serve a stream until its work is done, the client leaves, or end() is called."""
        if self._stopping:
            await abort(context, errors.STOPPING)
        stream = _Stream()
        self._open.add(stream)
        try:
            await work(stream)
        except VmError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            if (ended := stream.close()) is None:  # the client has left
                raise
            await abort(context, ended)
        finally:
            stream.close()
            self._open.discard(stream)

    # Sessions.

    async def _run_session(self, context: Context, stream: _Stream) -> None:
        opened = await self._read_opening(context, stream)
        if opened is None:
            return
        with self._quota.held():
            async with self._gate.piece(self._registry.get(opened.vm).share if opened.vm else None):
                session = Session(
                    self._registry,
                    self._limits,
                    opened,
                    stream.wake,
                    stream.end,
                    Eventfds(),
                    _peer(context),
                )
            # gRPC may report a cancelled stream as one that the client ended.
            why = "its client closed it, or has gone"
            try:
                await self._serve_session(context, stream, session)
            except VmError as error:
                why = error.message
                raise
            finally:
                session.close(stream.ending or why)

    async def _read_opening(self, context: Context, stream: _Stream) -> pb.SessionOpen | None:
        """The message that opens a Session, or None if the client leaves instead."""
        if len(self._unopened) >= MAX_UNOPENED:
            oldest = next(iter(self._unopened))
            del self._unopened[oldest]
            oldest.end(too_many_unopened(MAX_UNOPENED))
        self._unopened[stream] = None
        timeout = asyncio.get_running_loop().call_later(OPENING_TIMEOUT, stream.end, not_opened())
        try:
            data = await context.read()
        finally:
            timeout.cancel()
            self._unopened.pop(stream, None)
        return None if data is grpc.aio.EOF else opening(await self._gate.decode(pb.SessionRequest, data))

    async def _serve_session(self, context: Context, stream: _Stream, session: Session) -> None:
        vm = session.vm
        writing = asyncio.Lock()  # the transport takes one message at a time

        async def send(data: bytes) -> None:
            async with writing:
                await context.write(data)

        def work(data: bytes) -> Slices[bytes | None]:
            if data[:1] == b"\0":  # records, which only the port takes
                raise not_a_message()
            answer = session.receive(data)
            return answer if answer is None or isinstance(answer, bytes) else (yield from answer)

        async def execute_batches() -> None:
            # Nothing is read from a client that does not read its results: the stream's flow control bounds the queue.
            while (data := await context.read()) is not grpc.aio.EOF:
                answer = await self._gate.run(vm.share, work(data))
                if answer is not None:
                    await send(answer)
                else:  # the halt continues; but wait here for a client that does not read
                    async with writing:
                        pass

        await _begin(send(session.opened()))
        await first_of(execute_batches(), self._send_all(vm, stream, session.take, send))

    async def _send_all(
        self,
        vm: Vm,
        stream: _Stream,
        next_message: Callable[[], bytes | None],
        send: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> None:
        """Send all messages there are whenever the stream is woken. Each takes a piece of the VM's work."""
        while True:
            await stream.woken()
            while True:
                async with self._gate.piece(vm.share):
                    message = next_message()
                if message is None:
                    break
                await send(message)

    # Watches.

    async def _run_watch(self, data: bytes, context: Context, stream: _Stream) -> None:
        with self._quota.held():
            request = await self._gate.decode(pb.WatchRequest, data)
            vm, wanted = self._registry.get(request.vm), filter_of(request)
            most = BATCH if request.batches else 1
            async with self._gate.piece(vm.share):
                reader = self._open_trace(vm, wanted, stream)
            read = partial(self._traces[vm].log.read_encoded, reader, most)

            async def send(traced: bytes) -> None:
                await context.write(traced)
                if seconds := reader.rest():
                    await asyncio.sleep(seconds)

            try:
                # The head lets the client know that from here on it misses nothing.
                await _begin(context.send_initial_metadata(()))
                await self._send_all(vm, stream, read, send)
            finally:
                self._close_trace(vm, reader, stream)

    def _open_trace(self, vm: Vm, wanted: Filter, stream: _Stream) -> TraceReader:
        trace = self._traces.get(vm)
        if trace is None:
            trace = _Trace(vm, self._limits.queued_events)
            vm.attach(trace.log, trace.ending(vm.name))
            self._traces[vm] = trace
        try:
            if trace.ended:
                raise deleted(vm.name)
            reader = trace.log.open(wanted)
        except BaseException:
            self._end_unread(vm, trace)
            raise
        trace.streams.add(stream)
        stream.wake()
        return reader

    def _close_trace(self, vm: Vm, reader: TraceReader, stream: _Stream) -> None:
        trace = self._traces[vm]
        trace.log.close(reader)
        trace.streams.discard(stream)
        self._end_unread(vm, trace)

    def _end_unread(self, vm: Vm, trace: _Trace) -> None:
        if not trace.streams:
            del self._traces[vm]
            vm.detach(trace.log)


class _Stream:
    """An open stream, for the rest of the daemon. Any thread may call wake and end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ended: VmError | None = None
        self.something = asyncio.Event()  # set while messages can be sent

    def wake(self) -> None:
        """There is something to send."""
        call(self._loop, self.something.set)

    def end(self, error: VmError) -> None:
        """End the stream with a status."""
        call(self._loop, self._end, error)

    def _end(self, error: VmError) -> None:
        if self._task is not None and self._ended is None:
            self._ended = error
            self._task.cancel()

    def close(self) -> VmError | None:
        """The stream is over: end() does nothing any more. Returns the error that end() was called with, if it was."""
        if self._task is not None and self._ended is not None:
            self._task.uncancel()
        self._task = None
        return self._ended

    @property
    def ending(self) -> str | None:
        """The message of the error that end() was called with, if it was."""
        return None if self._ended is None else self._ended.message

    async def woken(self) -> None:
        """Wait for wake()."""
        await self.something.wait()
        self.something.clear()


def _peer(context: Context) -> Peer:
    """The client. gRPC does not know the process at the other end of a unix socket."""
    address = context.peer()
    return Peer("grpc", None if address.startswith("unix:") else address)


class _Trace:
    """The trace of one VM, and the streams of the Watches that read it."""

    def __init__(self, vm: Vm, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.streams: set[_Stream] = set()
        self.ended = False  # whether the streams were ended because the VM was deleted
        self.log = TraceLog(vm, limit, lambda: call(self._loop, self._wake_all))

    def _wake_all(self) -> None:
        for stream in self.streams:
            stream.something.set()

    def ending(self, vm: str) -> Callable[[], None]:
        """A function to call when the VM is deleted, from any thread."""

        def end_all() -> None:
            self.ended = True
            for stream in self.streams:
                stream.end(deleted(vm))

        return lambda: call(self._loop, end_all)


async def _begin(sending: Coroutine[Any, Any, None]) -> None:
    """Complete the first send of a stream, even if cancelled: otherwise gRPC sends the head again before the status."""
    task = asyncio.ensure_future(sending)
    # Nobody awaits the task of a cancelled stream, and asyncio would log its exception.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=1.0)
        raise
