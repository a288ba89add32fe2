"""Sessions with a server that breaks the protocol, stops answering, or dies: every wait ends, and with an error."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import pytest

import irqchip_client as irqchip
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import aio, ops
from irqchip_client._daemon import start_daemon
from tests.waiting import PATIENCE

from .conftest import Serve

Requests = Iterator[pb.SessionRequest]

RAISE = [ops.irq_line(4, True)]
OPENED = pb.SessionResponse(opened=pb.SessionOpened(source=1, max_operations=16))


def silent(_requests: Requests, context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    """Opens the Session, then neither answers nor ends, even when the client ends."""
    yield OPENED
    released = threading.Event()
    context.add_callback(released.set)
    released.wait(PATIENCE)


def mute(_requests: Requests, context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    """Does not open the Session."""
    released = threading.Event()
    context.add_callback(released.set)
    released.wait(PATIENCE)
    yield OPENED


def wrong_serial(requests: Requests, _context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    yield OPENED
    for request in requests:
        if request.HasField("batch"):
            yield pb.SessionResponse(batch_result=pb.BatchResult(serial=request.batch.serial + 1))


def unknown_kind(requests: Requests, context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    yield OPENED
    next(requests)
    next(requests)
    kind: Any = 99
    yield pb.SessionResponse(event=pb.Event(vcpu_signal=pb.VcpuSignal(signal=pb.Signal(kind=kind))))
    yield from silent(requests, context)


def crash(requests: Requests, _context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    yield OPENED
    next(requests)
    next(requests)
    raise RuntimeError("a defect of the server")


def leave(requests: Requests, _context: grpc.ServicerContext) -> Iterator[pb.SessionResponse]:
    yield OPENED
    next(requests)
    next(requests)


BROKEN = [(wrong_serial, "EPROTO"), (unknown_kind, "EPROTO"), (crash, "EIO"), (leave, None)]


@pytest.mark.parametrize(("script", "reason"), BROKEN)
def test_a_session_that_breaks_fails_its_batches_and_says_why(serve: Serve, script: Any, reason: str | None) -> None:
    with irqchip.connect(serve(script)) as client, client.vm("demo").session() as session:
        future = session.submit(RAISE)
        with pytest.raises(irqchip.SessionClosed) as caught:
            future.result(PATIENCE)
        assert getattr(caught.value.__cause__, "reason", None) == reason
        with pytest.raises(irqchip.SessionClosed):
            session.next_event(timeout=PATIENCE)


@pytest.mark.parametrize(("script", "reason"), BROKEN)
def test_a_broken_asyncio_session_fails_its_batches_and_says_why(serve: Serve, script: Any, reason: str | None) -> None:
    async def main() -> None:
        async with aio.connect(serve(script)) as client, client.vm("demo").session() as session:
            future = await session.submit(RAISE)
            with pytest.raises(irqchip.SessionClosed) as caught:
                await asyncio.wait_for(future, PATIENCE)
            assert getattr(caught.value.__cause__, "reason", None) == reason
            with pytest.raises(irqchip.SessionClosed):
                await session.next_event(timeout=PATIENCE)

    asyncio.run(main())


def test_a_silent_server_meets_timeouts_and_a_prompt_close(serve: Serve) -> None:
    with irqchip.connect(serve(silent)) as client:
        session = client.vm("demo").session(max_in_flight=2)
        client._connection.peer.timeout = 0.2
        first = session.submit(RAISE)
        with pytest.raises(irqchip.TimedOut):
            session.run(RAISE)
        with pytest.raises(irqchip.TimedOut, match="batches in flight"):
            session.submit(RAISE)
        begin = time.monotonic()
        session.close()
        assert time.monotonic() - begin < 20
        with pytest.raises(irqchip.SessionClosed, match="this client closed it"):
            first.result(0)


def test_a_silent_server_meets_timeouts_and_a_prompt_close_in_asyncio(serve: Serve) -> None:
    async def main() -> None:
        async with aio.connect(serve(silent)) as client:
            session = await client.vm("demo").session(max_in_flight=2)
            client._connection.peer.timeout = 0.2
            first = await session.submit(RAISE)
            with pytest.raises(irqchip.TimedOut):
                await session.run(RAISE)
            with pytest.raises(irqchip.TimedOut, match="batches in flight"):
                await session.submit(RAISE)
            begin = time.monotonic()
            await session.close()
            assert time.monotonic() - begin < 20
            with pytest.raises(irqchip.SessionClosed, match="this client closed it"):
                await first

    asyncio.run(main())


def test_opening_times_out(serve: Serve) -> None:
    target = serve(mute)
    with irqchip.connect(target, timeout=0.2) as client, pytest.raises(irqchip.TimedOut, match="opening"):
        client.vm("demo").session()

    async def main() -> None:
        async with aio.connect(target, timeout=0.2) as client:
            with pytest.raises(irqchip.TimedOut, match="opening"):
                await client.vm("demo").session()

    asyncio.run(main())


def test_a_callback_does_not_wait_for_room(serve: Serve) -> None:
    """A callback runs on the thread that makes room for batches."""
    refused: Future[BaseException | None] = Future()
    with irqchip.connect(serve(leave)) as client, client.vm("demo").session(max_in_flight=1) as session:

        def again(_: Future[list[Any]]) -> None:
            try:
                session.submit(RAISE)
            except irqchip.IrqchipError as error:
                refused.set_result(error)

        session.submit(RAISE).add_done_callback(again)
        assert isinstance(refused.result(5), irqchip.SessionClosed)


def test_a_missing_daemon_is_reported_at_once() -> None:
    begin = time.monotonic()
    with irqchip.connect("unix:///tmp/irqchipd-nowhere.sock") as client:
        with pytest.raises(irqchip.Unavailable, match="start it with `irqchipd`"):
            client.vms()
        with pytest.raises(irqchip.Unavailable, match="No such file or directory"):
            client.vm("demo").session()
        with pytest.raises(irqchip.Unavailable):
            client.vm("demo").watch()
    assert time.monotonic() - begin < 20


def test_a_daemon_that_dies_takes_its_sessions_with_it() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm()
        session, watch = vm.session(), vm.watch()
        daemon.process.kill()
        with pytest.raises(irqchip.SessionClosed, match="no irqchipd answers"):
            session.next_event(timeout=PATIENCE)
        with pytest.raises(irqchip.Unavailable):
            list(watch)


def test_a_daemon_that_is_stopped_says_so() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm()
        session, watch = vm.session(), vm.watch()
        daemon.process.terminate()
        with pytest.raises(irqchip.SessionClosed, match="stopping") as caught:
            session.next_event(timeout=PATIENCE)
        assert getattr(caught.value.__cause__, "reason", None) == "ESHUTDOWN"
        with pytest.raises(irqchip.Unavailable, match="stopping"):
            list(watch)


async def wait_in_vain(target: str) -> None:
    async with aio.connect(target, timeout=0.3) as client:
        for call in (client.vms(), client.vm("demo").session(), client.vm("demo").watch()):
            with pytest.raises(irqchip.TimedOut):
                await call


def test_a_daemon_that_hangs_meets_the_timeout() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm()
        session = vm.session()
        client._connection.peer.timeout = 0.3
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(irqchip.TimedOut):
                vm.info()
            with pytest.raises(irqchip.TimedOut):
                session.run(RAISE)
            with pytest.raises(irqchip.TimedOut):
                vm.watch()
            asyncio.run(wait_in_vain(daemon.target))
            begin = time.monotonic()
            session.close()
            assert time.monotonic() - begin < 20
        finally:
            os.kill(daemon.pid, signal.SIGCONT)


def test_no_thread_is_left_behind(serve: Serve) -> None:
    with irqchip.connect(serve(leave)) as client:
        for _ in range(3):
            with client.vm("demo").session() as session, pytest.raises(irqchip.SessionClosed):
                session.run(RAISE)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("irqchip session")]
