"""Long calls: each holder's calls wait in a queue of their own, and none waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from irqchipd.edge.background import Background
from tests.waiting import PATIENCE


def run(work: Callable[[Background], Awaitable[None]]) -> None:
    async def with_background() -> None:
        await work(Background())

    asyncio.run(asyncio.wait_for(with_background(), PATIENCE))


async def started(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.001)


def test_a_call_does_not_wait_for_all_calls_of_another_holder() -> None:
    order: list[str] = []

    def work(name: str) -> Callable[[], bytes]:
        def do() -> bytes:
            order.append(name)
            return name.encode()

        return do

    async def calls(background: Background) -> None:
        noisy = [asyncio.ensure_future(background.run("noisy", work("noisy"))) for _ in range(50)]
        await asyncio.sleep(0)
        assert await background.run("quiet", work("quiet")) == b"quiet"
        assert await asyncio.gather(*noisy) == [b"noisy"] * 50

    run(calls)
    assert order.index("quiet") <= 2


def test_calls_that_are_given_up_or_fail_leave_the_thread_to_others() -> None:
    async def calls(background: Background) -> None:
        inside, go_on = threading.Event(), threading.Event()

        def block() -> bytes:
            inside.set()
            go_on.wait(PATIENCE)
            return b""

        def fail() -> bytes:
            raise ZeroDivisionError

        blocking = asyncio.ensure_future(background.run("a", block))
        await started(inside)
        waiting = [asyncio.ensure_future(background.run("a", bytes)) for _ in range(5)]
        failing = asyncio.ensure_future(background.run("a", fail))
        last = asyncio.ensure_future(background.run("a", bytes))
        await asyncio.sleep(0)
        for call in waiting[:3]:
            call.cancel()
        go_on.set()
        await blocking
        waiting[3].cancel()  # its turn has come, but it has not begun
        assert await last == b""
        with pytest.raises(ZeroDivisionError):
            await failing
        assert await waiting[4] == b""
        assert await background.run("b", bytes) == b""

    run(calls)


def test_giving_up_a_running_call_does_not_end_another() -> None:
    async def calls(background: Background) -> None:
        inside, go_on = threading.Event(), threading.Event()

        def block() -> bytes:
            inside.set()
            go_on.wait(PATIENCE)
            return b""

        blocking = asyncio.ensure_future(background.run("a", block))
        await started(inside)
        blocking.cancel()
        other = asyncio.ensure_future(background.run("b", bytes))
        await asyncio.sleep(0.01)
        assert not other.done()
        go_on.set()
        assert await other == b""

    run(calls)
