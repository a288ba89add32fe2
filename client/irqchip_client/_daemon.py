"""A real daemon for tests, benchmarks and demonstrations: its process, on a private socket."""

import errno
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._sync.client import Client

_READY = "listening on "


class Daemon:
    """A running irqchipd. Made by start_daemon()."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.targets: list[str] = []  # One per address, in the order of the arguments.
        self._directory = directory

    @property
    def target(self) -> str:
        """The daemon's private socket, for connect() and IRQCHIP_TARGET."""
        return self.targets[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        """The text that the daemon has written to stdout so far."""
        return (self._directory / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """The text that the daemon has written to stderr so far."""
        return (self._directory / "stderr").read_text(errors="replace")

    def connect(self, *, timeout: float = 60.0) -> "Client":
        """A new Client of the daemon."""
        from ._sync.client import connect  # gRPC: not loaded by the mere import of the pytest plugin.

        return connect(self.target, timeout=timeout)

    def _wait_until_ready(self, addresses: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while len(self.targets) < addresses:
            if self.process.poll() is not None:
                raise self._failure(f"ended with status {self.process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {timeout:g} s")
            time.sleep(0.01)
            lines = (self._directory / "stdout").read_text().splitlines(keepends=True)
            self.targets = [
                line.removeprefix(_READY).strip() for line in lines if line.startswith(_READY) and line.endswith("\n")
            ]

    def _stop(self, timeout: float) -> None:
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise self._failure(f"did not stop within {timeout:g} s of SIGTERM, and was killed") from None
        if self.process.returncode > 0:  # Negative: the signal that ended it, sent here or by the caller.
            raise self._failure(f"ended with status {self.process.returncode} when it was stopped")

    def _failure(self, what: str) -> Exception:
        from ._errors import IrqchipError

        return IrqchipError(errno.ECHILD, f"irqchipd {what}. Its stderr:\n{self.stderr}")


@contextmanager
def start_daemon(
    *, listen: Sequence[str] = (), arguments: Sequence[str] = (), timeout: float = 60.0, module: str = "irqchipd"
) -> Iterator[Daemon]:
    """Runs a daemon on a private socket, and on the addresses of `listen`, for the length of a `with`.

    `arguments` are appended to irqchipd's command line, and `module` is run in place of irqchipd; `timeout` is in
    seconds, for the start and again for the stop. Raises IrqchipError(ECHILD), with the daemon's stderr, if one of
    them takes longer. A daemon that ended early or was killed is no error: a test may do that on purpose.
    """
    # Not in $TMPDIR: the path of a socket has 107 characters at most, and pytest's directories are longer.
    directory = Path(tempfile.mkdtemp(prefix="irqchipd-", dir="/tmp"))
    addresses = [f"unix://{directory}/socket", *listen]
    command = [sys.executable, "-m", module, *arguments]
    for address in addresses:
        command += ["--listen", address]
    try:
        # Into files: an unread pipe would stop the daemon once it is full.
        with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        daemon = Daemon(process, directory)
        try:
            daemon._wait_until_ready(len(addresses), timeout)
            yield daemon
        finally:
            daemon._stop(timeout)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
