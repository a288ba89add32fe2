"""The asyncio SDK against a real daemon: its differences from the blocking SDK, and one test with every call."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import (
    Access,
    Chip,
    Claim,
    Doorbell,
    Interrupt,
    InterruptPending,
    InterruptSource,
    RegionAccess,
    Space,
    Vm,
    aio,
    ops,
)
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

from .guest import EOI, IRQ_BASE, init_pics_async

Run = Callable[[Callable[[aio.Vm], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(irqchip_server: Daemon, vm: Vm) -> Run:
    """Run a coroutine function with an asyncio handle on a VM that has an irqchip and vCPU 0."""

    def run(story: Callable[[aio.Vm], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with aio.connect(irqchip_server.target) as client:
                await story(client.vm(vm.name))

        asyncio.run(main())

    return run


def test_every_call(irqchip_server: Daemon) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            vm = await client.create_vm()
            await vm.create_irqchip()
            cpu = await vm.create_vcpu(0)
            assert await client.check_extension(0) == 1
            assert await vm.info() in await client.vms()
            for machine in (vm, await vm.session("walk")):
                await init_pics_async(machine)
                assert await machine.line(4).pulse() >= 1
                assert await machine.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, InterruptSource.PIC)
                assert (await machine.get_irqchip(Chip.PIC_PRIMARY)).isr == 1 << 4
                assert await machine.vcpu(0).pio_write(0x20, 0x20) == Claim.DEVICE  # EOI.
                async with machine.line(5):
                    assert (await machine.get_irqchip(Chip.PIC_PRIMARY)).irr == 1 << 5
                pic = replace(await machine.get_irqchip(Chip.PIC_SECONDARY), imr=0xA5)
                await machine.set_irqchip(Chip.PIC_SECONDARY, pic)
                assert await cpu.pio_read(0xA1) == Access(True, 0xA5)
                assert await cpu.pio_write(0x3F8, 1) == Claim.NOBODY
                assert await cpu.mmio_write(0xFEC00000, 1) == Claim.DEVICE
                assert (await cpu.mmio_read(0xFEC00010)).data >> 16 == 23
                await cpu.set_lapic(replace(await cpu.lapic(), tpr=0x20))
                assert (await cpu.lapic()).tpr == 0x20
                routes = await machine.routing()
                await machine.set_routing(routes)
                assert await machine.routing() == routes
                assert await machine.signal_msi(0xFEE55000, 0x61) < 1
            await vm.delete()
            with pytest.raises(irqchip.NotFound):
                await vm.info()

    asyncio.run(main())


def test_every_call_of_time_and_run_state(irqchip_server: Daemon) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            vm = await client.create_vm(virtual_clock=True, tsc_khz=2_000_000)
            await vm.create_irqchip()
            await vm.create_pit(speaker=False)
            cpu = await vm.create_vcpu(0)
            for machine in (vm, await vm.session("walk", gsis=[4], resampled_gsis=[10])):
                cpu = machine.vcpu(0)
                before = (await vm.info()).now_ns
                assert await machine.advance(5) == irqchip.Advance(before + 5)
                pit = replace(await machine.pit(), flags=2)
                await machine.set_pit(pit)
                assert (await machine.pit()).flags == 2
                await machine.set_pit_reinject(False)
                assert await cpu.msr_read(0x10) == irqchip.MsrAccess(True, False, 2 * (before + 5))
                assert await cpu.msr_write(0x802, 1) == irqchip.MsrAccess(claimed=True, fault=True)
                await cpu.set_mp_state(irqchip.MpState.HALTED)
                assert await cpu.mp_state() is irqchip.MpState.HALTED
                await cpu.nmi()
                await cpu.nmi()
                nmi = irqchip.Signal(irqchip.SignalKind.NMI)
                assert await cpu.take_signal() == nmi
                assert await cpu.halt(interrupts_masked=True, timeout=PATIENCE) == nmi
                assert await cpu.take_signal() is None
            moved = await client.restore_vm(await vm.snapshot())
            async with moved.session("walk", resume=True):
                pass
            await moved.reset()
            assert (await moved.pit()).flags == 0
            for made in (vm, moved):
                await made.delete()

    asyncio.run(main())


def test_every_call_of_a_split_irqchip(irqchip_server: Daemon) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            vm = await client.create_vm()
            await vm.enable_split_irqchip(16)
            assert (await vm.info()).irqchip_mode is irqchip.IrqchipMode.SPLIT
            cpu = await vm.create_vcpu(0)
            await cpu.interrupt(0x21)
            with pytest.raises(irqchip.AlreadyExists):
                await cpu.interrupt(0x22)
            with pytest.raises(irqchip.InvalidArgument):
                await vm.enable_cap(9999)
            await vm.delete()

    asyncio.run(main())


def test_an_interrupt_arrives_at_the_vcpu(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        await init_pics_async(vm)
        async with vm.session("vcpu", vcpus=[0]) as session, vm.session("uart") as device:
            await device.line(4).raise_()
            async for event in session.events(timeout=PATIENCE):
                assert event == InterruptPending(0)
                break
            assert await session.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, InterruptSource.PIC)
        assert (await vm.info()).sessions == ()

    run(story)


def test_many_batches_are_in_flight_and_come_back_in_order(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.session(max_in_flight=8) as session:
            calls = [[ops.pio_write(0, 0x21, i % 256), ops.pio_read(0, 0x21)] for i in range(500)]
            futures = [await session.submit(batch) for batch in calls]
            assert [(await future)[1].data for future in futures] == [i % 256 for i in range(500)]
            results = await asyncio.gather(*[session.run(batch) for batch in calls])
            assert [result[1].data for result in results] == [i % 256 for i in range(500)]

    run(story)


def test_a_cancelled_caller_leaves_the_session_whole(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.session(vcpus=[0]) as session:
            for _ in range(20):
                task = asyncio.create_task(session.run([EOI]))
                await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.next_event(), 0.05)
            assert await session.run([ops.irq_line(4, True)])

    run(story)


def test_a_cancelled_reader_leaves_the_watch_whole(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.watch(["kvm_pic_set_irq"]) as watch:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.05)
            await vm.line(4).raise_()
            await vm.line(4).lower()
            events = [await anext(watch), await anext(watch)]
        assert [event.fields["pin"] for event in events if isinstance(event, irqchip.TraceEvent)] == [4, 4]
        assert [event async for event in watch] == []

    run(story)


def test_events_stop_after_the_timeout(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.session(vcpus=[0]) as session:
            assert [event async for event in session.events(timeout=0.05)] == []
            with pytest.raises(irqchip.TimedOut):
                await session.next_event(timeout=0.05)

    run(story)


def test_a_session_must_be_awaited(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        session = vm.session()
        with pytest.raises(irqchip.InvalidArgument, match="await"):
            await session.run([EOI])
        await session
        assert await session.run([EOI]) == [True]
        await session.close()
        await session.close()
        with pytest.raises(irqchip.SessionClosed, match="this client closed it"):
            await session
        unused = vm.session()
        await unused.close()
        with pytest.raises(irqchip.SessionClosed):
            await unused

    run(story)


def test_deleting_the_vm_ends_its_session_and_its_watch(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.session() as session, vm.watch() as watch:
            await vm.delete()
            with pytest.raises(irqchip.SessionClosed, match="deleted"):
                await session.next_event(timeout=PATIENCE)
            with pytest.raises(irqchip.SessionClosed, match="deleted"):
                await session.run([EOI])
            with pytest.raises(irqchip.NotFound, match="deleted"):
                await anext(watch)
        with pytest.raises(irqchip.NotFound):
            await vm.session()

    run(story)


def test_close_wakes_waiting_callers(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        session, watch = await vm.session(), await vm.watch()
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(session.close()))
        with pytest.raises(irqchip.SessionClosed, match="this client closed it"):
            await session.next_event(timeout=PATIENCE)
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(watch.close()))
        assert [event async for event in watch] == []

    run(story)


def test_closing_the_client_ends_what_is_open(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> None:
        client = aio.connect(irqchip_server.target)
        session, watch = await client.vm(vm.name).session(), await client.vm(vm.name).watch()
        waiting = asyncio.create_task(session.next_event())
        reading = asyncio.create_task(anext(watch))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(irqchip.SessionClosed, match="Client is closed"):
            await waiting
        with pytest.raises(irqchip.Unavailable, match="Client is closed"):
            await reading
        with pytest.raises(irqchip.Unavailable, match="Client is closed"):
            await client.vms()

    asyncio.run(main())


def test_an_event_loop_may_end_with_a_session_open(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> None:
        session = await aio.connect(irqchip_server.target).vm(vm.name).session()
        await session.line(4).raise_()

    asyncio.run(main())


def test_a_session_answers_for_a_region(run: Run) -> None:
    async def story(vm: aio.Vm) -> None:
        async with vm.session("device") as device:
            await device.register_region(Space.PIO, 0x300, 2)
            await device.register_region(Space.MMIO, 0xD000_0000, 4, doorbell=True, datamatch=7)
            reading = asyncio.create_task(vm.vcpu(0).pio_read(0x301))
            event = await device.next_event(PATIENCE)
            assert event == RegionAccess(event.access, 0, Space.PIO, 0x301, 1, write=False)  # type: ignore[union-attr]
            assert await device.complete_access(event.access, 0x42)
            assert await reading == Access(True, 0x42)
            assert await vm.vcpu(0).mmio_write(0xD000_0000, 7)
            assert await device.next_event(PATIENCE) == Doorbell(Space.MMIO, 0xD000_0000, 4, 7)
            await device.unregister_region(Space.PIO, 0x300)
            assert await vm.vcpu(0).pio_read(0x301) == Access(False, 0)

    run(story)
