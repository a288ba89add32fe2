"""The events that a VM's Sessions receive at its reset, over both edges."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import Client, InvalidArgument, RegionAccess, ResetReason, Space, Vm, VmReset, aio, ops
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture(params=["port", "grpc"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "grpc":
        monkeypatch.setenv("IRQCHIP_PORT", "off")


def test_every_session_is_notified_of_a_reset_and_its_reason(vm: Vm) -> None:
    with vm.session("device") as device, vm.session("vcpu", vcpus=[0]) as vcpu:
        vm.reset()
        assert device.next_event(PATIENCE) == vcpu.next_event(PATIENCE) == VmReset(ResetReason.OPERATOR)
        vm.reset(ResetReason.GUEST)
        assert device.next_event(PATIENCE) == VmReset(ResetReason.GUEST)


def test_sessions_of_other_vms_are_not_notified(irqchip_client: Client, vm: Vm) -> None:
    with irqchip_client.create_vm().session() as other:
        vm.reset()
        assert list(other.events(timeout=0.05)) == []


def test_a_session_that_resumed_its_source_is_notified_too(irqchip_client: Client, vm: Vm) -> None:
    with vm.session("disk"):
        saved = vm.snapshot()
    moved = irqchip_client.restore_vm(saved)
    moved.reset()  # while no client is connected
    with moved.session("disk", resume=True) as disk:
        moved.reset(ResetReason.FAULT)
        assert disk.next_event(PATIENCE) == VmReset(ResetReason.FAULT)


def test_an_access_after_the_reset_is_reported_after_it(vm: Vm) -> None:
    with vm.session("device") as device, vm.session("vcpu") as vcpu:
        device.register_region(Space.PIO, 0x300, 1)
        vm.reset()
        read = vcpu.submit([ops.pio_read(0, 0x300)])
        assert device.next_event(PATIENCE) == VmReset(ResetReason.OPERATOR)
        access = device.next_event(PATIENCE)
        assert isinstance(access, RegionAccess)
        device.complete_access(access.access, 1)
        assert read.result(PATIENCE)[0].data == 1


def test_an_asyncio_session_is_notified_too(irqchip_server: Daemon, vm: Vm) -> None:
    async def listen() -> object:
        async with aio.connect(irqchip_server.target) as client, client.vm(vm.name).session() as session:
            await client.vm(vm.name).reset(ResetReason.WATCHDOG)
            return await session.next_event(PATIENCE)

    assert asyncio.run(listen()) == VmReset(ResetReason.WATCHDOG)


def test_an_invalid_reason_resets_nothing(irqchip_server: Daemon, vm: Vm) -> None:
    with vm.session() as session, grpc.insecure_channel(irqchip_server.target.replace("unix://", "unix:")) as channel:
        with pytest.raises(grpc.RpcError, match="reset reason 9 is invalid: 0 to 4"):
            IrqchipServiceStub(channel).ResetVm(pb.ResetVmRequest(vm=vm.name, reason=pb.ResetReason.ValueType(9)))
        assert list(session.events(timeout=0.05)) == []
    with pytest.raises(InvalidArgument):
        vm.reset(9)  # type: ignore[arg-type]


def test_a_reset_is_answered_after_its_many_listeners_have_been_notified(vm: Vm) -> None:
    """There are more listeners than one turn notifies. Each call waits, so that nothing piles up in the daemon."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(vm.session()) for _ in range(280)]
        callers = [threading.Thread(target=vm.reset, args=(reason,)) for reason in list(ResetReason)[:4]]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE)
        vm.reset(ResetReason.WATCHDOG)
        for session in sessions:
            while session.next_event(PATIENCE) != VmReset(ResetReason.WATCHDOG):
                pass
