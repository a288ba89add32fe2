"""A Session without its transport: bytes in, bytes out."""

from __future__ import annotations

import errno
import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from irqchip.records import SINGLE, SINGLE_RESULT
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.admission import UNKNOWN, Peer
from irqchipd.edge.batch import Batch, Late, caught_up, execute
from irqchipd.edge.creation import create_vm
from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.events import make_queue
from irqchipd.edge.halts import Halts
from irqchipd.edge.messages import MessageBatch
from irqchipd.edge.operations import HALT, RECORDS_ALONE, SessionCaller
from irqchipd.edge.records import RecordBatch, answer_alone, error_alone
from irqchipd.edge.rpc import decoded
from irqchipd.limits import Limits
from irqchipd.vm.errors import VmError, deleted, invalid
from irqchipd.vm.events import RegionsLost
from irqchipd.vm.pending import Slices
from irqchipd.vm.regions import Access, Space
from irqchipd.vm.registry import Registry
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.sources import MAX_CLIENT_NAME
from irqchipd.vm.x86.machine import MAX_VCPU_ID

_SINGLE: Final = SINGLE.size
_unpack: Final = SINGLE.unpack
_pack: Final = SINGLE_RESULT.pack


class Session:
    """One client's line source, batches, halts and events.

    wake is called when take has a message, and on_deleted with an error when the VM is deleted; both from any thread.
    One thread at a time may call the methods.
    """

    def __init__(
        self,
        registry: Registry,
        limits: Limits,
        request: pb.SessionOpen,
        wake: Callable[[], None],
        on_deleted: Callable[[VmError], None],
        eventfds: Eventfds,
        peer: Peer = UNKNOWN,
    ) -> None:
        if len(request.client) > MAX_CLIENT_NAME or not request.client.isprintable():
            raise invalid(
                f"{request.client[:MAX_CLIENT_NAME]!r} is not a client name: use at most 64 printable characters"
            )
        self._vcpus = _numbers("vCPU id", request.vcpus, MAX_VCPU_ID)
        self._gsis = _numbers("GSI", request.gsis, MAX_GSIS - 1)
        resampled = _numbers("GSI", request.resampled_gsis, MAX_GSIS - 1)
        if request.HasField("new_vm") and request.vm:
            raise invalid("leave vm empty if new_vm is set")
        self._registry = registry
        self._owns_vm = request.HasField("new_vm")
        self.vm = create_vm(registry, request.new_vm) if self._owns_vm else registry.get(request.vm)
        self._limits = limits
        self._most = limits.operations  # of a batch
        self._wake = wake
        self._eventfds = eventfds
        self.events = make_queue(limits.queued_events, wake, self._count_dropped, self._log_loss)
        # Late answers that have not been taken. And a batch that ended in a halt, whose answer is being sent:
        # the transport sets this to None when the answer has been sent, or calls take again.
        self.late: deque[Late] = deque()
        self.sending: Batch | None = None
        self._halts = Halts(self.vm, limits, self.late, wake)
        # The answer to a record whose access waits for an owner. Nothing may be received until it has been taken.
        self.awaited: Late | None = None
        self._dropped_logged = 0
        try:
            self._source = self.vm.open_source(
                request.client,
                lambda: on_deleted(deleted(self.vm.name)),
                resampled=resampled,
                listener=self.events.put,
                resume=request.resume,
            )
        except BaseException:
            self._delete_own_vm()
            raise
        self.caller = SessionCaller(self.vm, self._source, self.events, eventfds)
        try:
            self.vm.subscribe(self._vcpus, self.events.put, self._gsis)
        except BaseException:
            self.vm.close_source(self._source)
            self._delete_own_vm()
            raise
        self.caller.log(logging.INFO, "Session opened", **peer._asdict())

    def _count_dropped(self) -> None:
        self._source.dropped_events += 1

    def _log_loss(self, lost: RegionsLost) -> None:
        space, address = Space(lost.space).name, hex(lost.address)
        self.caller.log(logging.WARNING, "regions lost: too slow", space=space, address=address)

    def opened(self, *, rings: bool = False) -> bytes:
        """The answer to the message that opened the Session; with rings, the descriptors of the rings go with it."""
        opened = pb.SessionOpened(
            source=self._source.number,
            max_operations=self._most,
            max_message_bytes=self._limits.message_bytes,
            vm=self.vm.name if self._owns_vm else "",
            rings=rings,
        )
        return pb.SessionResponse(opened=opened).SerializeToString()

    def receive(self, data: bytes) -> Slices[bytes | None] | bytes | None:
        """Execute a message. Returns the answer, or the rest of the work, which returns the answer.

        None if no answer follows, or take returns it later: for a batch that ends in a halt, and for `awaited`.
        """
        vm = self.vm
        # The shortest way, for what device models and vCPUs send most: one record.
        if len(data) == _SINGLE and not data[0] and vm.agenda.backlog is None:
            _, serial, number, size, index, address, value = _unpack(data)
            function = RECORDS_ALONE.get(number)
            if function is not None:
                try:
                    result = function(self.caller, size, index, address, value)
                except Exception as error:
                    answer = error_alone(serial, error)
                else:
                    if isinstance(result, Access):
                        self.awaited = partial(answer_alone, serial, number, result)
                        result.when_done(partial(self._answer_late, self.awaited))
                        return None
                    flags, status, value = result
                    answer = _pack(0, serial, number, flags, status, value)
                return answer if vm.agenda.backlog is None else self._caught_up(answer)
            if number == HALT.number:
                return self._halts.begin(RecordBatch(data, self._limits), (size, index, address, value))
        batch = self._batch(data)
        return None if batch is None else execute(self.caller, batch, self._most, self._halts.begin)

    def _batch(self, data: bytes) -> Batch | None:
        """The batch of a message, or None for another message, which is executed here."""
        check_size(data, self._limits)
        is_records = data[:1] == b"\0"
        self._eventfds.begin_message(is_records)
        if is_records:
            return RecordBatch(data, self._limits)
        message = decoded(pb.SessionRequest, data)
        match message.WhichOneof("message"):
            case "batch":
                return MessageBatch(self.vm.name, message.batch, self._limits)
            case "halt_given_up":
                self._halts.give_up(message.halt_given_up.serial)
            case "descriptors":
                self._eventfds.announce()
            case _:
                raise invalid("every message of a Session but the first must be a batch, or halt_given_up")
        return None

    def _caught_up(self, answer: bytes) -> Slices[bytes | None]:
        yield from caught_up(self.vm)
        return answer

    def _answer_late(self, answer: Late) -> None:
        self.late.append(answer)
        self._wake()

    def take(self) -> bytes | None:
        """The next message for the client, or None. The message before has been sent when this is called."""
        self.sending = None
        if self.late:
            answer = self.late.popleft()
            if answer is self.awaited:
                self.awaited = None
            else:
                self.sending = self._halts.unsent.pop(answer, None)
            return answer()
        if self.events.is_empty:
            return None
        message = self.events.take()
        if self._source.dropped_events != self._dropped_logged:
            self._dropped_logged = self._source.dropped_events
            self.caller.log(logging.WARNING, "events dropped: not read in time", dropped=self._dropped_logged)
        return message

    def close(self, why: str = "") -> None:
        """End the Session, for this reason: its halts are cancelled, its levels drop, and its own VM is deleted."""
        self._halts.abandon(self.sending)
        self.vm.unsubscribe(self._vcpus, self.events.put, self._gsis)
        self.vm.close_source(self._source)
        self.events.close()
        self.caller.log(logging.INFO, "Session ended", why=why, dropped=self._source.dropped_events or None)
        self._delete_own_vm()

    def _delete_own_vm(self) -> None:
        """Delete the VM that was made for this Session, if any."""
        if self._owns_vm:
            self._registry.delete_vm(self.vm)


def _numbers(what: str, numbers: Iterable[int], highest: int) -> Sequence[int]:
    """The numbers that a Session names, without repetitions; two bytes each, because there may be thousands."""
    once = sorted(set(numbers))
    if once and once[-1] > highest:
        raise invalid(f"{what} {once[-1]} is out of range: use 0 to {highest}")
    return array("H", once)


def check_size(data: bytes, limits: Limits) -> None:
    """E2BIG for a message that is too long."""
    if len(data) > limits.message_bytes:
        raise VmError(errno.E2BIG, f"a message of more than {limits.message_bytes} bytes")


def opening(message: pb.SessionRequest) -> pb.SessionOpen:
    """The content of the first message."""
    if message.WhichOneof("message") != "open":
        raise invalid("the first message of a Session must be open")
    return message.open
