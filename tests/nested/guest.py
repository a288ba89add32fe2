"""A program for the machine of standard_kvm.py: runs the demo's guest with its devices and the daemon.

The whole demo takes too long there, because every processor is emulated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from examples.demo import SECTOR, SECTORS
from examples.demo.__main__ import DEVICES, EXIT
from examples.demo.monitor import Monitor
from examples.demo.stage import Stage

DEVICES_THAT_INTERRUPT = ("timer", "serial", "disk")
# Seconds of that machine's clock: its one processor takes five for the start of a process, and seven start at once.
PATIENCE = 300.0


def main() -> None:
    """Give the guest one command of each kind, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), PATIENCE)
        try:
            stage.start_daemon()
            stage.start_vcpu("kvm")
            for device in DEVICES:
                stage.start_device(device)
            monitor = Monitor(stage.folder / "serial", lambda line: stage.show("guest", line), PATIENCE)
            monitor.banner()
            monitor.expect("time", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
            monitor.expect("disk", f"disk: {SECTORS} sectors of {SECTOR} bytes")
            monitor.expect("write 5 text", "disk: written")
            monitor.expect("ticks 10", r"ticks: 1\d came, \d+ lost")
            counts = {source: int(count) for source, count in map(str.split, monitor.command("irqs"))}
            assert all(counts[source] for source in DEVICES_THAT_INTERRUPT), counts
            monitor.say(f"exit {EXIT}")
            monitor.close()
            assert stage.wait("debug_exit") == EXIT << 1 | 1
            assert stage.wait("vcpu") == 0
            assert stage.stop("daemon") == 0
        finally:
            stage.close()


if __name__ == "__main__":
    main()
