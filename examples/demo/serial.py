"""A serial port: what it receives, from a file or a terminal, waits in a FIFO; GSI 4 is high while there is something.

Registers: `data` reads the next byte, `status` has bit 0 set while there is one.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from examples.demo import SERIAL_GSI
from examples.demo.options import connect, open_session, parser, say, stop_on_sigterm
from examples.demo.wire import serve_registers
from irqchip_client import Line

FIFO = 16  # bytes, as a 16550A's


class SerialPort:
    """The receiver's half of a UART."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._fifo: deque[int] = deque()
        self._changed = threading.Condition()

    def receive(self, byte: int) -> None:
        """A byte comes in, once there is room for it: the sender heeds flow control."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._fifo) < FIFO)
            self._fifo.append(byte)
            if len(self._fifo) == 1:
                self._line.raise_()

    def drained(self) -> None:
        """Wait until everything received has been read."""
        with self._changed:
            self._changed.wait_for(lambda: not self._fifo)

    def read(self, register: str) -> int:
        """See the module's docstring."""
        with self._changed:
            if register == "status":
                return int(bool(self._fifo))
            byte = self._fifo.popleft() if self._fifo else 0
            if not self._fifo:
                self._line.lower()
            self._changed.notify_all()
            return byte

    def write(self, register: str, value: int) -> None:
        """There is nothing to write."""


def main() -> None:
    """Receive a file or what is typed."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--file", type=Path, help="what to receive; by default, what is typed at the terminal")
    options.add_argument("--baud", type=float, default=300.0, help="ten of these are a byte a second")
    arguments = options.parse_args()
    stop_on_sigterm()
    with connect(arguments.target) as client, open_session(client, "serial") as session:
        port = SerialPort(session.line(SERIAL_GSI))
        serve_registers(arguments.run / "serial", port)
        say(f"line source {session.source}, GSI {SERIAL_GSI}, edge, {arguments.baud:g} baud")
        source: BinaryIO = arguments.file.open("rb") if arguments.file else sys.stdin.buffer
        count = 0
        while byte := source.read(1):
            time.sleep(10 / arguments.baud)
            port.receive(byte[0])
            count += 1
        port.drained()
        say(f"{count} bytes received, all of them read")
        signal.pause()  # a port stays where it is, until it is told to stop


if __name__ == "__main__":
    main()
