"""How the demo's vCPU reaches a device's registers: lines of JSON over a unix socket, one request and one answer each.

It stands in for a VMM's own way of forwarding port accesses; the interrupts, which this demo is about, do not use it.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from pathlib import Path
from typing import Protocol


class Registers(Protocol):
    """What a device lets the vCPU do; each may be called from any thread."""

    def read(self, register: str) -> int | str:
        """The register's value."""

    def write(self, register: str, value: int) -> None:
        """Set the register."""


class _Handler(socketserver.StreamRequestHandler):
    registers: Registers

    def handle(self) -> None:
        for line in self.rfile:
            register, value = json.loads(line)
            answer: int | str | None = None
            if value is None:
                answer = self.registers.read(register)
            else:
                self.registers.write(register, value)
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def serve_registers(path: Path, registers: Registers) -> None:
    """Serve a device's registers at a socket for as long as the process runs."""
    path.unlink(missing_ok=True)
    handler = type("Handler", (_Handler,), {"registers": registers})
    server = socketserver.ThreadingUnixStreamServer(str(path), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


class DeviceGoneError(Exception):
    """The device's process is no more."""


class Device:
    """The vCPU's end."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rwb")

    def read(self, register: str) -> int | str:
        """A register's value."""
        return self._ask(register, None)

    def write(self, register: str, value: int) -> None:
        """Set a register."""
        self._ask(register, value)

    def _ask(self, register: str, value: int | None) -> int | str:
        try:
            self._stream.write(json.dumps([register, value]).encode() + b"\n")
            self._stream.flush()
            answer = self._stream.readline()
        except OSError as error:
            raise DeviceGoneError from error
        if not answer:
            raise DeviceGoneError
        result: int | str = json.loads(answer)
        return result
