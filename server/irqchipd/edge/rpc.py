"""The common part of all RPCs: decoding a message, and failing with a status."""

from __future__ import annotations

import errno
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from irqchipd.edge import errors
from irqchipd.vm.errors import VmError

# gRPC gets messages as bytes: encoding and decoding are part of a piece of work (see Gate).
Context = grpc.aio.ServicerContext[Any, Any]
_M = TypeVar("_M", bound=Message)


def decoded(message_class: type[_M], data: bytes) -> _M:
    """Decode a message. EBADMSG if the bytes are not a message."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise not_a_message() from None


def not_a_message() -> VmError:
    """The error for bytes that are not a message: EBADMSG."""
    return VmError(errno.EBADMSG, "the bytes are not a message of this call")


async def abort(context: Context, error: VmError) -> NoReturn:
    """End a call with an error's status."""
    # gRPC's context keeps the exception that abort raises, and so the frames of its traceback, until the garbage
    # collector runs. None of these frames may hold a large message.
    error.__traceback__ = error.__context__ = None
    trailing: Any = ((errors.DETAILS_KEY, errors.details(error)),)
    await context.abort(errors.STATUS_CODES[error.number], error.message, trailing)
    raise AssertionError("abort raises")
