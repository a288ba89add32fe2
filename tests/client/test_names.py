"""An overlong name is refused before it is sent, and no error repeats it whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import Client, aio

LONG = "a" * 9000
SNAPSHOT = irqchip.VmSnapshot.from_bytes(b"\x08\x01")

CALLS: list[Callable[[Any], Any]] = [
    lambda client: client.create_vm(LONG),
    lambda client: client.restore_vm(SNAPSHOT, LONG),
    lambda client: client.delete_vm(LONG),
    lambda client: client.vm(LONG).info(),
    lambda client: client.vm(LONG).line(4).raise_(),
    lambda client: client.vm(LONG).vcpu(0).halt(),
    lambda client: client.vm(LONG).session(),
    lambda client: client.vm(LONG).watch(),
    lambda client: client.vm("a").session(LONG),
    lambda client: client.vm("a").watch([LONG]),
]


def refuses(error: irqchip.IrqchipError) -> bool:
    return "at most 64 characters" in error.message and "has 9000" in error.message and len(str(error)) < 200


@pytest.mark.parametrize("call", CALLS)
def test_a_long_name_is_refused_before_it_is_sent(call: Callable[[Any], Any]) -> None:
    with (
        irqchip.connect("unix:///tmp/irqchipd-nowhere.sock") as client,
        pytest.raises(irqchip.InvalidArgument) as caught,
    ):
        call(client)
    assert refuses(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_long_name_is_refused_before_it_is_sent_by_asyncio(call: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with aio.connect("unix:///tmp/irqchipd-nowhere.sock") as client:
            with pytest.raises(irqchip.InvalidArgument) as caught:
                await call(client)
            assert refuses(caught.value)

    asyncio.run(main())


def test_the_longest_name_is_accepted(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("a" * 64)
    with vm.session("b" * 64), vm.watch(["kvm_pio"]):
        assert vm.info().sessions[0].client == "b" * 64


@pytest.mark.parametrize("name", ["\udc80", "a\udc80"])
def test_a_name_that_is_invalid_unicode_is_refused(name: str) -> None:
    with irqchip.connect("unix:///tmp/irqchipd-nowhere.sock") as client:
        for call in (client.vm(name).info, client.vm(name).session, client.vm(name).watch):
            with pytest.raises(irqchip.InvalidArgument):
                call()
        with pytest.raises(irqchip.InvalidArgument):
            client.vm("a").watch([name])
