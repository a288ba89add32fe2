"""The order of turns on the gRPC edge's event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.gate import BUSY_NS, Gate
from irqchipd.edge.messages import execute_unary
from irqchipd.edge.operations import OPERATIONS
from irqchipd.edge.streams import Streams
from irqchipd.limits import Limits
from irqchipd.vm.clock import Deadlines
from irqchipd.vm.pending import Slices
from irqchipd.vm.registry import Registry
from irqchipd.vm.turns import finish
from irqchipd.vm.x86.machine import X86Vm
from tests.builds import exists
from tests.vm.pc import Pc
from tests.vm.test_backlog import BROADCAST, VCPUS, VECTOR, all_told, do_all, listened_to
from tests.waiting import PATIENCE

Order = list[object]


def burn(nanoseconds: int) -> None:
    end = perf_counter_ns() + nanoseconds
    while perf_counter_ns() < end:
        pass


async def piece(gate: Gate, holder: object, order: Order, nanoseconds: int = BUSY_NS) -> None:
    async with gate.piece(holder):
        order.append(holder)
        burn(nanoseconds)


def run(work: Callable[[Gate], Awaitable[None]]) -> None:
    async def with_gate() -> None:
        await work(Gate())

    asyncio.run(asyncio.wait_for(with_gate(), PATIENCE))


def test_a_light_holder_waits_for_few_pieces_of_a_heavy_one() -> None:
    order: Order = []

    async def work(gate: Gate) -> None:
        noisy = [asyncio.ensure_future(piece(gate, "noisy", order)) for _ in range(100)]
        while len(order) < 10:
            await asyncio.sleep(0)
        begun = len(order)
        await piece(gate, "quiet", order)
        assert order.index("quiet") - begun <= 8
        await asyncio.gather(*noisy)

    run(work)


def test_work_in_slices_gives_others_their_turns_between_them() -> None:
    order: Order = []

    def slices(name: str) -> Slices[str]:
        for _ in range(10):
            order.append(name)
            burn(BUSY_NS)
            yield None
        return name

    async def work(gate: Gate) -> None:
        await asyncio.gather(gate.run("a", slices("a")), gate.run("b", slices("b")))

    run(work)
    assert order.index("b") <= 4
    assert set(order[-4:]) == {"a", "b"}


def test_cancelled_waiters_take_no_turn_from_others() -> None:
    order: Order = []

    async def work(gate: Gate) -> None:
        await piece(gate, "first", order)
        waiting = [asyncio.ensure_future(piece(gate, "cancelled", order)) for _ in range(50)]
        last = asyncio.ensure_future(piece(gate, "cancelled", order, 0))
        await asyncio.sleep(0)
        for task in waiting[:4]:  # perhaps granted already, but not begun
            task.cancel()
        await asyncio.sleep(0)
        for task in waiting[4:]:
            task.cancel()
        await last

    run(work)
    assert len(order) < 20


def test_a_turn_that_fails_is_over() -> None:
    async def fail(gate: Gate) -> None:
        async with gate.piece("failing"):
            burn(BUSY_NS)
            raise ZeroDivisionError

    async def work(gate: Gate) -> None:
        for _ in range(20):
            with pytest.raises(ZeroDivisionError):
                await fail(gate)
        order: Order = []
        await piece(gate, "other", order)
        assert order == ["other"]

    run(work)


def test_a_deleted_vm_is_not_kept_alive_by_its_accounted_time() -> None:
    async def work(gate: Gate) -> None:
        registry = Registry(1)
        vm = registry.create("gone")
        await gate.run(vm.share, iter_nothing())
        registry.delete("gone")
        identity = id(vm)
        del vm
        gc.collect()
        assert not exists(X86Vm, identity)

    run(work)


def iter_nothing() -> Slices[None]:
    yield None


def test_a_reset_waits_until_earlier_events_have_been_sent() -> None:
    later = Deadlines()
    pc = Pc(VCPUS, deadlines=later)
    told = listened_to(pc)
    pc.vm.signal_msi(BROADCAST, VECTOR)
    reset = execute_unary(OPERATIONS["reset_vm"], pc.vm, pb.ResetVmRequest(), pb.ResetVmResponse())
    assert next(reset) is pc.vm.agenda.backlog
    assert pc.vm.ack_interrupt(0) == (VECTOR, False)
    do_all(later)
    assert told == all_told()
    finish(reset)
    assert pc.vm.ack_interrupt(1) is None


class HeldGate(Gate):
    """A gate whose turns begin when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.waits = asyncio.Event()

    async def _begin(self, holder: object) -> int:
        self.waits.set()
        await self.open.wait()
        return await super()._begin(holder)


class Call:
    """The context that gRPC passes to the handler of a Watch."""

    def __init__(self) -> None:
        self.status: str | None = None

    async def send_initial_metadata(self, _: object) -> None: ...

    async def write(self, _: object) -> None: ...

    async def abort(self, _: object, details: str, __: object) -> None:
        self.status = details
        raise grpc.aio.AbortError


def test_a_watch_that_opens_while_its_vm_is_deleted_ends() -> None:
    async def work() -> None:
        registry = Registry(1)
        vm = registry.create("vm")
        gate = HeldGate()
        streams = Streams(registry, Limits(), SessionQuota(9), gate)
        request = pb.WatchRequest(vm="vm").SerializeToString()
        calls: list[Any] = [Call(), Call()]
        gate.open.set()
        watching = asyncio.ensure_future(streams.watch(request, calls[0]))
        while not vm._observers:
            await asyncio.sleep(0)
        gate.open.clear()
        gate.waits.clear()
        late = asyncio.ensure_future(streams.watch(request, calls[1]))
        await gate.waits.wait()
        registry.delete("vm")
        await asyncio.sleep(0)  # the first Watch has been notified, but has not ended yet
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(watching, late, return_exceptions=True), PATIENCE)
        assert calls[0].status is not None
        assert calls[1].status == calls[0].status

    asyncio.run(work())
