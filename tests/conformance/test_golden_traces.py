"""The golden traces: 282,882 answers of Linux KVM, compared with irqchipd's."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from irqchip_client._daemon import Daemon
from irqchip_client.cli import main

GOLDEN = [Path(__file__).parent / "golden" / f"{name}.jsonl.gz" for name in ("kvm-6.18", "kvm-6.18-pit-x2apic")]
FAMILIES = ("pic", "ioapic", "routing", "snapshot", "lapic", "pit", "x2apic")

Replay = Callable[..., Result]


@pytest.fixture(params=["in-process", "daemon"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """replay(file, ...) runs irqchipctl replay, on the chips alone and against a daemon's process."""
    if request.param == "in-process":
        before, after = [], ["--in-process"]
    else:
        daemon: Daemon = request.getfixturevalue("irqchip_server")
        before, after = ["--target", daemon.target], []

    def replay(*files: Path) -> Result:
        return CliRunner().invoke(main, [*before, "replay", *after, *map(str, files)])

    return replay


def test_every_answer_is_the_kernel_s(replay: Replay) -> None:
    result = replay(*GOLDEN)
    assert result.stdout.splitlines()[-1] == "1900 traces, 282882 operations, 0 mismatches", result.output
    assert result.exit_code == 0


def altered(answer: Any) -> Any:
    """Another answer of the same kind, such as a defect might give."""
    match answer:
        case None:
            return 49
        case int():
            return answer ^ 1
        case str() if answer.startswith("-") or answer == "GP":
            return 0
        case str():
            return f"{int(answer[:2], 16) ^ 1:02x}{answer[2:]}"
        case dict():
            return answer | {"irr": [*answer["irr"], 255]}
        case list():
            return [*answer[:-1], answer[-1] ^ 1]


@pytest.fixture(scope="module")
def first_of_each() -> dict[str, dict[str, Any]]:
    """The first trace of each family."""
    traces: dict[str, dict[str, Any]] = {}
    for path in GOLDEN:
        with gzip.open(path, "rt") as file:
            for line in file:
                trace = json.loads(line)
                traces.setdefault(trace["family"], trace)
    return traces


@pytest.mark.parametrize(
    ("family", "operation"),
    [
        ("pic", "take_extint"),
        ("pic", "pio_write"),
        ("ioapic", "mmio_read"),
        ("ioapic", "ack_lapic"),
        ("routing", "irq_line"),
        ("routing", "set_gsi_routing"),
        ("routing", "signal_msi"),
        ("snapshot", "get_irqchip"),
        ("snapshot", "set_irqchip"),
        ("lapic", "get_lapic"),
        ("pit", "create_pit"),
        ("pit", "get_pit"),
        ("x2apic", "msr_read"),
        ("x2apic", "msr_write"),
    ],
)
def test_a_single_altered_answer_is_reported_exactly(
    replay: Replay, first_of_each: dict[str, dict[str, Any]], tmp_path: Path, family: str, operation: str
) -> None:
    trace = json.loads(json.dumps(first_of_each[family]))
    number = max(at for at, op in enumerate(trace["ops"]) if op[0] == operation)
    *op, actual = trace["ops"][number]
    expected = altered(actual)
    trace["ops"][number][-1] = expected
    others = [other for name, other in first_of_each.items() if name != family]
    file = tmp_path / "altered.jsonl"
    file.write_text("".join(json.dumps(trace) + "\n" for trace in [*others, trace]))

    result = replay(file)

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1:4] == [
        f"family {family}, seed {trace['seed']}, operation {number}: {compact(op)}",
        f"  expected {compact(expected)}",
        f"  actual   {compact(actual)}",
    ]
    operations = sum(len(trace["ops"]) for trace in first_of_each.values())
    assert lines[-1] == f"{len(FAMILIES)} traces, {operations} operations, 1 mismatches"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def test_all_families_are_present(first_of_each: dict[str, dict[str, Any]]) -> None:
    assert tuple(first_of_each) == FAMILIES
