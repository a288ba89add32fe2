"""A Client's gRPC channels to the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client._call import Call, time_allowed
from irqchip_client._channels import Lasting, Peer
from irqchip_client._errors import client_closed, error_from_rpc
from irqchip_client._session import SessionCore
from irqchip_client._target import Target

from .streams import GrpcTransport, Watch, task_is_cancelled

if TYPE_CHECKING:
    from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceAsyncStub  # Only its type: the class is the same.

T = TypeVar("T")
LastingCall = TypeVar("LastingCall", bound=grpc.aio.Call)


def make_connection(target: Target, timeout: float) -> Connection:
    """The connection of a new Client."""
    if target.listen is None:
        return Connection(target, timeout)
    from irqchip_client._embedded.aio import EmbeddedConnection

    return cast(Connection, EmbeddedConnection(target, timeout))  # It has the same methods.


class _Channel(NamedTuple):
    channel: grpc.aio.Channel
    rpcs: IrqchipServiceAsyncStub


class Connection:
    """Makes a Client's unary calls, and its streams."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.peer = Peer(target.uri, timeout)
        self._target = target
        self._first = self._connect()  # For calls that are soon over.
        self.rpcs = self._first.rpcs
        self.lasting = Lasting(self._connect)
        self._closing: set[asyncio.Task[None]] = set()  # The event loop itself keeps no task alive.

    async def unary(self, call: Call[T], vm: str = "") -> T:
        """Makes a call by an RPC of its own."""
        request, timeout = call.request_for(vm), time_allowed((call,), self.peer.timeout)
        self._check()
        try:
            if call.is_halt:
                return call.parse(
                    await self._lasting_call(lambda rpcs: getattr(rpcs, call.method)(request, timeout=timeout))
                )
            return call.parse(await getattr(self.rpcs, call.method)(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.peer.target, closed=self.peer.closed) from error
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            raise client_closed() from None

    def transport(self, core: SessionCore) -> GrpcTransport:
        """The transport for a new Session, which is not open yet."""
        self._check()
        return GrpcTransport(lambda requests: self._lasting_call(lambda rpcs: rpcs.Session(requests)), core, self.peer)

    def watch(self, request: pb.WatchRequest) -> Watch:
        """A Watch, which is not open yet."""
        return Watch(lambda: self._lasting_call(lambda rpcs: rpcs.Watch(request)), self.peer)

    async def close(self) -> None:
        """Ends all calls and streams."""
        self.peer.closed = True
        for channel in (self._first, *self.lasting.close()):
            await channel.channel.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def _lasting_call(self, begin: Callable[[IrqchipServiceAsyncStub], LastingCall]) -> LastingCall:
        """Begins a call that lasts, over a channel for those."""
        self._check()
        channel = self.lasting.take()
        try:
            call = begin(channel.rpcs)
        except BaseException:
            self._give_back(channel)
            raise
        call.add_done_callback(partial(self._give_back, channel))
        return call

    def _give_back(self, channel: _Channel, _call: object = None) -> None:
        if self.lasting.give_back(channel):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # The loop has ended, and an unfinished call is collected.
                return
            closing = loop.create_task(channel.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _connect(self) -> _Channel:
        channel = grpc.aio.insecure_channel(self._target.address, options=self._target.channel_options)
        return _Channel(channel, IrqchipServiceStub(channel))

    def _check(self) -> None:
        if self.peer.closed:
            raise client_closed()
        self._target.check()
