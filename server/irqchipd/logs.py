"""What the daemon writes to standard error: its own records and some of its libraries', within bounds.

A record's text says what happened, and its fields name the VM, Session or client: see fields.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import sys
import threading
import time
from contextlib import suppress

from grpc._cython import cygrpc

from irqchipd.fields import fields_of

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FORMATS = ("text", "json")
LIBRARIES = ("asyncio", "grpc")

_AT_ONCE = 5  # records of one kind per period
_PERIOD = 1.0  # seconds
_GIVEN_UP = (cygrpc.ExecuteBatchError, asyncio.CancelledError)
_UNWRITTEN = 1000  # records that wait for the reader of standard error
_LAST = 0.5  # seconds for unwritten records at the end


class _Text(logging.Formatter):
    """Lines for people and for grep. A value of more than a word is quoted: a client may have chosen it."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        words = [super().formatMessage(record)]
        for name, value in fields_of(record).items():
            text = str(value)
            plain = text.isascii() and text.isprintable() and text and not set(text) & set(" '\"=\\")
            words.append(f"{name}={text if plain else repr(text)}")
        return " ".join(words)


class _Json(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        shown = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            shown["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shown, default=str)


class _Writer(logging.Handler):
    """Writes in a thread of its own: a thread that logs never waits for the reader of standard error.

    Records without room are counted, and the count is written when there is room again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(_UNWRITTEN)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="irqchipd log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(OSError, ValueError):  # the reader of standard error has gone
                lost, self._lost = self._lost, 0
                if lost:
                    sys.stderr.write(f"{lost} records were not written: nothing read standard error\n")
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            self._lines.task_done()

    def flush(self) -> None:
        """Wait a little for unwritten records."""
        deadline = time.monotonic() + _LAST
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)


class Repetitions(logging.Filter):
    """Lets a few records per kind pass each second. The next record says how many of its kind were held.

    A kind is a line of source code. Clients choose some of a record's text, but can't make new kinds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        # Per kind: when its period began, its records since, and the records that were held.
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
    """Whether a record is about the daemon.

    gRPC logs a traceback for metadata that is not UTF-8, and for a call that the client gives up while it is answered
    or before its handler begins.
    """
    given_up = record.exc_info is not None and record.exc_info[0] in _GIVEN_UP
    return record.msg != "Invalid encoding on %s" and not given_up


class _Nothing:
    """Replaces the module traceback in gRPC, which prints each exception to standard error after logging it."""

    def print_exc(self) -> None:
        """Print nothing."""


def log_to_stderr(level: str, form: str = "text") -> None:
    """Let the root logger write to standard error for good; form is one of FORMATS."""
    handler = _Writer()
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_is_ours)
    handler.addFilter(Repetitions())
    logging.basicConfig(level=level, handlers=[handler])
    cygrpc.traceback = _Nothing()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def flush() -> None:
    """Wait a little for unwritten records."""
    for handler in logging.getLogger().handlers:
        handler.flush()
