"""A periodic timer: an edge on GSI 0, over and over."""

from __future__ import annotations

import time

from examples.demo import TIMER_GSI
from examples.demo.options import connect, open_session, parser, say, stop_on_sigterm


def main() -> None:
    """Tick until told to stop."""
    options = parser(__doc__)
    options.add_argument("--hz", type=float, default=20.0, help="ticks a second")
    arguments = options.parse_args()
    stop_on_sigterm()
    ticks = coalesced = 0
    with connect(arguments.target) as client, open_session(client, "timer") as session:
        line = session.line(TIMER_GSI)
        say(f"line source {session.source}, GSI {TIMER_GSI}, edge, {arguments.hz:g} Hz")
        due = time.monotonic()
        try:
            while True:
                status = line.pulse()
                ticks += 1
                coalesced += status == 0
                due += 1 / arguments.hz
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            say(f"{ticks} ticks, {coalesced} of them coalesced with one the vCPU had not taken yet")


if __name__ == "__main__":
    main()
