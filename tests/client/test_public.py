"""The SDK's public names: they are listed and documented, and alike in both halves."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

import irqchip_client
from irqchip_client import aio, ops
from tests.builds import COMPILED

CLASSES = ["Client", "Halt", "Line", "Machine", "Session", "Vcpu", "Vm", "Watch"]


def members(cls: type) -> dict[str, Any]:
    found = {name: member for name, member in inspect.getmembers(cls) if not name.startswith("_")}
    for special in ("enter", "exit", "iter", "next"):
        for name in (f"__{special}__", f"__a{special}__"):
            if hasattr(cls, name):
                found[f"__{special}__"] = getattr(cls, name)
    return found


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    # Without the annotations, because results differ.
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_every_public_name_is_there_and_is_listed() -> None:
    for name in irqchip_client.__all__:
        assert getattr(irqchip_client, name) is not None
    assert set(dir(irqchip_client)) == set(irqchip_client.__all__)
    assert set(aio.__all__) <= set(irqchip_client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = irqchip_client.nonsense


@pytest.mark.parametrize("name", CLASSES)
def test_sync_and_async_have_the_same_names_and_signatures(name: str) -> None:
    sync, asynchronous = members(getattr(irqchip_client, name)), members(getattr(aio, name))
    if name == "Session":  # The asyncio half uses gRPC, which carries no descriptors.
        eventfds = ("irqfd", "assign_irqfd", "deassign_irqfd", "assign_ioeventfd")
        for member in (*eventfds, "share_lapic", "share_memory", "guest_memory"):
            del sync[member]
    assert sync.keys() == asynchronous.keys()
    for member, function in sync.items():
        if callable(function):
            assert parameters(function) == parameters(asynchronous[member]), member
        else:
            assert isinstance(asynchronous[member], property) == isinstance(function, property)


@pytest.mark.parametrize("name", ["Line", "Machine", "Vcpu"])
def test_sync_and_async_are_documented_alike(name: str) -> None:
    sync, asynchronous = members(getattr(irqchip_client, name)), members(getattr(aio, name))
    assert {key: value.__doc__ for key, value in sync.items()} == {
        key: value.__doc__ for key, value in asynchronous.items()
    }


def test_connect_is_the_same_in_both() -> None:
    assert parameters(irqchip_client.connect) == parameters(aio.connect)


@pytest.mark.parametrize("module", [irqchip_client, aio, ops])
def test_every_public_name_is_documented(module: Any) -> None:
    for name in module.__all__:
        member = getattr(module, name)
        # mypyc keeps no docstring of a class.
        is_compiled = isinstance(member, type) and COMPILED and member.__module__ == "irqchip_client._call"
        assert name in ("Event", "Route", "Wake") or member.__doc__ or is_compiled
        if name in CLASSES:
            for method, function in members(member).items():
                assert method.startswith("__") or function.__doc__, f"{name}.{method}"


@pytest.mark.parametrize("name", ["Access", "Advance", "MsrAccess", "VmInfo"])
def test_help_explains_every_field(name: str) -> None:
    cls = getattr(irqchip_client, name)
    assert [line.split()[0] for line in str(inspect.getdoc(cls)).splitlines()[2:]] == [
        *inspect.signature(cls).parameters
    ]


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e12, "1", None])
def test_an_invalid_timeout_is_refused(timeout: Any) -> None:
    for connect in (irqchip_client.connect, aio.connect):
        with pytest.raises(irqchip_client.InvalidArgument, match="use a number of seconds from 0 to 1,000,000,000"):
            connect("unix:///run/irqchipd.sock", timeout=timeout)


def test_help_shows_the_tree_of_errors() -> None:
    drawn = str(irqchip_client.IrqchipError.__doc__)
    for error in irqchip_client.IrqchipError.__subclasses__():
        assert f"── {error.__name__} " in drawn
    assert "help(irqchip_client.IrqchipError)" in str(irqchip_client.__doc__)


def test_the_pytest_plugin_does_not_import_grpc() -> None:
    program = (
        "import sys, irqchip_client.pytest_plugin; print([m for m in ('grpc', 'google.protobuf') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
