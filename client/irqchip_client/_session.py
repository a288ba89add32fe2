"""A Session without its I/O: the common part of _sync and _asyncio.

The rules that the transports keep:

1. `open_request()` goes out first; then every request that `submit()` returns, in that order.
2. Every message that comes in goes to `receive()` or its like; the end of the stream, however it ends, to `end()`.
3. Only one thread is inside at a time. It may settle a batch before it leaves: a promise's callback may call back in.
4. A batch that `submit()` took is settled exactly once: by its answer, or by the end of the Session. Batches are
   answered in the order in which they were sent, but for those that end in a halt: such a batch is answered when the
   halt ends.
5. Events that came before the end can still be read after it; then reading fails too.

A transport moves the messages (gRPC's stream, or packets: see _sync/packets.py); a Session is a core and a transport.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from struct import error as StructError  # noqa: N812 - struct's own name is too general
from typing import Any, Final, Protocol

import grpc

from irqchip.records import ERROR, HEADER, RESULT, SINGLE_RESULT
from irqchip.v1 import irqchip_pb2 as pb

from ._arguments import what_is_wrong
from ._call import Call, check_calls, check_flag, check_name
from ._channels import Peer
from ._errors import (
    InvalidArgument,
    IrqchipError,
    LimitReached,
    SessionClosed,
    TimedOut,
    client_closed,
    error_from_message,
    error_from_rpc,
    make_error,
    protocol_error,
    shortened,
)
from ._event_buffer import EventBuffer
from ._events import Event, event_from_proto, event_from_record

# Seconds that close() gives the daemon to answer batches in flight and to end the stream, before it is cut off.
CLOSE_GRACE: Final = 1.0

_SINGLE_RESULT: Final = SINGLE_RESULT.size
_pack_header: Final = HEADER.pack
_unpack_single: Final = SINGLE_RESULT.unpack
_unpack_result: Final = RESULT.unpack_from
_HEADER: Final = HEADER.size
_RESULT: Final = RESULT.size


class Promise(Protocol):
    """The methods that concurrent.futures.Future and asyncio.Future share."""

    def done(self) -> bool: ...
    def set_result(self, result: list[Any], /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Batch:
    """A batch in flight, and once `outcome` is set, a batch to be settled."""

    __slots__ = ("calls", "outcome", "promise", "return_errors", "serial")

    def __init__(self, serial: int, calls: Sequence[Call[Any]], promise: Promise, return_errors: bool) -> None:
        self.serial = serial
        self.calls = calls
        self.promise = promise
        self.return_errors = return_errors
        self.outcome: list[Any] | IrqchipError = []

    def settle(self) -> None:
        if self.promise.done():  # Its caller waits no more.
            return
        if isinstance(self.outcome, IrqchipError):
            self.promise.set_exception(self.outcome)
        else:
            self.promise.set_result(self.outcome)

    def read_records(self, answer: bytes) -> None:
        """As read(), for an answer in the port's short form."""
        calls = self.calls
        at = _HEADER
        text = _HEADER + _RESULT * len(calls)
        results: list[Any] = []
        try:
            for call in calls:
                number, flags, status, value = _unpack_result(answer, at)
                at += _RESULT
                if number == ERROR:
                    message = answer[text : text + value].decode()
                    text += value
                    results.append(make_error(status, shortened(message) or os.strerror(status)))
                else:
                    try:
                        results.append(call.parse_record(flags, status, value))
                    except TimedOut as error:  # A Halt's: the daemon sends it as a result.
                        results.append(error)
        except (StructError, ValueError, LookupError) as error:
            raise protocol_error(repr(error)) from None
        self._set_outcome(results)

    def read(self, answer: pb.BatchResult) -> None:
        """Sets the outcome. Raises IrqchipError(EPROTO) if the answer does not fit the batch."""
        if answer.HasField("error"):
            self.outcome = error_from_message(answer.error)
            return
        if len(answer.results) != len(self.calls):
            raise protocol_error(f"{len(answer.results)} results for a batch of {len(self.calls)} operations")
        results = [_result(call, result) for call, result in zip(self.calls, answer.results, strict=True)]
        self._set_outcome(results)

    def _set_outcome(self, results: list[Any]) -> None:
        self.outcome = results
        if not self.return_errors:
            for position, result in enumerate(results):
                if isinstance(result, IrqchipError):
                    if len(results) > 1:
                        result.add_note(f"It was operation {position} of the batch, {self.calls[position].operation}.")
                    self.outcome = result
                    break


class Posted:
    """The promise of a batch that no caller waits for: `answered`, if given, is called with the results."""

    def __init__(self, answered: Callable[[list[Any]], None] | None) -> None:
        self._answered = answered

    def done(self) -> bool:
        return self._answered is None

    def set_result(self, result: list[Any], /) -> None:
        if self._answered is not None:
            self._answered(result)

    def set_exception(self, exception: BaseException, /) -> None:
        pass  # The Session's end, or a daemon that refuses the batch: the Session's next use raises.


class SessionCore:
    """One Session: opening, then open, then ended."""

    def __init__(
        self,
        vm: Any,  # Any values: most are refused.
        client: Any,
        vcpus: Iterable[int],
        event_buffer: Any,
        max_in_flight: Any,
        *,
        gsis: Iterable[int] = (),
        resampled_gsis: Iterable[int] = (),
        resume: Any = False,
        new_vm: Any = None,
    ) -> None:
        for limit, value in (("event_buffer", event_buffer), ("max_in_flight", max_in_flight)):
            if not isinstance(value, int) or value < 1:
                raise InvalidArgument(errno.EINVAL, f"session: {limit} is {value!r:.200}: write a number, 1 or more")
        check_name("VM", vm)
        check_name("client", client)
        vcpus, gsis, resampled_gsis = map(_read, (vcpus, gsis, resampled_gsis))
        named = {
            "client": client,
            "vcpus": vcpus,
            "gsis": gsis,
            "resampled_gsis": resampled_gsis,
            "resume": resume,
        }
        if wrong := what_is_wrong("session", named, flags=("resume",)):
            raise InvalidArgument(errno.EINVAL, f"session: {wrong}")
        self.vm: str = vm
        self.source = 0  # The line source; 0 until open.
        self.max_operations = 0
        self.max_message_bytes = 0
        self.events = EventBuffer(event_buffer)
        self.ended = False
        self.uses_records = False  # Whether a request may have the port's short form.
        self.wants_rings = False  # Whether the client asks the daemon for rings.
        self.client: str = client
        self._vcpus = list(vcpus)
        self._gsis = list(gsis)
        self._resampled_gsis = list(resampled_gsis)
        self._resume = bool(resume)
        self._new_vm = new_vm  # The request for an ephemeral VM, which ends with the Session.
        self._max_in_flight: int = max_in_flight
        self._in_flight: deque[Batch] = deque()  # Answered in the order in which they were sent.
        self._halting: dict[int, Batch] = {}  # By serial, the batches that end in a halt.
        self._halts: dict[int, int] = {}  # The serial of each vCPU's last halt, answered or not: it can be given up.
        self._single = 0  # The serial of the record that goes the short way, see begin_single(); 0: none.
        self._next_serial = 1
        self._closing = False
        self._reason: IrqchipError | None = None

    @property
    def is_open(self) -> bool:
        return self.source > 0 and not self.ended

    @property
    def has_event(self) -> bool:
        """Whether take_event() has an answer other than "wait": it returns an event, or refuses for good."""
        return len(self.events) > 0 or not self.is_open

    @property
    def has_room(self) -> bool:
        """Whether submit() has an answer other than "wait": it takes a batch, or refuses it for good."""
        in_flight = len(self._in_flight) + len(self._halting) + (self._single != 0)
        return in_flight < self._max_in_flight or self._closing or self.ended

    @property
    def is_idle(self) -> bool:
        """Whether no answers are outstanding except those of halts."""
        return not (self._in_flight or self._single)

    def open_request(self) -> pb.SessionRequest:
        try:
            opening = pb.SessionOpen(
                vm=self.vm,
                client=self.client,
                vcpus=self._vcpus,
                gsis=self._gsis,
                resampled_gsis=self._resampled_gsis,
                resume=self._resume,
                new_vm=self._new_vm,
                rings=self.wants_rings,
            )
        except ValueError as error:
            raise InvalidArgument(errno.EINVAL, f"session: {error!s:.200}") from None
        return pb.SessionRequest(open=opening)

    def submit(
        self, calls: Sequence[Call[Any]], promise: Promise, return_errors: object
    ) -> tuple[pb.SessionRequest | bytes, int]:
        """Takes a batch, and returns the request to send and its serial. If it raises, it has taken nothing.

        If `uses_records` is set and every call has a record, the request is in the port's short form: bytes.

        SessionClosed after close() or end(), LimitReached if the batch is too long or max_in_flight is reached,
        InvalidArgument if an operation follows a Halt.
        """
        if self._closing or self.ended:
            raise self.closed_error()
        if not self.is_open:
            raise self._not_open()
        if not self.has_room:
            raise LimitReached(errno.ENOSPC, f"{self._max_in_flight} batches are in flight; wait for one of them")
        check_calls(calls)
        check_flag("return_errors", return_errors)
        if len(calls) > self.max_operations:
            raise LimitReached(
                errno.E2BIG, f"a batch has at most {self.max_operations} operations, not {len(calls)}: submit several"
            )
        records: list[bytes] = []
        ends_in_halt = False
        for call in calls:
            if ends_in_halt:
                raise InvalidArgument(
                    errno.EINVAL, "halt is the last operation of its batch: submit the rest by itself"
                )
            ends_in_halt = call.is_halt
            record = call.record
            if record is not None:
                records.append(record)
        serial = self._next_serial
        request: pb.SessionRequest | bytes
        if self.uses_records and len(records) == len(calls) > 0:
            request = _pack_header(0, serial) + b"".join(records)
            size = len(request)
        else:
            operations = [call.as_operation() for call in calls]
            request = pb.SessionRequest(batch=pb.Batch(serial=serial, operations=operations))
            size = request.ByteSize()
        if size > self.max_message_bytes > 0:
            raise LimitReached(
                errno.E2BIG, f"a batch has at most {self.max_message_bytes} bytes, not {size}: submit several"
            )
        batch = Batch(serial, calls, promise, bool(return_errors))
        self._next_serial += 1
        if ends_in_halt:
            self._halting[serial] = batch
            self._halts[calls[-1].vcpu] = serial
        else:
            self._in_flight.append(batch)
        return request, serial

    # The short way of one record, for which no batch is made. One record goes at a time, and only while `is_quiet`.

    @property
    def is_quiet(self) -> bool:
        """Whether the Session has not ended, and no answers are outstanding except those of halts."""
        return not (self._in_flight or self._single or self._closing or self.ended)

    def begin_single(self, record: bytes) -> bytes:
        """Takes the record of a call that is no halt, and returns the request to send."""
        serial = self._single = self._next_serial
        self._next_serial = serial + 1
        request: bytes = _pack_header(0, serial) + record
        return request

    def end_single(self, packet: bytes) -> tuple[int, int, int] | None:
        """The fields of the single's result; None for any other packet, or an error: keep_single()."""
        if len(packet) != _SINGLE_RESULT or packet[0]:
            return None
        _, serial, number, flags, status, value = _unpack_single(packet)
        if number == ERROR or serial != self._single:
            return None
        self._single = 0
        return flags, status, value

    def keep_single(self, call: Call[Any], promise: Promise) -> None:
        """Makes the single a batch from now on. Otherwise its answer is dropped, because its caller waits no more."""
        batch = Batch(self._single, (call,), promise, False)
        self._single = 0
        if self.ended:
            batch.outcome = self.closed_error()
            batch.settle()
        else:
            self._in_flight.appendleft(batch)

    def give_up(self, serial: int) -> pb.SessionRequest | None:
        """Gives up the halt that ends the batch of this serial. Returns the request to send; None for other batches.

        The vCPU has then taken nothing: the daemon takes back the halt's result. The batch is answered all the same.
        """
        if serial not in self._halts.values() or self._closing or self.ended:
            return None
        return pb.SessionRequest(halt_given_up=pb.HaltGivenUp(serial=serial))

    def receive(self, response: pb.SessionResponse) -> Batch | None:
        """Takes a message in; returns the batch to settle, if it answered one.

        Raises IrqchipError(EPROTO) if the daemon broke the protocol: end() the Session with that.
        """
        match response.WhichOneof("message"):
            case "opened":
                opened = response.opened
                self.source, self.max_operations = opened.source, opened.max_operations
                self.max_message_bytes = opened.max_message_bytes
                self.vm = opened.vm or self.vm
            case "batch_result":
                return self._receive_result(response.batch_result)
            case "event":
                event = event_from_proto(response.event)
                if event is not None:
                    self.events.put(event)
        return None

    def receive_records(self, packet: bytes) -> Batch | None:
        """As receive(), for an answer in the port's short form."""
        if len(packet) < HEADER.size:
            raise protocol_error(f"{packet!r}")
        serial = HEADER.unpack_from(packet)[1]
        batch = self._answered(serial)
        if batch is not None:
            batch.read_records(packet)
            self._done(serial)
        return batch

    def receive_event(self, packet: bytes) -> None:
        """As receive(), for an event in the port's short form."""
        try:
            event = event_from_record(packet)
        except (StructError, KeyError):
            raise protocol_error(f"{packet!r:.200}") from None
        if event is not None:
            self.events.put(event)

    def take_event(self) -> Event:
        """The next event. SessionClosed if the Session has ended and all events are read."""
        if self.events:
            return self.events.take()
        if self.ended:
            raise self.closed_error()
        raise self._not_open()

    def close(self) -> None:
        """This client closes the Session: no more batches. Those in flight are still answered."""
        if not self.ended:  # The first reason for the end is kept.
            self._closing = True

    def end(self, failure: BaseException | None, peer: Peer) -> list[Batch]:
        """The stream has ended, with its reader's exception, or in good order (None). Returns the batches to settle."""
        self.ended = True
        match failure:
            case None | IrqchipError():
                self._reason = failure
            case grpc.RpcError():
                self._reason = error_from_rpc(failure, peer.target, closed=peer.closed)
            case asyncio.CancelledError():  # The channel's, or that of the task that reads: the event loop's end.
                self._reason = client_closed()
            case _:  # A value that this version of the messages does not know.
                self._reason = protocol_error(repr(failure))
        batches = sorted([*self._in_flight, *self._halting.values()], key=lambda batch: batch.serial)
        self._in_flight.clear()
        self._halting.clear()
        for batch in batches:
            batch.outcome = self.closed_error()
        return batches

    def open_error(self) -> IrqchipError:
        """The reason why a Session ended before it was open."""
        return self._reason or self.closed_error()

    def _receive_result(self, result: pb.BatchResult) -> Batch | None:
        # A batch whose answer can't be read stays in flight, and end() settles it.
        batch = self._answered(result.serial)
        if batch is not None:
            batch.read(result)
            self._done(result.serial)
        return batch

    def _answered(self, serial: int) -> Batch | None:
        """The batch in flight to which an answer belongs; None for a single whose caller waits no more."""
        if serial == self._single > 0:
            self._single = 0
            return None
        batch = self._halting.get(serial) if self._halting else None
        if batch is None:
            if not self._in_flight or self._in_flight[0].serial != serial:
                raise protocol_error(f"an answer to batch {serial}, which is not next")
            batch = self._in_flight[0]
        return batch

    def _done(self, serial: int) -> None:
        if self._halting.pop(serial, None) is None:
            self._in_flight.popleft()

    def _not_open(self) -> InvalidArgument:
        return InvalidArgument(errno.EINVAL, "the Session is not open: use `async with`, or await it first")

    def closed_error(self) -> SessionClosed:
        """A new error with the reason for the Session's end."""
        if self._closing:
            why = "this client closed it"
        elif self._reason is not None:
            why = self._reason.message
        else:
            why = "the daemon ended it"
        error = SessionClosed(errno.EPIPE, f"the Session on VM {self.vm!r} has ended: {why}")
        error.__cause__ = None if self._closing else self._reason
        return error


def _result(call: Call[Any], result: pb.OperationResult) -> Any:
    kind = result.WhichOneof("result")
    if kind == "error":
        return error_from_message(result.error)
    if kind != call.operation:
        raise protocol_error(f"a result of {kind} for {call.operation}")
    try:
        return call.parse(getattr(result, kind))
    except TimedOut as error:  # A Halt's: the daemon sends it as a result.
        return error


def _read(numbers: Iterable[int]) -> Iterable[int]:
    """An iterator's numbers as a list, to be read twice. Other values are returned as they are, for the error."""
    return list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else numbers
