"""A program for the machine of standard_kvm.py: Debian's Linux on two vCPUs, with a disk whose process is killed.

Its arguments are the kernel, the RAM disk and the disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LINE = "console=ttyS0 panic=-1 quiet noxsave clocksource=tsc tsc=reliable"
CPUS, MEMORY = "2", "160"
PATIENCE = "600"  # seconds of that machine's clock


def main(kernel: str, initrd: str, disk: str) -> int:
    """Runs the guest, and kills the disk's process and starts it again as soon as the guest reads."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "socket"
        guest = ["run", "--listen", str(socket), "--vm", "linux", "--cpu", "kvm", "--vcpus", CPUS, "--memory", MEMORY]
        guest += ["--kernel", kernel, "--initrd", initrd, "--append", LINE, "--timeout", PATIENCE, "--with", "rtc"]
        guest += ["--await", "virtio block", "--await-timeout", PATIENCE, "--stats"]
        device = ["--target", f"unix://{socket}", "device", "VirtioBlock", "--vm", "linux", f"path={disk}"]
        device += ["--wait", PATIENCE]
        run = start(*guest)
        disks = [start(*device)]
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if line.startswith("linux: reading"):
                disks[0].kill()
                disks[0].wait()
                print("the disk's process is killed", flush=True)
                disks.append(start(*device))
        for process in disks:
            process.kill()
            process.wait()
        return run.wait()


def start(*arguments: str) -> subprocess.Popen[str]:
    """`irqchipctl` with some arguments."""
    command = [sys.executable, "-m", "irqchip_client.cli", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
