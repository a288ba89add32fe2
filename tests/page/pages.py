"""A daemon with the page, and requests as no browser would make them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE

_URL = "the page is at http://"


class Page:
    """The page of a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        deadline = time.monotonic() + PATIENCE
        while _URL not in (said := (daemon._directory / "stdout").read_text()) or not said.endswith("\n"):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        self.host, port = said.partition(_URL)[2].splitlines()[0].removesuffix("/").rsplit(":", 1)
        self.port = int(port)
        self.url = f"http://{self.host}:{port}/"

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, and read to the end: the status, the headers and the body."""
        with self.connect() as connection:
            connection.sendall(request)
            return parse(read_all(connection))

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """A decent request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {headers.pop('Host', f'{self.host}:{self.port}')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.ask("\r\n".join([*lines, "", ""]).encode())

    def json(self, path: str) -> Any:
        """The JSON at a path."""
        status, _, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    @contextmanager
    def live(self, vm: str) -> Iterator[Iterator[Any]]:
        """The messages of a VM's live stream."""
        with self.connect() as connection:
            connection.sendall(f"GET /api/vms/{vm}/live HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            yield messages(connection)


def read_all(connection: socket.socket) -> bytes:
    """All bytes until the other end closes."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def parse(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """An answer's status, headers and body."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def messages(connection: socket.socket) -> Iterator[Any]:
    """Server-sent events."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
        *whole, data = data.split(b"\n\n")
        for message in whole:
            _, found, text = message.partition(b"data: ")
            if found:
                yield json.loads(text)


@contextmanager
def page(arguments: Sequence[str] = ()) -> Iterator[Page]:
    """A daemon with the page."""
    with start_daemon(arguments=["--http", "127.0.0.1:0", *arguments]) as daemon:
        yield Page(daemon)
