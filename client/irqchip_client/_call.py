"""A call, described once, without I/O. It is made by an RPC of its own or in a Session's batch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from irqchip.records import FIELDS, NUMBERS, OPERATION
from irqchip.v1 import irqchip_pb2 as pb

from ._errors import InvalidArgument

# A record's size, index, address and value. struct accepts more types than int for each of them.
Fields = tuple[Any, Any, Any, Any]
T = TypeVar("T", covariant=True)  # So that a list of calls of several kinds is one of Call[object].

_LONGEST_NAME: Final = 64  # Characters, of a VM's name, a client's and a tracepoint's.
_LONGEST: Final = 10**9  # Seconds: 31 years. Python's locks wait no longer than nine times that.


class Call(Generic[T]):
    """A call, and how to read its response. The same call is made by an RPC of its own or in a Session's batch.

    operation  its name in the proto's Operation: "irq_line"
    parse      makes the result of the response message
    waits      seconds that the daemon may hold the answer back, in addition to its work; None: no limit
    """

    __slots__ = ("_request", "fields", "operation", "parse", "parse_record", "record", "waits")

    # Makes the result from the three fields of an answer in the port's short form, if the call has that form.
    parse_record: Callable[[int, int, int], T]

    def __init__(self, operation: str, request: Message, parse: Callable[[Any], T], waits: float | None = 0.0) -> None:
        self.operation = operation
        self.parse = parse
        self.waits = waits
        self.record: bytes | None = None  # the request in the port's short form
        self.fields: Fields | None = None  # of that record
        self._request: Message | None = request

    @property
    def request(self) -> Message:
        """The request without the VM, which the caller knows."""
        assert self._request is not None
        return self._request

    @property
    def vcpu(self) -> int:
        """The vCPU of a call that has one."""
        return self.request.vcpu  # type: ignore[attr-defined, no-any-return]

    @property
    def method(self) -> str:
        """The RPC's name: "IrqLine"."""
        return self.operation.title().replace("_", "")

    @property
    def is_halt(self) -> bool:
        """Whether the answer comes when a vCPU has something to take, and not in the order of the batches."""
        return self.operation == "halt"

    def request_for(self, vm: Any) -> Message:
        """The RPC's request."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        if vm:
            check_name("VM", vm)
            try:
                setattr(request, "vm", vm)  # noqa: B010 - Message has no such attribute; these requests do.
            except ValueError:
                raise InvalidArgument(
                    errno.EINVAL, f"{vm!r:.200} is no VM's name; Client.vms() lists the VMs"
                ) from None
        return request

    def as_operation(self) -> pb.Operation:
        """The call in a Session's batch. Raises InvalidArgument for a call that a Session does not take."""
        if self.operation not in pb.Operation.DESCRIPTOR.fields_by_name:
            raise InvalidArgument(errno.EINVAL, f"{self.operation} is no operation of a Session; call it on the Vm")
        operation = pb.Operation()
        getattr(operation, self.operation).CopyFrom(self.request)
        return operation


class Decoder(Generic[T]):
    """Makes an operation's result: from its response message, or from the fields of its answer's record."""

    def __init__(self, message: Callable[[Any], T], record: Callable[[int, int, int], T]) -> None:
        self.message = message
        self.record = record


class RecordCall(Call[T]):
    """A call that has the port's short form. Its request is made only for gRPC.

    fields   of the record: size, index, address, value; irqchip.records.FIELDS maps them to the request's fields
    request  if those fields do not hold all of it
    """

    __slots__ = ()

    def __init__(
        self,
        operation: str,
        fields: Fields,
        decoder: Decoder[T],
        *,
        request: Message | None = None,
        waits: float | None = 0.0,
    ) -> None:
        size, index, address, value = fields
        self.fields = fields
        self.record = OPERATION.pack(NUMBERS[operation], size, index, address, value)
        self.operation = operation
        self.parse = decoder.message
        self.parse_record = decoder.record
        self.waits = waits
        self._request = request

    @property
    def request(self) -> Message:
        """The request without the VM, which the caller knows."""
        request = self._request
        if request is None:
            assert self.record is not None
            request = self._request = _made_request(self.operation, OPERATION.unpack(self.record)[1:])
        return request

    @property
    def vcpu(self) -> int:
        """The vCPU of a call that has one."""
        assert self.fields is not None
        vcpu: int = self.fields[1]
        return vcpu


def _made_request(operation: str, values: Sequence[int]) -> Message:
    """An operation's request, from the fields of its record."""
    message: type[Message] = getattr(pb, f"{operation.title().replace('_', '')}Request")
    named = zip(FIELDS[operation], values, strict=True)
    return message(**{name: value for name, value in named if name is not None})


def check_name(what: str, name: Any) -> None:
    """Raises InvalidArgument for a name that is no text, or too long. The daemon checks the rest."""
    if not isinstance(name, str):
        own = "write its .name" if isinstance(getattr(name, "name", None), str) else "write a text"
        raise InvalidArgument(
            errno.EINVAL, f"the name of a {what} is {name!r:.200}, of type {type(name).__name__}; {own}"
        )
    if len(name) > _LONGEST_NAME:
        raise InvalidArgument(
            errno.EINVAL,
            f"a {what}'s name has at most {_LONGEST_NAME} characters: shorten {name[:32]!r}..., which has {len(name)}",
        )


def as_list(calls: Iterable[Call[Any]]) -> list[Call[Any]]:
    """The operations of a batch. Raises InvalidArgument for anything but a list, for example a single operation."""
    if type(calls) is not list and not isinstance(calls, Iterable):
        raise InvalidArgument(errno.EINVAL, f"{calls!r:.200} is no list of operations: write [...] around operations")
    return list(calls)


def check_calls(calls: Sequence[Any]) -> None:
    """Raises InvalidArgument for anything that is no call."""
    for call in calls:
        if not isinstance(call, Call):
            raise InvalidArgument(
                errno.EINVAL,
                f"{call!r:.200} is no operation; irqchip_client.ops makes operations: ops.pio_read(0, 0x20)",
            )


def is_flag(value: object) -> bool:
    """Whether a value is False or True, or one of the numbers that equal them."""
    return value is True or value is False or (isinstance(value, int) and 0 <= value <= 1)


def check_flag(name: str, value: object) -> None:
    """Raises InvalidArgument for anything but False and True: the text "no", for example, would count as True."""
    if not is_flag(value):
        raise InvalidArgument(errno.EINVAL, f"{name} is {value!r:.200}: write True or False")


def seconds(timeout: Any) -> float:
    """The timeout, unchanged. Raises InvalidArgument for anything but a number of seconds that a call can wait."""
    if not isinstance(timeout, int | float) or not 0 <= timeout <= _LONGEST:
        raise InvalidArgument(
            errno.EINVAL, f"timeout is {timeout!r:.200}; use a number of seconds from 0 to {_LONGEST:,}"
        )
    return timeout


def time_allowed(calls: Sequence[Any], timeout: float) -> float | None:
    """Seconds to wait for the answers to calls, if `timeout` is enough for calls that do not wait; None: no limit."""
    for call in calls:
        if not isinstance(call, Call):
            check_calls(calls)
        if call.waits is None:
            check_calls(calls)
            return None
        timeout += call.waits
    return timeout
