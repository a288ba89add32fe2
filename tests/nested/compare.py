"""A program for the machine of standard_kvm.py: its KVM beside irqchipd, by random operations of all families.

    python -m tests.nested.compare SECONDS SEED

What differs is shown, but for what is the host's (tests/conformance/hosts.py), and the next sequence has its turn.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from random import Random

from tests.conformance.compare import Comparison
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.families import FAMILIES
from tests.conformance.hosts import of_this_host
from tests.conformance.kernel_machine import KernelMachine
from tests.conformance.kvm import Kvm

PROGRESS_SECONDS = 60.0
MAX_SHOWN = 3  # differences of one family


def main() -> int:
    """Compare for a while; 1 if anything differs."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    kvm = Kvm()
    live = Comparison(lambda: KernelMachine(kvm), DaemonMachine, of_this_host())
    operations: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    now = time.monotonic()
    end, next_progress = now + seconds, now
    while now < end:
        for family, generate in FAMILIES.items():
            ops = generate(Random(f"{family} {seed}"))
            difference = live.compare(ops)
            operations[family] += len(difference.ops if difference else ops)
            if difference:
                differences[family] += 1
                if differences[family] <= MAX_SHOWN:
                    *_, op = difference.ops
                    answers = [json.dumps(answer)[:100] for answer in (difference.kernel, difference.daemon)]
                    where = f"{family}, seed {seed}, operation {len(difference.ops) - 1}: {json.dumps(op)[:200]}"
                    print(where, *answers, sep="\n  ", flush=True)
            now = time.monotonic()
            if now >= end:
                break
            if now >= next_progress:
                print(f"{operations.total()} operations so far", flush=True)
                next_progress = now + PROGRESS_SECONDS
        seed += 1
    print(f"Linux {platform.release()}: {operations.total()} operations: {json.dumps(operations)}")
    print(f"answers that differ by what is the host's: {live.hosts}")
    print(f"sequences that differ otherwise: {differences.total()} {json.dumps(differences)}", flush=True)
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
