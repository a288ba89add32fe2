"""Kills and restarts a guest's devices, while the guest goes on."""

from __future__ import annotations

import time
import zlib

from examples.demo import SECTOR, SECTORS
from examples.demo.monitor import DemoError, Monitor
from examples.demo.script import TEXT
from examples.demo.stage import Stage


def check_sum(stage: Stage, monitor: Monitor) -> None:
    """Check that the guest reads the disk's contents."""
    crc = zlib.crc32(stage.image.read_bytes()[: 32 * SECTOR])
    monitor.expect("sum 0 32", f"crc32 {crc:08x} of 32 sectors")


def kill_disk(stage: Stage, monitor: Monitor) -> None:
    """Kill the disk during a read: the guest sees an error, goes on, and reads again when the disk is back."""
    monitor.say(f"sum 0 {SECTORS}")
    monitor.hear(".")
    stage.show("stage", "the disk's process is killed in the middle of this read")
    stage.kill("disk")
    said = monitor.hear("\r\n> ")
    if "disk: no" not in said:
        raise DemoError(f"the guest should report an error, but prints {said!r}")
    stage.show("guest", said.strip(".\r\n"))
    monitor.expect("read 5", "disk: none")
    monitor.expect("echo the guest goes on", "the guest goes on")
    stage.show("stage", "the disk is started again")
    stage.start_device("disk")
    deadline = time.monotonic() + stage.patience
    while monitor.command("disk") == ["disk: none"]:
        monitor.transcript[-2:] = []  # the number of attempts depends on timing
        if time.monotonic() > deadline:
            raise DemoError("the disk did not come back")
        time.sleep(0.2)
    monitor.expect("read 5", rf".*{TEXT[:16]}")


def kill_serial(stage: Stage, monitor: Monitor) -> None:
    """Kill the serial port: the guest notices, and sets up the new one."""
    stage.show("stage", "the serial port's process is killed, and started again")
    stage.kill("serial")
    stage.start_device("serial")
    monitor.reconnect()
    monitor.again()
    monitor.expect("echo the line is back", "the line is back")
