"""Long calls have channels of their own, each with a bounded number of calls, so that any number of calls runs at once.

The test's server accepts as many calls per connection as irqchipd does, and counts the connections.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

import irqchip_client as irqchip
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import aio, connect
from irqchip_client._channels import MOST_CALLS, Lasting
from tests.waiting import PATIENCE, eventually

from .conftest import Stub

OPENED = pb.SessionResponse(opened=pb.SessionOpened(source=1, max_operations=16))
MANY = 150  # More calls than one connection carries.


class Server:
    """Sessions, Watches and Halts that last until the client ends them."""

    def __init__(self) -> None:
        self.peers: dict[str, int] = {}  # The number of open calls per client connection.
        self.most = 0
        self.woken = threading.Event()
        self._lock = threading.Lock()

    def _begins(self, context: grpc.ServicerContext) -> threading.Event:
        ended = threading.Event()
        peer = context.peer()

        def end() -> None:
            with self._lock:
                self.peers[peer] -= 1
                if not self.peers[peer]:
                    del self.peers[peer]
            ended.set()

        with self._lock:
            self.peers[peer] = self.peers.get(peer, 0) + 1
            self.most = max(self.most, self.peers[peer])
        if not context.add_callback(end):
            end()
        return ended

    def session(self, requests: Iterator[pb.SessionRequest], context: grpc.ServicerContext) -> Any:
        self._begins(context)
        yield OPENED
        for _ in requests:
            pass

    def watch(self, _request: pb.WatchRequest, context: grpc.ServicerContext) -> Any:
        ended = self._begins(context)
        context.send_initial_metadata(())
        ended.wait(60)
        yield from ()

    def halt(self, _request: pb.HaltRequest, context: grpc.ServicerContext) -> pb.HaltResponse:
        self._begins(context)
        self.woken.wait(60)
        return pb.HaltResponse(interrupt=pb.Interrupt(vector=0x31, source=pb.INTERRUPT_SOURCE_LAPIC))

    def get_vm(self, request: pb.GetVmRequest, _context: grpc.ServicerContext) -> pb.GetVmResponse:
        return pb.GetVmResponse(vm=pb.VmInfo(name=request.vm))

    def lasting(self) -> int:
        return sum(self.peers.values())


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def target(server: Server, stub: Stub) -> str:
    return stub(MANY + 8, Session=server.session, Watch=server.watch, Halt=server.halt, GetVm=server.get_vm)


def begin(vm: irqchip.Vm, turn: int) -> irqchip.Session | irqchip.Watch:
    return vm.session() if turn % 2 else vm.watch()


def test_many_sessions_and_watches_share_few_channels(server: Server, target: str) -> None:
    with connect(target) as client, ExitStack() as stack:
        vm = client.vm("a")
        opened = [begin(vm, turn) for turn in range(MANY)]
        for one in opened:
            stack.callback(one.close)
        assert server.lasting() == MANY
        assert server.most == MOST_CALLS
        assert len(server.peers) == len(client._connection.lasting) == 5
        assert vm.info().name == "a"  # Over another channel.
        for one in opened[:-1]:
            one.close()
        eventually(lambda: len(client._connection.lasting) == 1 and server.lasting() == 1)
        last = opened[-1]
        assert isinstance(last, irqchip.Session)
        assert not last.closed


def test_many_halts_by_unary_calls_do_not_hold_up_others(server: Server, target: str) -> None:
    with connect(target) as client, ThreadPoolExecutor(MANY) as pool:
        vm = client.vm("a")
        wakes = [pool.submit(vm.vcpu(number).halt) for number in range(MANY)]
        eventually(lambda: server.lasting() == MANY)
        assert server.most == MOST_CALLS
        assert vm.info().name == "a"
        server.woken.set()
        assert {wake.result(PATIENCE) for wake in wakes} == {irqchip.Interrupt(0x31, irqchip.InterruptSource.LAPIC)}
        eventually(lambda: len(client._connection.lasting) == 1)
        assert vm.vcpu(0).halt()
        assert len(client._connection.lasting) == 1


def test_asyncio_does_the_same(server: Server, target: str) -> None:
    async def main() -> None:
        async with aio.connect(target) as client:
            vm = client.vm("a")
            sessions = [await vm.session() for _ in range(50)]
            watches = [await vm.watch() for _ in range(50)]
            halts = [asyncio.create_task(vm.vcpu(number).halt()) for number in range(50)]
            async with asyncio.timeout(20):
                while server.lasting() < MANY:
                    await asyncio.sleep(0.01)
                assert server.most == MOST_CALLS
                assert len(server.peers) == len(client._connection.lasting) == 5
                assert (await vm.info()).name == "a"
                server.woken.set()
                assert len(await asyncio.gather(*halts)) == 50
                for session in sessions:
                    await session.close()
                for watch in watches:
                    await watch.close()
                while len(client._connection.lasting) != 1 or server.lasting():
                    await asyncio.sleep(0.01)
                await vm.session()
            assert len(client._connection.lasting) == 1

    asyncio.run(main())


def test_a_client_that_closes_ends_them_all_and_says_why(server: Server, target: str) -> None:
    client = connect(target)
    vm = client.vm("a")
    with ThreadPoolExecutor(40) as pool:
        halts = [pool.submit(vm.vcpu(number).halt) for number in range(40)]
        eventually(lambda: server.lasting() == 40)
        session, watch = vm.session(), vm.watch()
        client.close()
        for halt in halts:
            with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
                halt.result(PATIENCE)
    with pytest.raises(irqchip.SessionClosed, match="this Client is closed"):
        session.next_event(PATIENCE)
    with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
        next(watch)
    for call in (vm.info, vm.session, vm.watch, vm.vcpu(0).halt):
        with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
            call()
    eventually(lambda: not server.lasting())
    server.woken.set()


def test_a_client_for_asyncio_that_closes_says_why(server: Server, target: str) -> None:
    async def main() -> None:
        client = aio.connect(target)
        vm = client.vm("a")
        session, watch = await vm.session(), await vm.watch()
        halt = asyncio.create_task(vm.vcpu(0).halt())
        while server.lasting() < 3:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
            await halt
        with pytest.raises(irqchip.SessionClosed, match="this Client is closed"):
            await session.next_event(PATIENCE)
        with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
            await anext(watch)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    server.woken.set()


def test_a_call_that_the_server_cancels_is_not_reported_as_a_closed_client(stub: Stub) -> None:
    def cancel(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.CANCELLED, "")

    def cancel_stream(_request: Any, context: grpc.ServicerContext) -> Any:
        context.send_initial_metadata(())
        context.abort(grpc.StatusCode.CANCELLED, "")
        yield

    target = stub(GetVm=cancel, Halt=cancel, Session=cancel_stream, Watch=cancel_stream)
    with connect(target) as client:
        vm = client.vm("a")
        for call in (vm.info, vm.session, vm.vcpu(0).halt, lambda: list(vm.watch())):
            with pytest.raises(irqchip.Unavailable, match="try again") as caught:
                call()
            assert caught.value.reason == "ECONNABORTED"

    async def read(vm: aio.Vm) -> None:
        async with vm.watch() as watch:
            async for _ in watch:
                pass

    async def main() -> None:
        async with aio.connect(target) as client:
            vm = client.vm("a")
            calls: list[Callable[[], Awaitable[object]]] = [vm.info, vm.session, vm.vcpu(0).halt, lambda: read(vm)]
            for call in calls:
                reason = "EIO"
                # gRPC's asyncio half sometimes loses a stream's status to an error of its own.
                for _ in range(5):
                    if reason == "EIO":
                        with pytest.raises(irqchip.IrqchipError) as caught:
                            await call()
                        reason = caught.value.reason
                assert reason == "ECONNABORTED"

    asyncio.run(main())


def test_a_watch_shows_values_of_64_bits(stub: Stub) -> None:
    def watch(_request: pb.WatchRequest, _context: grpc.ServicerContext) -> Any:
        fields = [pb.TraceField(name="value", value=(1 << 64) - 1), pb.TraceField(name="address", value=1 << 63)]
        yield pb.WatchResponse(event=pb.TraceEvent(time_ns=1, tracepoint="kvm_mmio", fields=fields))

    with connect(stub(Watch=watch)) as client:
        (event,) = client.vm("a").watch()
    assert isinstance(event, irqchip.TraceEvent)
    assert event.fields == {"value": (1 << 64) - 1, "address": 1 << 63}


# The pool itself.


def test_a_channel_is_made_when_all_are_full_and_closed_when_another_has_room() -> None:
    made = iter("abcdef")
    lasting = Lasting(lambda: next(made))
    assert [lasting.take() for _ in range(MOST_CALLS + 1)] == ["a"] * MOST_CALLS + ["b"]
    assert not lasting.give_back("b")  # The other is full, so the next call would need a new channel.
    assert len(lasting) == 2
    assert not lasting.give_back("a")
    assert lasting.take() == "a"
    assert lasting.take() == "b"
    assert not lasting.give_back("a")
    assert lasting.give_back("b")
    for _ in range(MOST_CALLS - 1):
        assert not lasting.give_back("a")
    assert len(lasting) == 1  # The last stays.


def test_a_closed_pool_gives_no_channels() -> None:
    lasting = Lasting(lambda: "a")
    lasting.take()
    assert lasting.close() == ["a"]
    assert not lasting.give_back("a")
    assert lasting.close() == []
    with pytest.raises(irqchip.Unavailable, match="this Client is closed"):
        lasting.take()
