"""How the process ends when it is told to: in order if it can, and in time in any case.

A signal's handler in Python runs in the main thread, when that comes to it. So a thread of its own waits for the
signals, which all the others block: it needs nothing of them but the interpreter's lock now and then, and it is there
already when no further thread can be made.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

log = logging.getLogger(__name__)

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
DEADLINE = 1.5  # for an orderly end, seconds
LAST_DEADLINE = 1.9  # for one that is not


def block_signals() -> None:
    """Leave the signals to stop_when_told; to be called before there is a second thread."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def stop_when_told(stop: Callable[[], object], clean_up: Callable[[], None]) -> None:
    """On the first signal clean up and call stop, which begins an orderly end; leave if there is none in time.

    A second signal cuts the time short. Both are called by a thread of its own; clean_up once more before it leaves.
    """

    def wait() -> None:
        signal.sigwait(SIGNALS)
        until = time.monotonic() + DEADLINE
        # Ends the process even if a thread that has the interpreter's lock waits for something.
        signal.setitimer(signal.ITIMER_REAL, LAST_DEADLINE)
        try:
            with suppress(Exception):  # for a lack of memory, say: all the more it has to end
                clean_up()
            with suppress(Exception):
                stop()
            signal.sigtimedwait(SIGNALS, max(until - time.monotonic(), 0))
            log.warning("leaving before all has ended in order")
            clean_up()
        finally:
            leave(0)

    threading.Thread(target=wait, name="irqchipd stop", daemon=True).start()


def leave(status: int) -> NoReturn:
    """End the process, without a wait for its threads: one may be in a system call of a client's making."""
    os._exit(status)
