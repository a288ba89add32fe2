"""The results, as a table for people and as files for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from bench.builds import Build
from bench.measure import Figure, Series

OUT = Path(__file__).parent / "out"


def machine() -> dict[str, object]:
    """The machine that ran the benchmarks."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
    }


def print_report(figures: Sequence[Figure], series: Mapping[str, Series], compiled: Build | None) -> None:
    """Print the figures and the times, a table each, and those of the compiled build beside them."""
    console = Console(width=170)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    table = Table("figure", "goal", "value", "met", *(["compiled", "met"] if compiled else []))
    for figure in figures:
        row = [figure.name, f"{'>=' if figure.at_least else '<='} {figure.goal:,g}", *_value(figure, figure.value)]
        table.add_row(*row, *(_value(figure, compiled.figures.get(figure.name)) if compiled else []))
    console.print(table)
    table = Table("measured", "median, us", "p99, us", *(["compiled: median", "p99"] if compiled else []))
    for name, times in series.items():
        table.add_row(name, *_times(times), *(_times(compiled.series.get(name)) if compiled else []))
    console.print(table)


def _value(figure: Figure, value: float | None) -> list[str]:
    return ["", ""] if value is None else [f"{value:,.4g}", "yes" if figure.is_met_by(value) else "NO"]


def _times(times: Series | None) -> list[str]:
    return ["", ""] if times is None else [f"{times.median:,.2f}", f"{times.p99:,.2f}"]


def write_report(figures: Sequence[Figure], series: Mapping[str, Series], compiled: Build | None) -> None:
    """Write latest.json."""
    OUT.mkdir(exist_ok=True)
    other = compiled or Build()
    content = {
        "machine": machine(),
        "figures": [
            {
                "name": figure.name,
                "value": figure.value,
                "compiled": other.figures.get(figure.name),
                "unit": figure.unit,
                "goal": figure.goal,
                "met": figure.is_met_by(other.figures.get(figure.name, figure.value)),
            }
            for figure in figures
        ],
        "series": [
            {
                "name": name,
                "build": build,
                "median_us": times.median,
                "p99_us": times.p99,
                "count": len(times.values),
            }
            for build, measured in (("pure", series), ("compiled", other.series))
            for name, times in measured.items()
        ],
    }
    (OUT / "latest.json").write_text(json.dumps(content, indent=1) + "\n")


def write_plot(series: Mapping[str, Series]) -> None:
    """Write latest.svg: medians and p99s on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(series)[::-1]
    medians = [series[name].median for name in names]
    tails = [max(series[name].p99 - series[name].median, 0) for name in names]
    figure, axes = pyplot.subplots(figsize=(11, 0.3 * len(names) + 1.5))
    axes.barh(names, medians, xerr=[[0] * len(names), tails], color="#4878a8", ecolor="#888888", capsize=2)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds: median, and to p99")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(OUT / "latest.svg")
