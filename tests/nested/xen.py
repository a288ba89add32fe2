"""A program for the machine of standard_kvm.py: runs Xen under irqchipctl run, with an RTC in a process of its own.

python -m tests.nested.xen XEN KERNEL
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CLI = (sys.executable, "-m", "irqchip_client.cli")
COMMAND_LINE = "console=com1 com1=115200,8n1 loglvl=all sync_console"
PATIENCE = "300"  # seconds of that machine's clock


def main(xen: str, kernel: str) -> int:
    """Runs Xen until it resets the machine. Returns the run's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "socket")
        # Xen asks for an RTC.
        rtc = subprocess.Popen([*CLI, "--target", f"unix://{socket}", "device", "Rtc", "--vm", "xen", "--wait", "60"])
        options = ["--cpu", "kvm", "--memory", "256", "--vm", "xen", "--listen", str(socket), "--timeout", PATIENCE]
        options += ["--await", "MC146818", "--kernel", xen, "--initrd", kernel, "--append", COMMAND_LINE]
        done = subprocess.run([*CLI, "run", *options], stdin=subprocess.DEVNULL, check=False)
        rtc.wait(60)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
