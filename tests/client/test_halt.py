"""Run states, signals and halts, through the SDK."""

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import irqchip_client as irqchip
from irqchip_client import Client, Interrupt, InterruptSource, MpState, Signal, SignalKind, Vm, aio, ops
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE, eventually

VECTOR = 0x51
TAKEN = Interrupt(VECTOR, InterruptSource.LAPIC)
MSI = ops.signal_msi(0xFEE00000, VECTOR)
EOI = ops.mmio_write(0, 0xFEE000B0, 0)


@pytest.fixture(params=["50", "off"], ids=["port", "grpc"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions go over the port, and over gRPC."""
    monkeypatch.setenv("IRQCHIP_PORT", request.param)


@pytest.fixture
def vm(vm: Vm) -> Vm:
    """A VM with vCPU 0, whose local APIC is enabled."""
    vm.vcpu(0).mmio_write(0xFEE000F0, 0x1FF)
    return vm


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def wait_until_halted(vm: Vm, vcpu: int = 0) -> None:
    eventually(lambda: vm.vcpu(vcpu).mp_state() is MpState.HALTED)


def test_run_states(vm: Vm) -> None:
    cpu = vm.create_vcpu(1)
    assert vm.vcpu(0).mp_state() is MpState.RUNNABLE
    assert cpu.mp_state() is MpState.UNINITIALIZED
    cpu.set_mp_state(MpState.RUNNABLE)
    assert cpu.mp_state() is MpState.RUNNABLE


def test_a_vcpu_without_a_local_apic_runs(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    cpu = vm.create_vcpu(0)
    assert cpu.mp_state() is MpState.RUNNABLE
    with pytest.raises(irqchip.InvalidArgument):
        cpu.set_mp_state(MpState.HALTED)
    for call in (cpu.nmi, cpu.take_signal, cpu.halt):
        with pytest.raises(irqchip.NotReady):
            call()


def test_signals_wait_until_they_are_taken(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    with vm.session(vcpus=[0]) as session:
        cpu.nmi()
        assert session.next_event(PATIENCE) == irqchip.VcpuSignal(0, SignalKind.NMI, 0)
        assert session.vcpu(0).take_signal() == Signal(SignalKind.NMI)
    assert cpu.take_signal() is None


def test_a_halt_ends_with_the_interrupt_already_taken(vm: Vm, pool: ThreadPoolExecutor) -> None:
    halted = pool.submit(vm.vcpu(0).halt)
    wait_until_halted(vm)
    vm._run([MSI])
    assert halted.result(PATIENCE) == TAKEN
    assert vm.vcpu(0).lapic().isr == (VECTOR,)
    assert vm.vcpu(0).mp_state() is MpState.RUNNABLE


def test_a_halt_that_has_something_to_take_ends_at_once(vm: Vm) -> None:
    vm._run([MSI])
    assert vm.vcpu(0).halt() == TAKEN


def test_interrupts_that_are_masked_end_no_halt_but_signals_do(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    vm._run([MSI])
    with pytest.raises(irqchip.TimedOut):
        cpu.halt(interrupts_masked=True, timeout=0.05)
    cpu.nmi()
    assert cpu.halt(interrupts_masked=True) == Signal(SignalKind.NMI)


@pytest.mark.parametrize("through", ["vm", "session"])
def test_a_halt_times_out_and_nothing_is_taken(vm: Vm, through: str) -> None:
    with vm.session() as session:
        cpu = (vm if through == "vm" else session).vcpu(0)
        begin = time.monotonic()
        with pytest.raises(irqchip.TimedOut, match=r"nothing for vCPU 0 to take came within 0\.1 s"):
            cpu.halt(timeout=0.1)
        assert 0.1 <= time.monotonic() - begin < PATIENCE
        vm._run([MSI])
        assert cpu.halt(timeout=PATIENCE) == TAKEN


def test_a_halt_waits_longer_than_other_calls(irqchip_server: Daemon, vm: Vm, pool: ThreadPoolExecutor) -> None:
    with irqchip_server.connect() as client, client.vm(vm.name).session() as session:
        client._connection.peer.timeout = 0.2
        for cpu, timeout in [(client.vm(vm.name).vcpu(0), None), (session.vcpu(0), PATIENCE)]:
            halted = pool.submit(cpu.halt, timeout=timeout)
            wait_until_halted(vm)
            time.sleep(0.4)
            vm._run([MSI])
            assert halted.result(PATIENCE) == TAKEN
            vm._run([EOI])


def test_a_vcpu_halts_once_at_a_time(vm: Vm, pool: ThreadPoolExecutor) -> None:
    halted = pool.submit(vm.vcpu(0).halt)
    wait_until_halted(vm)
    with vm.session() as session:
        for cpu in (vm.vcpu(0), session.vcpu(0)):
            with pytest.raises(irqchip.Busy) as caught:
                cpu.halt()
            assert caught.value.reason == "EBUSY"
    vm._run([MSI])
    assert halted.result(PATIENCE) == TAKEN


def test_a_session_does_other_things_while_its_vcpus_halt(vm: Vm) -> None:
    vm.create_vcpu(1).set_mp_state(MpState.RUNNABLE)
    vm.vcpu(1).mmio_write(0xFEE000F0, 0x1FF)
    with vm.session() as session:
        zero = session.submit([EOI, ops.halt(0)])
        one = session.submit([ops.halt(1)])
        assert [session.line(gsi).pulse() for gsi in (16, 17)] == [-1, -1]  # Masked.
        assert session.run([ops.signal_msi(0xFEE01000, VECTOR), ops.pio_read(0, 0x21)])[0] == 1
        assert one.result(PATIENCE) == [TAKEN]
        assert not zero.done()
        session.run([MSI])
        assert zero.result(PATIENCE) == [True, TAKEN]
        assert session.run([EOI, ops.nmi(0), ops.halt(0)])[-1] == Signal(SignalKind.NMI)


def test_an_operation_behind_a_halt_is_refused(vm: Vm) -> None:
    with vm.session() as session:
        with pytest.raises(irqchip.InvalidArgument, match="halt is the last operation of its batch"):
            session.run([ops.halt(0), EOI])
        assert vm.vcpu(0).mp_state() is MpState.RUNNABLE


def test_the_end_of_its_session_cancels_a_halt(vm: Vm) -> None:
    with vm.session() as session:
        halted = session.submit([ops.halt(0)])
        wait_until_halted(vm)
    assert isinstance(halted.exception(0), irqchip.SessionClosed)
    assert_free_again(vm)


def test_deleting_the_vm_ends_its_halts(vm: Vm, pool: ThreadPoolExecutor) -> None:
    halted = pool.submit(vm.vcpu(0).halt)
    wait_until_halted(vm)
    vm.delete()
    with pytest.raises(irqchip.NotFound):
        halted.result(PATIENCE)


def test_closing_the_client_ends_its_halts(irqchip_server: Daemon, vm: Vm, pool: ThreadPoolExecutor) -> None:
    client = irqchip_server.connect()
    halted = pool.submit(client.vm(vm.name).vcpu(0).halt)
    wait_until_halted(vm)
    client.close()
    with pytest.raises(irqchip.Unavailable, match="Client is closed"):
        halted.result(PATIENCE)
    assert_free_again(vm)


def test_ctrl_c_cancels_a_halt(vm: Vm) -> None:
    main = Path(f"/proc/self/task/{threading.get_native_id()}/status")

    def looks() -> list[str]:
        return re.findall(r"^(?:State|voluntary_ctxt_switches):\t(.*)$", main.read_text(), re.M)

    def waits() -> bool:
        """Whether the halt waits for its end. gRPC, interrupted while it begins a call, leaves the call behind."""
        before = looks()
        time.sleep(0.03)  # a thread that waits for the interpreter's lock wakes up every 5 ms
        return before[0].startswith("S") and looks() == before

    def interrupt() -> None:
        wait_until_halted(vm)
        eventually(waits)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        vm.vcpu(0).halt()
    assert_free_again(vm)


def assert_free_again(vm: Vm) -> None:
    """A cancelled halt has taken nothing, and the vCPU can halt again."""

    def is_free() -> bool:
        try:
            vm.vcpu(0).halt(interrupts_masked=True, timeout=0)
        except irqchip.Busy:  # The cancellation has not reached the daemon yet.
            return False
        except irqchip.TimedOut:
            return True
        pytest.fail("there was something to take")

    eventually(is_free)
    vm._run([MSI])
    assert vm.vcpu(0).halt(timeout=PATIENCE) == TAKEN


def test_a_cancelled_task_cancels_its_halt(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            cpu = client.vm(vm.name).vcpu(0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(cpu.halt(), 0.1)
            await asyncio.to_thread(assert_free_again, vm)

    asyncio.run(main())


def test_halts_in_asyncio(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            machine = client.vm(vm.name)
            async with machine.session() as session:
                for cpu in (machine.vcpu(0), session.vcpu(0)):
                    client._connection.peer.timeout = 0.2
                    halted = asyncio.create_task(cpu.halt())
                    await asyncio.sleep(0.4)
                    assert not halted.done()
                    client._connection.peer.timeout = PATIENCE
                    await session.run([MSI])
                    assert await asyncio.wait_for(halted, PATIENCE) == TAKEN
                    await session.run([EOI])
                    with pytest.raises(irqchip.TimedOut):
                        await cpu.halt(timeout=0.05)
                with pytest.raises(irqchip.InvalidArgument, match="halt is the last"):
                    await session.run([ops.halt(0), EOI])

    asyncio.run(main())


def test_a_halt_of_a_session_that_is_given_up_takes_nothing(vm: Vm) -> None:
    with vm.session() as session:
        with pytest.raises(irqchip.TimedOut):
            session.run([ops.halt(0)], timeout=0.05)
        assert vm._run([MSI]) == [1]
        assert session.vcpu(0).acknowledge() == TAKEN
        assert session.vcpu(0).mp_state() is MpState.RUNNABLE


def test_a_halt_of_a_session_that_is_given_up_as_it_ends_gives_back_what_it_took(vm: Vm) -> None:
    """In either order, the halt returns the interrupt or the next halt does."""
    with vm.session() as session, ThreadPoolExecutor() as pool:
        for attempt in range(100):
            woken = pool.submit(vm._run, [MSI])
            try:
                taken = session.run([ops.halt(0)], timeout=attempt % 10 / 2000)[0]
            except irqchip.TimedOut:
                woken.result()
                taken = session.vcpu(0).acknowledge()
            assert taken == TAKEN
            session.run([EOI])


def test_a_halt_of_a_session_that_is_given_up_in_asyncio_takes_nothing(irqchip_server: Daemon, vm: Vm) -> None:
    async def give_up() -> None:
        async with aio.connect(irqchip_server.target) as client, client.vm(vm.name).session() as session:
            cpu = session.vcpu(0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(cpu.halt(), 0.05)
            (await session.submit([ops.halt(0)])).cancel()
            for attempt in range(100):
                halting = asyncio.create_task(cpu.halt())
                await asyncio.sleep(attempt % 10 / 2000)
                await asyncio.gather(session.run([MSI]), asyncio.sleep(0))
                halting.cancel()
                taken: object = (await asyncio.gather(halting, return_exceptions=True))[0]
                if isinstance(taken, asyncio.CancelledError):
                    taken = await cpu.acknowledge()
                assert taken == TAKEN, attempt
                await session.run([EOI])

    asyncio.run(give_up())
