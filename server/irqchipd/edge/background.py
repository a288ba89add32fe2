"""Long calls, in a thread of their own: one at a time, by holder (see FairQueue)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

from irqchipd.edge.gate import Waiters


class Background:
    """A thread, which is started at once, and the calls that wait for it. Only the calls run outside the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "irqchipd background")
        self._thread.submit(int)
        self._waiting = Waiters()
        self._busy = False

    async def run(self, holder: object, work: Callable[[], bytes]) -> bytes:
        """Do a holder's work when the thread is free."""
        if self._busy:
            await self._waiting.wait(holder, self._free)
        self._busy = True
        begun = perf_counter_ns()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting.charge(holder, perf_counter_ns() - begun)
            self._free()

    def close(self) -> None:
        """End the thread when its work is done."""
        self._thread.shutdown(wait=False)

    def _free(self) -> None:
        """The thread is free, unless another call waits."""
        self._busy = self._waiting.admit()
