"""The blocking Client of a daemon in this process: a call is a call of the daemon's function."""

from __future__ import annotations

import os
import time
import weakref
from _thread import allocate_lock
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._call import Call, time_allowed
from irqchip_client._errors import IrqchipError, client_closed
from irqchip_client._session import SessionCore
from irqchip_client._sync.packets import Channel
from irqchip_client._sync.streams import Watch
from irqchip_client._target import Target
from irqchipd.edge.batch import caught_up
from irqchipd.embedded import LocalSession, LocalWatch
from irqchipd.vm.errors import VmError

from .daemon import FUNCTIONS, Lifetime, collect_later, error_of, forked, notice_fork
from .transport import DirectTransport, Halts, execute, finish

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
        """The transport for a new Session, which is then open."""
        self._lifetime.check()
        transport = EmbeddedTransport(self._lifetime, core)
        transport.open(time.monotonic() + self.peer.timeout)
        self._transports.add(transport)
        if self.peer.closed:  # The Client was closed just now, and close() did not see this.
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


class EmbeddedTransport(DirectTransport):
    """A DirectTransport that can have weak references. A compiled class can't; this class is not compiled."""

    def __init__(self, lifetime: Lifetime, core: SessionCore) -> None:
        channel = _Channel(lifetime)
        super().__init__(channel, channel.local, core, lifetime.peer)
        self._lifetime = lifetime
        notice_fork(self)

    def forked(self) -> None:
        channel = _Channel(self._lifetime)
        self.abandon(channel, channel.local, forked())


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
    """A Watch's messages, in the place of gRPC's stream."""

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
        """Does nothing: it watches already."""

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
