"""An i8042 with a keyboard and a mouse, at ports 60h and 64h, GSIs 1 and 12. It types the characters of a terminal.

python -m examples.keyboard                          # from this terminal; Ctrl-] leaves
python -m examples.keyboard --listen /tmp/keyboard   # from a client of the socket: echo help | socat - /tmp/keyboard
"""

from __future__ import annotations

import os
import signal

from examples.options import parser, short_errors
from irqchip_client.devices import I8042, run_device
from irqchip_client.devices.listen import listen
from irqchip_client.devices.terminal import terminal_input


def main() -> None:
    """Run the keyboard until SIGTERM, SIGINT or Ctrl-]."""
    options = parser(__doc__)
    options.add_argument("--listen", metavar="PATH", help="listen on a unix socket")
    options.add_argument(
        "--interval", type=float, default=0.01, metavar="SECONDS", help="the pause between characters (0.01)"
    )
    arguments = options.parse_args()
    with short_errors():
        if arguments.listen:
            i8042 = I8042(input_fd=listen(arguments.listen), interval=arguments.interval)
            run_device(i8042, vm=arguments.vm, target=arguments.target)
            return
        with terminal_input(escaped=lambda: os.kill(os.getpid(), signal.SIGINT)) as typed:
            i8042 = I8042(input_fd=typed, interval=arguments.interval)
            run_device(i8042, vm=arguments.vm, target=arguments.target)


if __name__ == "__main__":
    main()
