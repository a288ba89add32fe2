"""A 16550A serial port, at ports 3f8h and GSI 4. It is connected to this terminal, or to a unix socket.

python -m examples.serial                        # the terminal; Ctrl-] leaves
python -m examples.serial --listen /tmp/serial   # for socat or a script, one client at a time
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from examples.options import parser, short_errors
from irqchip_client.devices import Uart, run_device
from irqchip_client.devices.listen import listen
from irqchip_client.devices.terminal import terminal_input
from irqchip_client.vmm.arm64 import SERIAL, SERIAL_LINE


def main() -> None:
    """Run the serial port until SIGTERM, SIGINT or Ctrl-]."""
    options = parser(__doc__)
    options.add_argument(
        "--listen",
        metavar="PATH",
        help="listen on a unix socket, and keep up to 64 KiB of output while no client is connected",
    )
    options.add_argument("--paced", action="store_true", help="send and receive at the guest's baud rate")
    options.add_argument("--arm64", action="store_true", help="at 9000000h and SPI 1, for an arm64 guest")
    arguments = options.parse_args()
    place: dict[str, Any] = (
        {"base": SERIAL, "gsi": SERIAL_LINE, "mmio": True, "out2_gates": False} if arguments.arm64 else {}
    )
    with short_errors():
        if arguments.listen:
            descriptor = listen(arguments.listen)
            uart = Uart(output=descriptor, input_fd=descriptor, paced=arguments.paced, **place)
            run_device(uart, vm=arguments.vm, target=arguments.target)
            return
        with terminal_input(escaped=lambda: os.kill(os.getpid(), signal.SIGINT)) as typed:
            uart = Uart(output=sys.stdout.fileno(), input_fd=typed, paced=arguments.paced, **place)
            run_device(uart, vm=arguments.vm, target=arguments.target)


if __name__ == "__main__":
    main()
