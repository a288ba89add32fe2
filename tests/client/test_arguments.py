"""Every number and every bool among the SDK's arguments: a value of another type is refused, and the argument named."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from irqchip_client import (
    Chip,
    Client,
    InterruptSource,
    InvalidArgument,
    IrqchipError,
    MpState,
    ResetReason,
    Space,
    VcpuEvents,
    Vm,
    _calls,
    ops,
)

# The values of the other arguments.
RIGHT: dict[str, Any] = {
    "args": [],
    "changes": [],
    "chip": Chip.IOAPIC,
    "events": VcpuEvents(),
    "name": "vm",
    "reason": ResetReason.OPERATOR,
    "routes": [],
    "source": InterruptSource.ANY,
    "space": Space.PIO,
    "state": MpState.RUNNABLE,
}
MADE_BY_HAND = {"restore_vm", "region_request", "checked"}


def catalogue() -> dict[str, Callable[..., Any]]:
    calls = {name: getattr(ops, name) for name in ops.__all__ if name != "Call"}
    for name, one in vars(_calls).items():
        if hasattr(one, "__wrapped__") and one.__module__ == _calls.__name__ and name not in MADE_BY_HAND:
            calls[name] = one
    return calls


def arguments_of(kind: str) -> list[tuple[str, str]]:
    return [
        (name, argument)
        for name, call in catalogue().items()
        for argument, one in inspect.signature(call).parameters.items()
        if str(one.annotation).removesuffix(" | None") == kind
    ]


def call_with(name: str, argument: str, value: object) -> None:
    call = catalogue()[name]
    others = {
        each: RIGHT.get(each, 1)
        for each, one in inspect.signature(call).parameters.items()
        if one.default is one.empty and each != argument
    }
    call(**others, **{argument: value})


def test_the_catalogue_has_numbers_and_bools() -> None:
    assert len(arguments_of("int")) > 50
    assert {argument for _, argument in arguments_of("bool")} >= {"level", "virtual_clock", "speaker", "unanswered"}


@pytest.mark.parametrize(("name", "argument"), arguments_of("bool"))
@pytest.mark.parametrize("value", ["yes", 2, -1, 1.5])
def test_a_bool_is_false_or_true(name: str, argument: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as raised:
        call_with(name, argument, value)
    assert raised.value.message == f"{name}: {argument} is {value!r}: write True or False"


@pytest.mark.parametrize(("name", "argument"), arguments_of("bool"))
@pytest.mark.parametrize("value", [False, True, 0, 1])
def test_a_bool_may_be_0_or_1(name: str, argument: str, value: object) -> None:
    call_with(name, argument, value)


@pytest.mark.parametrize(("name", "argument"), arguments_of("int"))
@pytest.mark.parametrize("value", ["4", 4.5, 4.0, -1, 1 << 70])
def test_another_type_is_no_number(name: str, argument: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: {argument} is .*(use|write) "):
        call_with(name, argument, value)


@pytest.mark.parametrize("option", ["virtual_clock", "ephemeral"])
def test_a_vm_that_is_refused_is_not_made(irqchip_client: Client, option: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{option} is 'no': write True or False"):
        irqchip_client.create_vm("vm1", **{option: "no"})  # type: ignore[arg-type]
    assert irqchip_client.vms() == []


def test_a_session_that_is_refused_is_not_opened(vm: Vm) -> None:
    with pytest.raises(IrqchipError, match="resume is 'no': write True or False"):
        vm.session("x", resume="no")  # type: ignore[arg-type]


def test_a_batch_that_is_refused_is_not_sent(vm: Vm) -> None:
    wrong: Any = "no"
    with vm.session("x") as session, pytest.raises(InvalidArgument, match="return_errors is 'no': write True or False"):
        session.run([ops.create_vcpu(5), ops.create_vcpu(6)], return_errors=wrong)
    assert 5 not in vm.info().vcpus


def test_the_levels_of_many_lines() -> None:
    with pytest.raises(
        InvalidArgument, match=r"irq_lines: changes\[1\] is \(4, 'low'\): level is 'low': write True or False"
    ):
        ops.irq_lines([(3, True), (4, "low")])  # type: ignore[list-item]
