"""`make demo`: runs the demo's machine on Unicorn and, with /dev/kvm, on KVM. The transcripts must be equal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from examples.demo import SECTOR
from examples.demo.deaths import check_sum, kill_disk, kill_serial
from examples.demo.monitor import DemoError, Monitor
from examples.demo.script import TEXT, monitor_session
from examples.demo.stage import Stage
from irqchip_client import IrqchipError

DEVICES = ("serial", "keyboard", "rtc", "disk", "debug_exit")
EXIT = 42


def play(stage: Stage, cpu: str) -> list[str]:
    """Run the demo once. Returns the transcript. DemoError if an answer is wrong."""
    processes = "six processes; the vCPU's is also the daemon" if stage.embedded else "seven processes"
    stage.show("stage", f"a machine on {cpu}: {processes}")
    stage.start_daemon()
    stage.start_vcpu(cpu)
    for device in DEVICES:
        stage.start_device(device)
    monitor = Monitor(stage.folder / "serial", lambda line: stage.show("guest", line))
    try:
        monitor_session(monitor, stage.folder / "keyboard")
        if not stage.image.read_bytes()[5 * SECTOR :].startswith(TEXT.encode()):
            raise DemoError("the disk's file does not have the data that the guest wrote")
        check_sum(stage, monitor)
        kill_disk(stage, monitor)
        kill_serial(stage, monitor)
        monitor.say(f"exit {EXIT}")
    finally:
        monitor.close()
    if (status := stage.wait("debug_exit")) != EXIT << 1 | 1:
        raise DemoError(f"debug_exit ended with status {status} instead of ~{EXIT << 1 | 1}")
    for name in ("vcpu", "daemon")[: 1 if stage.embedded else 2]:
        if status := stage.wait(name) if name == "vcpu" else stage.stop(name):
            raise DemoError(f"{name} ended with status {status}")
    return monitor.transcript


def main() -> int:
    """Run the demo. The exit status is 0 if every answer was right."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--cpu", choices=["unicorn", "kvm"], action="append", help="run only on this CPU")
    arguments = options.parse_args()
    cpus = arguments.cpu or ["unicorn", *["kvm"] * os.access("/dev/kvm", os.R_OK | os.W_OK)]
    os.environ["PYTHONUNBUFFERED"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left
    transcripts: list[list[str]] = []
    stage = None
    try:
        for cpu, embedded in [*((cpu, False) for cpu in cpus), (cpus[-1], True)]:
            with tempfile.TemporaryDirectory(prefix="irqchip-demo-") as folder:
                stage = Stage(Path(folder), embedded=embedded)
                try:
                    transcripts.append(play(stage, cpu))
                finally:
                    stage.close()
        assert stage is not None
        if any(transcript != transcripts[0] for transcript in transcripts):
            raise DemoError(f"the transcripts differ: {transcripts}")
        stage.show(
            "stage",
            f"done, on {' and '.join(cpus)}, with a daemon and without: {len(transcripts[0])} lines as expected",
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
