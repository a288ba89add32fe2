"""Halt over the daemon's edges: it ends once, with an interrupt taken; a halt that is given up has taken nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import (
    Busy,
    Client,
    Interrupt,
    InterruptSource,
    MpState,
    NotFound,
    NotReady,
    SessionClosed,
    Signal,
    SignalKind,
    TimedOut,
    Unavailable,
    Vm,
    Wake,
    ops,
)
from irqchip_client._daemon import Daemon, start_daemon
from tests.service.test_sessions import resident
from tests.waiting import PATIENCE, eventually

LAPIC = 0xFEE0_0000
FIRST, SECOND = Interrupt(0x31, InterruptSource.LAPIC), Interrupt(0x41, InterruptSource.LAPIC)
Halted = Future[Wake]


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with two running vCPUs whose local APICs are enabled."""
    return halting_vm(irqchip_client)


def halting_vm(client: Client) -> Vm:
    """Such a VM."""
    vm = client.create_vm()
    vm.create_irqchip()
    for number in range(2):
        cpu = vm.create_vcpu(number)
        cpu.set_mp_state(MpState.RUNNABLE)
        cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


@pytest.fixture
def stub(irqchip_server: Daemon) -> Iterator[IrqchipServiceStub]:
    """The RPC stub, for calls with a deadline and calls to be cancelled."""
    with grpc.insecure_channel(irqchip_server.target) as channel:
        yield IrqchipServiceStub(channel)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that halt."""
    with ThreadPoolExecutor() as threads:
        yield threads


def interrupt(vm: Vm, vector: int, vcpu: int = 0) -> None:
    """Send a vCPU an interrupt."""
    assert vm.signal_msi(0xFEE0_0000 | vcpu << 12, vector) == 1


def halted(vm: Vm, vcpu: int = 0) -> bool:
    """Whether a vCPU is in HLT."""
    return vm.vcpu(vcpu).mp_state() is MpState.HALTED


def busy(vm: Vm, vcpu: int = 0) -> bool:
    """Whether a Halt of a vCPU is in progress: only then is another one refused."""
    try:
        vm.vcpu(vcpu).halt(interrupts_masked=True, timeout=1e-9)
    except Busy:
        return True
    except TimedOut:
        return False
    pytest.fail("there was something to take")


def idle(vm: Vm, vcpu: int = 0) -> bool:
    """Whether no Halt of a vCPU is in progress."""
    return not busy(vm, vcpu)


def halt(threads: ThreadPoolExecutor, vm: Vm, vcpu: int = 0, **arguments: Any) -> Halted:
    """Halt a running vCPU in a thread; returns once the vCPU is halted."""
    assert not halted(vm, vcpu)
    future = threads.submit(vm.vcpu(vcpu).halt, **arguments)
    eventually(lambda: halted(vm, vcpu))
    return future


def test_a_pending_interrupt_ends_a_halt_at_once_and_is_taken(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    interrupt(vm, 0x31)
    assert cpu.halt() == FIRST
    assert cpu.acknowledge() is None
    assert cpu.lapic().isr == (0x31,)
    assert cpu.mp_state() is MpState.RUNNABLE


def test_a_halt_waits_until_there_is_something_to_take(vm: Vm, threads: ThreadPoolExecutor) -> None:
    waiting = halt(threads, vm)
    interrupt(vm, 0x31, vcpu=1)  # for another vCPU
    time.sleep(0.1)
    assert not waiting.done()
    interrupt(vm, 0x31)
    assert waiting.result(PATIENCE) == FIRST
    assert vm.vcpu(0).mp_state() is MpState.RUNNABLE
    assert vm.vcpu(1).halt() == FIRST


def test_the_pic_ends_a_halt(vm: Vm, threads: ThreadPoolExecutor) -> None:
    cpu = vm.vcpu(0)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0x00)):
        cpu.pio_write(port, value)
    waiting = halt(threads, vm)
    vm.line(4).raise_()
    assert waiting.result(PATIENCE) == Interrupt(0x24, InterruptSource.PIC)


@pytest.mark.parametrize(
    ("low", "taken"),
    [
        (0x4400, [Signal(SignalKind.NMI)]),
        (0x4200, [Signal(SignalKind.SMI)]),
        (0x4500, [Signal(SignalKind.INIT)]),
    ],
)
def test_signals_end_a_halt_that_interrupts_do_not(
    vm: Vm, threads: ThreadPoolExecutor, low: int, taken: list[Signal]
) -> None:
    waiting = halt(threads, vm, 1, interrupts_masked=True)
    interrupt(vm, 0x31, vcpu=1)
    time.sleep(0.1)
    assert not waiting.done()
    vm.vcpu(0).mmio_write(LAPIC + 0x310, 1 << 24)
    vm.vcpu(0).mmio_write(LAPIC + 0x300, low)
    assert waiting.result(PATIENCE) == taken[0]
    assert vm.vcpu(1).take_signal() is None


def test_a_vcpu_that_waits_to_be_started_halts_until_it_is(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    boot, other = vm.create_vcpu(0), vm.create_vcpu(1)
    boot.mmio_write(LAPIC + 0xF0, 0x1FF)
    assert other.mp_state() is MpState.UNINITIALIZED
    with vm.session() as session:
        for low, taken, state in (
            (0x4500, Signal(SignalKind.INIT), MpState.INIT_RECEIVED),
            (0x4699, Signal(SignalKind.SIPI, 0x99), MpState.RUNNABLE),
        ):
            waiting = session.submit([ops.halt(1)])
            session.signal_msi(0xFEE0_1000, 0x31)  # an MSI does not start the vCPU
            boot.mmio_write(LAPIC + 0x310, 1 << 24)
            boot.mmio_write(LAPIC + 0x300, low)
            assert waiting.result(PATIENCE) == [taken]
            assert other.mp_state() is state


def test_a_halt_that_timed_out_has_taken_nothing(vm: Vm) -> None:
    started = time.monotonic()
    with pytest.raises(TimedOut):
        vm.vcpu(0).halt(timeout=0.1)
    assert 0.1 <= time.monotonic() - started < PATIENCE
    assert halted(vm)
    interrupt(vm, 0x31)
    assert vm.vcpu(0).halt(timeout=0.1) == FIRST


def test_a_vcpu_has_one_halt_at_a_time(vm: Vm, threads: ThreadPoolExecutor) -> None:
    waiting = halt(threads, vm)
    with pytest.raises(Busy, match="vCPU 0"):
        vm.vcpu(0).halt()
    with vm.session() as session, pytest.raises(Busy, match="vCPU 0"):
        session.vcpu(0).halt()
    interrupt(vm, 0x31)
    assert waiting.result(PATIENCE) == FIRST


def test_a_vcpu_without_a_local_apic_does_not_halt(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_vcpu(0)
    with pytest.raises(NotReady):
        vm.vcpu(0).halt()
    with pytest.raises(NotFound):
        vm.vcpu(1).halt()


def test_deleting_the_vm_ends_its_halts(vm: Vm, threads: ThreadPoolExecutor) -> None:
    waiting = halt(threads, vm)
    vm.delete()
    with pytest.raises(NotFound, match="has been deleted"):
        waiting.result(PATIENCE)


# Halts that are given up.


def test_a_cancelled_halt_takes_nothing(vm: Vm, stub: IrqchipServiceStub) -> None:
    for timeout, code in ((None, grpc.StatusCode.CANCELLED), (0.3, grpc.StatusCode.DEADLINE_EXCEEDED)):
        call: Any = None
        while not halted(vm):
            call = stub.Halt.future(pb.HaltRequest(vm=vm.name), timeout=timeout)
            eventually(lambda call=call: halted(vm) or call.done())  # type: ignore[misc]
            timeout = timeout and 3 * timeout  # for the next attempt, if the time was up before the vCPU was halted
        if timeout is None:
            call.cancel()
        assert call.code() is code
        eventually(lambda: idle(vm))
        assert halted(vm)
        interrupt(vm, 0x31)
        assert vm.vcpu(0).halt(timeout=PATIENCE) == FIRST
        vm.vcpu(0).mmio_write(LAPIC + 0xB0, 0)


HALTER = """
import sys
from irqchip_client import connect
vm = connect(sys.argv[1]).vm(sys.argv[2])
machine = vm if sys.argv[3] == "unary" else vm.session()
print("connected", vm.info().name, flush=True)
machine.vcpu(0).halt()
"""


@pytest.mark.parametrize("kind", ["unary", "session"])
def test_a_killed_clients_halt_takes_nothing(irqchip_server: Daemon, vm: Vm, kind: str) -> None:
    command = [sys.executable, "-c", HALTER, irqchip_server.target, vm.name, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as halter:
        assert halter.stdout is not None
        halter.stdout.readline()
        eventually(lambda: halted(vm))
        halter.send_signal(signal.SIGKILL)
    eventually(lambda: idle(vm))
    interrupt(vm, 0x31)
    assert vm.vcpu(0).halt(timeout=PATIENCE) == FIRST


def test_a_halt_ends_with_its_session(vm: Vm) -> None:
    session = vm.session()
    futures = [session.submit([ops.halt(number)]) for number in range(2)]
    eventually(lambda: halted(vm, 0) and halted(vm, 1))
    session.close()
    for number, future in enumerate(futures):
        with pytest.raises(SessionClosed):
            future.result(PATIENCE)
        eventually(partial(idle, vm, number))
        interrupt(vm, 0x31, vcpu=number)
        assert vm.vcpu(number).halt(timeout=PATIENCE) == FIRST


def test_the_daemons_stop_ends_halts_with_a_status() -> None:
    with start_daemon() as daemon, daemon.connect() as client, ThreadPoolExecutor() as threads:
        vm = halting_vm(client)
        waiting = [halt(threads, vm), halt(threads, vm, 1)]
        started = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        for future in waiting:
            with pytest.raises(Unavailable, match="stopping") as caught:
                future.result(PATIENCE)
            assert caught.value.reason == "ESHUTDOWN"
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 20
        assert "Traceback" not in daemon.stderr


# In a Session's batch.


def test_neither_later_batches_nor_other_halts_wait_for_a_halt(vm: Vm) -> None:
    with vm.session() as session:
        first = session.submit([ops.irq_line(21, True), ops.halt(0)])
        second = session.submit([ops.halt(1)])
        assert session.run([ops.get_mp_state(0), ops.get_mp_state(1)]) == [MpState.HALTED] * 2
        session.signal_msi(0xFEE0_1000, 0x41)
        assert second.result(PATIENCE) == [SECOND]
        assert not first.done()
        session.signal_msi(0xFEE0_0000, 0x31)
        assert first.result(PATIENCE) == [-1, FIRST]


def test_errors_of_a_halt_are_results_of_its_batch(vm: Vm) -> None:
    with vm.session() as session:
        waiting = session.submit([ops.halt(0)])
        results = session.run([ops.get_mp_state(0), ops.halt(0)], return_errors=True)
        assert results[0] is MpState.HALTED
        assert isinstance(results[1], Busy)
        assert isinstance(session.run([ops.halt(7)], return_errors=True)[0], NotFound)
        assert isinstance(session.run([ops.halt(1, timeout=0.01)], return_errors=True)[0], TimedOut)
        interrupt(vm, 0x31)
        assert waiting.result(PATIENCE) == [FIRST]


def test_a_session_halts_again_and_again(vm: Vm) -> None:
    with vm.session() as session:
        eoi = ops.mmio_write(0, LAPIC + 0xB0, 0)
        waiting = session.submit([ops.halt(0)])
        for vector in range(0x20, 0xA0):
            interrupt(vm, vector)
            assert waiting.result(PATIENCE)[-1] == Interrupt(vector, InterruptSource.LAPIC)
            waiting = session.submit([eoi, ops.halt(0)])


def test_halts_of_a_client_that_does_not_read_do_not_pile_up(irqchip_server: Daemon, vm: Vm) -> None:
    sent = 0

    def requests() -> Iterator[pb.SessionRequest]:
        nonlocal sent
        yield pb.SessionRequest(open=pb.SessionOpen(vm=vm.name, client="dawdler"))
        read = [pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))] * 400
        for serial in range(1 << 20):
            sent += 1
            last = pb.Operation(halt=pb.HaltRequest(vcpu=serial & 1, timeout_ns=1))
            yield pb.SessionRequest(batch=pb.Batch(serial=serial, operations=[*read, last]))

    before = resident(irqchip_server)
    with grpc.insecure_channel(irqchip_server.target) as channel:
        call = IrqchipServiceStub(channel).Session(requests())
        stalled = -1
        while sent > stalled:  # until the daemon stops reading and all buffers are full
            stalled = sent
            time.sleep(0.5)
            assert sent < 20_000, "the daemon goes on reading from a client that does not read"
        assert resident(irqchip_server) - before < 64 << 20
        call.cancel()


# A storm.

WAKES = 500


@pytest.mark.parametrize("kind", ["unary", "session"])
def test_no_wake_is_lost_or_doubled(vm: Vm, threads: ThreadPoolExecutor, kind: str) -> None:
    """Two vCPUs; one client each sends the next interrupt as soon as the vCPU has taken the last one."""
    vectors = [0x20 + number % 0xC0 for number in range(WAKES)]
    taken: list[list[int]] = [[], []]

    def take(machine: Any, number: int) -> None:
        cpu = machine.vcpu(number)
        for _ in vectors:
            wake = cpu.halt(timeout=PATIENCE)
            cpu.mmio_write(LAPIC + 0xB0, 0)
            taken[number].append(wake.vector)

    def send(number: int) -> None:
        for count, vector in enumerate(vectors):
            eventually(lambda: len(taken[number]) == count)  # noqa: B023 - called at once
            interrupt(vm, vector, number)

    with vm.session() as session:
        machine = vm if kind == "unary" else session
        futures = [threads.submit(take, machine, number) for number in range(2)]
        futures += [threads.submit(send, number) for number in range(2)]
        for future in futures:
            future.result(PATIENCE)
    assert taken == [vectors, vectors]
