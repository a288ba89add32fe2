"""An MC146818 real-time clock, at ports 70h and GSI 8. It starts at the host's time, in UTC.

python -m examples.rtc
"""

from __future__ import annotations

from examples.options import parser, short_errors
from irqchip_client.devices import Rtc, run_device


def main() -> None:
    """Run the clock until SIGTERM or SIGINT."""
    arguments = parser(__doc__).parse_args()
    with short_errors():
        run_device(Rtc(), vm=arguments.vm, target=arguments.target)


if __name__ == "__main__":
    main()
