"""`make explore-standard`: compares the standard KVM with irqchipd, as compare.py describes.

python -m tests.nested [SECONDS [SEED]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.nested.standard_kvm import StandardKvm, standard_kernel
from tests.this_machine import MissingError

START_SECONDS = 600.0


def main() -> int:
    """Run the comparison, and show its output as it comes."""
    seconds, seed = (*sys.argv[1:], *("300", str(int(time.time())))[len(sys.argv) - 1 :])
    cache = Path(__file__).parents[2] / ".pytest_cache" / "d" / "nested"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kvm = StandardKvm(Path(folder), standard_kernel(cache))
            done = kvm.run(
                *("-m", "tests.nested.compare", seconds, seed),
                seconds=float(seconds) + START_SECONDS,
                own_clock=False,
                heard=lambda line: print(line, flush=True),
            )
        except MissingError as error:
            print(f"no standard KVM can be made here {error}", file=sys.stderr)
            return 2
    return done.status


if __name__ == "__main__":
    sys.exit(main())
