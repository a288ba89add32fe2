"""A connection of the AF_UNIX port: packets in, the answers and events of its Session out."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from array import array
from collections import deque
from contextlib import suppress
from typing import Final

from google.protobuf.message import DecodeError

from irqchip.port import MESSAGE_BYTES
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.admission import Peer
from irqchipd.edge.eventfds import PortEventfds
from irqchipd.edge.host import Host
from irqchipd.edge.process import CREDENTIALS, process_of, unreceived
from irqchipd.edge.ring import Ring
from irqchipd.edge.rpc import decoded
from irqchipd.edge.session import Session, check_size, opening
from irqchipd.edge.work import ONCE_A_WRITE, Work
from irqchipd.vm.errors import VmError
from irqchipd.vm.pending import Pending, Slices

SOCKET_BUFFER: Final = 4 * MESSAGE_BYTES
PACKET: Final = MESSAGE_BYTES + 1  # more than a packet may have
_DESCRIPTORS: Final = 253  # SCM_MAX_FD: the most with a packet
# There is always room for all: the kernel would close further descriptors in the port's thread, and that may wait.
_ANCILLARY: Final = socket.CMSG_SPACE(_DESCRIPTORS * array("i").itemsize) + socket.CMSG_SPACE(CREDENTIALS.size)
_READ: Final = select.EPOLLIN


class Connection(Work):
    """A client's socket, and its rings, if any. The port's thread receives. Any thread may send, one at a time.

    No thread waits for a client that does not read: messages without room in the socket are kept, and nothing more is
    received.
    """

    def __init__(self, port: Host[Connection], client: socket.socket) -> None:
        super().__init__()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        client.setblocking(False)
        self._port = port
        self._limits = port.limits
        self._client = client
        self.descriptor = client.fileno()
        self._receive = client.recvmsg
        self._eventfds = PortEventfds(port.in_use, port)
        self._ring: Ring | None = None
        self._session: Session | None = None
        self._why = ""  # the Session ends, unless the client ended it
        self._has_quota = False
        # Held by the thread that executes or sends; and whether more may have to be sent since that thread looked.
        self._busy = threading.Lock()
        self._more = False
        # A few messages that the socket had no room for; a packet that has come but was not read; the rest of a batch's
        # work. More is received only without all of these, and without Session.awaited.
        self._unsent: deque[bytes] = deque()
        self._packet: bytes | None = None
        self._work: Slices[bytes | None] | None = None
        self._watched = _READ
        self._expects_packet = False  # whether the ring has a packet's place, but the packet has not come
        # Once the socket had no room: a descriptor that is readable when the process that connected has ended. And the
        # first message that the socket had no room for, and the socket's bytes, at the last check.
        self._process: int | None = None
        self._stalled: bytes | None = None
        self._held = 0

    @property
    def holder(self) -> object:
        """The Session's VM, also while the Session is about to be opened."""
        if self._session is not None:
            return self._session.vm.share
        with suppress(DecodeError, VmError):
            return self._port.registry.get(pb.SessionRequest.FromString(self._packet or b"").open.vm).share
        return None

    # Receiving.

    def ready(self, events: int) -> None:
        """Something happened to the socket; called by the port's thread, like all methods but wake and end."""
        session = self._session
        if (self._watched != _READ or (session is not None and session.awaited is not None)) and (
            not self._may_receive(events)
        ):
            return
        ring = self._ring
        data = self._from_socket() if ring is None else self._next_of(ring)
        if data is not None:
            self._take(data)

    def look(self, _events: int) -> None:
        """The ring has a packet or room, or the client rang its bell; called by the port's thread."""
        ring = self._ring
        if ring is None:
            return
        if not ring.is_polled:
            self._port.rings.poll(ring)
        if not self._may_receive(_READ) or self._expects_packet:
            return
        data = self._from_ring(ring)
        if data is not None:
            self._take(data)

    def _may_receive(self, events: int) -> bool:
        """Whether all earlier packets are done. Sends what can be sent now."""
        if self._watched != _READ:
            return self._can_go_on(events)
        session = self._session
        if session is not None and session.awaited is not None:
            with self._busy:
                self._watch()
        return self._watched == _READ

    def _next_of(self, ring: Ring) -> bytes | None:
        """The next packet, when the socket has input: a packet whose place is in the ring, or the end."""
        if self._expects_packet:
            data = self._from_socket()
            if data is not None:
                self._expect_packet(False)
            return data
        if not ring.end.has_input():
            try:
                is_end = not self._client.recv(1, socket.MSG_PEEK)
            except BlockingIOError:  # another place has led to the packet
                return None
            except OSError:
                is_end = True
            if not ring.end.has_input():  # a packet's place comes before the packet
                if is_end:
                    return b""
                self._fail(VmError(errno.EBADMSG, "a packet came over the socket without a place in the ring"))
                return None
        return self._from_ring(ring)

    def _from_ring(self, ring: Ring) -> bytes | None:
        """The next packet, from the ring or the socket; None if none has come."""
        try:
            data = ring.take()
        except VmError as error:
            self._fail(error)
            return None
        if data == b"":
            data = self._from_socket()
            if data is None:
                self._expect_packet(True)
        return data

    def _expect_packet(self, expects: bool) -> None:
        self._expects_packet = expects
        with self._busy:
            self._watch()

    def _from_socket(self) -> bytes | None:
        """A packet, empty at the end; None if none has come."""
        try:
            data, ancillary, _flags, _address = self._receive(PACKET, _ANCILLARY)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if ancillary:
            self._receive_descriptors(ancillary)
        return data

    def _take(self, data: bytes) -> None:
        """A packet has come, empty at the end."""
        session = self._session
        if (
            data
            and session is not None
            and not self._eventfds.unused
            and (self._port.alone or self._port.allows(session.vm.share))
        ):
            if not self._execute(session, data):
                return
            if self._work is None:
                if self._more:
                    self._wake()
                return
        else:
            self._packet = data
        self._port.do(self)
        if self.queued:
            with self._busy:
                self._watch()

    def _receive_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array("i")
                descriptors.frombytes(numbers[: len(numbers) - len(numbers) % descriptors.itemsize])
                self._eventfds.receive(descriptors)

    def _can_go_on(self, events: int) -> bool:
        """Whether more may be received, after an event."""
        if self._unsent:
            self._send_late(gone=bool(events & (select.EPOLLHUP | select.EPOLLERR)))
        return self._is_idle and not self._unsent and bool(events & ~select.EPOLLOUT)

    @property
    def _is_idle(self) -> bool:
        """Whether everything received is done."""
        session = self._session
        return self._work is None and self._packet is None and (session is None or session.awaited is None)

    # Work.

    def go_on(self) -> Pending | None:
        """Read the packet that came, and do a slice of a batch."""
        packet, self._packet = self._packet, None
        if packet is not None:
            session = self._session
            if not packet:
                self._port.close(self)
                return None
            if not (self._open(packet) if session is None else self._execute(session, packet)):
                return None
        return self._do_slice()

    def _execute(self, session: Session, data: bytes) -> bool:
        """Execute a message, as far as possible at once. False if the Session ends with this message."""
        try:
            with self._busy:
                answer = session.receive(data)
                if isinstance(answer, bytes):
                    self._send(answer)
                else:
                    self._work = answer
                    if self._ring is not None:
                        self._ring.offer_room()
        except Exception as error:
            self._fail(error)
            return False
        return True

    def _open(self, data: bytes) -> bool:
        """Open the Session by its first message. False if the Session was not opened."""
        port = self._port
        try:
            self._eventfds.discard()
            check_size(data, self._limits)
            request = opening(decoded(pb.SessionRequest, data))
            port.quota.acquire()
            self._has_quota = True
            with self._busy:
                self._session = Session(
                    port.registry, self._limits, request, self._wake, self.end, self._eventfds, self._peer()
                )
                ring = self._ring = port.rings.make() if request.rings else None
                self._send_opened(self._session.opened(rings=ring is not None), ring)
            if ring is not None:
                port.watch(ring.bell, self.look, ONCE_A_WRITE)
        except Exception as error:
            self._fail(error)
            return False
        port.opened(self)
        self._wake()
        return True

    def _fail(self, error: Exception) -> None:
        self.end(errors.refusal(error))
        self._port.close(self)

    def _peer(self) -> Peer:
        pid, uid, _ = CREDENTIALS.unpack(
            self._client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        )
        return Peer("port", pid=pid, uid=uid)

    def _do_slice(self) -> Pending | None:
        if self._session is None:  # the Session has ended meanwhile
            return None
        awaited: Pending | None = None
        with self._busy:
            if self._work is not None:
                try:
                    awaited = next(self._work)
                except StopIteration as done:
                    self._work = None
                    if done.value is not None:
                        self._send(done.value)
                except Exception as error:
                    self._work = None
                    self.end(errors.refusal(error))
            self._watch()
        if self._work is not None:
            if awaited is None:
                self._port.do_later(self)
        elif self._eventfds.unused:
            self._eventfds.discard()
        if self._more:  # also while an access of the Session waits
            self._wake()
        return awaited

    # Sending.

    def _watch(self) -> None:
        """Watch for the events that the connection can handle now. The caller holds _busy."""
        # During work, the kernel should report only once that the client has gone.
        events = select.EPOLLOUT if self._unsent else _READ if self._is_idle else select.EPOLLONESHOT
        ring = self._ring
        if ring is not None:
            ring.listens = events == _READ and not self._expects_packet
            ring.wants_room = events == select.EPOLLOUT and not ring.end.has_room()
            if ring.wants_room:
                events = 0  # the kernel reports in any case that the client has gone
        if self._unsent and self._process is None:
            self._watch_process()
        if events != self._watched:
            self._watched = events
            self._port.watch_for(self.descriptor, events)
        if ring is not None and not ring.is_polled and (ring.listens or ring.wants_room):
            self._port.rouse(ring)

    def _watch_process(self) -> None:
        """Watch the client's process, too: a client may send its own socket to itself, and end.

        Such a socket, still in a queue, stays open until it is received, and nothing is received until there is room.
        """
        with suppress(
            OSError, ValueError
        ):  # out of descriptors, and the next call tries again; or the port has stopped
            self._process = process_of(self._client)
            self._port.watch(self._process, self._process_ended)

    def _process_ended(self, _events: int) -> None:
        if self._process is not None:
            self._port.unwatch(self._process)
            self.has_stalled()
            self._port.suspect(self)

    def has_stalled(self) -> bool:
        """Whether messages waited at this and the last call, and the client has received nothing in between."""
        with self._busy:
            stalled, held = self._stalled, self._held
            self._stalled = self._unsent[0] if self._unsent else None
            self._held = unreceived(self._client)
            return stalled is not None and stalled is self._stalled and held == self._held

    def give_up(self) -> None:
        """The client has gone."""
        self._fail(
            VmError(errno.ETIMEDOUT, "the process that connected has ended, and no process receives the messages")
        )

    def _send(self, data: bytes) -> None:
        """Send a message, or keep it. The caller holds _busy."""
        if not self._unsent:
            try:
                if self._ring is None:
                    self._client.send(data)
                else:
                    self._ring.send(data, self._client.send)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # the client has gone; receiving reports that
        self._unsent.append(data)
        self._watch()

    def _send_opened(self, data: bytes, ring: Ring | None) -> None:
        """Send the first message, with the descriptors of the ring. The caller holds _busy."""
        if ring is None:
            self._send(data)
            return
        with suppress(OSError):  # the client has gone; receiving reports that
            socket.send_fds(self._client, [data], ring.descriptors)
        ring.close_memory()

    def _send_late(self, gone: bool) -> None:
        with self._busy:
            unsent, self._unsent = self._unsent, deque()
            for data in () if gone else unsent:
                self._send(data)
            self._watch()
        self._wake()

    def _wake(self) -> None:
        """Send what the Session has to send. Any thread may call this, and it never waits."""
        self._more = True
        while self._more and self._busy.acquire(blocking=False):
            self._more = False
            try:
                session = self._session
                while session is not None and not self._unsent and (session.late or not session.events.is_empty):
                    message = session.take()
                    if message is not None:
                        self._send(message)
                    if not self._unsent:
                        session.sending = None
                if self._watched != _READ:
                    self._watch()
            finally:
                self._busy.release()

    def end(self, error: VmError) -> None:
        """Send the client, if it reads, the error that ends its Session, and end the connection; from any thread."""
        self._why = self._why or error.message
        ended = pb.SessionResponse(ended=errors.message(error))
        with suppress(OSError):
            self._client.send(ended.SerializeToString())
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    # The end.

    def close_session(self) -> None:
        """Drop the Session's levels, and release its quota. Nothing is sent after this."""
        with self._busy:
            session, self._session = self._session, None
            ring, self._ring = self._ring, None
            self._work = self._packet = None
            process, self._process = self._process, None
            if process is not None:
                self._port.unwatch(process)
                os.close(process)
            if ring is not None:
                self._port.unwatch(ring.bell)
                self._port.rings.close(ring)
            self._eventfds.close()
            try:
                if session is not None:
                    session.close(self._why or "its client closed it, or has gone")
            finally:
                if self._has_quota:
                    self._has_quota = False
                    self._port.quota.release()

    def close(self) -> None:
        """Close the socket."""
        # Read the rest first. Unread packets would reset the connection, so that the client would lose its last
        # messages, and their descriptors would be closed with the socket. Every packet, also an empty one, has
        # credentials, which distinguish it from the end.
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ancillary = [(0, 0, b"")]
            while ancillary:
                _, ancillary, _flags, _address = self._client.recvmsg(1, _ANCILLARY)
                self._receive_descriptors(ancillary)
                self._eventfds.discard()
        self._client.close()
