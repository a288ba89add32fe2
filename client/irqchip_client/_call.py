"""What a call is: described once, without I/O; made by an RPC of its own or in a Session's batch."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, lru_cache, wraps
from struct import error as StructError  # noqa: N812 - struct's own name says nothing
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

from google.protobuf.message import Message

from irqchip.records import FIELDS, NUMBERS, OPERATION
from irqchip.v1 import irqchip_pb2 as pb

from ._errors import InvalidArgument

T = TypeVar("T", covariant=True)  # So that a list of calls of several kinds is one of Call[object].
P = ParamSpec("P")

_LONGEST_NAME = 64  # Characters, of a VM's name, a client's and a tracepoint's.
_LONGEST = 10**9  # Seconds: 31 years. Python's locks wait no longer than nine times that.


class Call(Generic[T]):
    """A call, and how to read its response. The same call is made by an RPC of its own or in a Session's batch.

    operation  its name in the proto's Operation: "irq_line"
    parse      makes the result of the response message
    waits      seconds that the daemon may hold the answer back, beside the time the work takes; None: no limit
    """

    __slots__ = ("_request", "operation", "parse", "waits")

    # The request in the port's short form, if there is one, and what makes the result of the answer's three fields.
    record: bytes | None = None
    fields: tuple[int, int, int, int] | None = None  # of that record
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
    def vcpu(self) -> int:
        """The vCPU of a call that has one."""
        return self.request.vcpu  # type: ignore[attr-defined, no-any-return]

    @property
    def method(self) -> str:
        """The RPC's name: "IrqLine"."""
        return self.operation.title().replace("_", "")

    @property
    def is_halt(self) -> bool:
        """Whether its answer comes when a vCPU has something to take, and not in the order of the batches."""
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
                raise InvalidArgument(
                    errno.EINVAL, f"{vm!r:.200} is no VM's name; Client.vms() lists the VMs that there are"
                ) from None
        return request

    def as_operation(self) -> pb.Operation:
        """The call in a Session's batch. Raises InvalidArgument for a call that a Session does not take."""
        if self.operation not in pb.Operation.DESCRIPTOR.fields_by_name:
            raise InvalidArgument(errno.EINVAL, f"{self.operation} is no operation of a Session; call it on the Vm")
        operation = pb.Operation()
        getattr(operation, self.operation).CopyFrom(self.request)
        return operation


class Decoder(NamedTuple, Generic[T]):
    """What makes an operation's result: of its response message, and of the fields of its answer's record."""

    message: Callable[[Any], T]
    record: Callable[[int, int, int], T]


class RecordCall(Call[T]):
    """A call that has the port's short form. Its request is made only where it is needed, which is over gRPC.

    fields   of the record: size, index, address, value; irqchip.records.FIELDS says which fields of the request
    request  if those fields do not say all of it
    """

    __slots__ = ("fields", "parse_record", "record")

    record: bytes
    fields: tuple[int, int, int, int]

    def __init__(
        self,
        operation: str,
        fields: tuple[int, int, int, int],
        decoder: Decoder[T],
        *,
        request: Message | None = None,
        waits: float | None = 0.0,
    ) -> None:
        self.fields = fields
        self.record = OPERATION.pack(NUMBERS[operation], *fields)
        self.operation = operation
        self.parse, self.parse_record = decoder
        self.waits = waits
        self._request = cast(Message, request)

    @property
    def request(self) -> Message:
        """The request without the VM, which the caller knows."""
        if self._request is None:
            _, size, index, address, value = OPERATION.unpack(self.record)
            self._request = _request_maker(self.operation)(size, index, address, value)
        return self._request

    @property
    def vcpu(self) -> int:
        """The vCPU of a call that has one."""
        return self.fields[1]


@cache
def _request_maker(operation: str) -> Callable[[int, int, int, int], Message]:
    """What makes an operation's request of the fields of its record."""
    fields = [(name, position) for position, name in enumerate(FIELDS[operation]) if name is not None]
    message: type[Message] = getattr(pb, f"{operation.title().replace('_', '')}Request")
    return lambda *values: message(**{name: values[position] for name, position in fields})


def check_name(what: str, name: str) -> None:
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
    """The operations of a batch. Raises InvalidArgument for what is no list, a single operation say."""
    if type(calls) is not list and not isinstance(calls, Iterable):
        raise InvalidArgument(errno.EINVAL, f"{calls!r:.200} is no list of operations: write [...] around operations")
    return list(calls)


def check_calls(calls: Sequence[Call[Any]]) -> None:
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
    """Raises InvalidArgument for what is neither False nor True: a text, "no" say, would count as True."""
    if not is_flag(value):
        raise InvalidArgument(errno.EINVAL, f"{name} is {value!r:.200}: write True or False")


def seconds(timeout: float) -> float:
    """The timeout, unchanged. Raises InvalidArgument where it is no number of seconds that one can wait for."""
    if not isinstance(timeout, int | float) or not 0 <= timeout <= _LONGEST:
        raise InvalidArgument(
            errno.EINVAL, f"timeout is {timeout!r:.200}; use a number of seconds from 0 to {_LONGEST:,}"
        )
    return timeout


def time_allowed(calls: Sequence[Call[Any]], timeout: float) -> float | None:
    """Seconds to wait for the answers to calls, if `timeout` is enough for calls that do not wait; None: no limit."""
    for call in calls:
        if not isinstance(call, Call):
            check_calls(calls)
        if call.waits is None:
            check_calls(calls)
            return None
        timeout += call.waits
    return timeout


def checked(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Turns protobuf's and struct's errors about an argument that does not fit into InvalidArgument, and refuses None.

    To protobuf None means a field's default: GSI 0, say, which the caller did not mean. An argument whose own default
    is None may be None.
    """

    # Positions and names of the arguments that are False or True: Python takes any value for one of them.
    code = make.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    flags = {name: at for at, name in enumerate(names) if make.__annotations__.get(name) == "bool"}

    @lru_cache(1)
    def optional() -> frozenset[str]:
        return frozenset(name for name, one in inspect.signature(make).parameters.items() if one.default is None)

    @wraps(make)
    def make_checked(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        try:
            if None in args or (kwargs and any(v is None and k not in optional() for k, v in kwargs.items())):
                raise ValueError("None is not allowed")
            for name, at in flags.items():
                if not is_flag(args[at] if at < len(args) else kwargs.get(name, False)):
                    raise ValueError(f"{name} is neither False nor True")
            return make(*args, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError, StructError) as error:
            raise _refused(make, optional(), flags, args, kwargs, error) from None

    return make_checked


def checked_and_kept(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """As checked(), and keeps the calls: for those that are made again and again with the same arguments."""
    return cast(Callable[P, Call[T]], wraps(make)(lru_cache(1024, typed=True)(checked(make))))


def _refused(
    make: Callable[..., object],
    optional: frozenset[str],
    flags: Collection[str],
    args: Any,
    kwargs: Any,
    error: Exception,
) -> InvalidArgument:
    """The error that names the wrong argument; else the arguments, and the complaint as it is."""
    from ._arguments import what_is_wrong

    signature = inspect.signature(make)
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as unbound:  # One too many, or one that is missing.
        return InvalidArgument(errno.EINVAL, f"{make.__name__}{signature.replace(return_annotation=Any)}: {unbound}")
    why = what_is_wrong(make.__name__, arguments, optional, flags)
    if why is not None:
        return InvalidArgument(errno.EINVAL, f"{make.__name__}: {why}")
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return InvalidArgument(errno.EINVAL, f"{make.__name__}({given:.200}): {error!s:.200}")
