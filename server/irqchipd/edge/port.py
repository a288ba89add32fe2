"""The AF_UNIX port: a Session a connection, over SOCK_SEQPACKET and without HTTP/2. docs/port.md describes it.

Every connection has a thread that blocks in recv: an operation costs one wake-up and two system calls. What a Session
is told is sent by the thread that tells: a device's process wakes a vCPU's, and no third is in between.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import DecodeError

from irqchip.port import MESSAGE_BYTES, Receiver
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.session import OPENING_PATIENCE, Places, Session, following, not_opened, opening
from irqchipd.limits import Limits
from irqchipd.listen import claimed_socket
from irqchipd.vm.errors import VmError, deleted
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

SOCKET_BUFFER = 4 * MESSAGE_BYTES


class Port:
    """Listens on one path, and serves whoever connects."""

    def __init__(self, registry: Registry, limits: Limits, places: Places, path: Path) -> None:
        self.path = path
        self._registry = registry
        self._limits = replace(limits, message_bytes=min(limits.message_bytes, MESSAGE_BYTES))
        self._places = places
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._stopping = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with claimed_socket(path):
            self._listener.bind(str(path))
        self._listener.listen(socket.SOMAXCONN)
        threading.Thread(target=self._accept, name="irqchipd port", daemon=True).start()

    def stop(self) -> None:
        """End all Sessions with STOPPING, and listen no more."""
        with self._lock:
            self._stopping = True
            connections = list(self._connections)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for connection in connections:
            connection.end(errors.STOPPING)
        for connection in connections:
            connection.thread.join(1.0)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if self._stopping:
                    return
                log.warning("the port can't take a client: %s", error)
                time.sleep(0.1)  # out of descriptors, say; it may pass
                continue
            connection = _Connection(client, self._limits.poll_us * 1000)
            with self._lock:
                self._connections.add(connection)
                refusal = errors.STOPPING if self._stopping else None
            try:
                if refusal is not None:
                    raise refusal
                self._places.take()
            except VmError as error:
                connection.end(error)
                connection.close()
                with self._lock:
                    self._connections.discard(connection)
                continue
            connection.thread = threading.Thread(target=self._serve, args=(connection,), name="session", daemon=True)
            try:
                connection.thread.start()
            except RuntimeError as error:  # as many as the machine allows
                log.warning("the port can't serve a client: %s", error)
                connection.thread = threading.current_thread()
                connection.end(VmError(errno.ENOSPC, "the machine has no thread left for a Session"))
                self._close(connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.serve(self._registry, self._limits)
        finally:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        """The client finds the end when its levels have dropped and its place is free."""
        try:
            connection.close_session()
        finally:
            self._places.free()
            connection.close()
        with self._lock:
            self._connections.discard(connection)


class _GoneError(Exception):
    """The client has closed its end."""


class _Connection:
    """A client's socket. Any thread may tell; one at a time sends, and none waits for a client that does not read."""

    def __init__(self, client: socket.socket, poll_ns: int) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._client = client
        self._packets = Receiver(client, poll_ns)
        self.thread = threading.current_thread()  # until it has one of its own
        self._session: Session | None = None
        # Held by who executes or sends; and whether there may be more to tell since that looked.
        self._busy = threading.Lock()
        self._more = False

    def serve(self, registry: Registry, limits: Limits) -> None:
        """Be a Session, until the client goes or must be told why it is over."""
        try:
            try:
                request = opening(self._receive(limits, OPENING_PATIENCE))
            except TimeoutError:
                raise not_opened() from None
            self._serve_session(
                Session(registry, limits, request, self._tell, lambda: self.end(deleted(request.vm))), limits
            )
        except (OSError, _GoneError):
            pass  # the client has gone, and with it whoever could be told
        except Exception as error:
            self.end(errors.refusal(error))

    def _serve_session(self, session: Session, limits: Limits) -> None:
        with self._busy:
            self._session = session
            self._send(pb.SessionResponse(opened=session.opened()))
        while True:
            self._tell()
            message = following(self._receive(limits))
            with self._busy:
                result = session.execute(message)
                if result is not None:
                    self._send(pb.SessionResponse(batch_result=result))

    def end(self, error: VmError) -> None:
        """Tell the client why its Session is over, if it reads, and make the thread that serves it come to its end."""
        ended = pb.SessionResponse(ended=errors.message(error))
        with suppress(OSError):
            self._client.send(ended.SerializeToString(), socket.MSG_DONTWAIT)
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def close_session(self) -> None:
        """Drop its levels. Nothing is told after this."""
        if not self._busy.acquire(timeout=0.1):
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)  # whoever waits to send gives up
            self._busy.acquire()
        try:
            session, self._session = self._session, None
            if session is not None:
                session.close()
        finally:
            self._busy.release()

    def close(self) -> None:
        # What is left unread would reset the connection, and take from the client what it was told last.
        with suppress(OSError):
            while self._client.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT):
                pass
        self._client.close()

    def _receive(self, limits: Limits, timeout: float | None = None) -> pb.SessionRequest:
        data = self._packets.receive(timeout)
        if not data:
            raise _GoneError
        if len(data) > limits.message_bytes:
            raise VmError(errno.E2BIG, f"a message of more than {limits.message_bytes} bytes")
        try:
            return pb.SessionRequest.FromString(data)
        except DecodeError:
            raise VmError(errno.EBADMSG, "these bytes are not the message that this port takes") from None

    def _send(self, response: pb.SessionResponse) -> None:
        """Send a message; a client that does not read its answers is not read from."""
        data = response.SerializeToString()
        try:
            self._client.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._client.send(data)

    def _tell(self) -> None:
        """Send what the Session has to tell. Any thread may call this, and none waits here."""
        self._more = True
        while self._more and self._busy.acquire(blocking=False):
            self._more = False
            try:
                while self._session is not None and (message := self._session.take()) is not None:
                    self._client.send(message.SerializeToString(), socket.MSG_DONTWAIT)
            except BlockingIOError:
                # The socket is full. Somebody has to wait until it is not, who also releases the lock.
                threading.Thread(target=self._tell_late, args=(message,), name="session late", daemon=True).start()
                return
            except OSError:
                pass  # the client has gone; its thread finds out
            self._busy.release()

    def _tell_late(self, message: pb.SessionResponse) -> None:
        with suppress(OSError):
            self._client.send(message.SerializeToString())
        self._busy.release()
        self._tell()
