"""The AF_UNIX port: a Session a connection, over SOCK_SEQPACKET and without HTTP/2. docs/port.md describes it.

One thread serves all connections and irqfds of a port: a device's write and the vCPU that it wakes are one turn of it,
and nobody else wants the interpreter. What other threads tell a Session they send themselves.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import DecodeError

from irqchip.port import MESSAGE_BYTES, Patience
from irqchip.records import HEADER, SINGLE
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.eventfds import EventfdsInUse, SessionEventfds
from irqchipd.edge.executor import Awaited
from irqchipd.edge.records import SINGLES, finish_single
from irqchipd.edge.session import OPENING_PATIENCE, Places, Session, following, not_opened, opening
from irqchipd.limits import Limits
from irqchipd.listen import SocketPath
from irqchipd.vm.errors import VmError, deleted
from irqchipd.vm.regions import Forwarded
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

SOCKET_BUFFER = 4 * MESSAGE_BYTES
PACKET = MESSAGE_BYTES + 1  # more than there may be
EVENTS = 64  # that are asked for at once
_DESCRIPTORS = 253  # SCM_MAX_FD: that may come with a packet
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTORS * array("i").itemsize)
_READ = select.EPOLLIN
_EVENTFD = select.EPOLLIN | select.EPOLLET  # each write is told

Work = Generator[Awaited, None, pb.SessionResponse | bytes | None]


class Port:
    """Listens on one path, and serves whoever connects."""

    def __init__(self, registry: Registry, limits: Limits, places: Places, in_use: EventfdsInUse, path: Path) -> None:
        self.path = path
        self.registry = registry
        self.limits = replace(limits, message_bytes=min(limits.message_bytes, MESSAGE_BYTES))
        self.in_use = in_use
        self._places = places
        self._patience = Patience(limits.poll_us * 1000)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        # What each was watched for at first, and which of them have been given up in this turn.
        self._watched: dict[int, int] = {}
        self._unwatched: set[int] = set()
        # Connections whose batches are long: each has a slice of its own done, and then it is the next's turn.
        self._backlog: deque[_Connection] = deque()
        # Those that are to be opened, and until when.
        self._unopened: deque[tuple[float, _Connection]] = deque()
        self._connections: set[_Connection] = set()
        self._stopping = threading.Event()
        self._deaf_until = 0.0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._at = SocketPath(path)
        with self._at.binding() as passing:
            self._listener.bind(str(passing))
            self._listener.listen(socket.SOMAXCONN)
        # Written by other threads, to have this one look at the backlog, or stop.
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._listener.fileno(), self._accept)
        self.watch(self._woken, lambda _: None, _EVENTFD)
        self._thread = threading.Thread(target=self._run, name="irqchipd port", daemon=True)
        self._thread.start()

    def begin_to_stop(self) -> None:
        """End all Sessions with STOPPING, and listen no more."""
        self.remove_socket()
        self._stopping.set()
        os.eventfd_write(self._woken, 1)

    def stop(self) -> None:
        """Begin to, and wait for it, but not for ever."""
        self.begin_to_stop()
        self._thread.join(1.0)
        if self.stopped:
            os.close(self._woken)
            self._at.close()

    @property
    def stopped(self) -> bool:
        """Whether all Sessions have ended."""
        return not self._thread.is_alive()

    def remove_socket(self) -> None:
        """Clients find the port no more; from any thread."""
        self._at.remove()

    # Descriptors that are watched.

    def watch(self, descriptor: int, handler: Callable[[int], None], events: int = _READ) -> None:
        """Call the handler when something happens to a descriptor."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler
        self._watched[descriptor] = events

    def unwatch(self, descriptor: int) -> None:
        """The reverse of watch."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
            self._unwatched.add(descriptor)

    def watch_for(self, descriptor: int, events: int) -> None:
        """What else than before is to be waited for; from any thread."""
        with suppress(OSError):  # it is watched no more
            self._epoll.modify(descriptor, events)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
            for connection in list(self._connections):
                connection.end(errors.STOPPING)
        finally:
            for connection in list(self._connections):
                self.close(connection)
            self._listener.close()
            self._epoll.close()

    def _turn(self) -> None:
        handlers = self._handlers
        self._unwatched.clear()
        for descriptor, events in self._wait():
            handler = handlers.get(descriptor)
            if handler is None:
                continue
            try:
                if descriptor in self._unwatched:  # it was another's, who had this number
                    self.watch_for(descriptor, self._watched[descriptor])
                else:
                    handler(events)
            except Exception:  # one client's trouble is not the others', whose eventfds are reported once
                log.exception("the port failed at something")
        if self._backlog:
            try:
                self._backlog.popleft().go_on()
            except Exception:
                log.exception("the port failed at a batch")
        if self._unopened or self._deaf_until:
            self._look_at_the_time()

    def _wait(self) -> list[tuple[int, int]]:
        poll = self._epoll.poll
        if self._backlog:
            return poll(0, EVENTS)
        patience = self._patience
        spin = patience.begin()
        while spin:
            events = poll(0, EVENTS)
            if events:
                patience.met()
                return events
            spin = patience.goes_on()
        due = [self._deaf_until] if self._deaf_until else []
        if self._unopened:
            due.append(self._unopened[0][0])
        events = poll(max(min(due) - time.monotonic(), 0) if due else None, EVENTS)
        patience.woken()
        return events

    def _look_at_the_time(self) -> None:
        now = time.monotonic()
        while self._unopened and (self._unopened[0][1].opened or self._unopened[0][0] <= now):
            _, connection = self._unopened.popleft()
            if not connection.opened:
                connection.end(not_opened())
        if self._deaf_until and self._deaf_until <= now:
            self._deaf_until = 0.0
            self.watch_for(self._listener.fileno(), _READ)

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, say; it may pass
            log.warning("the port can't take a client: %s", error)
            self.watch_for(self._listener.fileno(), 0)
            self._deaf_until = time.monotonic() + 0.1
            return
        connection = _Connection(self, client)
        try:
            self._places.take()
        except VmError as error:
            connection.end(error)
            connection.close()
            return
        self._connections.add(connection)
        self._unopened.append((time.monotonic() + OPENING_PATIENCE, connection))
        self.watch(client.fileno(), connection.ready)

    def leave_unfinished(self, connection: _Connection) -> None:
        """A connection has more work to do, when it is its turn; from any thread."""
        self._backlog.append(connection)
        if threading.current_thread() is not self._thread:
            with suppress(OSError):  # it has stopped
                os.eventfd_write(self._woken, 1)

    def close(self, connection: _Connection) -> None:
        """A connection is at its end; the client finds the end when its levels have dropped and its place is free."""
        self.unwatch(connection.descriptor)
        try:
            connection.close_session()
        finally:
            self._connections.discard(connection)
            self._places.free()
            connection.close()


class _Connection:
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
        self._eventfds = SessionEventfds(
            port.in_use, lambda fd, handler: port.watch(fd, handler, _EVENTFD), port.unwatch
        )
        self._receive: Callable[[int], bytes] = client.recv  # which drops descriptors
        self._session: Session | None = None
        # Held by who executes or sends; and whether there may be more to tell since that looked.
        self._busy = threading.Lock()
        self._more = False
        # Messages that the socket had no room for, which are few, and a batch that is not done. With neither it is
        # received from.
        self._unsent: deque[bytes] = deque()
        self._work: Work | None = None
        self._awaited = _READ

    @property
    def opened(self) -> bool:
        """Whether it is a Session, or has ended."""
        return self._session is not None or self._client.fileno() < 0

    def ready(self, events: int) -> None:
        """Something happened to the socket; called by the port's thread, as is all but tell and end."""
        if self._awaited != _READ and not self._can_go_on(events):
            return
        try:
            data = self._receive(PACKET)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        session = self._session
        if len(data) == SINGLE.size and not data[0] and data[HEADER.size] in SINGLES and session is not None:
            try:
                with self._busy:
                    self._send(session.execute_single(data))
            except Forwarded as forwarded:
                self._begin(finish_single(data, forwarded.access))
                return
            if self._more:
                self._tell()
        elif not data:
            self._port.close(self)
        else:
            try:
                self._received(data)
            except Exception as error:
                self.end(errors.refusal(error))
                self._port.close(self)

    def _can_go_on(self, events: int) -> bool:
        """Whether it may be received from, now that something happened."""
        if self._unsent:
            self._send_late(gone=bool(events & (select.EPOLLHUP | select.EPOLLERR)))
        return self._work is None and not self._unsent and bool(events & ~select.EPOLLOUT)

    def _receive_descriptors(self, length: int) -> bytes:
        """As recv, of the packet that descriptors come with."""
        self._receive = self._client.recv
        self._eventfds.discard()  # what came with a message that was no batch
        data, ancillary, _flags, _address = self._client.recvmsg(length, _ANCILLARY)
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array("i")
                descriptors.frombytes(numbers[: len(numbers) - len(numbers) % descriptors.itemsize])
                self._eventfds.descriptors.extend(descriptors)
        if len(data) == SINGLE.size and not data[0]:  # it takes none
            self._eventfds.discard()
        return data

    def _received(self, data: bytes) -> None:
        session = self._session
        if len(data) > self._limits.message_bytes:
            raise VmError(errno.E2BIG, f"a message of more than {self._limits.message_bytes} bytes")
        if session is not None and not data[0]:
            self._begin(session.execute_packed(data))
            return
        try:
            message = pb.SessionRequest.FromString(data)
        except DecodeError:
            raise VmError(errno.EBADMSG, "these bytes are not the message that this port takes") from None
        if session is not None and message.HasField("descriptors"):
            self._receive = self._receive_descriptors
        elif session is not None:
            self._begin(session.execute(following(message)))
        else:
            self._open(opening(message))

    def _open(self, request: pb.SessionOpen) -> None:
        with self._busy:
            self._session = Session(
                self._port.registry,
                self._limits,
                request,
                self._tell,
                lambda: self.end(deleted(request.vm)),
                self._eventfds,
            )
            self._send(pb.SessionResponse(opened=self._session.opened()).SerializeToString())
        self._tell()

    # Batches.

    def _begin(self, work: Work) -> None:
        self._work = work
        self.go_on()

    def go_on(self) -> None:
        """Do another slice of the batch."""
        if self._work is None or self._session is None:  # it has ended in between
            return
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
        if self._work is not None:
            if self._more:  # an access of its own may take a while
                self._tell()
            if awaited is None:
                self._port.leave_unfinished(self)
            else:
                awaited.when_answered(lambda: self._port.leave_unfinished(self))
            return
        self._eventfds.discard()
        if self._more:
            self._tell()

    # Sending.

    def _wait_for_it(self) -> None:
        """Wait for what it can go on with; who calls this is busy."""
        # While it works, that the client has gone is told once, and not over and over.
        events = select.EPOLLOUT if self._unsent else select.EPOLLONESHOT if self._work is not None else _READ
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
        ended = pb.SessionResponse(ended=errors.message(error))
        with suppress(OSError):
            self._client.send(ended.SerializeToString())
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    # The end.

    def close_session(self) -> None:
        """Drop its levels. Nothing is told after this."""
        with self._busy:
            session, self._session = self._session, None
            self._work = None
            self._eventfds.close()
            if session is not None:
                session.close()

    def close(self) -> None:
        """Close the socket."""
        # What is left unread would reset the connection, and take from the client what it was told last.
        with suppress(OSError):
            while self._client.recv(MESSAGE_BYTES):
                pass
        self._client.close()
