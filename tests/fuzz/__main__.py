"""`make fuzz`: a million messages over both edges and rings; the exit status is 1 if something is found."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz.campaign import run


def main() -> int:
    """Fuzz, and report the findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="the same seed makes the same messages")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"{arguments.messages:,} messages, --seed {seed}", flush=True)
    begun = time.monotonic()
    outcome = run(seed, arguments.messages, lambda line: print(line, flush=True))
    minutes = (time.monotonic() - begun) / 60
    print(f"outcomes: {', '.join(f'{count:,} {name}' for name, count in outcome.report.outcomes.most_common(16))}")
    for example in outcome.report.examples:
        print(f"for example: {example}")
    for finding in outcome.findings:
        print(f"FOUND {finding}")
    print(f"{outcome.report.sent:,} messages in {minutes:.1f} minutes, --seed {seed}: {len(outcome.findings)} findings")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
