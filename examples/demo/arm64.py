"""`make demo-arm`: runs the arm64 demo's machine on Unicorn, with a GICv3.

Each vCPU gets its tick from its own virtual timer, and they send each other SGIs. The serial port drives an SPI that is
edge-triggered, and the disk one that is level-triggered.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from examples.demo import SECTOR
from examples.demo.deaths import check_sum, kill_disk, kill_serial
from examples.demo.monitor import DemoError, Monitor
from examples.demo.script import TEXT, use_disk
from examples.demo.stage import Stage
from irqchip_client import IrqchipError

PINGS = 100
# The interrupts that each CPU gets: a source's line in `irqs` has a count for CPU 0, and one for CPU 1.
COMING = {"timer": (0, 1), "requests": (1,), "replies": (0,), "serial": (0,), "disk": (0,)}


def play(stage: Stage, gic: int, *, kill: bool) -> list[str]:
    """Run the demo once, and `kill` devices in the end. Returns the transcript before that.

    DemoError if an answer is wrong.
    """
    stage.show("stage", f"an arm64 machine with a GICv{gic}, on Unicorn: five processes; two are vCPUs")
    stage.start_daemon()
    stage.start_arm64_vcpus(gic)
    for device in ("serial", "disk"):
        stage.start_device(device)
    monitor = Monitor(stage.folder / "serial", lambda line: stage.show("guest", line))
    try:
        use(monitor)
        if not stage.image.read_bytes()[5 * SECTOR :].startswith(TEXT.encode()):
            raise DemoError("the disk's file does not have the data that the guest wrote")
        check_sum(stage, monitor)
        transcript = [line.replace(f"GICv{gic}", "GIC") for line in monitor.transcript]
        if kill:
            kill_disk(stage, monitor)
            kill_serial(stage, monitor)
            monitor.expect(f"sgis {PINGS}", f"sgis: {PINGS} of {PINGS} came back")
        monitor.say("exit")
    finally:
        monitor.close()
    for name in ("vcpu 0", "vcpu 1", "serial", "disk", "daemon"):
        if status := stage.stop(name) if name == "daemon" else stage.wait(name):
            raise DemoError(f"{name} ended with status {status}")
    return transcript


def use(monitor: Monitor) -> None:
    """Use every kind of interrupt."""
    monitor.banner()
    monitor.expect("help", r"irqs\s+interrupts so far.*")
    use_disk(monitor)
    monitor.expect("ticks 50", r"CPU 0: \d+ ticks came, \d+ were lost", r"CPU 1: \d+ ticks came, \d+ were lost")
    monitor.expect(f"sgis {PINGS}", f"sgis: {PINGS} of {PINGS} came back")
    counts = {source: list(map(int, counted)) for source, *counted in map(str.split, monitor.command("irqs"))}
    for source, cpus in COMING.items():
        for cpu in cpus:
            if not counts[source][cpu]:
                raise DemoError(f"CPU {cpu} got no interrupt of {source}")


def main() -> int:
    """Run the demo. The exit status is 0 if every answer was right."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument(
        "--gic",
        type=int,
        choices=[2, 3],
        action="append",
        help="the GIC's version; given twice, the transcripts must be equal (3)",
    )
    arguments = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left
    transcripts: list[list[str]] = []
    stage = None
    try:
        gics = arguments.gic or [3]
        for gic in gics:
            with tempfile.TemporaryDirectory(prefix="irqchip-demo-") as folder:
                stage = Stage(Path(folder), architecture="arm64")
                try:
                    transcripts.append(play(stage, gic, kill=gic == gics[0]))
                finally:
                    stage.close()
        assert stage is not None
        if any(transcript != transcripts[0] for transcript in transcripts):
            raise DemoError(f"the transcripts differ: {transcripts}")
        stage.show(
            "stage", f"done, with GICv{' and GICv'.join(map(str, gics))}: {len(transcripts[0])} lines as expected"
        )
    except (DemoError, IrqchipError) as error:
        assert stage is not None
        stage.show("stage", f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
