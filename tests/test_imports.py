"""One table says which layer may import which. No module of the server imports itself through others."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STDLIB = "the standard library"
# The standard modules that chips may not import: chips do no I/O and no logging, and time is passed to them.
IMPURE = {"asyncio", "datetime", "logging", "os", "random", "select", "socket", "subprocess", "threading", "time"}
GRPC = {"google", "grpc", "grpc_health", "grpc_reflection", "grpc_status"}
VM = {"irqchipd.chips", "irqchipd.observe", "irqchipd.vm"}
SDK = {"irqchip_client", "irqchip", "google", "grpc", "grpc_status"}

# A layer is a package, or a module outside any layer's package; the longest matching name counts. A layer may always
# import itself and the standard library.
LAYERS: Mapping[str, set[str]] = {
    # The server, from the bottom.
    "irqchipd.chips": set(),
    "irqchipd.observe": {"mypy_extensions"},
    "irqchipd.fields": set(),
    "irqchipd.fair": set(),
    "irqchipd.vm": {*VM, "irqchipd.fields"},
    "irqchipd.timers": {"irqchipd.fair", "irqchipd.observe", "irqchipd.vm"},
    "irqchipd.limits": {"irqchip", "irqchipd.vm"},
    "irqchipd.listen": {"irqchip"},
    "irqchipd.http": set(),
    "irqchipd.logs": {"grpc", "irqchipd.fields"},
    "irqchipd.stopping": {"irqchipd.logs"},
    "irqchipd.edge": {*VM, *GRPC, "irqchip", "irqchipd.fair", "irqchipd.fields", "irqchipd.limits", "irqchipd.listen"},
    "irqchipd.page": {*VM, "irqchipd.http", "irqchipd.limits", "irqchipd.listen"},
    "irqchipd.metrics": {
        *VM,
        "irqchip",
        "irqchipd.edge",
        "irqchipd.http",
        "irqchipd.limits",
        "irqchipd.listen",
        "irqchipd.timers",
        "prometheus_client",
    },
    "irqchipd": {*GRPC, "click", "irqchip"},  # the daemon and its start, which import all of the server
    # The client. The modules outside the packages below are the SDK.
    "irqchip_client": {*SDK, "irqchip_client._embedded"},
    "irqchip_client._embedded": {*SDK, *VM, "irqchipd", "irqchipd.edge", "irqchipd.listen"},
    "irqchip_client.pytest_plugin": {*SDK, "pytest"},
    "irqchip_client.devices": SDK,
    "irqchip_client.vmm": {*SDK, "irqchip_client.devices"},
    "irqchip_client.kvm": {*SDK, "irqchip_client.vmm"},
    "irqchip_client.unicorn": {*SDK, "irqchip_client.vmm", "unicorn"},
    "irqchip_client.replay": {*SDK, *VM},
    "irqchip_client.waves": {*SDK, "vcd"},
    "irqchip_client.cli": {
        *SDK,
        "click",
        "rich",
        "irqchip_client.devices",
        "irqchip_client.kvm",
        "irqchip_client.replay",
        "irqchip_client.unicorn",
        "irqchip_client.vmm",
        "irqchip_client.waves",
        "vcd",
    },
}


# These parts of a VM know nothing of chips, so that any architecture's board can stand on them.
OF_AN_ARCHITECTURE = ("irqchipd.chips.", "irqchipd.vm.x86.", "irqchipd.vm.arm64.", "irqchipd.vm.s390.")
WITHOUT_CHIPS = (
    *("accesses", "agenda", "backlog", "board", "bus", "clock", "cpu", "errors", "events", "lines", "notices"),
    *("pending", "regions", "routing", "sources", "turns", "vcpu_state", "vcpus"),
)


def modules(package: str, folder: Path) -> dict[str, Path]:
    """The modules of a package by their full names."""
    found = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SERVER = modules("irqchipd", ROOT / "server")
MODULES = SERVER | modules("irqchip_client", ROOT / "client")


def imports(module: str, source: str, *, package: bool = False) -> Iterator[str]:
    """The full names of the modules that a module imports, wherever in it: for the type checker, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if package and node.level == 1 else package - node.level]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def imports_of(module: str) -> Iterator[str]:
    path = MODULES[module]
    return imports(module, path.read_text(), package=path.name == "__init__.py")


def layer_of(module: str) -> str:
    """The layer of a module, or the library that it belongs to."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names:
        return STDLIB
    while ".".join(parts) not in LAYERS and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def refused(module: str, imported: str) -> bool:
    """Whether a module may not import another."""
    layer, other = layer_of(module), layer_of(imported)
    if layer == "irqchipd.chips" and imported.partition(".")[0] in IMPURE:
        return True
    if layer == "irqchipd" and other.startswith("irqchipd."):
        return False
    return other not in (STDLIB, layer) and other not in LAYERS[layer]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_layer_may(module: str) -> None:
    assert [imported for imported in imports_of(module) if refused(module, imported)] == []


def test_every_layer_is_there() -> None:
    assert {layer_of(module) for module in MODULES} == set(LAYERS)
    assert {"irqchipd.chips.i8259", "irqchipd.vm.board", "irqchipd.edge.port", "irqchip_client.cli.run"} <= set(MODULES)


def in_server(module: str) -> set[str]:
    """The server's modules that a module imports."""
    return {imported for imported in imports_of(module) if imported in SERVER and imported != module}


@pytest.mark.parametrize("name", WITHOUT_CHIPS)
def test_the_modules_beneath_the_board_do_not_import_chips(name: str) -> None:
    reached, new = set[str](), {f"irqchipd.vm.{name}"}
    while new:
        reached |= new
        new = {imported for module in new for imported in in_server(module)} - reached
    assert [module for module in reached if module.startswith(OF_AN_ARCHITECTURE)] == []


def test_the_server_has_no_import_circles() -> None:
    graph = {module: in_server(module) for module in SERVER}
    # The port creates its connections, and they call it back. This is the one circle, for the type checker alone.
    graph["irqchipd.edge.connection"].discard("irqchipd.edge.port")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("irqchipd.chips.lapic", "import google.protobuf"),
        ("irqchipd.chips.lapic", "from irqchipd.vm import board"),
        ("irqchipd.chips.lapic", "def f():\n    import time"),
        ("irqchipd.chips.lapic", "import logging"),
        ("irqchipd.vm.board", "from irqchipd.edge.session import Session"),
        ("irqchipd.vm.board", "if TYPE_CHECKING:\n    from irqchipd.timers import Timers"),
        ("irqchipd.vm.board", "from irqchip.v1 import irqchip_pb2"),
        ("irqchipd.edge.port", "from irqchipd import daemon"),
        ("irqchip_client._sync.port", "from irqchipd.vm.machine import Vm"),
        ("irqchip_client.vmm.run", "from irqchip_client.kvm import KvmVm"),
        ("irqchip_client.devices.uart", "from ..cli import output"),
    ],
)
def test_the_check_sees_what_it_forbids(module: str, line: str) -> None:
    assert any(refused(module, imported) for imported in imports(module, line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("irqchipd.chips.lapic", "from . import message\nfrom .message import Message\nimport struct"),
        ("irqchipd.vm.board", "from irqchipd.chips import i8259, ioapic"),
        ("irqchipd.daemon", "from irqchipd.edge.port import Port"),
        ("irqchip_client.devices.uart", "from .._sync.session import Session\nfrom .device import Device"),
    ],
)
def test_the_check_allows_what_it_does_not_forbid(module: str, line: str) -> None:
    assert not any(refused(module, imported) for imported in imports(module, line))
