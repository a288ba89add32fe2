"""Calls that take their time, in a thread of their own: one at a time, by holder (see FairQueue)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

from irqchipd.fair import FairQueue


class Background:
    """A thread, which is there from the beginning, and who waits for it. All but the work is the event loop's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "irqchipd background")
        self._thread.submit(int)
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._busy = False

    async def run(self, holder: object, work: Callable[[], bytes]) -> bytes:
        """Do a holder's work when it is its turn."""
        loop = asyncio.get_running_loop()
        if self._busy:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.put(holder, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it had just been its turn
                    self._pass_on()
                raise
        self._busy = True
        begun = perf_counter_ns()
        try:
            return await loop.run_in_executor(self._thread, work)
        finally:
            self._waiting.charge(holder, perf_counter_ns() - begun)
            self._pass_on()

    def _pass_on(self) -> None:
        """The thread is free: it is the next one's turn, if anybody waits."""
        self._busy = False
        while self._waiting and not self._busy:
            _, turn = self._waiting.take()
            if not turn.done():
                turn.set_result(None)
                self._busy = True
