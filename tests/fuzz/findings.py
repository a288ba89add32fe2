"""Checks of the daemon's answers."""

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
BY_THE_CLIENT = "Internal error from Core"  # an error of grpc.aio itself
DETAILS_KEY = "grpc-status-details-bin"
SHOWN = 1500  # characters per message
KEPT = 3  # per kind


@dataclass
class Report:
    """A worker's report on its share of the messages."""

    sent: int = 0
    # The findings: by kind, how often, and the first messages.
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    # How often each outcome came, to show that messages get far.
    outcomes: Counter[str] = field(default_factory=Counter)

    def found(self, kind: str, message: bytes, where: str = "") -> None:
        """Record a finding."""
        self.kinds[kind] += 1
        if self.kinds[kind] <= KEPT:
            self.examples.append(f"{kind} {where}: {message.hex()[:SHOWN]}")

    def add(self, other: Report) -> None:
        """Add another report."""
        self.sent += other.sent
        self.outcomes += other.outcomes
        for example in other.examples:
            kind = example.split(" ", 1)[0]
            if sum(mine.startswith(kind + " ") for mine in self.examples) < KEPT:
                self.examples.append(example)
        self.kinds += other.kinds


def check_status(report: Report, error: grpc.aio.AioRpcError, sent: bytes, where: str) -> None:
    """Check a failed call's status. Calls that the fuzzer's own deadline ended have no details."""
    code = error.code()
    report.outcomes[code.name] += 1
    where = f"{where} ({(error.details() or '')[:200]})"
    if error.details() == BY_THE_CLIENT:  # grpc.aio wrote to a stream that had just ended
        return
    if code in AT_FAULT:
        report.found(f"status-{code.name}", sent, where)
    elif code not in OURS and all(key != DETAILS_KEY for key, _ in error.trailing_metadata()):
        report.found(f"no-ErrorInfo-with-{code.name}", sent, where)


def check_message(report: Report, received: bytes, sent: bytes, where: str) -> None:
    """Check a Session's packet, which may be a message or records."""
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
    """Check the records of results, and the texts of errors behind them."""
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
    """Check that an error in a message is the client's fault."""
    if error.code:
        report.outcomes[error.reason] += 1
    if error.reason == "EIO":
        report.found("EIO", sent, where)
