"""The terminal end of the demo guest's serial line: types commands at the monitor and checks the answers."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROMPT = "\r\n> "
RATE = ": # a second"  # missing if all took less than a tick
LATE_TICKS = " more than asked for"
PATIENCE = 60.0  # seconds, for an answer
# Answers that contain times or this machine's speed. The transcript has them without their numbers.
OF_TIME = frozenset({"time", "uptime", "irqs", "timer", "ticks", "rtc", "ports"})


class DemoError(Exception):
    """The guest's answer was wrong."""


class Monitor:
    """A connection to the socket of the guest's serial port.

    transcript  the guest's output, line by line, without the numbers that depend on time
    show        is called with each line as it comes
    patience    seconds to wait for the serial port's process, and for an answer
    """

    def __init__(self, path: Path, show: Callable[[str], None], patience: float = PATIENCE) -> None:
        self.transcript: list[str] = []
        self._path = path
        self._show = show
        self._patience = patience
        self._heard = ""
        self._connection = _connect(path, patience)

    def reconnect(self) -> None:
        """Connect to the serial port's new process."""
        self._connection.close()
        self._connection = _connect(self._path, self._patience)
        self._heard = ""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def banner(self) -> None:
        """Read the guest's first output."""
        self._keep(self.hear(PROMPT).splitlines())

    def hear(self, until: str, patience: float | None = None) -> str:
        """Read up to some text, and return the output before it. DemoError if the text does not come."""
        patience = self._patience if patience is None else patience
        deadline = time.monotonic() + patience
        while until not in self._heard:
            if not select.select([self._connection], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise DemoError(f"the guest did not print {until!r} within {patience:g} s; it printed {self._heard!r}")
            data = self._connection.recv(4096)
            if not data:
                raise DemoError(f"the serial port disconnected; the guest had printed {self._heard!r}")
            self._heard += data.decode(errors="replace")
        said, _, self._heard = self._heard.partition(until)
        return said

    def say(self, line: str) -> None:
        """Type a line, and read its echo."""
        self._connection.sendall(line.encode() + b"\r")
        self.hear(f"{line}\r\n")

    def command(self, line: str) -> list[str]:
        """Type a command, and return the lines of its answer."""
        self.say(line)
        return self.answer(line)

    def answer(self, line: str, patience: float | None = None) -> list[str]:
        """The rest of a command's answer, up to the prompt."""
        # The prompt follows a line end, except after a command without an answer.
        said = "" if self._heard == "> " else self.hear(PROMPT, patience)
        lines = said.replace("\r", "").splitlines()
        self._keep([f"> {line}", *lines], line.split()[0] in OF_TIME)
        return lines

    def expect(self, line: str, *answer: str) -> list[str]:
        """Type a command, and match its answer against regular expressions, one per line. DemoError if they differ."""
        lines = self.command(line)
        for expected in answer:
            if not any(re.fullmatch(expected, one) for one in lines):
                raise DemoError(f"{line!r} should answer {expected!r}, and answers {lines}")
        return lines

    def again(self) -> None:
        """Get a prompt, whatever was typed before: a new serial port may have lost a part of it."""
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            with suppress(DemoError):
                self._connection.sendall(b"\r")
                self.hear(PROMPT, 0.5)
                while True:  # the prompts of earlier attempts
                    self.hear(PROMPT, 0.2)
            if not self._heard.strip("\r\n> "):
                self._heard = ""
                return
        raise DemoError(f"the guest no longer prints {PROMPT!r}; it printed {self._heard!r}")

    def _keep(self, lines: list[str], of_time: bool = False) -> None:
        for line in lines:
            self._show(line)
            if of_time and LATE_TICKS in line:  # only a busy machine reports this
                continue
            if of_time and not line.startswith(">"):
                line = re.sub(r"\s*\d+", " #", line).removesuffix(RATE)
            self.transcript.append(line)


def _connect(path: Path, patience: float = PATIENCE) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise DemoError(f"no process listens at {path}: {error}") from error
            time.sleep(0.05)
        else:
            return connection


def type_keys(path: Path, text: str) -> None:
    """Type a text at the keyboard behind this socket."""
    with _connect(path) as connection:
        connection.sendall(text.encode())
