"""A Session over packets: without HTTP/2, and without a thread of its own. The threads that wait receive them."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from irqchip.builds import mypyc_attr
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

from .transport import Answer, Transport

T = TypeVar("T")

MOST_AT_ONCE: Final = 1024  # Packets that poll() receives: a daemon that keeps sending can't hold it for ever.


@mypyc_attr(allow_interpreted_subclasses=True)
class Channel:
    """Carries packets, in order, to the daemon and back. One thread at a time receives."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends without waiting. BlockingIOError if there is no room; OSError if the daemon has ended."""
        raise NotImplementedError

    def receive(self, timeout: float | None = None) -> bytes:
        """Waits for the next packet, empty at the end. TimeoutError; OSError if the daemon was killed."""
        raise NotImplementedError

    def receive_soon(self) -> bytes | None:
        """The next packet, if a cheap look finds it within microseconds. Otherwise None."""
        raise NotImplementedError

    def receive_now(self) -> bytes:
        """The next packet, empty at the end. BlockingIOError if no packet has come."""
        raise NotImplementedError

    def wait_for_room(self, timeout: float | None) -> bool:
        """Waits until a packet can be sent or received, and returns whether one can be received."""
        raise NotImplementedError

    def finish(self) -> None:
        """Reports that no more is sent: the daemon then ends the Session."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Ends both directions: a thread that receives finds the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases the channel's resources. No thread uses it any more."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class PacketTransport(Transport):
    """Whichever thread waits receives packets, for all: an answer wakes the thread that asked, and no other.

    A thread of its own receives only from the first submit() on, whose answers may come while no thread waits.
    """

    def __init__(self, name: str, channel: Channel, core: SessionCore, peer: Peer) -> None:
        super().__init__(core, peer)
        core.uses_records = True
        self.name = name
        self._channel = channel
        self._receiving = False  # Whether a thread is in channel.receive(), or in its like.
        self._waiting = 0  # The number of threads that wait for `changed`.
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()  # Packets with their descriptors.
        self._flushing = False

    # Sending.

    def send(self, request: pb.SessionRequest | bytes, *, waits: bool = True) -> None:
        """Sends a request behind those before it.

        TimedOut if the daemon takes nothing for the Client's timeout. Packets that are then unsent go out before the
        next request. So do those of a call without `waits`.
        """
        packet = request if isinstance(request, bytes) else request.SerializeToString()
        sent = False
        try:
            if not self._unsent and not self._flushing:
                self._channel.send(packet)
                sent = True
        except BlockingIOError:
            pass
        except OSError:  # The daemon has ended: the next thread that receives finds out.
            sent = True
        finally:
            if not sent:
                self._unsent.append((packet, ()))
        if not sent:
            self._flush(waits)

    def _flush(self, waits: bool) -> None:
        if self._flushing:  # Another thread is flushing, and will send this, too.
            return
        self._flushing = True
        deadline: float | None = None
        try:
            while self._unsent:
                packet, descriptors = self._unsent[0]
                try:
                    self._channel.send(packet, descriptors)
                except BlockingIOError:
                    if not waits:
                        return
                    now = time.monotonic()
                    deadline = now + self.peer.timeout if deadline is None else deadline
                    if now >= deadline:
                        raise timed_out("room for a request", self.peer.timeout) from None
                    self._make_room(deadline - now)
                else:
                    self._unsent.popleft()
                    _close(descriptors)
                    deadline = None
        except OSError:  # The daemon has ended: the next thread that receives finds out.
            self._forget_unsent()
        finally:
            self._flushing = False

    def _forget_unsent(self) -> None:
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _make_room(self, timeout: float) -> None:
        """Waits until the daemon takes packets again. It may be waiting for its answers to be received."""
        if self._receiving:
            self._wait_for_change(0.01)
            return
        self._receive_one(timeout, makes_room=True)

    def run_with_descriptors(self, call: Call[T], descriptors: Sequence[int]) -> T:
        answer = Answer()
        with self.changed:
            self.wait_for_room()
            copies = _copies(descriptors)  # The caller may close its own before they are sent.
            try:
                request, serial = self.core.submit((call,), answer, False)
            except BaseException:
                _close(copies)
                raise
            # Both at once: no other thread's request may come between.
            follow = pb.SessionRequest(descriptors=pb.DescriptorsFollow())
            self._unsent.append((follow.SerializeToString(), ()))
            self._unsent.append((request if isinstance(request, bytes) else request.SerializeToString(), copies))
            self._flush(waits=True)
        answered: T = self.result(answer, serial, self.peer.timeout)[0]
        return answered

    # The short way, for the most frequent calls.

    def call(self, call: Call[T]) -> T:
        """Makes one call. If it has a record, and nothing else is under way, this makes only the record."""
        record, lock, core = call.record, self.lock, self.core
        if record is None or call.waits != 0:
            return super().call(call)
        lock.acquire()
        if self._receiving or self._unsent or not core.is_quiet:
            lock.release()
            return super().call(call)
        held = True
        try:
            # In flight before it is sent: if the caller is interrupted, the answer is dropped when it comes.
            request = core.begin_single(record)
            try:
                self._channel.send(request)
            except OSError:  # The daemon has ended, as receive() finds out; there is room, for nothing is unsent.
                pass
            except BaseException:  # Ctrl-C: the packet may or may not have been sent.
                self._end(client_interrupted())
                raise
            packet = self._channel.receive_soon()
            if packet is None:
                self._receiving = True
                try:
                    held = False
                    lock.release()
                    try:
                        packet = self._channel.receive(self.peer.timeout)
                    except TimeoutError:
                        raise timed_out("a batch", self.peer.timeout) from None
                    except OSError:
                        packet = b""
                finally:
                    try:
                        if not held:
                            lock.acquire()
                            held = True
                    finally:
                        self._receiving = False
                        if self._waiting and held:
                            self.changed.notify_all()
            result = core.end_single(packet)
            if result is not None:
                return call.parse_record(*result)
            # An error, or an event that came before the answer.
            answer = Answer()
            core.keep_single(call, answer)
            self._take(packet)
        finally:
            if held:
                lock.release()
        answered: T = self.result(answer, 0, self.peer.timeout)[0]
        return answered

    # Receiving.

    def poll(self) -> None:
        with self.changed, suppress(BlockingIOError, ValueError):
            for _ in range(MOST_AT_ONCE):
                if self.core.ended or self._receiving:
                    break
                try:
                    packet = self._channel.receive_now()
                except ConnectionResetError:  # The daemon was killed.
                    packet = b""
                self._take(packet)

    def expect_answers(self) -> None:
        with self.changed:
            if self.reader is None:
                self.reader = threading.Thread(
                    target=self._read_on, name=f"irqchip session {self.core.vm}", daemon=True
                )
                self.reader.start()

    def _read_on(self) -> None:
        with self.changed:
            self.wait(lambda: self.core.ended, None, "the end")

    def wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise timed_out(what, timeout)
            if self._receiving:
                self._wait_for_change(left)
            else:
                self._receive_one(left)

    def _wait_for_change(self, timeout: float | None) -> bool:
        self._waiting += 1
        try:
            return self.changed.wait(timeout)
        finally:
            self._waiting -= 1

    def _receive_one(self, timeout: float | None, *, makes_room: bool = False) -> None:
        """Receives and takes in a packet for all, if one comes. With `makes_room`, also ends when there is room."""
        packet: bytes | None = None
        self._receiving = True
        try:
            self.lock.release()  # Within the try: Ctrl-C may come as soon as it returns.
            if not makes_room:
                packet = self._receive(timeout)
            elif self._channel.wait_for_room(timeout):
                packet = self._receive(None)
        finally:
            self.lock.acquire()
            self._receiving = False
            if self._waiting:
                self.changed.notify_all()
        if packet is not None:
            self._take(packet)

    def _receive(self, timeout: float | None) -> bytes | None:
        """A packet, empty at the end; None if no packet came in half of the time or more: the caller asks again."""
        if timeout is not None:  # A power of two: the time left differs each time, and setting it is a system call.
            timeout = math.ldexp(0.5, math.frexp(timeout)[1])
        try:
            return self._channel.receive(timeout)
        except TimeoutError:
            return None
        except OSError:  # The daemon was killed.
            return b""

    def _take(self, packet: bytes) -> None:
        """Takes in a packet that has come; an empty one is the end."""
        core = self.core
        if core.ended:
            return
        try:
            if not packet:
                self._end(daemon_gone(self.peer.target))
                return
            if packet[0]:
                response = pb.SessionResponse.FromString(packet)
                if response.HasField("ended"):
                    self._end(error_from_message(response.ended))
                    return
                batch = core.receive(response)
            elif len(packet) == EVENT.size and packet[1]:
                core.receive_event(packet)
                return
            else:
                batch = core.receive_records(packet)
            if batch is not None:
                batch.settle()
        except DecodeError as error:
            self._end(protocol_error(repr(error)))
        except IrqchipError as error:
            self._end(error)

    # The end.

    def close(self) -> None:
        channel, core = self._channel, self.core
        with self.changed:
            core.close()
            self.changed.notify_all()
            with suppress(TimedOut):
                self.wait(lambda: core.is_idle or core.ended, CLOSE_GRACE, "the last answers")
            with suppress(OSError, TimedOut):
                # The daemon closes its end when the Session's levels have dropped.
                channel.finish()
                self.wait(lambda: core.ended, CLOSE_GRACE, "the end")
            with suppress(OSError):
                channel.disconnect()
            if not self._receiving:
                self._end(None)
            while self._receiving and self._wait_for_change(CLOSE_GRACE):
                pass
            self._forget_unsent()
            channel.close()

    def disconnect(self, failure: IrqchipError) -> None:
        """Ends the Session at once, for this reason."""
        with self.changed:
            self._end(failure)
        with suppress(OSError):
            self._channel.disconnect()

    def _end(self, failure: IrqchipError | None) -> None:
        if not self.core.ended:
            for batch in self.core.end(failure, self.peer):
                batch.settle()
            self.changed.notify_all()


def _copies(descriptors: Sequence[int]) -> list[int]:
    """Duplicates of descriptors. InvalidArgument if one is invalid."""
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
