"""Batches and single operations as the contract's messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import convert, errors
from irqchipd.edge.batch import Batch, caught_up, ended
from irqchipd.edge.operations import OPERATIONS, REFUSED, Caller, Operation, access_result
from irqchipd.limits import LEAST_RESULT, Limits
from irqchipd.vm.errors import VmError, invalid, quoted
from irqchipd.vm.machine import Vm
from irqchipd.vm.pending import Slices
from irqchipd.vm.regions import Access


class MessageBatch(Batch):
    """A pb.Batch for a VM, and its pb.BatchResult."""

    def __init__(self, vm: str, batch: pb.Batch, limits: Limits) -> None:
        super().__init__(batch.serial, len(batch.operations), limits)
        self._vm = vm
        self._operations = batch.operations
        self._response = pb.SessionResponse()
        self._result = self._response.batch_result
        self._result.SetInParent()
        self._result.serial = batch.serial

    def calls(self) -> Iterator[tuple[Operation, Sequence[Any]]]:
        for message in self._operations:
            try:
                name = message.WhichOneof("operation")
                if name is None:
                    raise invalid("the operation is empty, or unknown to this daemon")
                operation = OPERATIONS[name]
                request = getattr(message, name)
                if operation.has_vm and request.vm and request.vm != self._vm:
                    raise invalid(
                        f"vm is {quoted(request.vm)}, but the Session belongs to VM {self._vm!r}: leave vm empty"
                    )
                call = operation, operation.arguments(request)
            except Exception as error:
                yield REFUSED, (error,)
            else:
                yield call

    def least_bytes(self) -> int:
        return LEAST_RESULT * self.count

    def add(self, operation: Operation, result: Any) -> None:
        response = getattr(self._result.results.add(), operation.name)
        try:
            response.SetInParent()
            operation.fill(result, response)
            if operation.large:
                self.room.take(response.ByteSize())
        except BaseException:
            del self._result.results[-1]
            raise

    def add_error(self, error: VmError, text: str) -> None:
        message = errors.message(error)
        message.message = text
        self._result.results.add().error.CopyFrom(message)

    def refused(self, error: VmError) -> bytes:
        self._result.error.CopyFrom(errors.message(error))
        return self.answer()

    def answer_size(self) -> int:
        return self._result.ByteSize()

    def answer(self) -> bytes:
        return self._response.SerializeToString()

    def late(self) -> bytes:
        if isinstance(self.outcome, VmError):
            self.add_error(self.outcome, self.outcome.message)
        else:
            self._result.results.add().halt.CopyFrom(convert.outcome_to(self.outcome))
        return self.answer()


def execute_unary(operation: Operation, vm: Vm, request: Any, response: Any) -> Slices[None]:
    """Execute one operation to its end."""
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
    result = operation.call(Caller(vm), *operation.arguments(request))
    if isinstance(result, Access):
        yield from ended(result)
        result = access_result(result)
    elif operation.is_long:
        result = yield from result
    operation.fill(result, response)
    if vm.agenda.backlog is not None:
        yield from caught_up(vm)
