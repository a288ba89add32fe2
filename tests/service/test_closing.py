"""Closing descriptors that clients have sent: a close() may block."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from irqchipd.edge.closing import MAX_THREADS, Closer
from tests.waiting import PATIENCE, eventually

LINGER_S = 20


class Slow:
    """Ends of pipes whose close() blocks until the test releases it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.descriptors: set[int] = set()
        self.inside = 0
        self.go_on = threading.Event()
        self._close = os.close
        monkeypatch.setattr("irqchipd.edge.closing.os.close", self._slowly)

    def open(self) -> int:
        reader, writer = os.pipe()
        self._close(writer)
        self.descriptors.add(reader)
        return reader

    def _slowly(self, descriptor: int) -> None:
        if descriptor in self.descriptors:
            self.inside += 1
            self.go_on.wait(PATIENCE)
        self._close(descriptor)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(monkeypatch)
    yield slow
    slow.go_on.set()


def test_a_blocked_close_does_not_delay_another(slow: Slow) -> None:
    closer, closed = Closer(), threading.Semaphore(0)
    for _ in range(MAX_THREADS - 1):
        closer.close(slow.open(), closed.release)
    eventually(lambda: slow.inside == MAX_THREADS - 1)
    for _ in range(100):
        closer.close(os.dup(0), closed.release)
    for _ in range(100):
        assert closed.acquire(timeout=PATIENCE)
    slow.go_on.set()
    for _ in range(MAX_THREADS - 1):
        assert closed.acquire(timeout=PATIENCE)


def test_it_has_no_more_threads_than_it_needs_and_all_are_closed_in_the_end(slow: Slow) -> None:
    closer, closed = Closer(), threading.Semaphore(0)
    for _ in range(5):
        closer.close(os.dup(0), closed.release)
        assert closed.acquire(timeout=PATIENCE)
        eventually(lambda: not closer._unclosed)
    assert closer._threads == 1
    for _ in range(50):
        closer.close(slow.open(), closed.release)
    assert closer._threads == MAX_THREADS
    slow.go_on.set()
    for _ in range(50):
        assert closed.acquire(timeout=PATIENCE)


def test_where_no_thread_can_be_made_the_next_close_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    closer, closed = Closer(), threading.Semaphore(0)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        closer.close(os.dup(0), closed.release)
    closer.close(os.dup(0), closed.release)
    for _ in range(2):
        assert closed.acquire(timeout=PATIENCE)


def lingering() -> tuple[socket.socket, socket.socket]:
    """A socket whose last close() blocks for LINGER_S, and its peer, which reads nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        sender = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        sender.setblocking(True)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    return sender, peer


def test_a_socket_that_lingers_is_closed_at_once() -> None:
    sender, peer = lingering()
    closed = threading.Event()
    begun = time.monotonic()
    Closer().close(sender.detach(), closed.set)
    assert closed.wait(LINGER_S + 5)
    assert time.monotonic() - begun < LINGER_S / 4
    peer.close()
