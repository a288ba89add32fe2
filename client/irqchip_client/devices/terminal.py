"""The terminal of this process, as the other end of a serial line."""

from __future__ import annotations

import os
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ESCAPE = b"\x1d"  # Ctrl-]


@contextmanager
def terminal_input(escaped: Callable[[], None]) -> Iterator[int]:
    """A descriptor from which typed keys are read, without echo. At Ctrl-] a thread calls `escaped`.

    If standard input is no terminal, the descriptor gives its contents, and ends where they end; without standard input
    it ends at once.
    """
    typed, keys = os.pipe()
    if sys.stdin is None:  # closed
        os.close(keys)
        try:
            yield typed
        finally:
            os.close(typed)
        return
    source = sys.stdin.fileno()
    is_terminal = os.isatty(source)
    before = termios.tcgetattr(source) if is_terminal else None

    def read() -> None:
        # A thread and a pipe: a file can't be polled, and Ctrl-] must work even if the guest reads nothing.
        with suppress(OSError):
            while data := os.read(source, 4096):
                if is_terminal and ESCAPE in data:
                    data = data[: data.index(ESCAPE)]
                    escaped()
                os.write(keys, data)
        with suppress(OSError):
            os.close(keys)

    try:
        if before is not None:
            tty.setraw(source)
            # Output stays as it is, so that other programs' lines end properly.
            now = termios.tcgetattr(source)
            now[1] = before[1]
            termios.tcsetattr(source, termios.TCSADRAIN, now)
        threading.Thread(target=read, name="irqchip terminal", daemon=True).start()
        yield typed
    finally:
        os.close(typed)
        if before is not None:
            with suppress(termios.error):  # the terminal is disconnected
                termios.tcsetattr(source, termios.TCSADRAIN, before)
