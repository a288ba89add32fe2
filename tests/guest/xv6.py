"""Starts xv6 under `irqchipctl run`, and types commands into its shell.

python -m tests.guest.xv6 COMMAND... -- OPTIONS OF irqchipctl run

The images are made from xv6-public's sources, for example by `make kernelmemfs kernel xv6.img fs.img`. The folder that
IRQCHIPD_XV6 names has them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.given_images import given_images

FOLDER = "IRQCHIPD_XV6"
MEMORY = "256"  # MiB: xv6 expects 224
PROMPT = "$ "
PATIENCE = 120.0  # seconds for a command


def images(*names: str) -> list[Path]:
    """The images of these names; skips the test where there is none."""
    return given_images(FOLDER, *names)


class Shell:
    """xv6's shell, on the serial port of `irqchipctl run`."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "irqchip_client.cli", "run", "--memory", MEMORY, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._heard = ""
        self._changed = threading.Condition()
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 4096):
            text = data.decode(errors="replace").replace("\r", "")
            print(text, end="", flush=True)
            with self._changed:
                self._heard += text
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def prompt(self) -> str:
        """Waits for the prompt. Returns what came before it. TimeoutError, EOFError."""
        with self._changed:
            if not self._changed.wait_for(lambda: PROMPT in self._heard or self._ended, PATIENCE):
                raise TimeoutError(f"the prompt does not come within {PATIENCE:g} s")
            before, found, self._heard = self._heard.partition(PROMPT)
        if not found:
            raise EOFError("xv6 ended before its prompt")
        return before

    def command(self, text: str) -> list[str]:
        """Types a command. Returns the lines that it prints."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()
        _, *lines = self.prompt().splitlines()  # behind its echo
        return lines

    def end(self) -> None:
        """Ends xv6."""
        self._process.terminate()
        self._process.wait()
        self._listener.join()


def main() -> None:
    """Type the commands, each at a prompt, and wait for the last prompt."""
    at = sys.argv.index("--")
    shell = Shell(*sys.argv[at + 1 :])
    try:
        shell.prompt()
        for command in sys.argv[1:at]:
            shell.command(command)
    finally:
        shell.end()


if __name__ == "__main__":
    main()
