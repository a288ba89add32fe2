"""Batches as records; irqchip/records.py says what they look like."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any

from irqchip.records import ERROR, HEADER, OPERATION, RESULT, SINGLE_RESULT
from irqchipd.edge import errors
from irqchipd.edge.batch import Batch, LateAnswer
from irqchipd.edge.operations import HALT, RECORDS, REFUSED, Operation, access_result, halt_result
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.regions import Access


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
        for record in OPERATION.iter_unpack(memoryview(self._packet)[HEADER.size :]):
            operation = RECORDS.get(record[0])
            if operation is not None:
                yield operation, record[1:]
            else:
                yield REFUSED, (invalid(f"operation {record[0]} has no record; send it in a Batch"),)

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
        if isinstance(self.outcome, VmError):
            self.add_error(self.outcome, self.outcome.message)
        else:
            self._results.append(RESULT.pack(HALT.number, *halt_result(self.outcome)))
        return self.answer()


class AwaitedRecord(LateAnswer):
    """A record alone in its packet, of an access that waits for a region's owner."""

    def __init__(self, serial: int, number: int, access: Access) -> None:
        self._serial = serial
        self._number = number
        self._access = access

    def late(self) -> bytes:
        try:
            return SINGLE_RESULT.pack(0, self._serial, self._number, *access_result(self._access))
        except VmError as error:
            return error_alone(self._serial, error)


def error_alone(serial: int, error: Exception) -> bytes:
    """The answer to a record alone in its packet that failed."""
    refusal = errors.refusal(error)
    text = refusal.message.encode()
    return SINGLE_RESULT.pack(0, serial, ERROR, 0, refusal.number, len(text)) + text
