"""A connection of the AF_UNIX port: packets in, the answers and events of its Session out."""

from __future__ import annotations

import errno
import select
import socket
import threading
from array import array
from collections import deque
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from irqchip.port import MESSAGE_BYTES
from irqchip.records import HEADER, SINGLE
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.eventfds import SessionEventfds
from irqchipd.edge.executor import Awaited, Slices
from irqchipd.edge.records import SINGLES, finish_single
from irqchipd.edge.session import Peer, Session, following, opening
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.regions import Access

if TYPE_CHECKING:
    from irqchipd.edge.port import Port

SOCKET_BUFFER = 4 * MESSAGE_BYTES
PACKET = MESSAGE_BYTES + 1  # more than there may be
_DESCRIPTORS = 253  # SCM_MAX_FD: that may come with a packet
_CREDENTIALS = Struct("@iII")  # struct ucred: pid, uid and gid of who connected
# There is always room for them: the kernel would close what finds none, in the port's thread, and that may wait.
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTORS * array("i").itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)
_READ = select.EPOLLIN

Answer = pb.SessionResponse | bytes | None


class Connection:
    """A client's socket. The port's thread receives; any thread may tell, one at a time sends, and none waits for a
    client that does not read: what it does not take is kept, and nothing more is received from it.
    """

    def __init__(self, port: Port, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        client.setblocking(False)
        self._port = port
        self._limits = port.limits
        self._client = client
        self.descriptor = client.fileno()
        self._receive = client.recvmsg
        self._eventfds = SessionEventfds(port.in_use, port)
        self._takes_descriptors = False  # whether the next message may come with some
        self._session: Session | None = None
        self._why = ""  # it ends, if it is not its client's doing
        self._has_place = False
        self.queued = False  # see Work
        # Held by who executes or sends; and whether there may be more to tell since that looked.
        self._busy = threading.Lock()
        self._more = False
        # Messages that the socket had no room for, which are few; a packet that nobody has looked at; a batch that is
        # not done. With none of them it is received from.
        self._unsent: deque[bytes] = deque()
        self._packet: bytes | None = None
        self._work: Slices[Answer] | None = None
        self._awaited = _READ

    @property
    def holder(self) -> object:
        """See Work: its VM, also while it is only going to be opened; None where it names none."""
        if self._session is not None:
            return self._session.vm.share
        with suppress(DecodeError, VmError):
            return self._port.registry.get(pb.SessionRequest.FromString(self._packet or b"").open.vm).share
        return None

    # Receiving.

    def ready(self, events: int) -> None:
        """Something happened to the socket; called by the port's thread, as is all but tell and end."""
        if self._awaited != _READ and not self._can_go_on(events):
            return
        try:
            data, ancillary, _flags, _address = self._receive(PACKET, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if ancillary:
            self._receive_descriptors(ancillary)
        session = self._session
        if (
            len(data) == SINGLE.size
            and not data[0]
            and data[HEADER.size] in SINGLES
            and session is not None
            and not ancillary
            and (self._port.alone or self._port.lets(session.vm.share))
        ):
            self._execute_single(session, data)
            return
        self._packet = data
        self._port.do(self)
        if self.queued:
            with self._busy:
                self._wait_for_it()

    def _receive_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array("i")
                descriptors.frombytes(numbers[: len(numbers) - len(numbers) % descriptors.itemsize])
                self._eventfds.receive(descriptors)

    def _can_go_on(self, events: int) -> bool:
        """Whether it may be received from, now that something happened."""
        if self._unsent:
            self._send_late(gone=bool(events & (select.EPOLLHUP | select.EPOLLERR)))
        return self._rests and not self._unsent and bool(events & ~select.EPOLLOUT)

    @property
    def _rests(self) -> bool:
        """Whether nothing is left to do of what was received."""
        return self._work is None and self._packet is None

    # Work.

    def go_on(self) -> Awaited:
        """Begin with the packet that came, or do another slice of its batch; what to wait for before the next."""
        packet, self._packet = self._packet, None
        if packet is not None:
            if not packet:
                self._port.close(self)
                return None
            try:
                self._begin(packet)
            except Exception as error:
                self.end(errors.refusal(error))
                self._port.close(self)
                return None
        return self._do_slice()

    def _begin(self, data: bytes) -> None:
        session = self._session
        if len(data) > self._limits.message_bytes:
            raise VmError(errno.E2BIG, f"a message of more than {self._limits.message_bytes} bytes")
        takes_descriptors, self._takes_descriptors = self._takes_descriptors, False
        if not takes_descriptors or not data[0]:
            self._eventfds.discard()
        if session is not None and not data[0]:
            self._work = session.execute_packed(data)
            return
        try:
            message = pb.SessionRequest.FromString(data)
        except DecodeError:
            raise VmError(errno.EBADMSG, "these bytes are not the message that this port takes") from None
        if session is None:
            self._open(opening(message))
        elif message.HasField("descriptors"):
            if self._eventfds:
                raise invalid("descriptors go with a batch, and this message is none")
            self._takes_descriptors = True
        else:
            self._work = session.execute(following(message))

    def _open(self, request: pb.SessionOpen) -> None:
        port = self._port
        port.places.take()
        self._has_place = True
        with self._busy:
            self._session = Session(
                port.registry,
                self._limits,
                request,
                self._tell,
                self.end,
                self._eventfds,
                self._peer(),
            )
            self._send(pb.SessionResponse(opened=self._session.opened()).SerializeToString())
        port.opened(self)
        self._tell()

    def _peer(self) -> Peer:
        pid, uid, _ = _CREDENTIALS.unpack(
            self._client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return Peer("port", pid=pid, uid=uid)

    def _execute_single(self, session: Session, data: bytes) -> None:
        """A batch of one record, at once."""
        with self._busy:
            answer = session.execute_single(data)
            if isinstance(answer, Access):
                self._work = finish_single(data, answer)
            elif session.vm.agenda.backlog is None:
                self._send(answer)
            else:
                self._work = session.caught_up(answer)
        if self._work is not None:
            self._port.do(self)
        elif self._more:
            self._tell()

    def _do_slice(self) -> Awaited:
        if self._session is None:  # it has ended in between
            return None
        if self._work is None:
            with self._busy:
                self._wait_for_it()
            return None
        awaited: Awaited = None
        with self._busy:
            try:
                awaited = next(self._work)
            except StopIteration as done:
                self._work = None
                answer = done.value
                if answer is not None:
                    self._send(answer if isinstance(answer, bytes) else answer.SerializeToString())
            except Exception as error:
                self._work = None
                self.end(errors.refusal(error))
            self._wait_for_it()
        if self._work is None:
            self._eventfds.discard()
        elif awaited is None:
            self._port.do_later(self)
        if self._more:  # also while an access of its own takes a while
            self._tell()
        return awaited

    # Sending.

    def _wait_for_it(self) -> None:
        """Wait for what it can go on with; who calls this is busy."""
        # While it works, that the client has gone is told once, and not over and over.
        events = select.EPOLLOUT if self._unsent else _READ if self._rests else select.EPOLLONESHOT
        if events != self._awaited:
            self._awaited = events
            self._port.watch_for(self.descriptor, events)

    def _send(self, data: bytes) -> None:
        """Send a message, or keep it; who calls this is busy."""
        if not self._unsent:
            try:
                self._client.send(data)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # the client has gone; that is found out by receiving
        self._unsent.append(data)
        self._wait_for_it()

    def _send_late(self, gone: bool) -> None:
        with self._busy:
            unsent, self._unsent = self._unsent, deque()
            for data in () if gone else unsent:
                self._send(data)
            self._wait_for_it()
        self._tell()

    def _tell(self) -> None:
        """Send what the Session has to tell. Any thread may call this, and none waits here."""
        self._more = True
        while self._more and self._busy.acquire(blocking=False):
            self._more = False
            try:
                while not self._unsent and self._session is not None and (message := self._session.take()) is not None:
                    self._send(message if isinstance(message, bytes) else message.SerializeToString())
            finally:
                self._busy.release()

    def end(self, error: VmError) -> None:
        """Tell the client why its Session is over, if it reads, and make it come to its end; from any thread."""
        self._why = self._why or error.message
        ended = pb.SessionResponse(ended=errors.message(error))
        with suppress(OSError):
            self._client.send(ended.SerializeToString())
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    # The end.

    def close_session(self) -> None:
        """Drop its levels, and free its place. Nothing is told after this."""
        with self._busy:
            session, self._session = self._session, None
            self._work = self._packet = None
            self._eventfds.close()
            try:
                if session is not None:
                    session.close(self._why or "its client closed it, or has gone")
            finally:
                if self._has_place:
                    self._has_place = False
                    self._port.places.free()

    def close(self) -> None:
        """Close the socket."""
        # What is left unread would reset the connection, and take from the client what it was told last; and its
        # descriptors would be closed with the socket. Credentials come with every packet, an empty one too, and tell it
        # from the end.
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ancillary = [(0, 0, b"")]
            while ancillary:
                _, ancillary, _flags, _address = self._client.recvmsg(1, _ANCILLARY)
                self._receive_descriptors(ancillary)
                self._eventfds.discard()
        self._client.close()
