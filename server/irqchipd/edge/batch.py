"""The execution of a batch, in any form."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Any, Final

from irqchipd.edge import errors
from irqchipd.edge.operations import HALT, Operation, SessionCaller, access_result
from irqchipd.limits import Limits, Room
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Pending, Slices
from irqchipd.vm.regions import Access
from irqchipd.vm.vcpu_state import Outcome

SLICE_NS = 30_000  # after which another client has its turn, at the end of an operation

# The most accesses to the same address, those of a string instruction, that are forwarded to a region's owner before
# the first is answered. Any other operation waits until all of them are answered.
MAX_STRING: Final = 256


# Makes a late answer: of a halt that has ended, or of an access that a region's owner has answered.
Late = Callable[[], bytes]


class Batch:
    """A batch and its answer. Each form of a batch derives from this class, and only decodes and encodes.

    serial   the client's number for it
    count    the number of operations
    halt     the halt that the batch ends in, from when it begins
    outcome  what ended the halt
    size     the bytes of the answer without the outcome
    """

    def __init__(self, serial: int, count: int, limits: Limits) -> None:
        self.serial = serial
        self.count = count
        self._limits = limits
        self._room: Room | None = None
        self.halt: Halt | None = None
        self.outcome: Outcome = None
        self.size = 0

    def calls(self) -> Iterator[tuple[Operation, Sequence[Any]]]:
        """Every operation and its arguments; REFUSED and an error for an invalid operation."""
        raise NotImplementedError

    @property
    def room(self) -> Room:
        """The room for results and texts that can be large. Few batches have one."""
        if self._room is None:
            self._room = Room(self._limits, self.least_bytes())
        return self._room

    def least_bytes(self) -> int:
        """The bytes of the answer if no result is large and no error has a text."""
        raise NotImplementedError

    def add(self, operation: Operation, result: Any) -> None:
        """Add the result of the next operation. VmError without room for it."""
        raise NotImplementedError

    def add_error(self, error: VmError, text: str) -> None:
        """Add the error of the next operation, with this text."""
        raise NotImplementedError

    def refused(self, error: VmError) -> bytes:
        """The answer to a batch that is not executed; or raises the error, which ends the Session."""
        raise NotImplementedError

    def answer_size(self) -> int:
        """The bytes of the answer so far."""
        raise NotImplementedError

    def answer(self) -> bytes:
        """The answer."""
        raise NotImplementedError

    def late(self) -> bytes:
        """The answer with the outcome of the halt."""
        raise NotImplementedError


# Begins the halt that ends a batch. Returns the batch's answer if the halt is refused.
BeginHalt = Callable[[Batch, Sequence[Any]], bytes | None]


def execute(on: SessionCaller, batch: Batch, most: int, begin_halt: BeginHalt) -> Slices[bytes | None]:
    """Execute a batch of at most `most` operations, in order, and return its answer: a result or an error for each.

    A batch that ends in a halt has its answer later.
    """
    count = batch.count
    if count > most:
        return batch.refused(VmError(errno.E2BIG, f"a batch of {count} operations; at most {most} are allowed"))
    vm = on.vm
    add = batch.add
    last = count - 1
    halt: Sequence[Any] | None = None
    # Accesses that wait for a region's owner, and their common operation, size, vCPU and address.
    waiting: list[tuple[Operation, Access]] = []
    common: object = None
    slice_ends = perf_counter_ns() + SLICE_NS
    for position, (operation, arguments) in enumerate(batch.calls()):
        try:
            if waiting and (
                len(waiting) == MAX_STRING or waiting[0][1].crowded or common != (operation, arguments[:3])
            ):
                yield from _add_answers(batch, waiting)
            if vm.agenda.backlog is not None:
                yield from caught_up(vm)
            if operation.is_long:
                if operation is HALT and position == last:
                    halt = arguments
                    break
                if operation.reserve is not None:
                    operation.reserve(batch.room, *arguments)
                result = yield from operation.call(on, *arguments)
            else:
                result = operation.call(on, *arguments)
            if isinstance(result, Access):
                waiting.append((operation, result))
                common = operation, arguments[:3]
            else:
                if waiting:
                    yield from _add_answers(batch, waiting)
                add(operation, result)
        except Exception as error:
            yield from _add_answers(batch, waiting)
            _add_error(batch, error)
        if position < last and perf_counter_ns() >= slice_ends:
            yield None
            slice_ends = perf_counter_ns() + SLICE_NS
    if waiting:
        yield from _add_answers(batch, waiting)
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
    return batch.answer() if halt is None else begin_halt(batch, halt)


def _add_answers(batch: Batch, waiting: list[tuple[Operation, Access]]) -> Slices[None]:
    """Wait for the answers to all accesses, and add them."""
    for operation, access in waiting:
        yield from ended(access)
        try:
            batch.add(operation, access_result(access))
        except VmError as error:
            _add_error(batch, error)
    waiting.clear()


def _add_error(batch: Batch, error: Exception) -> None:
    refusal = errors.refusal(error)
    batch.add_error(refusal, batch.room.text(refusal))


def ended(pending: Pending) -> Slices[None]:
    """Wait for something to end."""
    while not pending.done:
        yield pending


def caught_up(vm: Vm) -> Slices[None]:
    """Wait until every listener has been notified of the effects of earlier operations."""
    while (backlog := vm.agenda.backlog) is not None:
        yield backlog
