"""The server of --metrics, in a thread of its own: only GET /metrics.

prometheus_client's own server has a thread for each connection, without a limit.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from irqchipd.http import Answer, HttpServer, RefusedError, Request
from irqchipd.listen import Address, ListenError, SocketPath, TcpAddress, UnixAddress

log = logging.getLogger(__name__)


class Exposition:
    """Serves the collector's metrics. Any thread may make and close it."""

    def __init__(self, collector: Collector, address: Address) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._path: SocketPath | None = None
        self._socket = self._listen(address)
        # Prometheus may use any name that the network gives the daemon.
        self._http = HttpServer(self._handle, names=None)
        self.url = _url(address, self._socket)
        threading.Thread(target=self._run, name="irqchipd metrics", daemon=True).start()

    def _listen(self, address: Address) -> socket.socket:
        try:
            if isinstance(address, TcpAddress):
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                return socket.create_server((address.host, address.port), family=family)
            self._path = SocketPath(address.path)
            listening = socket.socket(socket.AF_UNIX)
            with self._path.binding() as passing:
                listening.bind(str(passing))
            listening.listen()
        except OSError as error:
            raise ListenError(f"{address} can't be listened on: {error.strerror}; choose another --metrics") from error
        return listening

    def remove_socket(self) -> None:
        """Hide a unix socket from new clients; from any thread, any number of times."""
        if self._path is not None:
            self._path.remove()

    def close(self) -> None:
        """Accept no more connections. The thread ends with the process."""
        self.remove_socket()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # the VMs don't need metrics
            log.exception("metrics are no longer served")

    async def _serve(self) -> None:
        server = await self._http.start(self._socket)
        async with server:
            await server.serve_forever()

    async def _handle(self, request: Request, answer: Answer) -> None:
        if request.path != ("metrics",):
            raise RefusedError(HTTPStatus.NOT_FOUND, "the metrics are at /metrics")
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        await answer.whole(encode(self._registry), kind)


def _url(address: Address, listening: socket.socket) -> str:
    if isinstance(address, UnixAddress):
        return f"{address}, path /metrics"
    return f"http://{TcpAddress(address.host, listening.getsockname()[1]).bind}/metrics"
