"""The errors of this package, all of them: IrqchipError's docstring draws them."""

from __future__ import annotations

# ruff: noqa: N818 - the names say what happened; "Error" after each would add nothing.
import errno
from typing import Protocol, cast

import grpc

from irqchip.v1 import irqchip_pb2 as pb

DOMAIN = "irqchipd"


class IrqchipError(Exception):
    """A call failed.

    errno    the number, for example errno.EEXIST
    reason   its name, "EEXIST"
    message  what is wrong, and what to do

    IrqchipError                any other error: see .errno
    ├── AlreadyExists           EEXIST                   the VM, vCPU, irqchip or PIT exists, or a range is claimed
    ├── NotFound                ENOENT                   there is no such VM, vCPU, region or line source
    ├── InvalidArgument         EINVAL, EBADMSG, EBADF   a value is invalid; the message has the allowed values
    ├── NotReady                ENXIO, EAGAIN            the VM has no irqchip or no PIT; the vCPU has no local APIC
    ├── Busy                    EBUSY                    the vCPU halts already; the eventfd is an irqfd already
    ├── LimitReached            E2BIG, ENOSPC            a limit of the daemon or of this client is reached
    ├── Unavailable             ECONNREFUSED, ESHUTDOWN, no daemon answers, it is stopping, or this Client is closed; or
    │                           ECONNABORTED             the transport broke the call off (under overload): try again
    ├── TimedOut                ETIMEDOUT                no answer in time; the call may still have been executed. Of
    │                                                    halt(): the vCPU took nothing
    ├── SessionClosed           EPIPE                    the Session has ended; __cause__ is the error that ended it
    └── GuestError              EFAULT                   a guest cannot continue, or needs what its adapter lacks

    A failed call has changed nothing. After TimedOut, and Unavailable with ECONNABORTED, it may have been executed.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.errno = number
        self.message = message

    @property
    def reason(self) -> str:
        return reason_of(self.errno)

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})"


class AlreadyExists(IrqchipError):
    """EEXIST: the VM, vCPU, irqchip or PIT exists already, or a range is claimed."""


class NotFound(IrqchipError):
    """ENOENT: there is no such VM, vCPU, region or line source."""


class InvalidArgument(IrqchipError):
    """EINVAL, EBADMSG, EBADF: a value is invalid; the message has the allowed values."""


class NotReady(IrqchipError):
    """ENXIO, EAGAIN: the VM has no irqchip or no PIT; the vCPU has no local APIC."""


class Busy(IrqchipError):
    """EBUSY: the vCPU halts already, the eventfd is an irqfd already, or the owners of a range were too slow."""


class LimitReached(IrqchipError):
    """E2BIG, ENOSPC: a limit of the daemon or of this client is reached."""


class Unavailable(IrqchipError):
    """ECONNREFUSED, ESHUTDOWN: no daemon answers, it is stopping, or this Client is closed.

    ECONNABORTED: the transport broke the call off, for example under overload. The call may have been executed.
    """


class TimedOut(IrqchipError):
    """ETIMEDOUT: no answer in time. The call may have been executed.

    From halt(): nothing came in time, and the vCPU took nothing.
    """


class SessionClosed(IrqchipError):
    """EPIPE: the Session has ended, and its levels have dropped. The message has the reason."""


class GuestError(IrqchipError):
    """EFAULT: a guest cannot continue, or needs what its adapter lacks. The message has the reason and the place."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EFAULT, message)


_CLASSES: dict[int, type[IrqchipError]] = {
    errno.EEXIST: AlreadyExists,
    errno.ENOENT: NotFound,
    errno.EINVAL: InvalidArgument,
    errno.EBADMSG: InvalidArgument,
    errno.EBADF: InvalidArgument,
    errno.EAGAIN: NotReady,
    errno.ENXIO: NotReady,
    errno.EBUSY: Busy,
    errno.E2BIG: LimitReached,
    errno.ENOSPC: LimitReached,
    errno.ECONNABORTED: Unavailable,
    errno.ECONNREFUSED: Unavailable,
    errno.ESHUTDOWN: Unavailable,
    errno.ETIMEDOUT: TimedOut,
    errno.EPIPE: SessionClosed,
}

# Numbers with two names: Python's table has the less usual one.
_ALIASES = {"EDEADLOCK": "EDEADLK", "EWOULDBLOCK": "EAGAIN", "ENOTSUP": "EOPNOTSUPP"}


def reason_of(number: int) -> str:
    """An errno's name, as in errno(3); for a number without a name, the number."""
    name = errno.errorcode.get(number, str(number))
    return _ALIASES.get(name, name)


# The end of the system's message in gRPC's details, if the daemon may be there, but not for this user.
_FORBIDDEN = (f"({errno.EACCES})", f"({errno.EPERM})")

_LONGEST_MESSAGE = 1000  # Characters that are shown of a message from elsewhere.

# The meaning of a status without irqchipd's reason: gRPC made it, or a proxy.
_MEANINGS = {
    grpc.StatusCode.CANCELLED: (
        errno.ECONNABORTED,
        "the call to {target} was cancelled by the transport, as when the daemon is overloaded: try again",
    ),
    grpc.StatusCode.ABORTED: (errno.ECONNABORTED, "the call to {target} was broken off: try again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errno.ETIMEDOUT, "irqchipd at {target} did not answer in time"),
    grpc.StatusCode.UNIMPLEMENTED: (errno.ENOSYS, "the server at {target} lacks this call; is it an older irqchipd?"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        errno.E2BIG,
        "a message to or from {target} is larger than the transport takes, or its server has no room for the call",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (errno.EACCES, "the server at {target} asks for credentials: it is no irqchipd"),
    grpc.StatusCode.PERMISSION_DENIED: (errno.EACCES, "the server at {target} does not allow the call"),
    grpc.StatusCode.INTERNAL: (errno.EIO, "the transport to {target} failed; does an irqchipd answer there?"),
    grpc.StatusCode.UNKNOWN: (errno.EIO, "the server at {target} failed, or is no irqchipd"),
    grpc.StatusCode.DATA_LOSS: (errno.EIO, "the transport to {target} lost data"),
    grpc.StatusCode.INVALID_ARGUMENT: (errno.EINVAL, "the server at {target} can't read the call"),
    grpc.StatusCode.OUT_OF_RANGE: (errno.EINVAL, "the server at {target} can't read the call"),
    grpc.StatusCode.NOT_FOUND: (errno.ENOENT, "the server at {target} does not find the object of the call"),
    grpc.StatusCode.ALREADY_EXISTS: (errno.EEXIST, "the server at {target} has the object already"),
    grpc.StatusCode.FAILED_PRECONDITION: (errno.ENXIO, "the server at {target} is not ready for the call"),
}


class _Status(Protocol):
    """The methods that every grpc.RpcError of a finished call has, sync or aio; its type does not declare them."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...


def make_error(number: int, message: str) -> IrqchipError:
    """The error of the class that stands for an errno."""
    return _CLASSES.get(number, IrqchipError)(number, message)


def timed_out(what: str, seconds: float | None) -> TimedOut:
    return TimedOut(errno.ETIMEDOUT, f"{what} did not come within {seconds:g} s")


def daemon_gone(target: str) -> Unavailable:
    return Unavailable(errno.ECONNRESET, f"no irqchipd answers at {target} any more: it has ended, or was killed")


def not_running(target: str, why: str) -> Unavailable:
    return Unavailable(
        errno.ECONNREFUSED,
        f"no irqchipd answers at {target} ({why}): start it with `irqchipd`, or name another with --target or "
        "IRQCHIP_TARGET",
    )


def client_interrupted() -> IrqchipError:
    return IrqchipError(errno.EINTR, "a call was interrupted while it was sent, and may or may not have been sent")


def client_closed() -> Unavailable:
    return Unavailable(errno.ESHUTDOWN, "this Client is closed: connect() again")


def protocol_error(what: str) -> IrqchipError:
    return IrqchipError(errno.EPROTO, f"the daemon sent {what}; is it of another version?")


def error_from_message(error: pb.Error) -> IrqchipError:
    """The error in the answer to an operation or a batch of a Session."""
    return _from_reason(error.reason, error.message)


def error_from_rpc(error: grpc.RpcError, target: str, *, closed: bool = False) -> IrqchipError:
    """The error that a failed RPC to `target` stands for; `closed`: this Client is closed."""
    failure = cast(_Status, error)
    details = failure.details() or ""
    if reason := _reason(failure):
        return _from_reason(reason, details)
    code = failure.code()
    if code is grpc.StatusCode.CANCELLED and closed:
        return client_closed()
    if code is grpc.StatusCode.UNAVAILABLE:
        # gRPC's details end in the system's own words: "...; last error: UNKNOWN: ...: Connection refused (111)".
        why = shortened(details.rsplit(": ", 1)[-1])
        if why.endswith(_FORBIDDEN):
            return IrqchipError(
                errno.EACCES,
                f"this user may not connect to {target} ({why}): be the user that irqchipd runs as, or name another "
                "daemon with --target or IRQCHIP_TARGET",
            )
        return not_running(target, why)
    number, meaning = _MEANINGS.get(code, (errno.EIO, f"the call to {{target}} failed with {code.name}"))
    message = meaning.format(target=target)
    return make_error(number, f"{message} ({shortened(details)})" if details else message)


def shortened(text: str) -> str:
    """A text from elsewhere, cut to a length that an error can show."""
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _from_reason(reason: str, message: str) -> IrqchipError:
    number = getattr(errno, reason, None)
    message = shortened(message)
    if not isinstance(number, int):  # From a newer daemon.
        return IrqchipError(errno.EIO, f"{message} ({reason:.100})")
    return make_error(number, message)


def _reason(failure: _Status) -> str | None:
    # Imported after a failure: these take a tenth of the time of an irqchipctl command.
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(failure)
    except ValueError:  # Its details contradict its code, so irqchipd did not make it.
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return None
