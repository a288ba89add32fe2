"""The daemon: a registry of VMs, a gRPC server, and how they start and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from irqchip.port import SUFFIX
from irqchipd.edge.grpc_server import Server
from irqchipd.edge.grpc_service import SERVICE, GrpcService
from irqchipd.edge.port import Port
from irqchipd.fields import fields
from irqchipd.holdings import Holdings
from irqchipd.limits import Limits
from irqchipd.listen import Address, ListenError, SocketPath, TcpAddress, UnixAddress, refuse_descriptors
from irqchipd.page.server import PageServer
from irqchipd.stopping import stop_on_signal
from irqchipd.timers import Timers

if TYPE_CHECKING:
    from irqchipd.metrics.exposition import Exposition

log = logging.getLogger(__name__)

# How long a stop waits for streams to end with a status, for the ports' threads, and then for calls under way, seconds:
# together less than DEADLINE of stopping.py.
STREAMS_GRACE = 0.5
PORTS_GRACE = 0.2
CALLS_GRACE = 0.4

# More calls than a client can have under way, so that one client's calls do not make gRPC refuse another's. Each stream
# of a connection has a call. By default gRPC refuses calls at random once 1,000 wait, and ends any that waits for 30 s.
STREAMS_PER_CONNECTION = 300  # a VM of 255 vCPUs can halt on one
WAITING_CALLS = 1_000_000
WAITING_SECONDS = 86_400

# How often the log reports late timers, in seconds; and the delay from which a timer counts as late.
LATENESS_PERIOD = 10.0
LATE_NS = 100_000_000

# How long a busy thread keeps the interpreter from a thread that has just received something, seconds.
SWITCH_INTERVAL = 0.0005


class Daemon:
    """Serves until stopped. Everything but the VMs and their timers belongs to one event loop."""

    def __init__(self, holdings: Holdings, exposition: Exposition | None = None, *, leaves: bool = True) -> None:
        self._leaves = leaves  # the process ends after stop()
        self.holdings = holdings
        self._service = GrpcService(holdings.registry, holdings.limits, holdings.quota)
        self._health = health.aio.HealthServicer()
        self._server = Server(
            [
                ("grpc.max_receive_message_length", holdings.limits.message_bytes),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
                # Overload protection refuses a new stream while gRPC still remembers the one it replaces.
                ("grpc.http.overload_protection", 0),
                ("grpc.server.max_pending_requests", WAITING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", WAITING_CALLS),
                ("grpc.server_max_unrequested_time_in_server", WAITING_SECONDS),
                # Without this, two daemons on one port would share its clients.
                ("grpc.so_reuseport", 0),
                # When a client's host vanishes, the daemon notices within 15 s, and the client's levels drop.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ]
        )
        self._server.add_registered_method_handlers(SERVICE.full_name, self._service.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._sockets: list[SocketPath] = []
        self._ports: list[Port] = []
        self._exposition = exposition
        # Whether a client can make gRPC's threads wait, without a limit, while they close descriptors from the client.
        self._grpc_may_wait = False

    async def start(self, addresses: Sequence[Address]) -> list[Address]:
        """Listen, and return the addresses with their chosen ports; ListenError where that is impossible."""
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
        at = SocketPath(address.path)
        self._sockets.append(at)
        try:
            with at.binding() as passing:
                self._bind(f"unix:{passing}", address)
                if not refuse_descriptors(passing):
                    self._grpc_may_wait = True
            port = address.path.with_name(address.path.name + SUFFIX)
            held = self.holdings
            self._ports.append(Port(held.registry, held.limits, held.quota, held.eventfds, port))
        except OSError as error:
            raise ListenError(f"{address} can't be listened on: {error.strerror}; choose another path") from error
        return address

    def _listen_on_port(self, address: TcpAddress) -> TcpAddress:
        return TcpAddress(address.host, self._bind(address.bind, address))

    def _bind(self, target: str, address: Address) -> int:
        try:
            return self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise ListenError(f"{address} can't be listened on; is it in use, or not this machine's?") from error

    def remove_sockets(self) -> None:
        """Hide the daemon from new clients; from any thread, any number of times."""
        for socket in self._sockets:
            socket.remove()
        for port in self._ports:
            port.remove_socket()
        if self._exposition is not None:
            self._exposition.remove_socket()

    async def stop(self) -> None:
        """Remove the sockets, end all streams with a status, and let calls under way finish.

        This makes no thread and opens nothing: a lack of memory or of descriptors may be the reason for the stop.
        """
        self.remove_sockets()
        for port in self._ports:
            port.begin_to_stop()
        await self._health.enter_graceful_shutdown()
        # The server's own stop would cancel the remaining calls without a status.
        await self._service.stop(STREAMS_GRACE)
        deadline = time.monotonic() + PORTS_GRACE
        while not all(port.stopped for port in self._ports) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        # gRPC's stop waits for gRPC's threads, and holds the interpreter's lock meanwhile.
        if self._leaves and self._grpc_may_wait:
            await asyncio.sleep(CALLS_GRACE)
        else:
            await self._server.stop(CALLS_GRACE)

    def close(self) -> None:
        """Let go of threads and descriptors, after stop()."""
        self._service.close()
        for port in self._ports:
            port.stop()
        for socket in self._sockets:
            socket.close()


async def _report_lateness(timers: Timers) -> None:
    """Log that VMs' timers need more time than the host has."""
    while True:
        await asyncio.sleep(LATENESS_PERIOD)
        latest, timers.latest = timers.latest, 0
        if latest >= LATE_NS:
            log.warning(
                "timers are late: `irqchipctl show` says of which VM", extra=fields(milliseconds=latest // 10**6)
            )


def _measure(holdings: Holdings, address: Address, labelled: int) -> Exposition:
    """Measure, and serve metrics, for the rest of the process; ListenError where that is impossible.

    Call this before the daemon serves: the hooks miss what is made earlier.
    """
    # Imported only when metrics are wanted.
    from irqchipd.metrics.exposition import Exposition
    from irqchipd.metrics.meter import Meter

    meter = Meter(holdings.registry, holdings.timers, holdings.quota, holdings.limits, labelled)
    return Exposition(meter, address)


async def serve(
    limits: Limits,
    addresses: Sequence[Address],
    started: Callable[[str], None],
    metrics: Address | None = None,
    metrics_vms: int = 0,
    page_at: tuple[TcpAddress, str] | None = None,
) -> None:
    """Run a daemon until a signal stops the process; call started with a line for each address that it listens on.

    metrics is where to serve metrics, and metrics_vms how many VMs have metrics of their own; page_at is where to serve
    the page, and the host's name.
    """
    holdings = Holdings(limits)
    exposition = None if metrics is None else _measure(holdings, metrics, metrics_vms)
    daemon = Daemon(holdings, exposition)
    page = None if page_at is None else PageServer(holdings.registry, limits, *page_at)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # the collector need not visit objects that stay for good
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    stop_on_signal(lambda: loop.call_soon_threadsafe(stop.set), daemon.remove_sockets)
    try:
        for address in await daemon.start(addresses):
            started(f"listening on {address}")
            log.info("listening", extra=fields(address=address))
        if exposition is not None:
            started(f"metrics at {exposition.url}")
        if page is not None:
            page.start()
            started(f"the page is at {page.url}")
            log.info("serving the page", extra=fields(address=page.url))
        lateness = asyncio.create_task(_report_lateness(daemon.holdings.timers))
        await stop.wait()
        lateness.cancel()
        log.info("stopping")
    finally:
        try:
            if page is not None:
                page.stop()
            await daemon.stop()
        except Exception:  # the process ends all the same
            log.exception("stopping failed in part")
        finally:
            daemon.remove_sockets()
