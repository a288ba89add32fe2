"""The order of pieces of work on the gRPC edge's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import TypeVar

from google.protobuf.message import Message

from irqchipd.edge.loop import ended
from irqchipd.edge.rpc import decoded
from irqchipd.fair import FairQueue
from irqchipd.vm.pending import Pending, Slices

BUSY_NS = 1_000_000  # of work, less the time since; above this, pieces of work wait for each other
SMALL = 1024  # bytes of a message that is decoded at once
PIECE_NS = 300_000  # after which a piece ends: a pass of the loop costs more than a slice of a batch
GRANTS = 2  # pieces that may begin in one pass while others wait

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


class Waiters:
    """Coroutines that wait until a piece of their holder's work may begin."""

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self.charge = self._queue.charge

    def __bool__(self) -> bool:
        return bool(self._queue)

    async def wait(self, holder: object, unused: Callable[[], object]) -> None:
        """Wait. If the caller is cancelled when its piece has just been admitted, unused is called."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(holder, future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                unused()
            raise

    def admit(self) -> bool:
        """Let the next piece begin. False if none waits."""
        while self._queue:
            _, future = self._queue.take()
            if not future.done():  # otherwise its coroutine was cancelled
                future.set_result(None)
                return True
        return False


class Gate:
    """Lets pieces of work begin on an event loop: at once if the loop has little work, else by holder (see FairQueue).

    A piece does not await anything: between pieces the loop serves everything else.
    """

    def __init__(self) -> None:
        self._waiting = Waiters()
        # Nanoseconds of work, less the time since; and the time when the last piece ended.
        self._worked = 0
        self._ended = 0
        self._passing = False  # whether the next pass of the loop is requested

    @asynccontextmanager
    async def piece(self, holder: object) -> AsyncIterator[None]:
        """A piece of the holder's work: `async with gate.piece(vm.share):`."""
        begun = await self._begin(holder)
        try:
            yield
        finally:
            self._end(holder, begun)

    async def run(self, holder: object, work: Slices[_T]) -> _T:
        """Do some work in pieces of PIECE_NS."""
        while True:
            begun = await self._begin(holder)
            awaited: Pending | None = None
            try:
                while awaited is None and perf_counter_ns() - begun < PIECE_NS:
                    awaited = next(work)
            except StopIteration as done:
                result: _T = done.value
                return result
            finally:
                self._end(holder, begun)
            if awaited is not None:
                await ended(awaited)

    async def decode(self, message_class: type[_M], data: bytes) -> _M:
        """Decode a message, whose VM is not known yet. EBADMSG if the bytes are not a message."""
        if len(data) <= SMALL:
            return decoded(message_class, data)
        async with self.piece(None):
            return decoded(message_class, data)

    async def _begin(self, holder: object) -> int:
        """Wait until a piece of the holder's work may begin. Returns the time, for _end()."""
        if self._is_busy():
            self._ask_for_next_pass()
            await self._waiting.wait(holder, self._waiting.admit)
        return perf_counter_ns()

    def _end(self, holder: object, begun: int) -> None:
        """A piece of the holder's work is done."""
        self._ended = perf_counter_ns()
        self._worked += self._ended - begun
        self._waiting.charge(holder, self._ended - begun)

    def _is_busy(self) -> bool:
        if self._waiting:
            return True
        now = perf_counter_ns()
        self._worked = max(self._worked - (now - self._ended), 0)
        self._ended = now
        return self._worked >= BUSY_NS

    def _ask_for_next_pass(self) -> None:
        if not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        self._passing = False
        for _ in range(GRANTS):
            self._waiting.admit()
        if self._waiting:
            self._ask_for_next_pass()
