"""Whose turn it is on the gRPC edge's event loop."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import Message

from irqchipd.edge.executor import Awaited, Slices
from irqchipd.edge.loop import answered
from irqchipd.edge.rpc import decoded
from irqchipd.fair import FairQueue

TURN_NS = 1_000_000  # of work, less the time that has passed since, from which on pieces of work wait for each other
SMALL = 1024  # bytes of a message that is decoded at once
PIECE_NS = 300_000  # of a batch's slices, one behind the other: a pass of the loop costs more than a slice
GRANTS = 2  # pieces of work that may begin in one pass, when others wait

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


class Gate:
    """Lets pieces of work begin on an event loop: at once where there is little to do, else by holder (see FairQueue).

    A piece is what is done without awaiting: the loop serves everything else between two of them.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        # Nanoseconds of work, less those since; and when the last piece ended.
        self._worked = 0
        self._ended = 0
        self._passing = False  # whether the next pass of the loop is asked for

    def turn(self, holder: object) -> _Turn:
        """A holder's turn: `async with gate.turn(vm.share):` and then a piece of work."""
        return _Turn(self, holder)

    async def run(self, holder: object, work: Slices[_T]) -> _T:
        """Do some work, each slice when it is the holder's turn."""
        while True:
            begun = await self.begin(holder)
            awaited: Awaited = None
            try:
                while awaited is None and perf_counter_ns() - begun < PIECE_NS:
                    awaited = next(work)
            except StopIteration as done:
                result: _T = done.value
                return result
            finally:
                self.end(holder, begun)
            if awaited is not None:
                await answered(awaited)

    async def decode(self, message_class: type[_M], data: bytes) -> _M:
        """The message of some bytes, which do not say yet whose they are: EBADMSG where they are not one."""
        if len(data) <= SMALL:
            return decoded(message_class, data)
        async with self.turn(None):
            return decoded(message_class, data)

    async def begin(self, holder: object) -> int:
        """Wait for the holder's turn. When it began, for end()."""
        if self._is_busy():
            await self._wait(holder)
        return perf_counter_ns()

    def end(self, holder: object, begun: int) -> None:
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
        return self._worked >= TURN_NS

    async def _wait(self, holder: object) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(holder, granted)
        self._ask_for_next_pass()
        await granted

    def _ask_for_next_pass(self) -> None:
        if not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        self._passing = False
        granted = 0
        while self._waiting and granted < GRANTS:
            _, turn = self._waiting.take()
            if not turn.done():  # else nobody waits for it any more
                turn.set_result(None)
                granted += 1
        if self._waiting:
            self._ask_for_next_pass()


class _Turn:
    __slots__ = ("_begun", "_gate", "_holder")

    def __init__(self, gate: Gate, holder: object) -> None:
        self._gate = gate
        self._holder = holder

    async def __aenter__(self) -> None:
        self._begun = await self._gate.begin(self._holder)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.end(self._holder, self._begun)
