"""The gRPC streams of Sessions and of Watches. A thread reads each Session's."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._channels import Peer
from irqchip_client._errors import IrqchipError, error_from_rpc, timed_out
from irqchip_client._events import EventsDropped, ProbesChanged, TraceEvent, trace_from_proto
from irqchip_client._session import CLOSE_GRACE, SessionCore

from .transport import Transport

Start = Callable[[Iterator[pb.SessionRequest]], "grpc._CallIterator[pb.SessionResponse]"]


class GrpcTransport(Transport):
    """A Session over gRPC."""

    name = "grpc"

    def __init__(self, start: Start, core: SessionCore, peer: Peer) -> None:
        super().__init__(core, peer)
        self._outbox: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()  # None: no more.
        self._stream = start(iter(self._outbox.get, None))
        # A daemon thread: a program that forgets close() still exits.
        self.reader = threading.Thread(target=self._read, name=f"irqchip session {core.vm}", daemon=True)
        self.reader.start()

    def send(self, request: pb.SessionRequest | bytes, *, waits: bool = True) -> None:  # noqa: ARG002 - never waits
        self._outbox.put(cast(pb.SessionRequest, request))  # The core makes bytes only if it may use records.

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        if not self.changed.wait_for(ready, timeout):
            raise timed_out(what, timeout)

    def close(self) -> None:
        with self.changed:
            self.core.close()
            self.changed.notify_all()
        self._outbox.put(None)
        reader = self.reader
        if reader is not None and threading.current_thread() is not reader:
            reader.join(CLOSE_GRACE)
            self._stream.cancel()
            reader.join(CLOSE_GRACE)

    def _read(self) -> None:
        failure: Exception | None = None
        try:
            for response in self._stream:
                with self.changed:
                    batch = self.core.receive(response)
                    if batch:
                        batch.settle()
                    self.changed.notify_all()
        except Exception as error:  # Of any kind: the threads that wait must learn of it.
            failure = error
        self._stream.cancel()
        self._outbox.put(None)  # Otherwise gRPC's thread would wait for a request for ever.
        with self.changed:
            for batch in self.core.end(failure, self.peer):
                batch.settle()
            self.changed.notify_all()


class Watch:
    """A VM's trace events, as they happen: an iterator. Made by Vm.watch().

    It ends when it is closed. It raises NotFound when the VM is deleted, and Unavailable when the daemon ends.
    """

    def __init__(self, stream: grpc._CallIterator[pb.WatchResponse], peer: Peer) -> None:
        self._stream = stream
        self._responses = iter(stream)
        self._peer = peer
        self._more: deque[pb.WatchResponse] = deque()  # the further events of the last response
        self._closed = False
        self._late = False
        # The daemon answers with its initial metadata when it is watching: later events are traced.
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

    def __next__(self) -> TraceEvent | EventsDropped | ProbesChanged:
        if self._closed:
            self._more.clear()
        try:
            return trace_from_proto(self._more.popleft())
        except IndexError:
            pass
        try:
            response = next(self._responses)
        except grpc.RpcError as error:
            if self._closed:
                raise StopIteration from None
            raise self._error(error) from error
        self._more.extend(response.more)
        return trace_from_proto(response)

    def _error(self, error: grpc.RpcError) -> IrqchipError:
        return error_from_rpc(error, self._peer.target, closed=self._peer.closed)

    def _too_late(self) -> None:
        self._late = True
        self._stream.cancel()

    def close(self) -> None:
        """Ends the Watch, even if another thread waits in it."""
        self._closed = True
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
