"""The AF_UNIX port: one Session per connection, over SOCK_SEQPACKET and without HTTP/2. docs/port.md describes it.

One thread serves all connections, rings and irqfds of a port. So one pass of this thread handles a device's
write and wakes the vCPU, and no other thread needs the interpreter in between. Other threads send the notifications
that they make.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from irqchip.port import MESSAGE_BYTES, AdaptivePoll
from irqchipd.edge import errors
from irqchipd.edge.admission import MAX_UNOPENED, OPENING_TIMEOUT, SessionQuota, not_opened, too_many_unopened
from irqchipd.edge.connection import Connection
from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.edge.host import Host
from irqchipd.edge.ring import Ring, Rings
from irqchipd.edge.work import ONCE_A_WRITE, Work
from irqchipd.fair import FairQueue
from irqchipd.limits import Limits
from irqchipd.listen import SocketPath
from irqchipd.vm.errors import VmError
from irqchipd.vm.registry import Registry

log = logging.getLogger(__name__)

EVENTS = 64  # per call of epoll_wait
PASS_NS = 30_000  # after which the port looks for new events
STRETCH_NS = 1_000_000  # of work without a pause
PAUSE = 0.00005  # seconds; long enough for another thread to get the interpreter
STALLED = 10.0  # seconds without receiving, after which a client whose process has ended counts as gone
_READ = select.EPOLLIN


class Port(Host[Connection]):
    """Listens on one path, and serves the clients that connect."""

    def __init__(
        self, registry: Registry, limits: Limits, quota: SessionQuota, in_use: EventfdsInUse, path: Path
    ) -> None:
        self.path = path
        self.registry = registry
        self.limits = replace(limits, message_bytes=min(limits.message_bytes, MESSAGE_BYTES))
        self.quota = quota
        self.in_use = in_use
        self.rings = Rings(limits.rings if limits.poll_us else 0)  # without polling, the socket is cheaper
        self.alone = False
        self._polling = AdaptivePoll(limits.poll_us * 1000)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        # The events given to watch() for each descriptor; and the descriptors unwatched in this pass.
        self._watched: dict[int, int] = {}
        self._unwatched: set[int] = set()
        # The work that waits, by VM; and the work that has arrived since, from any thread.
        self._work: FairQueue[Work] = FairQueue()
        self._arrived: deque[Work] = deque()
        # Until when input may be handled at once; the holder of input handled so; and the end of the last pause.
        self._pass_ends = 0
        self._holder: object = None
        self._paused = 0
        self._look_again = 0  # until when rings are served without a look at the descriptors
        # Connections that are not Sessions yet, the oldest first, with their deadlines.
        self._unopened: dict[Connection, float] = {}
        self._connections: set[Connection] = set()
        # Connections whose processes have ended, with the times to check whether they still receive, in order.
        self._suspects: dict[Connection, float] = {}
        self._stopping = False
        self._accept_again = 0.0  # the time to accept connections again, after a failure; 0: now
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._at = SocketPath(path)
        with self._at.binding() as passing:
            self._listener.bind(str(passing))
            self._listener.listen(socket.SOMAXCONN)
        # Other threads write this, so that the port's thread looks at arrived work, or stops.
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._listener.fileno(), self._accept)
        self.watch(self._woken, lambda _: None, ONCE_A_WRITE)
        self._runner = threading.Thread(target=self._run, name="irqchipd port", daemon=True)
        self._runner.start()

    def begin_to_stop(self) -> None:
        """Stop listening, and let the thread end all Sessions with STOPPING."""
        self.remove_socket()
        self._stopping = True
        os.eventfd_write(self._woken, 1)

    def stop(self) -> None:
        """Stop, and wait for the thread, but not for ever."""
        self.begin_to_stop()
        self._runner.join(1.0)
        if self.stopped:
            os.close(self._woken)
            self._at.close()

    @property
    def stopped(self) -> bool:
        """Whether all Sessions have ended."""
        return not self._runner.is_alive()

    def remove_socket(self) -> None:
        """Remove the socket, so that no client finds the port; from any thread."""
        self._at.remove()

    # Descriptors that are watched.

    def watch(self, descriptor: int, handler: Callable[[int], None], events: int = _READ) -> None:
        """Call a handler, with the events, when a descriptor has some."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler
        self._watched[descriptor] = events

    def watch_eventfd(self, descriptor: int, work: Work) -> None:
        self.watch(descriptor, lambda _: self.do(work), ONCE_A_WRITE)

    def unwatch(self, descriptor: int) -> None:
        """Undo watch."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
            self._unwatched.add(descriptor)

    def watch_for(self, descriptor: int, events: int) -> None:
        """Change the events that a descriptor is watched for; from any thread."""
        with suppress(OSError):  # it is no longer watched
            self._epoll.modify(descriptor, events)

    def rouse(self, ring: Ring) -> None:
        """Poll a ring again that needs service; from any thread."""
        self.rings.roused.append(ring)
        self._wake_thread()

    def _wake_thread(self) -> None:
        if threading.current_thread() is not self._runner and not self._stopping:
            os.eventfd_write(self._woken, 1)

    # Work.

    def do(self, work: Work) -> None:
        """Do a piece of some work: at once if it would be the next, else in the order of the holders."""
        if work.queued:
            return
        if self.alone or self.allows(work.holder):
            self._go_on(work)
        else:
            self._queue(work)

    def allows(self, holder: object) -> bool:
        """Whether a new piece may be done at once although others wait: it would be the next."""
        now = time.perf_counter_ns()
        if now >= self._pass_ends or not self._work.leads(holder):
            return False
        self._holder = holder
        return True

    def do_later(self, work: Work) -> None:
        """Do a piece of some work in the order of the holders; from any thread."""
        self._arrived.append(work)
        self._wake_thread()

    def _queue(self, work: Work) -> None:
        work.queued = True
        self._work.put(work.holder, work)

    def _go_on(self, work: Work) -> None:
        work.queued = False
        awaited = work.go_on()
        if awaited is not None:
            work.queued = True
            awaited.when_done(partial(self.do_later, work))

    # The thread.

    def _run(self) -> None:
        try:
            self._serve()
            for connection in list(self._connections):
                connection.end(errors.STOPPING)
        finally:
            for connection in list(self._connections):
                self.close(connection)
            self._listener.close()
            self._epoll.close()

    def _serve(self) -> None:
        """Pass after pass: handle input, and do some of the work that waits."""
        handlers, waiting, arrived = self._handlers, self._work.waiting, self._arrived
        while not self._stopping:
            self._unwatched.clear()
            ready = self._wait()
            self.alone = len(ready) == 1 and not waiting and not arrived
            begun = 0
            if not self.alone:
                begun = time.perf_counter_ns()
                self._pass_ends = begun + PASS_NS
            for descriptor, events in ready:
                handler = handlers.get(descriptor)
                if handler is None:
                    continue
                self._holder = None
                try:
                    if descriptor in self._unwatched:  # the events belong to an earlier descriptor of this number
                        self.watch_for(descriptor, self._watched[descriptor])
                    else:
                        handler(events)
                except Exception:  # go on with other clients: epoll reports their eventfds only once
                    log.exception("the port failed to handle an event")
                if begun:
                    now = time.perf_counter_ns()
                    self._charge_holder(now - begun)
                    begun = now
            if waiting or arrived:
                self._do_work()
            if self._unopened or self._accept_again or self._suspects:
                try:
                    self._check_deadlines()
                except Exception:  # the failed connection has no deadline now, and the next pass checks the others
                    log.exception("the port failed at a deadline")

    def _charge_holder(self, nanoseconds: int) -> None:
        """Charge the holder of the work that a handler has done at once."""
        if self._holder is not None:
            self._work.charge(self._holder, nanoseconds)

    def _do_work(self) -> None:
        self.alone = False
        self._pass_ends = 0
        begun = time.perf_counter_ns()
        ends = begun + PASS_NS
        while True:
            while self._arrived:
                self._queue(self._arrived.popleft())
            if not self._work.waiting:
                return
            holder, work = self._work.take()
            try:
                self._go_on(work)
            except Exception:
                log.exception("the port failed at a batch")
            now = time.perf_counter_ns()
            self._work.charge(holder, now - begun)
            if now >= ends:
                return
            begun = now

    def _wait(self) -> list[tuple[int, int]]:
        poll, rings = self._epoll.poll, self.rings
        while rings.roused:
            rings.poll(rings.roused.popleft())
        if self._work.waiting or self._arrived:
            self._pause()
            return [*rings.look(), *poll(0, EVENTS)]
        polling = self._polling
        if polling.most_ns:
            again = polling.begin()
            while again:
                if rings.polled and (events := rings.look_often()):
                    polling.polled()
                    if polling.begun < self._look_again:
                        return events
                    self._pause()
                    self._look_again = time.perf_counter_ns() + PASS_NS
                    return [*events, *poll(0, EVENTS)]
                events = poll(0, EVENTS)
                if events:
                    polling.polled()
                    return events
                again = polling.again()
        due = [self._accept_again] if self._accept_again else []
        if self._unopened:
            due.append(next(iter(self._unopened.values())))
        if self._suspects:
            due.append(next(iter(self._suspects.values())))
        if rings.polled and not rings.park():
            return rings.look()
        events = poll(max(min(due) - time.monotonic(), 0) if due else None, EVENTS)
        if polling.most_ns:
            polling.blocked()
        self._paused = time.perf_counter_ns()
        return events

    def _pause(self) -> None:
        """Pause, unless the thread has just done so or waited.

        A system call releases the interpreter, but too briefly for another thread to get it. And a waiting thread asks
        for the interpreter only after an interval without a release.
        """
        if time.perf_counter_ns() - self._paused > STRETCH_NS:
            time.sleep(PAUSE)
            self._paused = time.perf_counter_ns()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for connection, until in list(self._unopened.items())[: MAX_UNOPENED // 8]:
            if until > now:
                break
            self.opened(connection)
            connection.end(not_opened())
        while self._suspects and next(iter(self._suspects.values())) <= now:
            suspect = next(iter(self._suspects))
            del self._suspects[suspect]
            if suspect.has_stalled():
                suspect.give_up()
            else:
                self.suspect(suspect)
        if self._accept_again and self._accept_again <= now:
            self._accept_again = 0.0
            self.watch_for(self._listener.fileno(), _READ)

    # Connections.

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, say; try again later
            log.warning("the port can't take a client: %s", error)
            self.watch_for(self._listener.fileno(), 0)
            self._accept_again = time.monotonic() + 0.1
            return
        connection = Connection(self, client)
        try:
            self.quota.check()
        except VmError as error:
            connection.end(error)
            connection.close()
            return
        if len(self._unopened) >= MAX_UNOPENED:
            oldest = next(iter(self._unopened))
            self.opened(oldest)
            oldest.end(too_many_unopened(MAX_UNOPENED))
        self._connections.add(connection)
        self._unopened[connection] = time.monotonic() + OPENING_TIMEOUT
        self.watch(client.fileno(), connection.ready)

    def opened(self, connection: Connection) -> None:
        """A connection is a Session now, or has failed to become one."""
        self._unopened.pop(connection, None)

    def suspect(self, connection: Connection) -> None:
        """The process that connected has ended. Another process may still have the socket."""
        self._suspects[connection] = time.monotonic() + STALLED

    def close(self, connection: Connection) -> None:
        """A connection has ended; the client sees the end after its levels have dropped and its place is free."""
        self.unwatch(connection.descriptor)
        self.opened(connection)
        self._suspects.pop(connection, None)
        try:
            connection.close_session()
        finally:
            self._connections.discard(connection)
            connection.close()
