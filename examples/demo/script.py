"""The demo's script: the commands for the guest's monitor, and the answers expected.

python -m examples.demo.script --serial run/serial --keyboard run/keyboard
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path

from examples.demo import SECTOR, SECTORS
from examples.demo.monitor import DemoError, Monitor, type_keys

KEYS = "Hello, irqchipd"
TEXT = "interrupts as a service"
SEVERAL_KINDS = ("timer", "keyboard", "serial", "rtc", "disk")


def monitor_session(monitor: Monitor, keyboard: Path) -> None:
    """Use every device once, by interrupt."""
    monitor.banner()
    monitor.expect("help", r"irqs\s+interrupts so far.*")
    (said,) = monitor.expect("time", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
    late = abs((datetime.fromisoformat(said).replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds())
    if late > 5:
        raise DemoError(f"the RTC's time is {late:.0f} s off")
    monitor.say("keys")
    monitor.hear("type a line at the keyboard: ")
    type_keys(keyboard, f"{KEYS}\n")
    if f"keyboard: {KEYS}" not in monitor.answer("keys"):
        raise DemoError(f"the keyboard's line is not {KEYS!r}")
    use_disk(monitor)
    monitor.expect("ticks 100", r"ticks: 1\d\d came, \d+ lost")
    monitor.expect("rtc 64", "rtc: 64 interrupts")
    monitor.expect("ports 2000", r".*a PIC's mask, .*", r".*the disk's status, .*")
    counts = {source: int(count) for source, count in map(str.split, monitor.command("irqs"))}
    silent = [source for source in SEVERAL_KINDS if not counts[source]]
    if silent:
        raise DemoError(f"no interrupt came from {', '.join(silent)}")


def use_disk(monitor: Monitor) -> None:
    """Write and read."""
    monitor.expect("disk", f"disk: {SECTORS} sectors of {SECTOR} bytes")
    written = TEXT.encode().ljust(SECTOR, b"\0")
    monitor.expect(f"write 5 {TEXT}", "disk: written")
    monitor.expect("read 5", rf".*{TEXT[:16]}", f"crc32 {zlib.crc32(written):08x}")
    monitor.expect("sum 0 16", r"crc32 [0-9a-f]{8} of 16 sectors")


def await_death_of_disk(monitor: Monitor, patience: float) -> None:
    """Read until the disk fails, and again until the disk is back."""
    deadline = time.monotonic() + patience
    while not _failed(monitor.command(f"sum 0 {SECTORS}")):
        if time.monotonic() > deadline:
            raise DemoError(f"the disk was not killed within {patience:g} s")
    while _failed(monitor.command("read 5")):
        if time.monotonic() > deadline:
            raise DemoError("the disk did not come back")
        time.sleep(0.2)


def _failed(lines: list[str]) -> bool:
    return any(line.startswith("disk: no") for line in lines)


def main() -> int:
    """Run the script. The exit status is 0 if every answer was as expected."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--serial", type=Path, required=True, help="the serial port's socket")
    options.add_argument("--keyboard", type=Path, required=True, help="the keyboard's socket")
    options.add_argument(
        "--disk-dies",
        type=float,
        default=os.environ.get("DISK_DIES"),
        metavar="S",
        help="expect the disk to be killed within SECONDS [env DISK_DIES]",
    )
    arguments = options.parse_args()
    try:
        monitor = Monitor(arguments.serial, lambda line: print(line, flush=True))
        monitor_session(monitor, arguments.keyboard)
        if arguments.disk_dies:
            print("-- kill the disk now", flush=True)
            await_death_of_disk(monitor, arguments.disk_dies)
            print("-- the disk was gone, and is back", flush=True)
        # Then all services end. A supervisor may stop this process too, before its exit status is recorded.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        monitor.say("exit 0")
    except DemoError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    print("-- every answer was as expected", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
