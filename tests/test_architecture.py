"""docs/architecture.md is true: its layers, its walks, and the places where an operation is added."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import LAYERS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SERVER = ROOT / "server" / "irqchipd"


def section(title: str) -> str:
    """The text below a heading."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert isinstance(text, str)
    return text


def table(text: str) -> list[list[str]]:
    """The rows of a table below its headings."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def quoted(text: str) -> list[str]:
    """The words in backquotes."""
    return re.findall(r"`([^`]+)`", text)


def test_the_layers_are_those_of_the_import_rules() -> None:
    rows = {quoted(layer)[0]: allowed for layer, _, allowed in table(section("The layers"))}
    assert rows.keys() == LAYERS.keys()
    own = {layer: {name for name in allowed if name.startswith("irqchip")} for layer, allowed in LAYERS.items()}
    said = {layer: set(quoted(allowed)) for layer, allowed in rows.items()}
    said["irqchipd"] = own["irqchipd"]  # the whole server
    said["irqchip_client.cli"] = {name for name in LAYERS if name.startswith("irqchip_client.")} | {
        "irqchip",
        "irqchip_client",
    }
    said["irqchip_client.cli"] -= {f"irqchip_client.{name}" for name in ("cli", "pytest_plugin", "_embedded")}
    assert {layer: names - {layer} for layer, names in own.items()} == said


def test_the_files_it_names_are_there() -> None:
    for name in quoted(PAGE):
        if re.fullmatch(r"(?:chips|vm|edge|observe)/\w+\.py", name):
            assert (SERVER / name).exists(), name


def test_it_names_every_file_that_imports_a_chip() -> None:
    said = {
        name for name in quoted(section("Where to add an architecture")) if re.fullmatch(r"(vm|edge)/\w+\.py", name)
    }
    importing = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if re.fullmatch(r"(vm|edge)/\w+\.py", str(path.relative_to(SERVER))) and "irqchipd.chips" in path.read_text()
    }
    assert said - {"vm/board.py", "vm/cpu.py", "vm/machine.py"} == importing


def in_order(wanted: list[str], found: list[str]) -> list[str]:
    """The wanted entries that are not found in this order."""
    rest = iter(found)
    return [name for name in wanted if name not in rest]


@pytest.fixture(scope="module")
def walks() -> str:
    """The output of tools/walk.py."""
    done = subprocess.run(
        [sys.executable, "tools/walk.py", "--calls"], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    return done.stdout


@pytest.mark.parametrize(
    ("title", "walk"),
    [
        ("An interrupt on its way", "IrqLine to a halted vCPU"),
        ("An access on its way", "region access and answer"),
    ],
)
def test_a_walk_goes_where_it_says(title: str, walk: str, walks: str) -> None:
    (calls,) = re.findall(rf"^{walk}\n((?:    .*\n?)+)", walks, re.MULTILINE)
    functions = [line.split(maxsplit=1)[1] for line in calls.splitlines()]
    steps = re.findall(r"^\d+\. (.*?)(?=^\d+\. |^$|\Z)", section(title), re.DOTALL | re.MULTILINE)
    assert len(steps) == 10
    named = [name for step in steps for name in quoted(step) if not name.endswith(".py") and name != "Access"]
    assert in_order(named, functions) == []


def test_a_walk_is_no_longer_than_it_says(walks: str) -> None:
    counts = re.findall(r"^(?:IrqLine|region|port read).*? +(\d+) +(\d+) +(\d+)$", walks, re.MULTILINE)
    said = [row[1:4] for row in table(section("An access on its way"))]
    assert len(counts) == len(said) == 3
    for counted, promised in zip(counts, said, strict=True):
        assert all(int(count) <= int(most) for count, most in zip(counted, promised, strict=True)), (counted, promised)


# A made-up operation: whether anything drives a GSI high. KVM has no such call.

MESSAGES = """
message GetLevelRequest {
  string vm = 1;
  uint32 gsi = 2;
}

message GetLevelResponse {
  bool level = 1;
}
"""
METHOD = '''
    def level(self, gsi: int) -> bool:
        """Whether a line source drives a GSI high."""
        with self._turn:
            sources = (self._shared_source, *self._sources.values())
            return any(source.asserted >> gsi & 1 for source in sources)
'''
SDK_METHOD = '''
    async def level(self, gsi: int) -> bool:
        """Whether a line source drives a GSI high."""
        return await self._call(ops.get_level(gsi))
'''

# By file: a pattern, and the text to insert behind its match.
Edits = dict[str, list[tuple[str, str]]]
ROWS = r"\nOPERATIONS: .*?for operation in \(\n"

BY_MESSAGE: Edits = {
    "proto/irqchip/v1/line.proto": [("package irqchip.v1;\n", MESSAGES)],
    "proto/irqchip/v1/session.proto": [
        (r"  oneof operation \{\n", "    GetLevelRequest get_level = 99;\n"),
        (r"  oneof result \{\n", "    GetLevelResponse get_level = 99;\n"),
    ],
    "proto/irqchip/v1/irqchip.proto": [
        (r"service IrqchipService \{\n", "  rpc GetLevel(GetLevelRequest) returns (GetLevelResponse);\n")
    ],
    "server/irqchipd/vm/lines.py": [(r'\nclass Lines\(.*?""".*?"""\n', METHOD)],
    "server/irqchipd/edge/operations.py": [(ROWS, '        _of_vm("get_level", Vm.level, ("gsi",), "level"),\n')],
    "client/irqchip_client/ops.py": [
        (
            r"\n\n(?=@_operation\n)",
            "@_operation\n"
            "def get_level(gsi: int) -> Call[bool]:\n"
            '    return Call("get_level", pb.GetLevelRequest(gsi=gsi), lambda response: bool(response.level))\n\n\n',
        )
    ],
    "client/irqchip_client/_asyncio/machine.py": [(r'\nclass Machine:.*?""".*?"""\n', SDK_METHOD)],
}
BY_RECORD: Edits = {
    **BY_MESSAGE,
    "proto/irqchip/records.py": [(r"\nFIELDS: .*?= \{\n", '    "get_level": (None, "gsi", None, None),\n')],
    "server/irqchipd/edge/operations.py": [
        (
            r"\n\n(?=def halt\()",
            "def get_level(on: Caller, _size: int, gsi: int, _address: int, _value: int) -> Result:\n"
            "    return (CLAIMED if on.vm.level(gsi) else 0), 0, 0\n\n\n",
        ),
        (ROWS, '        _with_record(get_level, "level", None, None),\n'),
    ],
    "client/irqchip_client/ops.py": [
        (
            r"\n\n(?=@_operation\n)",
            "@_operation\n"
            "def get_level(gsi: int) -> Call[bool]:\n"
            "    decoder = Decoder[bool](lambda response: response.level, lambda flags, *_: flags == CLAIMED)\n"
            '    return RecordCall("get_level", (0, gsi, 0, 0), decoder)\n\n\n',
        )
    ],
}
# Over gRPC and over the port, alone and in a batch, by the blocking and by the asyncio SDK.
PROGRAM = """
import asyncio
from irqchip_client import aio, connect, ops
from irqchip_client._daemon import start_daemon

async def without_blocking(target):
    async with aio.connect(target) as client:
        return await client.vm("made-up").level(4)

with start_daemon() as daemon, daemon.connect() as client:
    vm = client.create_vm("made-up")
    vm.create_irqchip()
    with vm.session("device") as session:
        session.line(4).raise_()
        print(session.transport, session.level(4), session.run([ops.get_level(4), ops.get_level(5)]))
    print(vm.level(4), asyncio.run(without_blocking(daemon.target)))
    vm.line(4).raise_()
    print(vm.level(4), asyncio.run(without_blocking(daemon.target)))
"""


def copied(to: Path) -> dict[str, bytes]:
    """Copy the project's code; returns the contents by file."""
    for name in ("proto", "server", "client", "tools"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return contents(to)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("edits", [BY_MESSAGE, BY_RECORD], ids=["a message", "a record"])
def test_an_operation_is_added_where_it_says(edits: Edits, tmp_path: Path) -> None:
    steps = re.findall(r"^\d\. .*?(?=^\d\. |^$)", section("Where to add an operation"), re.DOTALL | re.MULTILINE)
    said = {name for step in steps for name in quoted(step) if "/" in name}
    assert said == BY_RECORD.keys()

    before = copied(tmp_path)
    for name, places in edits.items():
        text = (tmp_path / name).read_text()
        for place, edit in places:
            found = re.search(place, text, re.DOTALL)
            assert found, f"{place!r} in {name}"
            text = text[: found.end()] + edit + text[found.end() :]
        (tmp_path / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IRQCHIP")}
    environment["PYTHONPATH"] = os.pathsep.join(str(tmp_path / name) for name in ("proto", "server", "client"))
    environment["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("tools/generate.py")
    run("tools/unasync.py")
    transport, *answers = run("-c", PROGRAM).split()
    assert (transport, " ".join(answers)) == ("port", "True [True, False] False False True True")
    after = contents(tmp_path)
    changed = {name for name in after.keys() | before.keys() if before.get(name) != after.get(name)}
    generated = {name for name in changed if "_pb2" in name or "/_sync/" in name}
    assert changed - generated == edits.keys()
    assert "client/irqchip_client/_sync/machine.py" in generated
