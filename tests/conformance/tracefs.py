"""The trace of this machine's kernel, through an instance of tracefs of its own."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
MARK = "irqchipd "
LINE = re.compile(r"\.\d{6}: (?P<event>.*)")


class NoTracefsError(Exception):
    """The kernel's trace can't be had; the message says why."""


@contextmanager
def tracefs() -> Iterator[Path]:
    """The folder of tracefs, which is mounted for as long as it takes if it is not yet."""
    for place in PLACES:
        with suppress(OSError):
            if (place / "events").is_dir():
                yield place
                return
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tracefs", "nodev", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            raise NoTracefsError(f"tracefs can't be mounted: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


class KernelTrace:
    """Some of KVM's tracepoints, while this thread runs."""

    def __init__(self, folder: Path, tracepoints: Iterable[str]) -> None:
        if not (folder / "events" / "kvm").is_dir():
            raise NoTracefsError("the kernel has no tracepoints of KVM")
        self._instance = folder / "instances" / f"irqchipd-{os.getpid()}"
        self._instance.mkdir()
        try:
            self._write("trace_clock", "mono")
            self._write("set_event_pid", str(threading.get_native_id()))
            for name in tracepoints:
                self._write(f"events/kvm/{name}/enable", "1")
        except OSError as error:
            self.close()
            raise NoTracefsError(f"the kernel's trace can't be set up: {error}") from None

    def _write(self, name: str, text: str) -> None:
        (self._instance / name).write_text(text)

    def mark(self, text: str) -> None:
        """Write a mark between what has happened and what will."""
        self._write("trace_marker", f"{MARK}{text}\n")

    def take(self) -> dict[str, list[str]]:
        """What happened after each mark, as the kernel printed it, without task, CPU and time; and forget it."""
        after: dict[str, list[str]] = {}
        mark = ""
        for line in (self._instance / "trace").read_text().splitlines():
            found = LINE.search(line)
            if line.startswith("#") or found is None:
                continue
            event = found["event"]
            if event.startswith(f"tracing_mark_write: {MARK}"):
                mark = event.removeprefix(f"tracing_mark_write: {MARK}")
                after[mark] = []
            else:
                after.setdefault(mark, []).append(event)
        self._write("trace", "")
        return after

    def format(self, tracepoint: str) -> str:
        """What the kernel says about a tracepoint's fields and its print format."""
        return (self._instance / "events" / "kvm" / tracepoint / "format").read_text()

    def close(self) -> None:
        """Trace no more."""
        with suppress(OSError):
            self._instance.rmdir()
