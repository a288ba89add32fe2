"""The references irqchipd is measured against: pairs of Python processes, QEMU, and the kernel's own irqchip."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PACKET = bytes(40)  # as long as a packet with one operation


def pin(pid: int, processor: int) -> None:
    """Pin a process to a processor, so that the scheduler cannot put two communicating processes on one."""
    _keep_to(pid, {processor})


@contextmanager
def pinned(processor: int) -> Iterator[None]:
    """Pin this process, and the processes it starts, to a processor for a while."""
    before = os.sched_getaffinity(0)
    pin(os.getpid(), processor)
    try:
        yield
    finally:
        _keep_to(os.getpid(), before)


def _keep_to(pid: int, processors: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):  # the thread has ended meanwhile, or there is only one processor
            os.sched_setaffinity(int(thread), processors)


class PingPong:
    """The least a hop can cost in Python: a packet to another process and back over AF_UNIX."""

    def __init__(self, polling: bool) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._receive = _poll if polling else _block
        self._child = os.fork()
        if not self._child:
            self._here.close()
            pin(os.getpid(), 1)
            while data := self._receive(there):
                there.send(data)
            os._exit(0)
        there.close()

    def hop(self) -> None:
        """Send a packet and receive it back."""
        self._here.send(PACKET)
        self._receive(self._here)

    def close(self) -> None:
        """End the other process."""
        self._here.close()
        os.waitpid(self._child, 0)


class Eventfds:
    """The least that a doorbell and an interrupt can cost in Python: an eventfd to another process, and one back."""

    def __init__(self) -> None:
        self._there, self._here = os.eventfd(0), os.eventfd(0)
        self._child = os.fork()
        if not self._child:
            pin(os.getpid(), 1)
            while os.eventfd_read(self._there) == 1:
                os.eventfd_write(self._here, 1)
            os._exit(0)

    def hop(self) -> None:
        """Wakes the other process, and waits for it."""
        os.eventfd_write(self._there, 1)
        os.eventfd_read(self._here)

    def close(self) -> None:
        """End the other process."""
        os.eventfd_write(self._there, 2)
        os.waitpid(self._child, 0)


def _block(connection: socket.socket) -> bytes:
    return connection.recv(64)


def _poll(connection: socket.socket) -> bytes:
    """Poll for 100 us, then block."""
    end = time.perf_counter_ns() + 100_000
    while time.perf_counter_ns() < end:
        try:
            return connection.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    return connection.recv(64)


class Qtest:
    """QEMU's device models behind its test socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def inb(self) -> None:
        """IN from the primary PIC's mask register."""
        self._connection.send(b"inb 0x21\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self._connection.recv(64)
        assert answer.startswith(b"OK"), answer


@contextmanager
def qtest() -> Iterator[Qtest | None]:
    """A QEMU; None if QEMU is not installed."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / "qtest"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        command = [
            program,
            *["-machine", "pc", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qtest-log", "/dev/null"],
            "-qtest",
            f"unix:{path}",
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            pin(process.pid, 1)
            connection, _ = listener.accept()
            connection.setblocking(True)
            yield Qtest(connection)
        finally:
            process.kill()
            process.wait()
            listener.close()
