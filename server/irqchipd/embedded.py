"""A daemon without a process of its own: its process calls the VMs directly, and other processes' devices connect.

The edges, if any are asked for, are threads of the process. Nothing here sets what belongs to the whole process: its
signals, its limits, its log.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from irqchip.place import default_socket
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.daemon import Daemon
from irqchipd.edge import errors
from irqchipd.edge.admission import Peer
from irqchipd.edge.daemon_calls import DAEMON_CALLS, LONG_CALLS
from irqchipd.edge.eventfd_watcher import EventfdWatcher
from irqchipd.edge.eventfds import PortEventfds
from irqchipd.edge.grpc_service import SERVICE
from irqchipd.edge.loop import Loop
from irqchipd.edge.messages import execute_unary
from irqchipd.edge.operations import OPERATIONS, SessionCaller
from irqchipd.edge.rpc import decoded
from irqchipd.edge.session import Session, opening
from irqchipd.edge.trace import TraceLog, filter_of
from irqchipd.holdings import Holdings
from irqchipd.limits import Limits
from irqchipd.listen import Address, default_address, parse_address
from irqchipd.vm.errors import VmError, deleted
from irqchipd.vm.pending import Pending, Slices
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

_NO_POLLING = 0  # a port that polls would take the interpreter from the threads that call the VMs
_RESPONSES = {method.name: GetMessageClass(method.output_type) for method in SERVICE.methods}
_INTERRUPTED = VmError(errno.EIO, "a batch was interrupted while it was executed")


class Embedded:
    """The VMs of this process, and the edges by which other processes reach them."""

    def __init__(self, listen: Sequence[str] = ()) -> None:
        """listen has unix:///PATH, tcp://HOST:PORT, or paths of sockets. ListenError where that is impossible."""
        addresses = [_address(text) for text in listen]
        self.holdings = Holdings(Limits(poll_us=_NO_POLLING).within_descriptors())
        self.watcher = EventfdWatcher()
        self._process = os.getpid()
        self._stopping = threading.Lock()
        self._stopped = False
        self._edges = _Edges(self.holdings, addresses) if addresses else None

    @property
    def registry(self) -> Registry:
        """The VMs."""
        return self.holdings.registry

    @property
    def addresses(self) -> Sequence[Address]:
        """The addresses that the edges listen on."""
        return () if self._edges is None else self._edges.addresses

    def unary(self, operation: str, method: str, request: Any) -> Slices[Message]:
        """Make a unary call, and return its response."""
        response = _RESPONSES[method]()
        call = DAEMON_CALLS.get(method) or LONG_CALLS.get(method)
        if call is None:
            yield from execute_unary(OPERATIONS[operation], self.registry.get(request.vm), request, response)
        else:
            call(self.registry, request, response)
        return response

    def stop(self) -> None:
        """End the edges, and delete all VMs. In a forked child, do nothing: the VMs are the parent's."""
        if os.getpid() != self._process:
            return
        with self._stopping:
            if not self._stopped:
                self._stop()
                self._stopped = True

    def _stop(self) -> None:
        if self._edges is not None:
            self._edges.stop()
        while vms := self.registry.after("", 256):
            for vm in vms:
                self.registry.delete_vm(vm)
        self.watcher.stop()
        self.holdings.timers.stop()

    def remove_sockets(self) -> None:
        """Hide from new clients, as the process ends."""
        if self._edges is not None and os.getpid() == self._process:
            self._edges.remove_sockets()


def _address(text: str) -> Address:
    if "://" in text:
        return parse_address(text, allow_insecure=False)
    path = os.path.abspath(text)
    return default_address() if path == default_socket() else parse_address(f"unix://{path}", allow_insecure=False)


class _Edges:
    """The daemon's edges, in a thread with an event loop, and the threads of its ports."""

    def __init__(self, holdings: Holdings, addresses: Sequence[Address]) -> None:
        self._holdings = holdings
        self._started: Future[tuple[Daemon, list[Address]]] = Future()
        self._thread = threading.Thread(target=self._run, args=(addresses,), name="irqchipd edges", daemon=True)
        self._thread.start()
        self._daemon, self.addresses = self._started.result()

    def stop(self) -> None:
        """End all Sessions with a status, and wait for the threads."""
        with suppress(RuntimeError):  # an earlier stop was interrupted, and the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def remove_sockets(self) -> None:
        self._daemon.remove_sockets()

    def _run(self, addresses: Sequence[Address]) -> None:
        try:
            with asyncio.Runner(loop_factory=Loop) as runner:
                runner.run(self._serve(addresses))
        except BaseException as error:
            if self._started.done():
                log.exception("the edges failed")
            else:
                self._started.set_exception(error)

    async def _serve(self, addresses: Sequence[Address]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        daemon = Daemon(self._holdings, leaves=False)
        try:
            self._started.set_result((daemon, await daemon.start(addresses)))
            await self._stop.wait()
        finally:
            await daemon.stop()
            await self._loop.run_in_executor(None, daemon.close)


class LocalSession:
    """A Session of this process: packets in and out, as the port's, and no socket in between.

    wake is called, from any thread, when take may have a packet; wake must take no lock that a caller of this class
    holds. One packet at a time is executed, by the thread that calls send or take; a packet that has to wait goes on in
    a later take.

    direct  the Session for which any thread may execute operations at once; None while an earlier packet is not done,
            and after the end of the Session
    """

    def __init__(self, embedded: Embedded, wake: Callable[[], None]) -> None:
        self._held = embedded.holdings
        self._wake = wake
        self._busy = threading.Lock()
        self._eventfds = PortEventfds(self._held.eventfds, embedded.watcher)
        self._session: Session | None = None
        self._inbox: deque[tuple[bytes, Sequence[int]]] = deque()
        self._work: Slices[bytes | None] | None = None
        self._awaited: Pending | None = None  # before the work goes on
        self._packets: deque[bytes] = deque()
        self._ending: VmError | None = None  # why the Session ends, unless the client ended it
        self._finishing = False
        self._closed = False
        self.direct: SessionCaller | None = None

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Execute a packet, after those before it. The descriptors go to the Session."""
        with self._busy:
            if not self._closed:
                self._inbox.append((packet, descriptors))
                self._go_on()
                if self._packets:
                    self._wake()

    def take(self) -> bytes | None:
        """The next packet for the client, or None; empty at the end of the Session."""
        with self._busy:
            if self._inbox or self._work is not None or self._finishing:
                self._go_on()
            if self._packets:
                return self._packets.popleft()
            session = self._session
            if session is not None and (packet := session.take()) is not None:
                session.sending = None  # the client receives it at once
                self._go_on()  # if that was what further packets have waited for
                return packet
            ending, self._ending = self._ending, None
            if ending is not None:
                self._close(ending.message)
                return pb.SessionResponse(ended=errors.message(ending)).SerializeToString()
            return b"" if self._closed else None

    def finish(self) -> None:
        """Close once the packets sent so far are done."""
        with self._busy:
            self._finishing = True
            self._go_on()
        self._wake()

    def end(self, error: VmError) -> None:
        """End the Session with an error; from any thread."""
        self.direct = None
        self._ending = self._ending or error
        self._wake()

    def close(self, why: str) -> None:
        """End the Session: its levels drop, and take returns the remaining packets."""
        with self._busy:
            self._close(why)
        self._wake()

    # Everything here runs with _busy.

    def _go_on(self) -> None:
        """Execute packets until one has to wait."""
        while not self._closed and self._ending is None:
            session = self._session
            if session is not None and session.awaited is not None:
                break
            if self._work is None:
                if not self._inbox:
                    if self._finishing:
                        self._close("its client closed it")
                        return
                    self.direct = None if session is None else session.caller
                    return
                packet, descriptors = self._inbox.popleft()
                self._execute(packet, descriptors)
            elif self._awaited is not None and not self._awaited.done:
                break
            elif (awaited := self._do_slice(self._work)) is not None:
                self._awaited = awaited
                awaited.when_done(self._wake)
        self.direct = None

    def _execute(self, packet: bytes, descriptors: Sequence[int]) -> None:
        if descriptors:
            self._eventfds.receive(descriptors)
        try:
            if self._session is None:
                self._open(packet)
            else:
                answer = self._session.receive(packet)
                if isinstance(answer, bytes):
                    self._packets.append(answer)
                else:
                    self._work = answer
        except Exception as error:
            self.end(errors.refusal(error))
        except BaseException:  # Ctrl-C: the batch may be partly done
            self.end(_INTERRUPTED)
            raise
        if self._eventfds.unused and self._work is None:
            self._eventfds.discard()

    def _do_slice(self, work: Slices[bytes | None]) -> Pending | None:
        """Do a slice of a batch, and return what the next slice has to wait for."""
        try:
            return next(work)
        except StopIteration as done:
            if done.value is not None:
                self._packets.append(done.value)
        except Exception as error:
            self.end(errors.refusal(error))
        except BaseException:
            self.end(_INTERRUPTED)
            raise
        self._work = None
        if self._eventfds.unused:
            self._eventfds.discard()
        return None

    def _open(self, packet: bytes) -> None:
        held = self._held
        request = opening(decoded(pb.SessionRequest, packet))
        held.quota.acquire()
        try:
            session = Session(
                held.registry, held.limits, request, self._wake, self.end, self._eventfds, Peer("embedded")
            )
        except BaseException:
            held.quota.release()
            raise
        self._session = session
        self._packets.append(session.opened())

    def _close(self, why: str) -> None:
        self._closed = True
        self.direct = None
        self._inbox.clear()
        self._work = None
        session, self._session = self._session, None
        try:
            self._eventfds.close()
            if session is not None:
                session.close(why)
        finally:
            if session is not None:
                self._held.quota.release()


class LocalWatch:
    """A VM's trace in this process. wake is called, from any thread, when take may have a message."""

    def __init__(self, embedded: Embedded, request: pb.WatchRequest, wake: Callable[[], None]) -> None:
        self._held = embedded.holdings
        self._wake = wake
        self._vm = self._held.registry.get(request.vm)
        wanted = filter_of(request)
        self._log = TraceLog(self._vm, self._held.limits.queued_events, wake)
        self._ending: VmError | None = None
        self._held.quota.acquire()
        try:
            self._vm.attach(self._log, lambda: self.end(deleted(self._vm.name)))
            self._reader = self._log.open(wanted)
        except BaseException:
            self._held.quota.release()
            raise
        self._attached = True

    def end(self, error: VmError) -> None:
        """End the Watch with an error, after the events so far; from any thread."""
        self._ending = self._ending or error
        self._wake()

    def take(self) -> pb.WatchResponse | None:
        """The next message, or None. VmError at the end."""
        response = self._log.read(self._reader)
        if response is None and self._ending is not None:
            self.close()
            raise self._ending
        return response

    def close(self) -> None:
        """Watch no more."""
        attached, self._attached = self._attached, False
        if attached:
            self._vm.detach(self._log)
            self._held.quota.release()
