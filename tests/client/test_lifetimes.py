"""VMs that are deleted automatically: at the end of a `with`, with their Client, and with its process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from irqchip_client import AlreadyExists, Client, InvalidArgument, NotFound, SessionClosed, Vm, aio, connect
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

PORT = pytest.mark.parametrize("port", ["", "off"], ids=["port", "gRPC"])


def gone(client: Client, patience: float = 10.0) -> bool:
    """Whether no VM is left within the time."""
    deadline = time.monotonic() + patience
    while client.vms():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_vm_is_deleted_at_the_end_of_its_with(irqchip_client: Client) -> None:
    with irqchip_client.create_vm("brief") as vm:
        assert irqchip_client.vm("brief").info().name == vm.name
    assert irqchip_client.vms() == []
    with irqchip_client.create_vm() as vm:
        vm.delete()


def test_the_end_of_a_with_hides_no_error(irqchip_client: Client) -> None:
    def leave() -> None:
        with irqchip_client.create_vm():
            raise RuntimeError("why")

    with pytest.raises(RuntimeError, match="why"):
        leave()
    assert irqchip_client.vms() == []


@PORT
def test_an_ephemeral_vm_ends_with_its_client(
    irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", port)
    with irqchip_server.connect() as client:
        vm = client.create_vm("brief", virtual_clock=True, tsc_khz=2_000_000, ephemeral=True)
        vm.create_irqchip()
        info = irqchip_client.vm("brief").info()
        assert (info.irqchip, info.virtual, info.tsc_khz) == (True, True, 2_000_000)
        assert [session.client for session in info.sessions] == ["owner"]
        other = irqchip_client.vm("brief").session("uart")
    assert gone(irqchip_client)
    with pytest.raises(SessionClosed, match="deleted"):
        other.next_event(PATIENCE)


@pytest.mark.only_daemon
@PORT
def test_an_ephemeral_vm_ends_with_its_process(irqchip_server: Daemon, irqchip_client: Client, port: str) -> None:
    program = (
        "import sys, time\nfrom irqchip_client import connect\nclient = connect(sys.argv[1])\n"
        "print(client.create_vm(ephemeral=True).name, flush=True)\ntime.sleep(60)"
    )
    command = ["env", f"IRQCHIP_PORT={port}", sys.executable, "-c", program, irqchip_server.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == irqchip_client.vms()[0].name
        process.kill()
    assert gone(irqchip_client)


def test_an_ephemeral_vm_that_is_deleted_is_not_deleted_twice(irqchip_server: Daemon, irqchip_client: Client) -> None:
    with irqchip_server.connect() as client:
        client.create_vm("name", ephemeral=True)
        irqchip_client.delete_vm("name")
        irqchip_client.create_vm("name")
    time.sleep(0.1)
    assert irqchip_client.vm("name").info().name == "name"


def test_a_with_ends_an_ephemeral_vm(irqchip_client: Client) -> None:
    with irqchip_client.create_vm(ephemeral=True) as vm:
        assert vm.info().sessions
    assert irqchip_client.vms() == []
    with irqchip_client.create_vm(vm.name, ephemeral=True) as again:
        assert again.name == vm.name


@PORT
def test_a_refused_ephemeral_vm_raises_the_usual_error(
    irqchip_client: Client, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", port)
    irqchip_client.create_vm("there")
    with pytest.raises(AlreadyExists, match="there is a VM 'there' already"):
        irqchip_client.create_vm("there", ephemeral=True)
    with pytest.raises(InvalidArgument, match="'a b' is no VM name"):
        irqchip_client.create_vm("a b", ephemeral=True)
    assert [vm.name for vm in irqchip_client.vms()] == ["there"]


def test_on_asyncio(irqchip_server: Daemon, irqchip_client: Client) -> None:
    async def use() -> None:
        async with aio.connect(irqchip_server.target) as client:
            async with await client.create_vm() as vm:
                assert (await vm.info()).sessions == ()
            async with await client.create_vm(ephemeral=True) as vm:
                assert len((await vm.info()).sessions) == 1
            assert await client.vms() == []
            await client.create_vm(ephemeral=True)

    asyncio.run(use())
    assert gone(irqchip_client)


@pytest.mark.parametrize(
    ("of", "shown"),
    [
        (lambda client, _: client, "<Client of {target}>"),
        (lambda _, vm: vm, "<Vm 'vm1' of {target}>"),
        (lambda _, vm: vm.vcpu(1), "<Vcpu 1 of <Vm 'vm1' of {target}>>"),
        (lambda _, vm: vm.line(4), "<Line of GSI 4 of <Vm 'vm1' of {target}>>"),
        (lambda _, vm: vm.session("uart"), "<Session 'uart' on VM 'vm1' of {target}, source 1>"),
    ],
    ids=["Client", "Vm", "Vcpu", "Line", "Session"],
)
def test_a_repr_says_what_it_is(
    irqchip_server: Daemon, irqchip_client: Client, of: Callable[[Client, Vm], object], shown: str
) -> None:
    with irqchip_client.create_vm("vm1") as vm:
        assert repr(of(irqchip_client, vm)) == shown.format(target=irqchip_server.target)


def test_a_repr_says_what_has_ended(irqchip_server: Daemon) -> None:
    client = connect(irqchip_server.target)
    with client.create_vm("vm1") as vm, vm.session() as session:
        session.close()
        assert repr(session) == f"<Session '' on VM 'vm1' of {irqchip_server.target}, ended>"
    client.close()
    assert repr(client) == f"<Client of {irqchip_server.target}, closed>"
    with pytest.raises(NotFound), irqchip_server.connect() as other:
        other.vm("vm1").info()
