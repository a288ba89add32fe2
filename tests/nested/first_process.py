"""The first process of the machine that standard_kvm.py boots: it sets up the environment of a program, and runs it.

Its argument, passed on the kernel's command line, is JSON in base64: a command and its environment.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

MODULES = Path("/modules")
BEGINS, ENDS = "COMMAND-BEGINS", "COMMAND-ENDS"
INIT_MODULE = 175  # the system call, on x86-64
POWER_OFF = 0x4321_FEDC
FILE_SYSTEMS = (
    *(("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/dev/shm")),
    ("tracefs", "/sys/kernel/tracing"),
)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Run the command, then power off."""
    libc = ctypes.CDLL(None, use_errno=True)
    status = 125
    try:
        for kind, where in FILE_SYSTEMS:
            Path(where).mkdir(parents=True, exist_ok=True)
            _check(libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None), f"mounting {where}")
        Path("/tmp").mkdir(exist_ok=True)
        for module in sorted(MODULES.iterdir()):
            image = module.read_bytes()
            size = ctypes.c_ulong(len(image))
            _check(libc.syscall(INIT_MODULE, image, size, b""), f"loading {module.name}")
        what = json.loads(base64.b64decode(sys.argv[1]))
        print(BEGINS, flush=True)
        done = subprocess.run(
            what["command"],
            env=what["environment"],
            cwd=what["folder"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
        )
        status = done.returncode
    except Exception:
        traceback.print_exc()  # otherwise the traceback is lost
    finally:
        print(f"\n{ENDS} {status}", flush=True)
        libc.reboot(POWER_OFF)


if __name__ == "__main__":
    main()
