"""The debug exit port of a test machine, f4h: ends with the exit status (value << 1) | 1 that the guest wrote.

python -m examples.debug_exit; echo $?
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from examples.options import parser, short_errors
from irqchip_client import connect
from irqchip_client.devices import DebugExit, run_device


def main() -> None:
    """Run the device until the guest writes, or until SIGTERM or SIGINT."""
    options = parser(__doc__)
    options.add_argument(
        "--delete-vm",
        action="store_true",
        help="delete the VM when the guest exits, which ends all processes of the VM",
    )
    options.add_argument("--status-file", type=Path, metavar="PATH", help="write the status to PATH, and exit with 0")
    arguments = options.parse_args()
    statuses: list[int] = []

    def ended(status: int) -> None:
        statuses.append(status)
        print(f"the guest has ended with status {status}", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    with short_errors():
        run_device(DebugExit(ended), vm=arguments.vm, target=arguments.target)
        if statuses and arguments.delete_vm:
            with connect(arguments.target) as client:
                client.delete_vm(arguments.vm)
        if statuses and arguments.status_file:
            arguments.status_file.write_text(f"{statuses[0]}\n")
        elif statuses:
            sys.exit(statuses[0])


if __name__ == "__main__":
    main()
