"""A program for the machine of standard_kvm.py: runs test kernels one after the other, on two vCPUs, with a disk.

python -m tests.nested.kernels DISK KERNEL...
"""

from __future__ import annotations

import subprocess
import sys

TIMEOUT = "200"  # seconds for a kernel
PASSED = 1  # what irqchipctl makes of the kernel's 0


def main() -> int:
    """Run them. Returns 0 if each has run to its end."""
    disk, *kernels = sys.argv[1:]
    statuses = []
    for kernel in kernels:
        command = [sys.executable, "-m", "irqchip_client.cli", "run", "--cpu", "kvm", "--cpus", "2", "--disk", disk]
        command += ["--kernel", kernel, "--timeout", TIMEOUT]
        statuses.append(subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode)
    return 0 if statuses == [PASSED] * len(kernels) else 1


if __name__ == "__main__":
    sys.exit(main())
