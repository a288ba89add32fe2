"""The same benchmarks in an environment where irqchipd is compiled, for a second column."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.measure import Figure, Series
from irqchip.builds import is_compiled

CORE = "irqchipd.vm.machine"


class Build:
    """The figures and series of a build of irqchipd."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.series: dict[str, Series] = {}


def write_measured(figures: Sequence[Figure], series: Mapping[str, Series], path: Path) -> None:
    """Write this process's measurements for another process."""
    content = {
        "compiled": is_compiled(CORE),
        "figures": {figure.name: figure.value for figure in figures},
        "series": {name: times.values for name, times in series.items()},
    }
    path.write_text(json.dumps(content))


def measure_in(python: str, name: str, build: Build) -> None:
    """Measure one thing in another environment. RuntimeError if irqchipd is not compiled there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "measured.json")
        subprocess.run([python, "-m", "bench", "--only", name, "--write", str(path)], check=True)
        measured = json.loads(path.read_text())
    if not measured["compiled"]:
        raise RuntimeError(f"irqchipd is not compiled for {python}: run make compiled, or leave --compiled out")
    build.figures.update(measured["figures"])
    build.series.update({name: Series(values) for name, values in measured["series"].items()})
