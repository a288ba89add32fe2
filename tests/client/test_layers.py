"""What the SDK's packages import: each those beneath it alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import irqchip_client

ROOT = Path(irqchip_client.__path__[0])
# From the lowest: a package imports those before it. Modules of the SDK itself stand first, as "".
LAYERS = ("", "devices", "vmm", "kvm", "unicorn", "replay", "cli")
BESIDE = {("kvm", "unicorn"), ("unicorn", "kvm")}  # neither knows the other
PACKAGES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def package_of(parts: tuple[str, ...]) -> str:
    return parts[0] if parts and parts[0] in LAYERS else ""


def imported(path: Path) -> Iterator[str]:
    """The packages of the SDK that a module imports, wherever in it."""
    here = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            parts = (*here[: len(here) - node.level + 1], *module)
        elif module[:1] == ("irqchip_client",):
            parts = module[1:]
        else:
            continue
        for alias in node.names:
            yield package_of((*parts, alias.name))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_what_is_beneath_it(path: Path) -> None:
    package = package_of(path.relative_to(ROOT).parts)
    beneath = LAYERS[: LAYERS.index(package) + 1]
    wrong = [other for other in imported(path) if other not in beneath or (package, other) in BESIDE]
    assert wrong == []


def test_the_modules_of_the_sdk_itself_import_no_package_above() -> None:
    for path in ROOT.glob("*.py"):
        assert set(imported(path)) <= {""}, path


def test_every_package_has_its_layer() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages - {"_sync", "_asyncio"} == set(LAYERS) - {""}
