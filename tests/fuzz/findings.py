"""What an answer must not be."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError

from irqchip.records import EVENT, HEADER, RESULT
from irqchip.v1 import irqchip_pb2 as pb

OURS = grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED
AT_FAULT = grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED
BY_THE_CLIENT = "Internal error from Core"  # grpc.aio's own
DETAILS_KEY = "grpc-status-details-bin"
SHOWN = 1500  # characters of a message
KEPT = 3  # of the same kind


@dataclass
class Report:
    """What a worker has to tell of its share."""

    sent: int = 0
    # What was found: how often, and with which message the first times.
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    # How often what became of a message, for people to see that it comes far.
    outcomes: Counter[str] = field(default_factory=Counter)

    def found(self, kind: str, message: bytes, where: str = "") -> None:
        """Something that must not be."""
        self.kinds[kind] += 1
        if self.kinds[kind] <= KEPT:
            self.examples.append(f"{kind} {where}: {message.hex()[:SHOWN]}")

    def add(self, other: Report) -> None:
        """Another's."""
        self.sent += other.sent
        self.outcomes += other.outcomes
        for example in other.examples:
            kind = example.split(" ", 1)[0]
            if sum(mine.startswith(kind + " ") for mine in self.examples) < KEPT:
                self.examples.append(example)
        self.kinds += other.kinds


def check_status(report: Report, error: grpc.aio.AioRpcError, sent: bytes, where: str) -> None:
    """A call has failed so. Those that our own deadline ends have no details."""
    code = error.code()
    report.outcomes[code.name] += 1
    where = f"{where} ({(error.details() or '')[:200]})"
    if error.details() == BY_THE_CLIENT:  # it wrote to a stream that had just ended
        return
    if code in AT_FAULT:
        report.found(f"status-{code.name}", sent, where)
    elif code not in OURS and all(key != DETAILS_KEY for key, _ in error.trailing_metadata()):
        report.found(f"no-ErrorInfo-with-{code.name}", sent, where)


def check_message(report: Report, received: bytes, sent: bytes, where: str) -> None:
    """A Session has told this, in either form."""
    if not received[:1] or received[0]:
        try:
            response = pb.SessionResponse.FromString(received)
        except DecodeError:
            report.found("no-SessionResponse", sent, where)
            return
        for result in response.batch_result.results:
            check_error(report, result.error, sent, where)
        check_error(report, response.batch_result.error, sent, where)
        check_error(report, response.ended, sent, where)
    elif received[1] == 0:
        check_records(report, received, sent, where)
    elif len(received) != EVENT.size:
        report.found("no-event", sent, where)


def check_records(report: Report, received: bytes, sent: bytes, where: str) -> None:
    """Results in the short form, and behind them the errors' texts."""
    at, texts = HEADER.size, 0
    while at + texts < len(received):
        if at + RESULT.size > len(received):
            report.found("no-result", sent, where)
            return
        number, _, status, value = RESULT.unpack_from(received, at)
        report.outcomes["an error's record" if number == 0 else "a record"] += 1
        if number == 0:
            texts += value
            if status == errno.EIO:
                report.found("record-EIO", sent, where)
        at += RESULT.size
    if at + texts != len(received):
        report.found("texts-of-another-length", sent, where)


def check_error(report: Report, error: pb.Error, sent: bytes, where: str) -> None:
    """An error in a message is the client's."""
    if error.code:
        report.outcomes[error.reason] += 1
    if error.reason == "EIO":
        report.found("EIO", sent, where)
