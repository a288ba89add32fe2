import errno
import pickle
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import irqchip_client as irqchip
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._errors import error_from_message, error_from_rpc, make_error

TARGET = "unix:///run/irqchipd.sock"

CLASSES = [
    ("EEXIST", irqchip.AlreadyExists),
    ("ENOENT", irqchip.NotFound),
    ("EINVAL", irqchip.InvalidArgument),
    ("EBADMSG", irqchip.InvalidArgument),
    ("ENXIO", irqchip.NotReady),
    ("EBUSY", irqchip.Busy),
    ("E2BIG", irqchip.LimitReached),
    ("ENOSPC", irqchip.LimitReached),
    ("ESHUTDOWN", irqchip.Unavailable),
    ("EIO", irqchip.IrqchipError),
]


class Failure(grpc.RpcError):
    """A failed call, as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._status: tuple[Any, ...] = (code, details, metadata)

    def code(self) -> Any:
        return self._status[0]

    def details(self) -> Any:
        return self._status[1]

    def trailing_metadata(self) -> Any:
        return self._status[2]


def failure(code: grpc.StatusCode, message: str, reason: str, domain: str = "irqchipd") -> Failure:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    return Failure(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


@pytest.mark.parametrize(("reason", "expected"), CLASSES)
def test_a_reason_chooses_the_class(reason: str, expected: type[irqchip.IrqchipError]) -> None:
    for error in (
        error_from_message(pb.Error(code=3, reason=reason, message="why")),
        error_from_rpc(failure(grpc.StatusCode.INVALID_ARGUMENT, "why", reason), TARGET),
    ):
        assert type(error) is expected
        assert (error.reason, error.errno, error.message) == (reason, getattr(errno, reason), "why")
        assert str(error) == f"why ({reason})"


def test_a_reason_that_this_version_does_not_know_is_kept_in_the_message() -> None:
    error = error_from_message(pb.Error(code=2, reason="ENEWER", message="why"))
    assert type(error) is irqchip.IrqchipError
    assert error.message == "why (ENEWER)"


def test_no_daemon_says_how_to_start_one_and_what_the_system_says() -> None:
    details = "failed to connect to all addresses; last error: UNKNOWN: unix:/x: connect: Connection refused (111)"
    error = error_from_rpc(Failure(grpc.StatusCode.UNAVAILABLE, details), TARGET)
    assert isinstance(error, irqchip.Unavailable)
    assert error.reason == "ECONNREFUSED"
    for words in (TARGET, "`irqchipd`", "--target", "IRQCHIP_TARGET", "Connection refused (111)"):
        assert words in error.message


def test_a_socket_of_another_user_is_not_reported_as_a_missing_daemon() -> None:
    details = "failed to connect to all addresses; last error: UNKNOWN: unix:/x: connect: Permission denied (13)"
    error = error_from_rpc(Failure(grpc.StatusCode.UNAVAILABLE, details), TARGET)
    assert (type(error), error.reason) == (irqchip.IrqchipError, "EACCES")
    assert error.message.startswith(f"this user may not connect to {TARGET} (Permission denied (13)): ")
    assert "--target" in error.message
    assert "start" not in error.message


def test_a_number_of_two_names_has_the_usual_one() -> None:
    assert make_error(errno.EDEADLK, "").reason == "EDEADLK"
    assert make_error(errno.EAGAIN, "").reason == "EAGAIN"


@pytest.mark.parametrize(
    ("code", "expected", "reason", "words"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, irqchip.TimedOut, "ETIMEDOUT", "in time"),
        (grpc.StatusCode.CANCELLED, irqchip.Unavailable, "ECONNABORTED", "overloaded: try again"),
        (grpc.StatusCode.ABORTED, irqchip.Unavailable, "ECONNABORTED", "try again"),
        (grpc.StatusCode.UNIMPLEMENTED, irqchip.IrqchipError, "ENOSYS", "older irqchipd"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, irqchip.LimitReached, "E2BIG", "larger than the transport takes"),
        (grpc.StatusCode.PERMISSION_DENIED, irqchip.IrqchipError, "EACCES", "does not allow"),
        (grpc.StatusCode.UNAUTHENTICATED, irqchip.IrqchipError, "EACCES", "credentials"),
        (grpc.StatusCode.INTERNAL, irqchip.IrqchipError, "EIO", "transport"),
        (grpc.StatusCode.UNKNOWN, irqchip.IrqchipError, "EIO", "failed"),
        (grpc.StatusCode.DATA_LOSS, irqchip.IrqchipError, "EIO", "lost data"),
        (grpc.StatusCode.INVALID_ARGUMENT, irqchip.InvalidArgument, "EINVAL", "can't read"),
        (grpc.StatusCode.OUT_OF_RANGE, irqchip.InvalidArgument, "EINVAL", "can't read"),
        (grpc.StatusCode.NOT_FOUND, irqchip.NotFound, "ENOENT", "does not find"),
        (grpc.StatusCode.ALREADY_EXISTS, irqchip.AlreadyExists, "EEXIST", "already"),
        (grpc.StatusCode.FAILED_PRECONDITION, irqchip.NotReady, "ENXIO", "not ready"),
        (grpc.StatusCode.UNAVAILABLE, irqchip.Unavailable, "ECONNREFUSED", "no irqchipd answers"),
    ],
)
def test_a_status_of_grpcs_own_has_an_errno_and_says_what_it_means(
    code: grpc.StatusCode, expected: type[irqchip.IrqchipError], reason: str, words: str
) -> None:
    for details in ("", "in gRPC's words"):
        error = error_from_rpc(Failure(code, details), TARGET)
        assert (type(error), error.reason) == (expected, reason)
        for said in (words, TARGET, details):
            assert said in error.message
        assert "closed" not in error.message


def test_every_grpc_status_is_in_the_table() -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        assert TARGET in error_from_rpc(Failure(code, ""), TARGET).message


def test_only_a_client_that_is_closed_says_so() -> None:
    cancelled = Failure(grpc.StatusCode.CANCELLED, "Channel closed!")
    closed = error_from_rpc(cancelled, TARGET, closed=True)
    assert (type(closed), closed.reason) == (irqchip.Unavailable, "ESHUTDOWN")
    assert "this Client is closed" in closed.message
    assert "closed" not in error_from_rpc(Failure(grpc.StatusCode.CANCELLED, ""), TARGET).message


def test_no_error_repeats_a_long_text_whole() -> None:
    long = "a" * 9000
    for error in (
        error_from_message(pb.Error(code=5, reason="ENOENT", message=f"no VM {long!r}")),
        error_from_message(pb.Error(code=5, reason=long, message=long)),
        error_from_rpc(failure(grpc.StatusCode.NOT_FOUND, f"no VM {long!r}", "ENOENT"), TARGET),
        error_from_rpc(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, long), TARGET),
        error_from_rpc(Failure(grpc.StatusCode.UNAVAILABLE, long), TARGET),
    ):
        assert len(str(error)) < 1500


def test_a_reason_that_only_looks_like_an_errno_becomes_eio() -> None:
    assert error_from_message(pb.Error(code=2, reason="errorcode", message="why")).reason == "EIO"


def test_error_details_of_another_domain_are_ignored() -> None:
    foreign = failure(grpc.StatusCode.INTERNAL, "why", "EEXIST", domain="proxy.example")
    assert error_from_rpc(foreign, TARGET).reason == "EIO"
    contradicting = failure(grpc.StatusCode.INTERNAL, "why", "EEXIST")
    contradicting._status = (grpc.StatusCode.UNKNOWN, *contradicting._status[1:])
    assert error_from_rpc(contradicting, TARGET).reason == "EIO"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(make_error(errno.EEXIST, "why")))
    assert (type(error), error.errno, error.message) == (irqchip.AlreadyExists, errno.EEXIST, "why")
