"""As much of HTTP/1.1 as the page and metrics need: one GET or HEAD a connection, bounded in bytes, time and number.

RFC 9112. The answer ends its connection, so no request's body is ever read, and there is nothing to smuggle.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

HEAD_BYTES: Final = 8192
HEAD_SECONDS: Final = 5.0  # that a client may take to send a request's head
WRITE_SECONDS: Final = 10.0  # that a client may take to receive one piece of an answer
WRITE_BUFFER: Final = 1 << 16
ANSWERS: Final = 64  # at a time
UNREAD_HEADS: Final = 16  # connections without a whole request: one more ends the oldest

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RefusedError(Exception):
    """A request is answered with an error's status."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A GET: the path's parts, and the headers by their names in lower case."""

    path: tuple[str, ...]
    headers: dict[str, str]


class Answer:
    """The answer of a handler, written in pieces."""

    def __init__(self, writer: asyncio.StreamWriter, head_only: bool) -> None:
        self._writer = writer
        self._head_only = head_only
        self.begun = False

    async def whole(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """The whole answer."""
        allow = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        await self.begin(kind, status, {"Content-Length": str(len(data)), **allow})
        if not self._head_only:
            await self.piece(data)

    async def begin(self, kind: str, status: HTTPStatus = HTTPStatus.OK, more: dict[str, str] | None = None) -> None:
        """The head; pieces follow, until the connection ends."""
        self.begun = True
        headers = {"Content-Type": kind, "Connection": "close", **_HEADERS, **(more or {})}
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        await self.piece("\r\n".join([*lines, "", ""]).encode())

    async def piece(self, data: bytes) -> None:
        """A piece of the answer. TimeoutError for a client that does not receive it."""
        async with asyncio.timeout(WRITE_SECONDS):
            for at in range(0, len(data), WRITE_BUFFER):
                self._writer.write(data[at : at + WRITE_BUFFER])
                await self._writer.drain()

    @property
    def head_only(self) -> bool:
        """Whether the client wants no body."""
        return self._head_only


class HttpServer:
    """Connections on one event loop.

    names are hosts that requests may be for, beside numbers and localhost; None for any, where no browser is expected.
    """

    def __init__(
        self, handle: Callable[[Request, Answer], Awaitable[None]], names: Collection[str] | None = ()
    ) -> None:
        self._handle = handle
        self._names = None if names is None else {"localhost", *(name.lower() for name in names)}
        self._answering = 0
        self._unread: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self, listening: socket.socket) -> asyncio.Server:
        """Accept connections from a socket."""
        return await asyncio.start_server(self._connected, sock=listening, limit=HEAD_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        try:
            await self._serve(reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            writer.transport.abort()
        except Exception:
            log.exception("a request failed")
            writer.transport.abort()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = Answer(writer, False)
        counted = False
        try:
            method, target, headers = await self._read_head(reader)
            answer = Answer(writer, method == "HEAD")
            if self._answering >= ANSWERS:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"{ANSWERS} requests are being answered, the most")
            counted = True
            self._answering += 1
            await self._handle(self._checked(method, target, headers), answer)
        except RefusedError as error:
            if not answer.begun:
                await answer.whole(f"{error}\n".encode(), "text/plain; charset=utf-8", error.status)
        finally:
            self._answering -= counted
        await _end(reader, writer)

    async def _read_head(self, reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
        task = asyncio.current_task()
        assert task is not None
        if len(self._unread) >= UNREAD_HEADS:
            oldest = next(iter(self._unread))
            del self._unread[oldest]
            oldest.cancel()
        self._unread[task] = None
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, f"send the request within {HEAD_SECONDS:g} s") from None
        except asyncio.LimitOverrunError:
            raise RefusedError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head has at most {HEAD_BYTES} bytes"
            ) from None
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None
        finally:
            self._unread.pop(task, None)
        return _parsed(head)

    def _checked(self, method: str, target: str, headers: dict[str, str]) -> Request:
        if method not in ("GET", "HEAD"):
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or HEAD: the page is read-only")
        if self._names is not None and not self._is_host(headers.get("host", ""), self._names):
            # An attacker's name may lead here, and the attacker's page would then have this origin (DNS rebinding).
            raise RefusedError(HTTPStatus.FORBIDDEN, "ask for localhost, a number, or the name given with --http")
        if headers.get("sec-fetch-site", "none") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            raise RefusedError(HTTPStatus.FORBIDDEN, "another site may not use this page's addresses")
        if not target.startswith("/") or not target.isascii():
            raise RefusedError(HTTPStatus.BAD_REQUEST, "a request's target begins with /")
        url = urlsplit(target)
        return Request(tuple(unquote(part) for part in url.path.split("/")[1:]), headers)

    @staticmethod
    def _is_host(host: str, names: Collection[str]) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in names:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    """The method, the target and the headers."""
    try:
        first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip() or (name.lower() in headers and name.lower() == "host"):
                raise ValueError(line)
            headers[name.lower()] = value.strip()
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is not HTTP") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "use HTTP/1.1")
    return method, target, headers


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End a connection. If it closed with bytes unread, the client might lose the answer."""
    with suppress(OSError, TimeoutError):
        writer.write_eof()
        async with asyncio.timeout(1.0):
            while await reader.read(HEAD_BYTES):
                pass
