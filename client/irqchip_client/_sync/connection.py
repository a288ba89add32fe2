"""A Client's connections to the daemon: gRPC channels, and the port."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._call import Call, time_allowed
from irqchip_client._channels import Lasting, Peer
from irqchip_client._errors import client_closed, error_from_rpc
from irqchip_client._target import Target, port_poll_ns, rings_are_wanted

if TYPE_CHECKING:  # Imported when a stream is opened: unary calls do not need these.
    from irqchip_client._session import SessionCore

    from .port_transport import PortTransport
    from .streams import Watch
    from .transport import Transport

T = TypeVar("T")
LastingCall = TypeVar("LastingCall", bound=grpc.Call)


def make_connection(target: Target, timeout: float) -> Connection:
    """The connection of a new Client."""
    if target.listen is None:
        return Connection(target, timeout)
    from irqchip_client._embedded.blocking import EmbeddedConnection

    return cast(Connection, EmbeddedConnection(target, timeout))  # It has the same methods.


class _Channel(NamedTuple):
    channel: grpc.Channel
    rpcs: IrqchipServiceStub


class Connection:
    """Makes a Client's unary calls, and opens its streams."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.peer = Peer(target.uri, timeout)
        self._target = target
        self._first = self._connect()  # For calls that are soon over.
        self.rpcs = self._first.rpcs
        self.lasting = Lasting(self._connect)
        self._port_sessions: weakref.WeakSet[PortTransport] = weakref.WeakSet()

    def unary(self, call: Call[T], vm: str = "") -> T:
        """Makes a call by an RPC of its own."""
        request, timeout = call.request_for(vm), time_allowed((call,), self.peer.timeout)
        self._check()
        try:
            if call.is_halt:
                return call.parse(
                    _wait(self._lasting_call(lambda rpcs: getattr(rpcs, call.method).future(request, timeout=timeout)))
                )
            return call.parse(getattr(self.rpcs, call.method)(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.peer.target, closed=self.peer.closed) from error
        except ValueError:  # gRPC's, about a channel that was closed just now.
            if self.peer.closed:
                raise client_closed() from None
            raise

    def transport(self, core: SessionCore) -> Transport:
        """Opens a Session, over the port if there is a port, else over gRPC."""
        from .port import PortChannel, connect_port
        from .port_transport import PortTransport
        from .ring import RingChannel
        from .streams import GrpcTransport

        self._check()
        deadline = time.monotonic() + self.peer.timeout
        poll_ns = port_poll_ns()
        transport: Transport
        if poll_ns is None or (connection := connect_port(self._target.port, self.peer.timeout)) is None:
            transport = GrpcTransport(
                lambda requests: self._lasting_call(lambda rpcs: rpcs.Session(requests)), core, self.peer
            )
            transport.open(deadline)
            return transport
        core.wants_rings = poll_ns > 0 and rings_are_wanted()
        channel = (RingChannel if core.wants_rings else PortChannel)(connection, poll_ns)
        transport = PortTransport("port", channel, core, self.peer)
        transport.open(deadline)
        self._port_sessions.add(transport)
        if self.peer.closed:  # The Client was closed just now, and close() did not see this.
            transport.close()
            raise client_closed()
        return transport

    def watch(self, request: pb.WatchRequest) -> Watch:
        """Opens a Watch."""
        from .streams import Watch

        return Watch(self._lasting_call(lambda rpcs: rpcs.Watch(request)), self.peer)

    def close(self) -> None:
        """Ends all calls and streams."""
        self.peer.closed = True
        for channel in (self._first, *self.lasting.close()):
            channel.channel.close()
        for session in list(self._port_sessions):
            session.disconnect(client_closed())

    def _lasting_call(self, begin: Callable[[IrqchipServiceStub], LastingCall]) -> LastingCall:
        """Begins a call that lasts, over a channel for those."""
        self._check()
        channel = self.lasting.take()
        give_back = partial(self._give_back, channel)
        try:
            call = begin(channel.rpcs)
        except BaseException as error:
            give_back()
            if isinstance(error, ValueError) and self.peer.closed:
                raise client_closed() from None
            raise
        if not call.add_callback(give_back):
            give_back()
        return call

    def _give_back(self, channel: _Channel) -> None:
        if self.lasting.give_back(channel):
            # On another thread, because this one may be gRPC's, for which close() waits. If no thread can be started,
            # the channel closes when it is collected.
            with suppress(RuntimeError):
                threading.Thread(target=channel.channel.close, daemon=True).start()

    def _connect(self) -> _Channel:
        channel = grpc.insecure_channel(self._target.address, options=self._target.channel_options)
        return _Channel(channel, IrqchipServiceStub(channel))

    def _check(self) -> None:
        if self.peer.closed:
            raise client_closed()
        self._target.check()


def _wait(answer: grpc.Future[Any]) -> Any:
    """The response. If its caller stops waiting, by Ctrl-C for example, the call is cancelled, and the halt ends."""
    try:
        return answer.result()
    except BaseException:
        answer.cancel()
        raise
