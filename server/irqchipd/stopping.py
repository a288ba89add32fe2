"""How the process ends on a signal: in order if that is possible, and in time in any case.

Python runs a signal's handler in the main thread, which may be busy. So a thread waits for the signals, and all other
threads block them. That thread needs the interpreter's lock alone, and exists before threads run out.
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

from irqchipd.logs import flush

log = logging.getLogger(__name__)

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
DEADLINE = 1.5  # for an orderly end, seconds
LAST_DEADLINE = 1.9  # for any end


def block_signals() -> None:
    """Leave the signals to stop_on_signal. Call this before there is a second thread."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def stop_on_signal(stop: Callable[[], object], clean_up: Callable[[], None]) -> None:
    """On the first signal clean up and call stop, which begins an orderly end; leave after the deadline.

    A second signal ends the wait. A thread calls both functions, and clean_up once more before it leaves.
    """

    def wait() -> None:
        signal.sigwait(SIGNALS)
        until = time.monotonic() + DEADLINE
        # The alarm ends the process even if a thread keeps the interpreter's lock.
        signal.setitimer(signal.ITIMER_REAL, LAST_DEADLINE)
        try:
            with suppress(Exception):  # a lack of memory, say: the process must end anyway
                clean_up()
            with suppress(Exception):
                stop()
            signal.sigtimedwait(SIGNALS, max(until - time.monotonic(), 0))
            log.warning("exiting before everything has stopped")
            clean_up()
        finally:
            leave(0)

    threading.Thread(target=wait, name="irqchipd stop", daemon=True).start()


def leave(status: int) -> NoReturn:
    """End the process without waiting for its threads: a client can keep one in a system call."""
    flush()
    os._exit(status)
