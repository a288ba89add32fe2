"""The table from errnos to gRPC status codes, and the forms in which an error leaves the daemon."""

from __future__ import annotations

import errno
import logging

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.fields import fields
from irqchipd.vm.errors import VmError

DOMAIN = "irqchipd"
DETAILS_KEY = "grpc-status-details-bin"  # where gRPC carries a google.rpc.Status

STATUS_CODES = {
    errno.EEXIST: grpc.StatusCode.ALREADY_EXISTS,
    errno.ENOENT: grpc.StatusCode.NOT_FOUND,
    errno.ENODEV: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EINVAL: grpc.StatusCode.INVALID_ARGUMENT,
    errno.ENOTTY: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EFAULT: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EBADF: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EOPNOTSUPP: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EAGAIN: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EBADMSG: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EPERM: grpc.StatusCode.INVALID_ARGUMENT,
    errno.ENOEXEC: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENOBUFS: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENOMEM: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENXIO: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EDEADLK: grpc.StatusCode.FAILED_PRECONDITION,
    errno.EBUSY: grpc.StatusCode.FAILED_PRECONDITION,
    errno.E2BIG: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ENOSPC: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errno.ETIMEDOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    errno.ESHUTDOWN: grpc.StatusCode.UNAVAILABLE,
    errno.EIO: grpc.StatusCode.INTERNAL,
}

STOPPING = VmError(errno.ESHUTDOWN, "irqchipd is stopping")

log = logging.getLogger(__name__)


def refusal(error: Exception) -> VmError:
    """The error that a client gets for an exception: a VmError itself, else EIO; then the log has the reason."""
    if isinstance(error, VmError):
        if log.isEnabledFor(logging.DEBUG):
            log.debug("refused: %s", error.message, extra=fields(errno=error.reason))
        return error
    log.error("an operation failed", exc_info=error)
    return VmError(errno.EIO, "irqchipd failed; its log has the reason")


def number_of(error: VmError) -> int:
    """The gRPC status code's number."""
    return int(STATUS_CODES[error.number].value[0])


def details(error: VmError) -> bytes:
    """A serialised google.rpc.Status with the ErrorInfo that names the errno."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    status = status_pb2.Status(code=number_of(error), message=error.message, details=[info])
    return bytes(status.SerializeToString())


def message(error: VmError) -> pb.Error:
    """The error of an operation or a batch in a Session."""
    return pb.Error(code=number_of(error), reason=error.reason, message=error.message)
