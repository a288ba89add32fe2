"""The result of each attack beside its goals: a table for people, stall.json for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from bench.attacks import Attack
from bench.report import OUT, machine
from bench.victims import KINDS, Samples

# The goals.
WORST_MS = {"port": 50.0, "grpc": 200.0, "new": 200.0, "halt": 50.0, "tick": 50.0}
HELD_SECONDS = 2.5  # a vCPU's wait for a region whose owner has 2 s to answer
STOP_SECONDS = 2.0
GROWTH_MIB = 64.0  # for the attacks of row 2


@dataclass
class Result:
    """The result of one attack."""

    attack: Attack
    quiet: dict[str, Samples] = field(default_factory=dict)
    attacked: dict[str, Samples] = field(default_factory=dict)
    growth_mib: float = 0.0
    held: float | None = None
    stop_seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """The goals this attack missed."""
        missed = [kind for kind, most in WORST_MS.items() if self.attacked and self.attacked[kind].worst > most]
        missed += [f"{kind} failed" for kind, samples in self.attacked.items() if samples.failures]
        if self.attack.row == 2 and self.growth_mib > GROWTH_MIB:
            missed.append("memory")
        if self.held is not None and self.held > HELD_SECONDS:
            missed.append("held")
        if self.stop_seconds > STOP_SECONDS:
            missed.append("SIGTERM")
        return missed + self.trouble


def print_report(results: Sequence[Result]) -> None:
    """Print a table: per victim the p99 and worst time in milliseconds, undisturbed and, a line below, attacked."""
    console = Console(width=170)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    table = Table(
        "row",
        "attack",
        *(f"{kind}, ms: p99, worst" for kind in KINDS),
        "memory, MiB",
        "held, s",
        "stop, s",
        "missed",
    )
    for result in results:
        table.add_section()
        cells = [_cell(result.quiet.get(kind), result.attacked.get(kind)) for kind in KINDS]
        held = "" if result.held is None else f"{result.held:.1f}"
        numbers = (f"+{result.growth_mib:.0f}", held, f"{result.stop_seconds:.1f}")
        table.add_row(str(result.attack.row), result.attack.name, *cells, *numbers, ", ".join(result.missed))
    goals = [f"<= {WORST_MS[kind]:g} ms" for kind in KINDS]
    table.add_row("", "goal", *goals, f"row 2: <= +{GROWTH_MIB:g}", f"<= {HELD_SECONDS:g}", f"<= {STOP_SECONDS:g}", "")
    console.print(table)
    for result in results:
        for kind, samples in result.attacked.items():
            for failure in sorted(set(samples.failures))[:3]:
                console.print(f"{result.attack.name}: {kind}: {samples.failures.count(failure)} x {failure}")


def _cell(quiet: Samples | None, attacked: Samples | None) -> str:
    if quiet is None or attacked is None:
        return "-"
    return f"{quiet.p99:.1f}, {quiet.worst:.1f}\n{attacked.p99:,.1f}, {attacked.worst:,.1f}"


def write_report(results: Sequence[Result]) -> None:
    """Write stall.json."""
    OUT.mkdir(exist_ok=True)
    content = {
        "machine": machine(),
        "goals": {"worst_ms": WORST_MS, "held_s": HELD_SECONDS, "stop_s": STOP_SECONDS, "growth_mib": GROWTH_MIB},
        "attacks": [
            {
                "row": result.attack.row,
                "name": result.attack.name,
                "missed": result.missed,
                "growth_mib": result.growth_mib,
                "held_s": result.held,
                "stop_s": result.stop_seconds,
                "quiet": {kind: _figures(samples) for kind, samples in result.quiet.items()},
                "attacked": {kind: _figures(samples) for kind, samples in result.attacked.items()},
            }
            for result in results
        ],
    }
    (OUT / "stall.json").write_text(json.dumps(content, indent=1) + "\n")


def _figures(samples: Samples) -> dict[str, object]:
    return {
        "p99_ms": samples.p99,
        "worst_ms": samples.worst,
        "count": len(samples.late_ms),
        "failures": len(samples.failures),
    }
