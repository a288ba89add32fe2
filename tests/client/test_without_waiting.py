"""A Session's calls that do not block: batches are posted, halts are begun, events are taken."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import Interrupt, InterruptPending, InterruptSource, MpState, Vm, aio, ops
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

VECTOR = 0x51
TAKEN = Interrupt(VECTOR, InterruptSource.LAPIC)
MSI = ops.signal_msi(0xFEE00000, VECTOR)
EOI = ops.mmio_write(0, 0xFEE000B0, 0)
SHORT = 0.05  # seconds


@pytest.fixture(params=["50", "off"], ids=["port", "grpc"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions go over the port, and over gRPC."""
    monkeypatch.setenv("IRQCHIP_PORT", request.param)


@pytest.fixture
def vm(vm: Vm) -> Vm:
    """A VM with vCPU 0, whose local APIC is enabled."""
    vm.vcpu(0).mmio_write(0xFEE000F0, 0x1FF)
    return vm


def test_a_halt_that_is_begun_ends_with_what_was_taken(vm: Vm) -> None:
    with vm.session() as session:
        halt = session.begin_halt(0)
        assert vm.signal_msi(0xFEE00000, VECTOR) == 1
        assert halt.wait() == TAKEN
        halt.end()  # Too late to undo anything.
        assert session.vcpu(0).acknowledge() is None
        assert session.vcpu(0).lapic().isr == (VECTOR,)


def test_another_thread_ends_a_halt_and_nothing_is_taken(vm: Vm) -> None:
    with vm.session() as session, ThreadPoolExecutor() as pool:
        halt = session.begin_halt(0)
        waiting = pool.submit(halt.wait)
        time.sleep(SHORT)
        assert not waiting.done()
        halt.end()
        assert waiting.result(PATIENCE) is None
        session.run([MSI])
        assert session.vcpu(0).acknowledge() == TAKEN
        assert session.vcpu(0).mp_state() is MpState.RUNNABLE


def test_a_halt_that_ends_as_it_is_answered_loses_nothing(vm: Vm) -> None:
    """In either order, wait() returns the interrupt or the next halt does."""
    with vm.session() as session:
        for attempt in range(100):
            halt = session.begin_halt(0)
            ending = threading.Timer(attempt % 10 / 2000, halt.end)
            ending.start()
            session.run([MSI])
            taken = halt.wait()
            ending.join()
            assert (session.vcpu(0).acknowledge() if taken is None else taken) == TAKEN, attempt
            session.run([EOI])


def test_a_halt_that_is_begun_times_out(vm: Vm) -> None:
    with vm.session() as session:
        with pytest.raises(irqchip.TimedOut, match=r"nothing for vCPU 0 to take came within 0\.05 s"):
            session.begin_halt(0, timeout=SHORT).wait()
        masked = session.begin_halt(0, interrupts_masked=True)
        session.run([MSI])
        vm.vcpu(0).nmi()
        assert isinstance(masked.wait(), irqchip.Signal)


def test_a_halt_that_is_begun_ends_with_its_session(vm: Vm) -> None:
    with vm.session() as session:
        halt = session.begin_halt(0)
    with pytest.raises(irqchip.SessionClosed):
        halt.wait()


def test_asyncio_ends_a_halt_too(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client, client.vm(vm.name).session() as session:
            halt = await session.begin_halt(0)
            waiting = asyncio.create_task(halt.wait())
            await asyncio.sleep(SHORT)
            await halt.end()
            assert await waiting is None
            await session.run([MSI])
            assert await (await session.begin_halt(0)).wait() == TAKEN

    asyncio.run(main())


def test_the_answer_to_a_posted_batch_goes_to_its_function(vm: Vm) -> None:
    answers: list[list[Any]] = []
    with vm.session() as session:
        session.post([ops.pio_write(0, 0x21, 0xFB), ops.pio_read(0, 0x21)], answers.append)
        session.post([ops.nmi(9)], answers.append)
        session.post([ops.nmi(0)])
        assert session.run([ops.take_signal(0)]) == [irqchip.Signal(irqchip.SignalKind.NMI)]
    (written, read), (error,) = answers
    assert (written, read.data) == (irqchip.Claim.DEVICE, 0xFB)
    assert isinstance(error, irqchip.NotFound)


def test_a_posted_batch_is_not_answered_after_the_session_ends(vm: Vm) -> None:
    answers: list[list[Any]] = []
    with vm.session() as session:
        vm.delete()
        with pytest.raises(irqchip.SessionClosed):
            session.next_event(PATIENCE)
        with pytest.raises(irqchip.SessionClosed):
            session.post([ops.nmi(0)], answers.append)
    assert answers == []


def test_asyncio_posts_too(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> list[list[Any]]:
        answers: list[list[Any]] = []
        async with aio.connect(irqchip_server.target) as client, client.vm(vm.name).session(vcpus=[0]) as session:
            await session.post([ops.pio_read(0, 0x21)], answers.append)
            await session.post([MSI])
            await session.next_event(PATIENCE)
            assert await session.take_events() == []
        return answers

    assert len(asyncio.run(main())) == 1


def test_events_are_taken_without_waiting(vm: Vm) -> None:
    with vm.session(vcpus=[0]) as session:
        assert session.take_events() == []
        session.run([MSI])
        deadline = time.monotonic() + PATIENCE
        while not (events := session.take_events()):
            assert time.monotonic() < deadline
        assert events == [InterruptPending(0)]
    with pytest.raises(irqchip.SessionClosed):
        session.take_events()
