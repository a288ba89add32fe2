"""What a call is: described once and without I/O, and made by an RPC of its own or in a Session's batch."""

import errno
import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from struct import error as StructError  # noqa: N812 - struct's own name says nothing
from typing import Any, Generic, ParamSpec, TypeVar, cast

from google.protobuf.message import Message

from irqchip.records import NUMBERS, OPERATION
from irqchip.v1 import irqchip_pb2 as pb

from ._errors import InvalidArgument

T = TypeVar("T", covariant=True)  # So that a list of calls of several kinds is one of Call[object].
P = ParamSpec("P")

_LONGEST_NAME = 64  # Characters, of a VM's name, a client's and a tracepoint's.
_LONGEST = 10**9  # Seconds: 31 years. Python's locks wait no longer than nine times that.


class Call(Generic[T]):
    """A call, and how to read its response. The same one is made by an RPC of its own or in a Session's batch.

    operation  as in the proto's Operation: "irq_line"
    parse      takes the response message
    waits      seconds that it may wait in the daemon, beside the time it takes; None: any number
    """

    __slots__ = ("_request", "operation", "parse", "waits")

    # Its record in the port's short form, where it has one, and what takes a result's fields in that form.
    record: bytes | None = None
    parse_record: Callable[[int, int, int], T]

    def __init__(self, operation: str, request: Message, parse: Callable[[Any], T], waits: float | None = 0.0) -> None:
        self.operation = operation
        self.parse = parse
        self.waits = waits
        self._request = request

    @property
    def request(self) -> Message:
        """The request without the VM, which the caller knows."""
        return self._request

    @property
    def method(self) -> str:
        """The RPC's name: "IrqLine"."""
        return self.operation.title().replace("_", "")

    @property
    def is_halt(self) -> bool:
        """Whether it is answered when a vCPU has something to take, whatever is sent or answered before that."""
        return self.operation == "halt"

    def request_for(self, vm: str) -> Message:
        """The RPC's request."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        if vm:
            check_name("VM", vm)
            try:
                setattr(request, "vm", vm)  # noqa: B010 - Message has no such attribute; these requests do.
            except ValueError:
                raise InvalidArgument(errno.EINVAL, f"{vm!r:.200} is no VM's name") from None
        return request

    def as_operation(self) -> pb.Operation:
        """The same in a Session's batch. Raises InvalidArgument for a call that is not made there."""
        if self.operation not in pb.Operation.DESCRIPTOR.fields_by_name:
            raise InvalidArgument(errno.EINVAL, f"{self.operation} is no operation of a Session; call it on the VM")
        operation = pb.Operation()
        getattr(operation, self.operation).CopyFrom(self.request)
        return operation


class RecordCall(Call[T]):
    """A call that also has the port's short form, in which most are made: its request is made only where it is needed.

    From the fields of a record, see irqchip/records.py, `make` makes the request.
    """

    __slots__ = ("_make", "parse_record", "record")

    def __init__(
        self,
        operation: str,
        fields: tuple[int, int, int, int],
        make: Callable[..., Message],
        parse: Callable[[Any], T],
        parse_record: Callable[[int, int, int], T],
        waits: float | None = 0.0,
    ) -> None:
        self.record = OPERATION.pack(NUMBERS[operation], *fields)
        self.operation = operation
        self.parse = parse
        self.waits = waits
        self._make = make
        self.parse_record = parse_record

    @property
    def request(self) -> Message:
        """The request without the VM, which the caller knows."""
        assert self.record is not None
        return self._make(*OPERATION.unpack(self.record)[1:])


def check_name(what: str, name: str) -> None:
    """Raises InvalidArgument for a name that is longer than any is. Whether it else is one, the daemon says."""
    if isinstance(name, str) and len(name) > _LONGEST_NAME:
        raise InvalidArgument(
            errno.EINVAL,
            f"the name of a {what} has at most {_LONGEST_NAME} characters; {name[:32]!r}... has {len(name)}",
        )


def check_calls(calls: Sequence[Call[Any]]) -> None:
    """Raises InvalidArgument for what is none."""
    for call in calls:
        if not isinstance(call, Call):
            raise InvalidArgument(errno.EINVAL, f"{call!r:.200} is no operation; irqchip_client.ops makes them")


def seconds(timeout: float) -> float:
    """A timeout that can be waited for. Raises InvalidArgument for any other."""
    if not isinstance(timeout, int | float) or not 0 <= timeout <= _LONGEST:
        raise InvalidArgument(errno.EINVAL, f"a timeout is 0 to {_LONGEST:,} seconds, not {timeout!r:.200}")
    return timeout


def patience(calls: Sequence[Call[Any]], timeout: float) -> float | None:
    """How many seconds the answers to calls may take, where `timeout` is enough for calls that do not wait."""
    check_calls(calls)
    for call in calls:
        if call.waits is None:
            return None
        timeout += call.waits
    return timeout


def checked(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Turns protobuf's and struct's complaints about arguments that do not fit into an error of ours, and None too.

    To protobuf None means a field's default, and a line or a vCPU of 0 is not what was meant. It is allowed where it
    is an argument's own default.
    """
    signature = inspect.signature(make)
    optional = {name for name, parameter in signature.parameters.items() if parameter.default is None}

    @wraps(make)
    def make_checked(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        try:
            if None in args or (kwargs and any(v is None and k not in optional for k, v in kwargs.items())):
                raise ValueError("None is not allowed")
            return make(*args, **kwargs)
        except (ValueError, TypeError, StructError) as error:
            raise _refused(make, signature, args, kwargs, error) from None

    return make_checked


def checked_access(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """As checked(), of a call that is made over and over with the same arguments: it is kept."""
    return cast(Callable[P, Call[T]], wraps(make)(lru_cache(1024, typed=True)(checked(make))))


def _refused(
    make: Callable[..., object], signature: inspect.Signature, args: Any, kwargs: Any, error: Exception
) -> InvalidArgument:
    arguments = signature.bind(*args, **kwargs).arguments
    why = str(error)
    if isinstance(error, StructError):  # It does not say which.
        for name, value in arguments.items():
            if not isinstance(value, int) or value < 0:
                why = f"{name} is {value!r:.200}, and not 0 or more"
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return InvalidArgument(errno.EINVAL, f"{make.__name__}({given:.200}): {why:.200}")
