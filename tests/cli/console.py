"""A guest's serial console: a process of irqchipctl that is read from and typed into."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time

PATIENCE = 120.0  # seconds
# What moves the cursor. A lone return is a slip of SeaBIOS's: a tick flushes its output in the middle of a character's.
CURSOR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")


class Console:
    """A process of irqchipctl, with its output and the keys that are typed for it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "irqchip_client.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._said = b""

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def enter(self, line: str, keyboard: Console | None = None) -> None:
        """Types a line into GRUB's shell, not faster than it is echoed: SeaBIOS keeps 15 keys."""
        for character in line:
            (keyboard or self).type(character)
            self.expect(re.escape(character))
        (keyboard or self).type("\r")

    def expect(self, pattern: str, seconds: float = PATIENCE) -> str:
        """Waits for some output, and returns what has come before its end and after the last one expected."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while True:
            said = CURSOR.sub(b"", self._said).decode(errors="replace")
            if found := re.search(pattern, said, re.DOTALL):
                self._said = b""
                return said[: found.end()]
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert data, f"{pattern} has not come; the last output was {said[-1000:]}"
            self._said += data

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
