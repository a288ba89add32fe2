"""`make demo-shell`: the demo's machine, with this terminal as its serial port. Ctrl-] ends it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.demo.__main__ import DEVICES
from examples.demo.stage import Stage


def main() -> int:
    """Run it until Ctrl-], or the guest's `exit`."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--cpu", choices=["unicorn", "kvm"], help="kvm, where it is there")
    arguments = options.parse_args()
    cpu = arguments.cpu or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "unicorn")
    with tempfile.TemporaryDirectory(prefix="irqchip-demo-") as folder:
        stage = Stage(Path(folder), quiet=True)
        try:
            stage.start_daemon()
            stage.start_vcpu(cpu)
            for device in DEVICES:
                if device != "serial":
                    stage.start_device(device)
            print(
                f"The guest's monitor, on {cpu}; `help` lists its commands, Ctrl-] ends it. The keyboard's keys go to"
            )
            print(f"{folder}/keyboard, and IRQCHIP_TARGET={stage.target} irqchipctl regs demo shows the chips.")
            serial = [sys.executable, "-m", "examples.serial", "--target", stage.target]
            return subprocess.run(serial, check=False).returncode
        finally:
            stage.close()


if __name__ == "__main__":
    sys.exit(main())
