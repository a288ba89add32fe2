"""The golden traces of arm64: 71,295 answers of Linux KVM/arm64, compared with irqchipd's."""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result

from irqchip_client._daemon import Daemon
from irqchip_client.cli import main
from irqchip_client.replay.arm64 import OPERATIONS
from irqchip_client.replay.traces import Trace, load_traces
from tests.conformance.arm.moving import replay_moved

GOLDEN = Path(__file__).parent / "golden" / "kvm-arm64-6.12.jsonl.gz"

Replay = Callable[[Path], Result]


@pytest.fixture(params=["in-process", "daemon"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """replay(file) runs irqchipctl replay, on the chips alone and against a daemon's process."""
    if request.param == "in-process":
        return lambda file: CliRunner().invoke(main, ["replay", "--in-process", str(file)])
    daemon: Daemon = request.getfixturevalue("irqchip_server")
    return lambda file: CliRunner().invoke(main, ["--target", daemon.target, "replay", str(file)])


def test_every_answer_is_the_kernels(replay: Replay) -> None:
    result = replay(GOLDEN)
    assert result.stdout.splitlines()[-1] == "834 traces, 71295 operations, 0 mismatches", result.output
    assert result.exit_code == 0


def altered(answer: Any) -> Any:
    """Another answer of the same kind, such as a defect might give."""
    match answer:
        case None:
            return "mmio exit"
        case int():
            return answer ^ 1
        case str():
            return 0
        case [*others, [group, first, step, [*values, last]]]:
            return [*others, [group, first, step, [*values, last ^ 1]]]


@pytest.fixture(scope="module")
def last_of_each() -> dict[str, dict[str, Any]]:
    """For each operation, the last trace that has it."""
    traces: dict[str, dict[str, Any]] = {}
    with gzip.open(GOLDEN, "rt") as file:
        for line in file:
            trace = json.loads(line)
            traces |= dict.fromkeys((op[0] for op in trace["ops"]), trace)
    return traces


def test_a_single_altered_answer_is_reported(
    replay: Replay, last_of_each: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Of every operation, in a trace of its own."""
    assert last_of_each.keys() == OPERATIONS.keys()
    file = tmp_path / "altered.jsonl"
    reported: list[str] = []
    with file.open("w") as lines:
        for name, found in last_of_each.items():
            trace = json.loads(json.dumps(found))
            number = max(at for at, op in enumerate(trace["ops"]) if op[0] == name)
            trace["ops"][number][-1] = altered(trace["ops"][number][-1])
            trace["seed"] = len(reported)
            lines.write(json.dumps(trace) + "\n")
            reported.append(f"family {trace['family']}, seed {trace['seed']}, operation {number}: ")

    result = replay(file)

    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].endswith(f" {len(reported)} mismatches"), result.output
    shown = [line for line in result.stdout.splitlines() if line.startswith("family v")]
    assert len(shown) == 20  # it shows no more
    assert all(any(line.startswith(one) for one in reported) for line in shown)


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return load_traces(GOLDEN)


def test_a_vm_that_is_moved_anywhere_answers_as_the_kernel(traces: list[Trace]) -> None:
    seed = secrets.randbits(32)
    for trace in Random(seed).sample(traces, 50):
        assert replay_moved(trace, seed) == [], f"seed {seed}: {trace.family} {trace.seed}"
