"""A Session uses the daemon's AF_UNIX port where possible; the only difference from gRPC is the time it takes."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import Client, Interrupt, InterruptPending, Vm, aio, connect, ops
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE, eventually

LAPIC = 0xFEE0_0000
VECTOR = 0x51
READ = ops.pio_read(0, 0x21)


@pytest.fixture
def vm(vm: Vm) -> Vm:
    vm.vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


@pytest.fixture
def session(vm: Vm) -> Iterator[irqchip.Session]:
    with vm.session(vcpus=[0]) as session:
        assert session.transport == "port"
        yield session


def test_grpc_serves_where_the_port_is_switched_off(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with vm.session() as session:
        assert session.transport == "grpc"
        assert session.run([READ])[0].claimed


def test_a_daemon_elsewhere_is_reached_by_grpc() -> None:
    with start_daemon(listen=["tcp://127.0.0.1:0"]) as daemon:
        (target,) = (target for target in daemon.targets if target.startswith("tcp"))
        with connect(target) as client, client.create_vm().session() as session:
            assert session.transport == "grpc"


def test_a_session_uses_grpc_if_the_port_is_gone() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        Path(daemon.target.removeprefix("unix://") + ".port").unlink()
        with client.create_vm().session() as session:
            assert session.transport == "grpc"


@pytest.mark.parametrize("value", ["on", "-1", "1e3", "1000001"])
def test_an_invalid_setting_is_refused(vm: Vm, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", value)
    with pytest.raises(irqchip.InvalidArgument, match="IRQCHIP_PORT"):
        vm.session()


def test_asyncio_goes_over_grpc(irqchip_server: Daemon, vm: Vm) -> None:
    async def main() -> str:
        async with aio.connect(irqchip_server.target) as client, client.vm(vm.name).session() as session:
            return session.transport

    assert asyncio.run(main()) == "grpc"


@pytest.mark.parametrize("poll", ["0", "50", "1000"])
def test_each_of_many_threads_gets_its_own_answers(vm: Vm, monkeypatch: pytest.MonkeyPatch, poll: str) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", poll)
    with vm.session() as session, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> None:
            for turn in range(100):
                calls = [ops.irq_line(16 + number, turn % 2 == 0), *[READ] * number]
                assert len(session.run(calls)) == 1 + number

        for future in [pool.submit(work, number) for number in range(8)]:
            future.result(PATIENCE)


def test_futures_are_answered_without_a_waiting_caller(session: irqchip.Session) -> None:
    told = threading.Event()
    futures = [session.submit([READ]) for _ in range(200)]
    futures[-1].add_done_callback(lambda _: told.set())
    assert told.wait(PATIENCE)
    assert all(future.done() for future in futures)
    assert session.run([READ])[0].claimed


def test_a_thread_waits_for_events_while_others_work(session: irqchip.Session, vm: Vm) -> None:
    with ThreadPoolExecutor() as pool:
        event = pool.submit(session.next_event, 10)
        for _ in range(50):
            session.run([READ])
        vm.signal_msi(LAPIC, VECTOR)
        assert event.result(PATIENCE) == InterruptPending(0)


def test_a_thread_halts_while_others_work(session: irqchip.Session, vm: Vm) -> None:
    with ThreadPoolExecutor() as pool:
        halting = pool.submit(session.vcpu(0).halt)
        for _ in range(50):
            session.run([READ])
        vm.signal_msi(LAPIC, VECTOR)
        wake = halting.result(PATIENCE)
    assert isinstance(wake, Interrupt)
    assert wake.vector == VECTOR


def test_an_answer_that_does_not_come_in_time(session: irqchip.Session) -> None:
    begun = time.monotonic()
    with pytest.raises(irqchip.TimedOut):
        session.next_event(0.05)
    with pytest.raises(irqchip.TimedOut):
        session.run([ops.halt(0)], timeout=0.05)
    assert 0.1 <= time.monotonic() - begun < PATIENCE
    assert session.run([READ])[0].claimed


def test_a_batch_is_bounded_by_what_a_packet_holds(session: irqchip.Session) -> None:
    assert session.max_message_bytes == 1 << 16
    with pytest.raises(irqchip.LimitReached):
        session.run([ops.set_lapic(0, bytes(1024))] * 64)
    assert session.run([READ])[0].claimed


def test_an_idle_session_notices_its_end(session: irqchip.Session, vm: Vm) -> None:
    assert not session.closed
    vm.delete()
    eventually(lambda: session.closed)
    with pytest.raises(irqchip.SessionClosed, match="has been deleted"):
        session.run([READ])


@pytest.mark.parametrize("how", ["session", "client", "daemon"])
def test_every_waiting_caller_learns_of_the_end(how: str) -> None:
    with start_daemon() as daemon, daemon.connect() as client, ThreadPoolExecutor() as pool:
        vm = client.create_vm()
        vm.create_irqchip()
        vm.create_vcpu(0)
        session = vm.session(vcpus=[0])
        waiting: list[Future[Any]] = [
            pool.submit(session.next_event),
            pool.submit(session.vcpu(0).halt),
            session.submit([ops.halt(0)]),
        ]
        time.sleep(0.1)
        match how:
            case "session":
                session.close()
            case "client":
                client.close()
            case "daemon":
                daemon.process.kill()
        for future in waiting:
            with pytest.raises((irqchip.SessionClosed, irqchip.Busy)):
                future.result(PATIENCE)
        assert session.closed
        session.close()


def test_batches_in_flight_are_answered_before_close_returns(vm: Vm) -> None:
    session = vm.session()
    futures = [session.submit([READ] * 100) for _ in range(20)]
    session.close()
    assert [len(future.result(0)) for future in futures] == [100] * 20


def test_a_session_on_a_missing_vm_is_refused(irqchip_client: Client) -> None:
    with pytest.raises(irqchip.NotFound):
        irqchip_client.vm("nobody").session()


def test_neither_side_waits_for_the_other_to_read(session: irqchip.Session) -> None:
    """Answers fill the daemon's socket, and behind them batches fill the client's."""
    large_answers: list[ops.Call[Any]] = [ops.get_lapic(0)] * 28
    large_batch: list[ops.Call[Any]] = [ops.set_lapic(0, bytes(1024))] * 60
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            futures = [session.submit(calls) for calls in (*[large_answers] * 30, *[large_batch] * 20)]
            others = [pool.submit(session.run, large_batch) for _ in range(8)]
            assert {len(future.result(PATIENCE)) for future in (*futures, *others)} == {28, 60}


# Python drops the exception, with a warning, if the signal comes while it calls a finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_never_gives_one_call_the_answer_of_another(vm: Vm) -> None:
    """Wherever Ctrl-C comes, later answers are right, or the Session has ended."""

    class CtrlC(Exception):  # noqa: N818 - as KeyboardInterrupt
        pass

    def interrupt(*_: object) -> None:
        raise CtrlC

    masks = {0x21: 0x12, 0xA1: 0x34}
    for port, mask in masks.items():
        vm.vcpu(0).pio_write(port, mask)
    before = signal.signal(signal.SIGALRM, interrupt)
    session = vm.session()
    interrupted = 0
    try:
        for microseconds in random.Random(1).choices(range(100, 600), k=200):
            try:
                with suppress(irqchip.SessionClosed):
                    signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                    for _ in range(1000):
                        for port, mask in masks.items():
                            assert session.vcpu(0).pio_read(port).data == mask
                signal.setitimer(signal.ITIMER_REAL, 0)
            except CtrlC:
                interrupted += 1
            if session.closed:
                session = vm.session()
    finally:
        signal.signal(signal.SIGALRM, before)
        session.close()
    assert interrupted > 100
