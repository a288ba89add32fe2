"""A program for the machine of standard_kvm.py: compares its KVM with irqchipd, on recorded and random operations.

    python -m tests.nested.compare SECONDS SEED

The host's departures (tests/conformance/hosts.py) are imitated. Any other difference is shown as the fewest
operations that show it, and the comparison goes on with the next sequence.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from random import Random

from tests.conformance.compare import Comparison
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.families import FAMILIES
from tests.conformance.found import FOUND, STANDARD_FOUND
from tests.conformance.hosts import this_host
from tests.conformance.kernel_machine import KernelMachine
from tests.conformance.kvm import Kvm
from tests.conformance.machines import Op

PROGRESS_SECONDS = 60.0
MAX_SHOWN = 3  # differences per family


def sequences(seed: int) -> Iterator[tuple[str, str, Sequence[Op]]]:
    """Families, names and sequences of operations: first the recorded ones, then random ones, seed after seed."""
    for found in (*FOUND, *STANDARD_FOUND):
        yield "found", found.about, found.ops
    for number in count(seed):
        for family, generate in FAMILIES.items():
            yield family, f"seed {number}", generate(Random(f"{family} {number}"))


def main() -> int:
    """Compare for a while; returns 1 if anything differs."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    kvm, host = Kvm(), this_host()
    print(f"Linux {platform.release()} departs, seed {seed}:", *host.departures, sep="\n  ", flush=True)
    live = Comparison(lambda: KernelMachine(kvm), lambda: DaemonMachine(host), host)
    operations: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    now = time.monotonic()
    end, next_progress = now + seconds, now
    for family, what, ops in sequences(seed):
        difference = live.compare(ops)
        operations[family] += len(difference.ops if difference else ops)
        if difference:
            differences[family] += 1
            if differences[family] <= MAX_SHOWN:
                print(f"{family}, {what}:\n{live.minimise(difference)}", flush=True)
        now = time.monotonic()
        if now >= end:
            break
        if now >= next_progress:
            print(f"{operations.total()} operations so far", flush=True)
            next_progress = now + PROGRESS_SECONDS
    print(f"{operations.total()} operations: {json.dumps(operations)}")
    print(f"answers of which something is filtered: {live.filtered}")
    print(f"sequences that differ: {differences.total()} {json.dumps(differences)}", flush=True)
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
