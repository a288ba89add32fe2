"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. What has not come by then does not come, however busy the machine is. A wait that succeeds costs nothing.
PATIENCE = 60.0


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until a condition holds. AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
