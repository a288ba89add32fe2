"""The HTTP server of --metrics: one thread, GET /metrics, and nothing else.

prometheus_client's own server has a thread for each connection, as many as there are.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from irqchipd.listen import Address, ListenError, SocketPath, TcpAddress, UnixAddress

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16  # one more is closed at once
PATIENCE: Final = 5.0  # seconds for a request and its answer
MAX_HEAD: Final = 16 << 10  # bytes of a request

_OK: Final = "200 OK"


class Exposition:
    """Answers what the collector collects. Made and closed by any thread."""

    def __init__(self, collector: Collector, address: Address) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._path: SocketPath | None = None
        self._socket = self._listen(address)
        self._open = 0
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
        """Accept nothing more. The thread ends with the process."""
        self.remove_socket()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # the VMs don't need metrics
            log.exception("metrics are no longer served")

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=MAX_HEAD)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._open -= 1

    def _answer(self, head: bytes) -> bytes:
        """The answer to a request."""
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status, kind, body = _OK, "text/plain; charset=utf-8", b""
        if method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"use GET /metrics\n"
        elif path != "/metrics":
            status, body = "404 Not Found", b"the metrics are at /metrics\n"
        else:
            encode: Callable[[CollectorRegistry], bytes]
            encode, kind = choose_encoder(fields.get("accept", ""))
            body = encode(self._registry)
        answer = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        if status[:3] == "405":
            answer += "Allow: GET, HEAD\r\n"
        return f"{answer}\r\n".encode() + (b"" if method == "HEAD" else body)


def _url(address: Address, listening: socket.socket) -> str:
    if isinstance(address, UnixAddress):
        return f"{address}, path /metrics"
    return f"http://{TcpAddress(address.host, listening.getsockname()[1]).bind}/metrics"
