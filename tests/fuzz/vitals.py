"""A daemon's vital signs: memory, descriptors, and its log."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from irqchip_client._daemon import Daemon


@dataclass(frozen=True, slots=True)
class Vitals:
    """The vital signs at one time."""

    alive: bool
    rss_kib: int
    descriptors: int
    tracebacks: int
    log_bytes: int


def vitals(daemon: Daemon) -> Vitals:
    """The current vital signs."""
    log = daemon.stderr
    alive = daemon.process.poll() is None
    if not alive:
        return Vitals(False, 0, 0, log.count("Traceback"), len(log))
    return Vitals(True, rss_kib(daemon), _descriptors(daemon), log.count("Traceback"), len(log))


def _descriptors(daemon: Daemon) -> int:
    """The number of descriptors without the Signaller's, which is opened at the first signal and then stays."""
    count = 0
    folder = f"/proc/{daemon.pid}/fd"
    for descriptor in os.listdir(folder):
        with suppress(FileNotFoundError):
            count += os.readlink(f"{folder}/{descriptor}") != "/dev/zero"
    return count


def rss_kib(daemon: Daemon) -> int:
    """Resident memory."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def settled(daemon: Daemon, descriptors: int, patience: float = 10.0) -> Vitals:
    """The vital signs once the daemon has closed its clients' leftovers, and has at most this many descriptors."""
    deadline = time.monotonic() + patience
    while True:
        now = vitals(daemon)
        if not now.alive or now.descriptors <= descriptors or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


def first_traceback(daemon: Daemon, length: int = 3000) -> str:
    """The first traceback in the log, with its context."""
    log = daemon.stderr
    at = log.find("Traceback")
    return log[max(at - 300, 0) : at + length]
