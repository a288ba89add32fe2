"""The daemon: a registry of VMs, a gRPC server, and how they start and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from irqchip.port import SUFFIX
from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.edge.grpc_service import SERVICE, GrpcService
from irqchipd.edge.port import Port
from irqchipd.edge.session import Places
from irqchipd.limits import Limits
from irqchipd.listen import Address, ListenError, TcpAddress, UnixAddress, claimed_socket
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

# How long a stop waits for streams to end with a status, and then for calls under way, seconds.
STREAMS_GRACE = 5.0
GRACE = 2.0

# How long a thread that works keeps the interpreter from one that has just received something, seconds.
SWITCH_INTERVAL = 0.0005


class Daemon:
    """Serves until stopped. All of it, but the VMs, belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._registry = Registry(limits.vms, limits.vcpus, limits.access_ms * 1_000_000)
        self._places = Places(limits.sessions)
        self._eventfds = EventfdsInUse(limits.irqfds)
        self._service = GrpcService(self._registry, limits, self._places)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                # Two daemons on one port would share its clients between them.
                ("grpc.so_reuseport", 0),
                # A client on a host that vanished is noticed, and its levels drop, within 15 s.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ]
        )
        self._server.add_generic_rpc_handlers((self._service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._sockets: list[UnixAddress] = []
        self._ports: list[Port] = []

    async def start(self, addresses: Sequence[Address]) -> list[Address]:
        """Listen, and return where, with the ports that were chosen. ListenError where it can't be done."""
        bound: list[Address] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                bound.append(self._listen_on_socket(address))
            else:
                bound.append(self._listen_on_port(address))
        await self._server.start()
        for service in ("", SERVICE.full_name):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound

    def _listen_on_socket(self, address: UnixAddress) -> UnixAddress:
        with claimed_socket(address.path):
            self._bind(f"unix:{address.path}", address)
        self._sockets.append(address)
        port = address.path.with_name(address.path.name + SUFFIX)
        self._ports.append(Port(self._registry, self._limits, self._places, self._eventfds, port))
        return address

    def _listen_on_port(self, address: TcpAddress) -> TcpAddress:
        return TcpAddress(address.host, self._bind(address.bind, address))

    def _bind(self, target: str, address: Address) -> int:
        try:
            return self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise ListenError(f"{address} can't be listened on; is it in use, or not this machine's?") from error

    async def stop(self) -> None:
        """End all streams with a status, let calls under way finish, and remove the sockets."""
        await self._health.enter_graceful_shutdown()
        # The server's own stop would cancel what is left, and say nothing.
        for port in self._ports:
            await asyncio.to_thread(port.stop)
        await self._service.stop(STREAMS_GRACE)
        await self._server.stop(GRACE)
        for address in self._sockets:
            address.path.unlink(missing_ok=True)


async def serve(
    limits: Limits, addresses: Sequence[Address], stop: asyncio.Event, started: Callable[[Address], None]
) -> None:
    """Run a daemon until told to stop; started is called with each address that it listens on."""
    daemon = Daemon(limits)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what there is now stays, and need not be looked through again and again
    try:
        for address in await daemon.start(addresses):
            started(address)
        await stop.wait()
        log.info("stopping")
    finally:
        await daemon.stop()
