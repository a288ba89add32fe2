"""A Session over the daemon's AF_UNIX port: on the same host, without HTTP/2 and without threads of its own."""

import errno
import math
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from irqchip.port import MESSAGE_BYTES, Patience
from irqchip.records import EVENT
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._call import Call
from irqchip_client._channels import Peer
from irqchip_client._errors import (
    InvalidArgument,
    IrqchipError,
    TimedOut,
    client_interrupted,
    daemon_gone,
    error_from_message,
    make_error,
    protocol_error,
    timed_out,
)
from irqchip_client._session import CLOSE_GRACE, SessionCore

from .session import Answer, Session

T = TypeVar("T")


def connect_port(path: str | None, timeout: float) -> socket.socket | None:
    """A connection to the port at `path`; None where there is none, or not for this user.

    Raises TimedOut where the port takes no more connections, as a daemon that is stopped does.
    """
    if path is None:
        return None
    deadline = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        while True:
            # It is what bounds a connect() of this kind of socket, and is undone when that has returned.
            _set_timeout(connection, socket.SO_SNDTIMEO, max(deadline - time.monotonic(), 0))
            connection.connect(os.fsencode(path))
            _set_timeout(connection, socket.SO_SNDTIMEO, None)
            with suppress(OSError):
                # A signal that comes while it waits ends connect(), which to Python then seems to have succeeded.
                connection.getpeername()
                return connection
    except BlockingIOError:
        connection.close()
        raise timed_out("a connection to the daemon's port", timeout) from None
    except OSError:
        connection.close()
        return None
    except BaseException:  # Ctrl-C
        connection.close()
        raise


_MOST_AT_ONCE = 1024  # Packets that are read by who does not wait: a daemon that goes on sending is not read for ever.
_TIMEVAL = struct.Struct("@ll")


def _set_timeout(connection: socket.socket, option: int, timeout: float | None) -> None:
    # The socket's own: Python's would cost another system call every time. 0 is none.
    microseconds = 0 if timeout is None else max(round(timeout * 1e6), 1)
    connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


def _copies(descriptors: Sequence[int]) -> list[int]:
    """Raises InvalidArgument where one is none."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
    except OSError as error:
        _close(copies)
        if error.errno != errno.EBADF:
            raise make_error(error.errno or errno.EIO, f"a descriptor can't be copied: {error.strerror}") from None
        raise InvalidArgument(errno.EBADF, f"{descriptor} is no descriptor") from None
    return copies


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Receiver:
    """Receives packets from a socket. One thread at a time may."""

    def __init__(self, connection: socket.socket, poll_ns: int) -> None:
        self._receive = connection.recv
        self._connection = connection
        self._patience = Patience(poll_ns)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._timeout: float | None = None

    def receive(self, timeout: float | None = None) -> bytes:
        """The next packet, empty at the end; of one that is too long, more than MESSAGE_BYTES. TimeoutError."""
        patience = self._patience
        spin = patience.begin()
        poll = self._poll.poll
        while spin:
            if poll(0):
                patience.met()
                return self._receive(MESSAGE_BYTES + 1)
            spin = patience.goes_on()
        if timeout != self._timeout:
            _set_timeout(self._connection, socket.SO_RCVTIMEO, timeout)
            self._timeout = timeout
        try:
            packet = self._receive(MESSAGE_BYTES + 1)
        except BlockingIOError:
            raise TimeoutError from None
        patience.woken()
        return packet


class _Answer:
    """What a Future is to those who do not block on it, without its locks."""

    __slots__ = ("_done", "_exception", "_result")

    def __init__(self) -> None:
        self._done = False
        self._result: list[Any] = []
        self._exception: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: list[Any], /) -> None:
        self._result, self._done = result, True

    def set_exception(self, exception: BaseException, /) -> None:
        self._exception, self._done = exception, True

    def result(self, timeout: float | None = None, /) -> list[Any]:  # noqa: ARG002 - it is done
        if self._exception is not None:
            raise self._exception
        return self._result


class PortSession(Session):
    """Who waits for something reads the socket, for all who wait: an answer wakes the thread that asked, and no other.

    A thread of its own reads only from the first submit() on, whose answers may come while nobody waits.
    """

    transport = "port"

    def __init__(self, connection: socket.socket, core: SessionCore, peer: Peer, deadline: float, poll_ns: int) -> None:
        self._core = core
        core.packs = True
        self._peer = peer
        self._timeout = peer.timeout
        self._changed = threading.Condition()
        self._connection = connection
        self._packets = _Receiver(connection, poll_ns)
        self._reading = False  # Whether a thread is in _packets.
        self._waiting = 0  # How many threads wait for _changed.
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()  # With descriptors, if any.
        self._flushing = False
        self._reader = None
        self._open(deadline)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        with self._changed, suppress(BlockingIOError, ValueError):
            for _ in range(_MOST_AT_ONCE):
                if self._core.ended or self._reading:
                    break
                try:
                    packet = self._connection.recv(MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
                except ConnectionResetError:  # The daemon was killed.
                    packet = b""
                self._take(packet)
        return self._core.ended

    def close(self) -> None:
        """Ends the Session. Batches in flight are still answered, if that takes no more than a second."""
        with self._changed:
            self._core.close()
            self._changed.notify_all()
            with suppress(TimedOut):
                self._wait(lambda: self._core.is_idle or self._core.ended, CLOSE_GRACE, "the last answers")
            with suppress(OSError, TimedOut):
                # The daemon closes its end when the Session's levels have dropped.
                self._connection.shutdown(socket.SHUT_WR)
                self._wait(lambda: self._core.ended, CLOSE_GRACE, "the end")
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # Who reads finds the end.
            if not self._reading:
                self._end(None)
            while self._reading and self._wait_for_change(CLOSE_GRACE):
                pass
            self._forget_unsent()
            self._connection.close()

    def disconnect(self, failure: IrqchipError) -> None:
        """It ends at once, for this reason."""
        with self._changed:
            self._end(failure)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, request: pb.SessionRequest | bytes, descriptors: Sequence[int] = (), *, waits: bool = True) -> None:
        """Sends this behind what could not be sent before; the descriptors are closed with that.

        TimedOut where the daemon takes nothing for the Client's timeout. What has then not gone out, or where this is
        not to wait, goes before what is sent next.
        """
        self._unsent.append((request if isinstance(request, bytes) else request.SerializeToString(), descriptors))
        if self._flushing:  # Another thread does, and goes on with this one.
            return
        self._flushing = True
        deadline: float | None = None
        try:
            while self._unsent:
                try:
                    data, descriptors = self._unsent[0]
                    if descriptors:
                        socket.send_fds(self._connection, [data], list(descriptors), socket.MSG_DONTWAIT)
                    else:
                        self._connection.send(data, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    if not waits:
                        return
                    now = time.monotonic()
                    deadline = now + self._timeout if deadline is None else deadline
                    if now >= deadline:
                        raise timed_out("room for what is sent", self._timeout) from None
                    self._make_way(deadline - now)
                else:
                    self._unsent.popleft()
                    if descriptors:
                        _close(descriptors)
                    deadline = None
        except OSError:  # The daemon has gone: whoever reads next finds out.
            self._forget_unsent()
        finally:
            self._flushing = False

    def _forget_unsent(self) -> None:
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _give_up(self, serial: int) -> None:
        with self._changed:
            if request := self._core.give_up(serial):
                self._send(request, waits=False)  # Whoever gives up has waited enough.

    def _run_with(self, calls: Sequence[Call[Any]], descriptors: Sequence[int]) -> None:
        answer = _Answer()
        with self._changed:
            self._wait_for_room()
            copies = _copies(descriptors)  # The caller may close its own before they are sent.
            try:
                request, _ = self._core.submit(calls, answer, False)
            except BaseException:
                _close(copies)
                raise
            # Both at once: nothing of another thread's may come between.
            self._unsent.append((pb.SessionRequest(descriptors=pb.DescriptorsFollow()).SerializeToString(), ()))
            self._send(request, copies)
        self._result_of(answer, self._timeout)

    def _make_way(self, timeout: float) -> None:
        """The daemon takes nothing more: it may be waiting for its answers to be read."""
        if self._reading:
            self._wait_for_change(0.01)
            return
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLOUT)

        def receive() -> bytes | None:
            ready = poll.poll(math.ceil(timeout * 1000))
            return self._receive(None) if ready and ready[0][1] & select.POLLIN else None

        self._read_one(receive)

    def _expect_answers(self) -> None:
        with self._changed:
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._read_on, name=f"irqchip session {self._core.vm}", daemon=True
                )
                self._reader.start()

    def _read_on(self) -> None:
        with self._changed:
            self._wait(lambda: self._core.ended, None, "the end")

    def _wait_for_change(self, timeout: float | None) -> bool:
        self._waiting += 1
        try:
            return self._changed.wait(timeout)
        finally:
            self._waiting -= 1

    def _call(self, call: Call[T]) -> T:
        """The short way of what is called most: one operation, and nobody else is about."""
        record, changed, core = call.record, self._changed, self._core
        if record is None or call.waits != 0:
            return super()._call(call)
        changed.acquire()
        if self._reading or self._unsent or not core.is_quiet:
            changed.release()
            return super()._call(call)
        packet: bytes | None = None
        held = True
        try:
            # It is in flight before it is sent: an answer that nobody waits for any more is not the next one's.
            answer = _Answer()
            request = core.submit_record(call, record, answer)
            self._reading = True
            try:
                try:
                    self._connection.send(request, socket.MSG_DONTWAIT)
                except OSError:  # It has gone, as who reads finds out; that it is full can't be.
                    pass
                except BaseException:  # Ctrl-C: nobody knows whether it went out.
                    self._end(client_interrupted())
                    raise
                held = False
                changed.release()
                try:
                    packet = self._packets.receive(self._timeout)
                except OSError as error:  # Also the time is up.
                    packet = None if isinstance(error, TimeoutError) else b""
            finally:
                try:
                    if not held:
                        changed.acquire()
                        held = True
                finally:
                    self._reading = False
                    if self._waiting and held:
                        changed.notify_all()
            if packet is not None:
                result = core.receive_single(packet)
                if result is not None:
                    return call.parse_record(*result)
                self._take(packet)
        finally:
            if held:
                changed.release()
        # An error, or an event that came before the answer.
        answered: T = self._result_of(answer, self._timeout if packet is not None else 0)[0]
        return answered

    def _result_of(self, answer: Answer, timeout: float) -> list[Any]:
        try:
            return self._wait_for(answer, timeout)
        except TimeoutError:
            raise timed_out("a batch", self._timeout) from None

    def _new_answer(self) -> Answer:
        return _Answer()

    def _wait_for(self, answer: Answer, timeout: float | None) -> list[Any]:
        with self._changed:
            try:
                self._wait(answer.done, timeout, "a batch")
            except TimedOut:
                raise TimeoutError from None
        return answer.result()

    def _wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise timed_out(what, timeout)
            if self._reading:
                self._wait_for_change(left)
                continue
            self._read_one(partial(self._receive, left))

    def _read_one(self, receive: Callable[[], bytes | None]) -> None:
        """Be the one who reads, and take what comes, if something does."""
        self._reading = True
        self._changed.release()
        try:
            packet = receive()
        finally:
            self._changed.acquire()
            self._reading = False
            if self._waiting:
                self._changed.notify_all()
        if packet is not None:
            self._take(packet)

    def _receive(self, timeout: float | None) -> bytes | None:
        """A packet, empty at the end; None where none comes in time, or more than half of it: who waits asks again."""
        if timeout is not None:  # A power of two: what is left differs each time, and would be a system call each time.
            timeout = math.ldexp(0.5, math.frexp(timeout)[1])
        try:
            return self._packets.receive(timeout)
        except TimeoutError:
            return None
        except OSError:  # The daemon was killed.
            return b""

    def _take(self, packet: bytes) -> None:
        """A packet has come, or with an empty one the end."""
        if self._core.ended:
            return
        try:
            if not packet:
                self._end(daemon_gone(self._peer.target))
                return
            if not packet[0]:
                if len(packet) == EVENT.size and packet[1]:
                    self._core.receive_event(packet)
                else:
                    self._core.receive_records(packet).settle()
                return
            response = pb.SessionResponse.FromString(packet)
            if response.HasField("ended"):
                self._end(error_from_message(response.ended))
            elif (batch := self._core.receive(response)) is not None:
                batch.settle()
        except DecodeError as error:
            self._end(protocol_error(repr(error)))
        except IrqchipError as error:
            self._end(error)

    def _end(self, failure: IrqchipError | None) -> None:
        if not self._core.ended:
            for batch in self._core.end(failure, self._peer):
                batch.settle()
            self._changed.notify_all()
