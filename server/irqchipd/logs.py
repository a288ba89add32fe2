"""What the daemon writes to standard error: its own, little of its libraries', and not without bound."""

from __future__ import annotations

import logging
import threading
import time

from grpc._cython import cygrpc

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LIBRARIES = ("asyncio", "grpc")

_AT_ONCE = 5  # records of one kind, a period
_PERIOD = 1.0  # seconds


class Repetitions(logging.Filter):
    """Lets a few records of a kind pass a second, and says of the next how many of its kind did not.

    Of a kind are those that one line of source makes, whatever the client that is the reason for them has chosen to be
    in their text. So there are not many kinds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        # Of each kind: when its period began, how many there were, and how many of those did not pass.
        self._kinds: dict[tuple[str, str, int], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes."""
        kind = record.name, record.pathname, record.lineno
        now = time.monotonic()
        with self._lock:
            begun, count, held = self._kinds.get(kind, (now, 0, 0))
            if now - begun >= _PERIOD:
                begun, count = now, 0
            passes = count < _AT_ONCE
            self._kinds[kind] = begun, count + 1, 0 if passes else held + 1
        if passes and held:
            record.msg = f"{record.getMessage()} ({held} more like this were not logged)"
            record.args = None
        return passes


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is of something in the daemon.

    gRPC shows a traceback for metadata that is not UTF-8, and for a call that its client gives up as it is answered.
    """
    given_up = record.exc_info is not None and record.exc_info[0] is cygrpc.ExecuteBatchError
    return record.msg != "Invalid encoding on %s" and not given_up


def log_to_stderr(level: str) -> None:
    """Have the root logger do so, for good."""
    handler = logging.StreamHandler()
    handler.addFilter(_is_ours)
    handler.addFilter(Repetitions())
    logging.basicConfig(level=level, format=FORMAT, handlers=[handler])
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
