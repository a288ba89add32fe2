"""A block device backed by a file: GSI 11 is high, a level, from when a sector is ready until the driver takes it.

Registers: writing `sector` starts a read of that sector; `data` reads the sector, in hexadecimal, and lowers the line.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

from examples.demo import DISK_GSI, SECTOR
from examples.demo.options import connect, open_session, parser, say, stop_on_sigterm
from examples.demo.wire import serve_registers
from irqchip_client import Line

SEEK = 0.03  # seconds


class Disk:
    """Reads one sector at a time."""

    def __init__(self, image: Path, line: Line) -> None:
        self._image = image
        self._line = line
        self._requests: queue.Queue[int] = queue.Queue(maxsize=1)
        self._lock = threading.Lock()
        self._data = b""

    def read(self, register: str) -> str:
        """See the module's docstring."""
        if register != "data":
            return ""
        with self._lock:
            self._line.lower()
            return self._data.hex()

    def write(self, register: str, value: int) -> None:
        """See the module's docstring."""
        if register == "sector":
            self._requests.put(value)

    def work(self) -> None:
        """Serve requests until told to stop."""
        with self._image.open("rb") as image:
            while True:
                sector = self._requests.get()
                time.sleep(SEEK)
                image.seek(sector * SECTOR)
                with self._lock:
                    self._data = image.read(SECTOR)
                    say(f"sector {sector} is ready: GSI {DISK_GSI} high")
                    self._line.raise_()


def main() -> None:
    """Serve an image."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--image", type=Path, required=True, help="the file behind the device")
    arguments = options.parse_args()
    stop_on_sigterm()
    with connect(arguments.target) as client, open_session(client, "disk") as session:
        disk = Disk(arguments.image, session.line(DISK_GSI))
        serve_registers(arguments.run / "disk", disk)
        say(f"line source {session.source}, GSI {DISK_GSI}, level, {arguments.image.stat().st_size // SECTOR} sectors")
        disk.work()


if __name__ == "__main__":
    main()
