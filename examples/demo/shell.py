"""`make demo-shell`: the demo's machine, with this terminal as its serial port. Ctrl-] ends it."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from examples.demo import VM
from examples.demo.__main__ import DEVICES
from examples.demo.stage import Stage

ROOT = Path(__file__).parents[2]
# Connects a terminal to a unix socket, line by line.
TYPE = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "[s.sendall(line.encode()) for line in sys.stdin]"
)


def irqchipctl(stage: Stage, *arguments: str) -> str:
    """An irqchipctl command to copy to another terminal."""
    return shlex.join([sys.executable, "-m", "irqchip_client.cli", "--target", stage.target, *arguments])


def watch_over(stage: Stage, over: threading.Event) -> None:
    """Report a device that has ended, and how to restart it."""
    gone: set[str] = set()
    while not over.wait(0.5):
        for name in DEVICES:
            process = stage.processes.get(name)
            if process is None or name in gone or (status := process.poll()) is None:
                continue
            gone.add(name)
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            again = f"cd {shlex.quote(str(ROOT))} && {shlex.join(stage.commands[name])}"
            sys.stdout.write(f"\n[{name} {how}; in another terminal, this starts it again:\n  {again} ]\n")
            sys.stdout.flush()


def main() -> int:
    """Run the demo until Ctrl-], or the guest's `exit`."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument(
        "--cpu", choices=["unicorn", "kvm"], help="the vCPU to run on [default: kvm if there is /dev/kvm]"
    )
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
            print(f"The guest's monitor, on {cpu}; `help` lists its commands, Ctrl-] ends it. In another terminal:")
            print(f"    {irqchipctl(stage, 'regs', VM)}")
            print("shows the chips. This command types on the keyboard:")
            print(f"    {shlex.join([sys.executable, '-c', TYPE, f'{folder}/keyboard'])}")
            over = threading.Event()
            threading.Thread(target=watch_over, args=(stage, over), daemon=True).start()
            serial = [sys.executable, "-m", "examples.serial", "--target", stage.target]
            try:
                return subprocess.run(serial, check=False).returncode
            finally:
                over.set()
        finally:
            stage.close()


if __name__ == "__main__":
    sys.exit(main())
