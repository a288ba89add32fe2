"""Chips are silicon: they import the standard library and each other, and nothing that does I/O or tells the time."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import irqchipd.chips

SOURCES = sorted(Path(irqchipd.chips.__path__[0]).rglob("*.py"))
FORBIDDEN = {"asyncio", "datetime", "logging", "os", "random", "select", "socket", "subprocess", "threading", "time"}


def imports(source: str) -> Iterator[str]:
    """The full names of the modules that a source file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def allowed(module: str) -> bool:
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return package not in FORBIDDEN
    return module == "irqchipd.chips" or module.startswith("irqchipd.chips.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_chip_imports_the_standard_library_and_chips_only(path: Path) -> None:
    assert [module for module in imports(path.read_text()) if not allowed(module)] == []


def test_there_are_chips_to_look_at() -> None:
    assert {"i8259.py", "ioapic.py", "lapic.py", "message.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize(
    "line",
    [
        "import google.protobuf",
        "from irqchipd.vm import board",
        "from . import lapic",
        "def f():\n    import time",
        "import logging",
        "from irqchipd import chips_of_others",
    ],
)
def test_the_check_sees_what_it_forbids(line: str) -> None:
    assert not all(allowed(module) for module in imports(line))
