"""The halts that a Session's batches end in."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from irqchipd.edge import errors
from irqchipd.edge.batch import Batch, Late
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.vcpu_state import Outcome


class Halts:
    """Batches whose answers wait for a halt to end.

    When a halt has ended, its answer is appended to `answers`, and the Session is woken; from any thread.
    """

    def __init__(self, vm: Vm, limits: Limits, answers: deque[Late], wake: Callable[[], None]) -> None:
        self._vm = vm
        self._limits = limits
        self._answers = answers
        self._wake = wake
        # Batches whose answers have not been taken, in order.
        self.unsent: dict[Late, Batch] = {}
        # Each vCPU's last halt, which the client can give up even after the answer has been sent.
        self._last: dict[int, Batch] = {}

    def begin(self, batch: Batch, arguments: Sequence[Any]) -> bytes | None:
        """Begin the halt that a batch ends in. Returns the batch's answer if the halt is refused."""
        interrupts_masked, vcpu, _, timeout_ns = arguments

        def done(outcome: Outcome) -> None:
            batch.outcome = outcome
            self._answers.append(batch.late)
            self._wake()

        try:
            batch.size = batch.answer_size()
            if sum(other.size for other in self.unsent.values()) + batch.size > self._limits.message_bytes:
                room = self._limits.message_bytes
                raise VmError(
                    errno.E2BIG,
                    f"the results that wait for halts have at most {room} bytes; halt in a batch of its own",
                )
            batch.halt = self._vm.halt(vcpu, done, interrupts_masked != 0, timeout_ns)
        except Exception as error:
            batch.outcome = errors.refusal(error)
            return batch.late()
        self.unsent[batch.late] = batch
        self._last[vcpu] = batch
        return None

    def give_up(self, serial: int) -> None:
        """Cancel the halt that ends a batch, or give back what it took."""
        batch = next((batch for batch in self._last.values() if batch.serial == serial), None)
        if batch is None or batch.halt is None:
            return
        cancelled = self._vm.abandon(batch.halt)
        batch.outcome = None
        if cancelled:
            self._answers.append(batch.late)
            self._wake()

    def abandon(self, sending: Batch | None) -> None:
        """Cancel all halts, and give back what halts without a sent answer took."""
        for batch in (*self.unsent.values(), sending):
            if batch is not None and batch.halt is not None:
                self._vm.abandon(batch.halt)
        self.unsent.clear()
