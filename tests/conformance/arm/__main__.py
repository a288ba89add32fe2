"""`make explore-arm`: compares a real KVM/arm64 with irqchipd, on new random programs.

    python -m tests.conformance.arm [--seconds S | --operations N] [--seed N] [--processes N] [--moved] [--family F]...

Every difference is shown as the shortest trace that has it. Exit status: 0 if there is none, or if no such KVM can be
had here, which is said; 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from irqchip_client.replay.in_process import replay
from tests.conformance.arm.explore import Report, run
from tests.conformance.arm.families import FAMILIES
from tests.conformance.arm.machine import ArmKvm
from tests.conformance.arm.moving import replay_moved
from tests.this_machine import MissingError

ROOT = Path(__file__).parents[3]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.arm", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to explore (default: 300)")
    parser.add_argument("--operations", type=int, help="how many operations to compare instead")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed (default: the time)")
    parser.add_argument("--processes", type=int, default=1, help="how many processes compare (default: 1)")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    parser.add_argument("--moved", action="store_true", help="save and restore irqchipd's VMs while they run")
    return parser.parse_args()


def main() -> int:
    """Explore, and print what was compared."""
    arguments = _arguments()
    cache = ROOT / ".pytest_cache" / "d" / "arm64"
    cache.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            kvm = ArmKvm(cache, Path(folder))
        except MissingError as error:
            print(f"skipped: no arm64 KVM can be made here {error}", file=sys.stderr)
            return 0

        def enough(total: Report) -> bool:
            if arguments.operations is not None:
                return total.operations.total() >= int(arguments.operations)
            return time.monotonic() - began >= float(arguments.seconds)

        total = run(
            kvm,
            replay_moved if arguments.moved else replay,
            arguments.family or list(FAMILIES),
            arguments.seed,
            arguments.processes,
            enough,
        )
    print(f"Linux {total.kernel}, seeds from {arguments.seed}, {time.monotonic() - began:.0f} s")
    print(f"{total.traces} traces, {total.operations.total()} operations: {json.dumps(total.operations)}")
    print(f"traces that differ: {total.differences.total()} {json.dumps(total.differences)}", flush=True)
    return bool(total.differences)


if __name__ == "__main__":
    sys.exit(main())
