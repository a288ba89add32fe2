"""Batches as records; irqchip/records.py defines their layout."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final, NoReturn

from irqchip.records import (
    CLAIMED,
    ERROR,
    HEADER,
    INTERRUPT,
    OPERATION,
    RESULT,
    SIGNAL,
    SINGLE_RESULT,
    TIMEOUT,
    UNANSWERED,
)
from irqchipd.edge import errors
from irqchipd.edge.batch import Batch
from irqchipd.edge.convert import signal_to
from irqchipd.edge.operations import CONTROLLERS, HALT, RECORDS, Operation, Result
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.regions import Access
from irqchipd.vm.vcpu_state import Signal, Taken


def _without_record(number: int) -> Operation:
    def refuse(*_: object) -> NoReturn:
        raise invalid(f"operation {number} has no record; send it in a Batch")

    return Operation(f"operation {number}", refuse, ())


# By the number that is the first byte of a record. And the fields after the number.
_OPERATIONS: Final = [RECORDS.get(number) or _without_record(number) for number in range(256)]
_ARGUMENTS: Final = Struct("<x" + OPERATION.format.removeprefix("<B"))


class RecordBatch(Batch):
    """A packet of records, and the packet that answers it."""

    def __init__(self, packet: bytes, limits: Limits) -> None:
        count, rest = divmod(len(packet) - HEADER.size, OPERATION.size)
        if count < 1 or rest:
            raise VmError(errno.EBADMSG, "a batch in the short form has a header of 16 bytes and records of 24")
        super().__init__(HEADER.unpack_from(packet)[1], count, limits)
        self._packet = packet
        self._results: list[bytes] = []
        self._texts: list[bytes] = []

    def calls(self) -> Iterator[tuple[Operation, Sequence[Any]]]:
        packet = self._packet
        for at in range(HEADER.size, len(packet), OPERATION.size):
            yield _OPERATIONS[packet[at]], _ARGUMENTS.unpack_from(packet, at)

    def least_bytes(self) -> int:
        return HEADER.size + RESULT.size * self.count

    def add(self, operation: Operation, result: Any) -> None:
        self._results.append(RESULT.pack(operation.number, *result))

    def add_error(self, error: VmError, text: str) -> None:
        self._results.append(RESULT.pack(ERROR, 0, error.number, len(encoded := text.encode())))
        self._texts.append(encoded)

    def refused(self, error: VmError) -> bytes:
        raise error

    def answer_size(self) -> int:
        return HEADER.size + RESULT.size * (len(self._results) + 1) + sum(map(len, self._texts))

    def answer(self) -> bytes:
        return b"".join((HEADER.pack(0, self.serial), *self._results, *self._texts))

    def late(self) -> bytes:
        outcome = self.outcome
        if isinstance(outcome, VmError):
            self.add_error(outcome, outcome.message)
            return self.answer()
        result = halt_result(outcome)
        if self.count == 1:
            return SINGLE_RESULT.pack(0, self.serial, HALT.number, *result)
        self.add(HALT, result)
        return self.answer()


def halt_result(outcome: Taken | Signal | None) -> Result:
    """The result of a halt that ended with an interrupt, a signal or the timeout."""
    if isinstance(outcome, tuple):
        vector, controller = outcome
        return INTERRUPT, CONTROLLERS[controller], vector
    if outcome is None:
        return TIMEOUT, 0, 0
    signal = signal_to(outcome)
    return SIGNAL, signal.kind, signal.vector


def answer_alone(serial: int, number: int, access: Access) -> bytes:
    """The answer to a packet of one record, whose access has ended."""
    try:
        value, answered = access.result()
    except VmError as error:
        return error_alone(serial, error)
    return SINGLE_RESULT.pack(0, serial, number, CLAIMED if answered else CLAIMED | UNANSWERED, 0, value)


def error_alone(serial: int, error: Exception) -> bytes:
    """The answer to a packet of one record that failed."""
    refusal = errors.refusal(error)
    text = refusal.message.encode()
    return SINGLE_RESULT.pack(0, serial, ERROR, 0, refusal.number, len(text)) + text
