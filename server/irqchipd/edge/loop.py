"""Between the gRPC edge's event loop and other threads."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from irqchipd.vm.pending import Pending

log = logging.getLogger(__name__)

EVENTS_A_PASS = 256  # each takes some microseconds

_T = TypeVar("_T")


class Loop(asyncio.SelectorEventLoop):
    """An event loop that takes all of gRPC's events in one pass.

    grpc.aio is notified of its completion queue through a socket, one byte per event, and takes one event in each pass
    of the loop. A call needs several events, and each would wait for those of all other calls and streams.
    """

    def add_reader(self, fd: Any, callback: Callable[..., Any], *arguments: Any) -> None:  # type: ignore[override]
        """As asyncio's, but the callback is called again, up to EVENTS_A_PASS times, while there is more to read."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)

        def read_all() -> None:
            for _ in range(EVENTS_A_PASS):
                callback(*arguments)
                if not poll.poll(0):
                    break

        super().add_reader(fd, read_all)


def call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Let an event loop call a function; from any thread."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop is closed, and its streams have ended
        log.debug("a stream was woken after the end")


def resolve(future: asyncio.Future[_T], result: _T) -> None:
    """Set the result of a future, unless it has one."""
    if not future.done():
        future.set_result(result)


async def ended(pending: Pending) -> None:
    """Wait until something has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    pending.when_done(lambda: call(loop, resolve, future, None))
    await future


async def first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until one is done or fails, and cancel the others."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
