"""A daemon that is stopped, or reads nothing, holds no caller up for longer than the Client's timeout."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import irqchip_client as irqchip
from irqchip_client import Vm, aio, connect, ops
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client._sync.port import connect_port
from tests.waiting import PATIENCE

LARGE: list[ops.Call[object]] = [ops.set_lapic(0, bytes(1024))] * 60  # Almost the largest packet.


@pytest.fixture
def crowded() -> Iterator[str]:
    """The path of a socket whose port accepts no connection and whose backlog is full."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, ExitStack() as stack:
        path = f"{folder}/socket"
        port = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        port.bind(f"{path}.port")
        port.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting.setblocking(False)
                waiting.connect(f"{path}.port")
        yield path


def test_connecting_to_a_full_port_ends_at_the_timeout(crowded: str) -> None:
    begin = time.monotonic()
    with connect(f"unix://{crowded}", timeout=0.3) as client, pytest.raises(irqchip.TimedOut, match=r"within 0\.3 s"):
        client.vm("demo").session()
    assert 0.3 <= time.monotonic() - begin < 20


def test_connecting_to_a_full_port_ends_at_the_timeout_despite_signals(crowded: str) -> None:
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        begin = time.monotonic()
        with pytest.raises(irqchip.TimedOut):
            connect_port(f"{crowded}.port", 0.3)
        assert 0.3 <= time.monotonic() - begin < 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard


def test_connecting_and_opening_share_the_timeout() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as port:
            port.bind(f"{path}.port")
            port.listen(5)  # The connection succeeds, but no answer comes.
            begin = time.monotonic()
            with connect(f"unix://{path}", timeout=0.3) as client, pytest.raises(irqchip.TimedOut, match="opening"):
                client.vm("demo").session()
            assert time.monotonic() - begin < 20


def test_a_connection_is_blocking_after_connecting_with_a_timeout(irqchip_server: Daemon) -> None:
    connection = connect_port(irqchip_server.target.removeprefix("unix://") + ".port", 3)
    assert connection is not None
    with connection:
        assert connection.getblocking()
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            size = struct.calcsize("@ll")
            assert connection.getsockopt(socket.SOL_SOCKET, option, size) == bytes(size)


def test_a_missing_port_is_no_error(tmp_path: Path) -> None:
    assert connect_port(None, 1) is None
    assert connect_port(str(tmp_path / "none.port"), 1) is None


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def made(client: irqchip.Client) -> Vm:
    vm = client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


def fill(session: irqchip.Session, futures: list[Future[list[object]]]) -> None:
    for _ in range(900):
        futures.append(session.submit(LARGE))


def test_sending_to_a_stopped_daemon_ends_at_the_timeout_and_arrives_when_it_continues() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        session = made(client).session(max_in_flight=1000)
        client._connection.peer.timeout = 0.3
        futures: list[Future[list[object]]] = []
        with stopped(daemon):
            begin = time.monotonic()
            with pytest.raises(irqchip.TimedOut, match="room"):
                fill(session, futures)
            with pytest.raises(irqchip.TimedOut):
                session.run([ops.irq_line(4, True)])
            with pytest.raises(irqchip.TimedOut):
                session.line(5).raise_()
            with pytest.raises(irqchip.TimedOut):
                session.irqfd(6)
            assert time.monotonic() - begin < 20
        client._connection.peer.timeout = PATIENCE
        assert {len(future.result(PATIENCE)) for future in futures} == {60}
        # All of this goes out before later batches, in order, and with its descriptors.
        assert session.run([ops.irq_line(8, True)])
        (info,) = client.vm(session.vm).info().sessions
        assert {4, 5, 8} <= set(info.asserted_gsis)
        session.close()


def test_giving_up_a_halt_does_not_wait_again() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        session = made(client).session(max_in_flight=1000)
        client._connection.peer.timeout = 1
        with stopped(daemon):
            halting = threading.Thread(target=lambda: suppress_timeout(session), daemon=True)
            halting.start()
            time.sleep(0.1)
            with pytest.raises(irqchip.TimedOut):
                fill(session, [])
            halting.join(PATIENCE)
            assert not halting.is_alive()


def suppress_timeout(session: irqchip.Session) -> None:
    with suppress(irqchip.TimedOut):
        session.run([ops.halt(0)], timeout=0.5)


def test_close_is_prompt_even_if_nothing_can_be_sent() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = made(client)
        session, streamed = vm.session(max_in_flight=1000), vm.watch()
        client._connection.peer.timeout = 0.3
        with stopped(daemon):
            with pytest.raises(irqchip.TimedOut):
                fill(session, [])
            begin = time.monotonic()
            streamed.close()
            session.close()
            client.close()
            assert time.monotonic() - begin < 20


def test_an_unsent_batch_leaves_no_descriptor() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        session = made(client).session(max_in_flight=1000)
        client._connection.peer.timeout = 0.1
        before = len(os.listdir("/proc/self/fd"))
        with stopped(daemon):
            with pytest.raises(irqchip.TimedOut):
                fill(session, [])
            for _ in range(3):
                with pytest.raises(irqchip.TimedOut):
                    session.irqfd(6)
            session.close()
        assert len(os.listdir("/proc/self/fd")) < before


def test_an_invalid_descriptor_does_not_end_the_session(irqchip_client: irqchip.Client) -> None:
    with made(irqchip_client).session() as session:
        for none in (-1, 1_000_000):
            with pytest.raises(irqchip.InvalidArgument, match="is no descriptor"):
                session.assign_irqfd(none, 4)
        assert session.run([ops.irq_line(4, True)])


def test_asyncio_is_not_held_up_either() -> None:
    async def main(daemon: Daemon) -> None:
        async with aio.connect(daemon.target) as client:
            vm = await client.create_vm()
            session, watch = await vm.session(max_in_flight=2), await vm.watch()
            client._connection.peer.timeout = 0.3
            with stopped(daemon):
                begin = time.monotonic()
                for call in (vm.info(), vm.session(), vm.watch(), session.run([]), session.run([]), session.run([])):
                    with pytest.raises(irqchip.TimedOut):
                        await call
                await watch.close()
                await session.close()
                await client.close()
                assert time.monotonic() - begin < 20

    with start_daemon() as daemon:
        asyncio.run(main(daemon))
