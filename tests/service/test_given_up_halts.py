"""An interrupt that a halt took for a client that is gone is delivered next: the edge, tested without a network."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.grpc_service import GrpcService
from irqchipd.edge.session import Session
from irqchipd.limits import Limits
from irqchipd.vm.registry import Registry
from irqchipd.vm.turns import finish
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.machine import X86Vm

ENABLED = 0x1FF  # written to the spurious-interrupt vector register


@pytest.fixture
def registry() -> Registry:
    """A registry with one VM that has two running vCPUs."""
    registry = Registry(1)
    vm = registry.create("vm")
    vm.create_irqchip()
    for number in range(2):
        vm.create_vcpu(number)
        vm.set_mp_state(number, MpState.RUNNABLE)
        vm.mmio_write(number, 0xFEE0_00F0, 4, ENABLED)
    return registry


@pytest.fixture
def vm(registry: Registry) -> X86Vm:
    """The registry's VM."""
    vm = registry.get("vm")
    assert isinstance(vm, X86Vm)
    return vm


def received(session: Session, message: pb.SessionRequest) -> pb.SessionResponse | None:
    """Pass a message to a Session, and do all its work; returns the answer."""
    work = session.receive(message.SerializeToString())
    answer = work if work is None or isinstance(work, bytes) else finish(work)
    return None if answer is None else pb.SessionResponse.FromString(answer)


class Client:
    """A client's end of a Session."""

    def __init__(self, registry: Registry, *vcpus: int, **limits: int) -> None:
        self.wakes = 0
        opening = pb.SessionOpen(vm="vm", vcpus=vcpus)
        self.session = Session(registry, Limits(**limits), opening, self._wake, lambda _: None, Eventfds())

    def _wake(self) -> None:
        self.wakes += 1

    def halt(self, serial: int, vcpu: int = 0, before: int = 0, **fields: Any) -> pb.BatchResult | None:
        """Send a batch that ends in a halt, with `before` reads of a local APIC before it."""
        reads = [pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=vcpu))] * before
        halt = pb.Operation(halt=pb.HaltRequest(vcpu=vcpu, **fields))
        batch = pb.Batch(serial=serial, operations=[*reads, halt])
        answer = received(self.session, pb.SessionRequest(batch=batch))
        return None if answer is None else answer.batch_result

    def received(self) -> list[pb.SessionResponse]:
        """All messages the daemon has to send."""
        return list(iter(self.take, None))

    def take(self) -> pb.SessionResponse | None:
        """The next message the daemon has to send."""
        message = self.session.take()
        return None if message is None else pb.SessionResponse.FromString(message)


def interrupt(vm: X86Vm, vector: int, vcpu: int = 0) -> None:
    """Send a vCPU an interrupt."""
    assert vm.signal_msi(0xFEE0_0000 | vcpu << 12, vector) == 1


def answer(serial: int, vector: int) -> pb.SessionResponse:
    """The answer to a batch of one halt."""
    taken = pb.Interrupt(vector=vector, source=pb.INTERRUPT_SOURCE_LAPIC)
    result = pb.OperationResult(halt=pb.HaltResponse(interrupt=taken))
    return pb.SessionResponse(batch_result=pb.BatchResult(serial=serial, results=[result]))


def test_answers_come_in_the_order_of_the_halts_ends(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry)
    assert client.halt(1) is None
    assert client.halt(2, vcpu=1) is None
    assert (client.wakes, client.received()) == (0, [])
    interrupt(vm, 0x41, vcpu=1)
    interrupt(vm, 0x31)
    assert client.wakes == 2
    assert client.received() == [answer(2, 0x41), answer(1, 0x31)]


def test_a_session_that_ends_gives_back_unsent_interrupts(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry)
    client.halt(1)
    client.halt(2, vcpu=1)
    interrupt(vm, 0x31)
    client.session.close()
    assert vm.ack_interrupt(0) == (0x31, False)
    assert vm.ack_interrupt(0) is None
    interrupt(vm, 0x41, vcpu=1)
    assert vm.ack_interrupt(1) == (0x41, False)


def test_a_session_that_ends_while_sending_gives_the_interrupt_back(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry)
    client.halt(1)
    interrupt(vm, 0x31)
    assert client.take() == answer(1, 0x31)
    client.session.close()
    assert vm.ack_interrupt(0) == (0x31, False)


def test_a_session_does_not_give_back_sent_interrupts(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry)
    client.halt(1)
    interrupt(vm, 0x31)
    assert client.received() == [answer(1, 0x31)]
    client.session.close()
    assert vm.ack_interrupt(0) is None


def test_halts_are_answered_before_events_and_do_not_block_them(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry, 1)
    interrupt(vm, 0x41, vcpu=1)
    client.halt(1)
    interrupt(vm, 0x31)
    pending = pb.Event(interrupt_pending=pb.InterruptPending(vcpu=1))
    assert client.received() == [answer(1, 0x31), pb.SessionResponse(event=pending)]


def test_results_that_wait_for_halts_are_bounded(registry: Registry, vm: X86Vm) -> None:
    client = Client(registry, message_bytes=20 << 10)
    assert client.halt(1, before=12) is None
    refused = client.halt(2, vcpu=1, before=12)
    assert refused is not None
    assert refused.results[-1].error.reason == "E2BIG"
    assert [result.WhichOneof("result") for result in refused.results[:-1]] == ["get_lapic"] * 12
    assert client.halt(3, vcpu=1) is None
    interrupt(vm, 0x31)
    assert len(client.received()[0].batch_result.results) == 13
    assert client.halt(4, before=12) is None


def test_a_call_cancelled_after_its_halt_ended_gives_back_its_interrupt(registry: Registry, vm: X86Vm) -> None:
    service = GrpcService(registry, Limits(), SessionQuota(1))

    async def cancel_too_late() -> None:
        call = asyncio.ensure_future(service._halt(pb.HaltRequest(vm="vm").SerializeToString(), SimpleNamespace()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        interrupt(vm, 0x31)
        assert vm.ack_interrupt(0) is None, "the halt has not ended"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(cancel_too_late())
    assert vm.ack_interrupt(0) == (0x31, False)
    assert not service._halts
