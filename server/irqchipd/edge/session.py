"""A Session without its transport: what an edge does with its messages."""

from __future__ import annotations

import errno
import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

from irqchip.records import IS_DOORBELL
from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge import errors
from irqchipd.edge.convert import outcome_to
from irqchipd.edge.creation import create_vm
from irqchipd.edge.eventfds import Bell
from irqchipd.edge.executor import Own, Slices, caught_up, ending_halt, execute_batch
from irqchipd.edge.outbound import EventQueue
from irqchipd.edge.records import REGISTER_REGION, Fields, RecordsAnswer, execute_records, execute_single
from irqchipd.fields import fields
from irqchipd.limits import Limits
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError, deleted, invalid
from irqchipd.vm.events import RegionsLost
from irqchipd.vm.machine import MAX_VCPU_ID, Vm
from irqchipd.vm.regions import Space
from irqchipd.vm.registry import Registry
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.sources import MAX_CLIENT_NAME, LineSource
from irqchipd.vm.vcpu_state import Outcome

log = logging.getLogger(__name__)

MAX_UNOPENED = 256  # of an edge: Sessions that are not opened yet; one more, and the oldest has to go
OPENING_PATIENCE = 30.0  # how long a Session may take to be opened, seconds


class Places:
    """How many Sessions and Watches there may be, of all edges together; from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._taken = 0

    def take(self) -> None:
        """One more: ENOSPC at the limit."""
        with self._lock:
            self._check()
            self._taken += 1

    def check(self) -> None:
        """What take would refuse is refused."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._taken >= self._most:
            raise VmError(errno.ENOSPC, f"there are {self._most} Sessions, the most that this daemon allows")

    def free(self) -> None:
        """One less."""
        with self._lock:
            self._taken -= 1

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One more for as long: ENOSPC at the limit."""
        self.take()
        try:
            yield
        finally:
            self.free()


class Peer(NamedTuple):
    """Who is at the other end, as far as its socket knows."""

    transport: str
    address: str | None = None
    pid: int | None = None
    uid: int | None = None


UNKNOWN = Peer("unknown")


class Eventfds(Protocol):
    """What an edge makes of the eventfds that come with a Session's batches."""

    def execute(self, vm: Vm, source: LineSource, request: pb.IrqfdRequest) -> None:
        """See IrqfdRequest."""

    def bell(self) -> Bell:
        """The next of them, for a doorbell to ring."""


class NoEventfds:
    """Of an edge that carries no descriptors."""

    def execute(self, vm: Vm, source: LineSource, request: pb.IrqfdRequest) -> None:
        """See Eventfds."""
        raise _no_descriptors()

    def bell(self) -> Bell:
        """See Eventfds."""
        raise _no_descriptors()


def _no_descriptors() -> VmError:
    return VmError(errno.EOPNOTSUPP, "gRPC carries no eventfd; open the Session on the AF_UNIX port")


class Session:
    """One client's line source, batches, halts and events.

    wake is called when take has something to give, and on_deleted with an error when the VM is deleted; both from any
    thread. One thread at a time may call its methods.
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
            raise invalid(f"{request.client[:MAX_CLIENT_NAME]!r} is no client name: 64 printable characters at most")
        self._vcpus = _numbers("vCPU id", request.vcpus, MAX_VCPU_ID)
        self._gsis = _numbers("GSI", request.gsis, MAX_GSIS - 1)
        resampled = _numbers("GSI", request.resampled_gsis, MAX_GSIS - 1)
        if request.HasField("new_vm") and request.vm:
            raise invalid("leave vm empty where new_vm is set: the Session is of the VM that is made for it")
        self._registry = registry
        self._owns_vm = request.HasField("new_vm")
        self.vm = create_vm(registry, request.new_vm) if self._owns_vm else registry.get(request.vm)
        self._limits = limits
        self._wake = wake
        self._eventfds = eventfds
        self._events = EventQueue(limits.queued_events, wake, self._count_dropped, self._tell_of_loss)
        # Halts whose ends the client has not been sent, in their order, and those of them that have ended.
        self._halts: dict[_BatchHalt, None] = {}
        self._ended: deque[_BatchHalt] = deque()
        self._sending: _BatchHalt | None = None
        self._dropped_told = 0
        # Of each vCPU the last halt, which can be given up even when its end has been sent.
        self._last_halts: dict[int, _BatchHalt] = {}
        try:
            self._source = self.vm.open_source(
                request.client,
                lambda: on_deleted(deleted(self.vm.name)),
                resampled=resampled,
                listener=self._events.put,
                resume=request.resume,
            )
        except BaseException:
            self._delete_own_vm()
            raise
        # The operations that only a Session has.
        self._own: dict[str, Own] = {
            "irqfd": lambda request, _: eventfds.execute(self.vm, self._source, request),
            "register_region": lambda request, _: self._register_region(request),
            "unregister_region": self._unregister_region,
            "complete_access": self._complete_access,
        }
        self._own_records = {REGISTER_REGION: self._register_in_short_form}
        # As execute_packed, of a batch of one of records.SINGLES, at once.
        self.execute_single = partial(execute_single, self.vm, self._source)
        try:
            self.vm.subscribe(self._vcpus, self._events.put, self._gsis)
        except BaseException:
            self.vm.close_source(self._source)
            self._delete_own_vm()
            raise
        self._log(logging.INFO, "Session opened", **peer._asdict())

    def _log(self, level: int, message: str, **values: object) -> None:
        """What an operator asks; to be called without the VM's lock."""
        if log.isEnabledFor(level):
            about = fields(vm=self.vm.name, source=self._source.number, client=self._source.client, **values)
            log.log(
                level, message, extra=about, stacklevel=2
            )  # which line it is of is what its repetitions are told by

    def _count_dropped(self) -> None:
        self._source.dropped_events += 1

    def _tell_of_loss(self, lost: RegionsLost) -> None:
        self._log(logging.WARNING, "regions lost: too slow", space=Space(lost.space).name, address=hex(lost.address))

    def opened(self) -> pb.SessionOpened:
        """The answer to the message that opened it."""
        return pb.SessionOpened(
            source=self._source.number,
            max_operations=self._limits.operations,
            max_message_bytes=self._limits.message_bytes,
            vm=self.vm.name if self._owns_vm else "",
        )

    def execute(self, message: pb.Batch | pb.HaltGivenUp) -> Slices[pb.SessionResponse | None]:
        """Do what a message says, a slice at a time, and return the answer.

        None where there is none, or a batch ends in a halt that is under way, whose end take gives with the results.
        """
        if isinstance(message, pb.HaltGivenUp):
            self.give_up(message)
            return None
        answer = yield from execute_batch(self.vm, message, self._source, self._limits, self._own)
        request = ending_halt(message, answer)
        if request is None:
            return pb.SessionResponse(batch_result=answer)
        halted = _MessageHalt(answer)
        begun = self._begin_halt(request, halted)
        return None if begun else halted.result()

    def execute_packed(self, packet: bytes) -> Slices[bytes | None]:
        """As execute, of a batch in the short form (irqchip/records.py)."""
        answer = yield from execute_records(self.vm, packet, self._source, self._limits, self._own_records)
        request = answer.halt
        if request is None:
            return answer.message()
        halted = _PackedHalt(answer)
        begun = self._begin_halt(request, halted)
        return None if begun else halted.result()

    def caught_up(self, answer: bytes) -> Slices[bytes]:
        """Wait until all has been told that operations left to tell, and return the answer."""
        yield from caught_up(self.vm)
        return answer

    # Regions.

    def _register_region(self, request: pb.RegisterRegionRequest) -> None:
        bell = self._eventfds.bell() if request.eventfd else None
        try:
            if bell is not None and not request.doorbell:
                raise invalid("an eventfd is a doorbell's")
            self.vm.register_region(
                self._source,
                request.space,
                request.address,
                request.length,
                self._events.put_access if bell is None else bell.ring,
                doorbell=request.doorbell,
                datamatch=request.datamatch if request.HasField("datamatch") else None,
                removed=None if bell is None else bell.close,
            )
            self._log_claim(request.space, request.address, request.length, request.doorbell)
        except BaseException:
            if bell is not None:
                bell.close()
            raise

    def _register_in_short_form(self, space: int, _: int, address: int, length: int) -> Fields:
        doorbell = bool(space & IS_DOORBELL)
        told = partial(self._events.put_access, short=True)
        self.vm.register_region(self._source, space & ~IS_DOORBELL, address, length, told, doorbell=doorbell)
        self._log_claim(space & ~IS_DOORBELL, address, length, doorbell)
        return 0, 0, 0

    def _log_claim(self, space: int, address: int, length: int, doorbell: bool) -> None:
        what = "doorbell claimed" if doorbell else "region claimed"
        level = logging.DEBUG if doorbell else logging.INFO
        self._log(level, what, space=Space(space).name, address=hex(address), length=length)

    def _unregister_region(self, request: pb.UnregisterRegionRequest, _: object) -> None:
        datamatch = request.datamatch if request.HasField("datamatch") else None
        self.vm.unregister_region(self._source, request.space, request.address, datamatch)
        self._log(logging.DEBUG, "region given up", space=Space(request.space).name, address=hex(request.address))

    def _complete_access(self, request: pb.CompleteAccessRequest, response: pb.CompleteAccessResponse) -> None:
        response.completed = self.vm.complete_access(
            self._source, request.access, request.data, unanswered=request.unanswered
        )

    # Halts.

    def _begin_halt(self, request: pb.HaltRequest, batch: _BatchHalt) -> bool:
        """Begin the halt that a batch ends in; False where it is refused, which is its outcome."""

        def done(outcome: Outcome) -> None:
            batch.outcome = outcome
            self._ended.append(batch)
            self._wake()

        try:
            if sum(other.size for other in self._halts) + batch.size > self._limits.message_bytes:
                room = self._limits.message_bytes
                raise VmError(errno.E2BIG, f"results that wait for halts have {room} bytes; halt in a batch of its own")
            batch.halt = self.vm.halt(request.vcpu, done, request.interrupts_masked, request.timeout_ns)
        except Exception as error:
            batch.outcome = errors.refusal(error)
            return False
        self._halts[batch] = None
        self._last_halts[request.vcpu] = batch
        return True

    def give_up(self, given_up: pb.HaltGivenUp) -> None:
        """Nobody waits for a batch's halt any more."""
        batch = next((batch for batch in self._last_halts.values() if batch.serial == given_up.serial), None)
        if batch is None or batch.halt is None:
            return
        cancelled = self.vm.abandon(batch.halt)
        batch.outcome = None
        if cancelled:
            self._ended.append(batch)
            self._wake()

    def take(self) -> pb.SessionResponse | bytes | None:
        """The next message for the client, or None; asking for it says that the one before has been sent."""
        if self._sending is not None:
            self._halts.pop(self._sending, None)
            self._sending = None
        if self._ended:
            self._sending = self._ended.popleft()
            return self._sending.result()
        event = self._events.take() if self._events else None
        if self._source.dropped_events != self._dropped_told:
            self._dropped_told = self._source.dropped_events
            self._log(logging.WARNING, "events dropped: not read in time", dropped=self._dropped_told)
        return pb.SessionResponse(event=event) if isinstance(event, pb.Event) else event

    def close(self, why: str = "") -> None:
        """The Session is over, for this reason: its halts have not been, its levels drop, and its own VM goes."""
        for batch in self._halts:
            if batch.halt is not None:
                self.vm.abandon(batch.halt)
        self._halts.clear()
        self.vm.unsubscribe(self._vcpus, self._events.put, self._gsis)
        self.vm.close_source(self._source)
        self._log(logging.INFO, "Session ended", why=why, dropped=self._source.dropped_events or None)
        self._delete_own_vm()

    def _delete_own_vm(self) -> None:
        """The VM that was made for this Session ends with it."""
        if self._owns_vm:
            self._registry.delete_vm(self.vm)


class _BatchHalt:
    """A batch that ends in a halt, until the client has been sent how."""

    def __init__(self, serial: int, size: int) -> None:
        self.serial = serial
        self.size = size
        self.halt: Halt | None = None
        self.outcome: Outcome = None

    def result(self) -> pb.SessionResponse | bytes:
        """The batch's answer, once the halt has ended."""
        raise NotImplementedError


class _MessageHalt(_BatchHalt):
    def __init__(self, answer: pb.BatchResult) -> None:
        super().__init__(answer.serial, answer.ByteSize())
        self._answer = answer

    def result(self) -> pb.SessionResponse:
        last = self._answer.results[-1]
        try:
            last.halt.CopyFrom(outcome_to(self.outcome))
        except VmError as error:
            last.error.CopyFrom(errors.message(error))
        return pb.SessionResponse(batch_result=self._answer)


class _PackedHalt(_BatchHalt):
    def __init__(self, answer: RecordsAnswer) -> None:
        super().__init__(answer.serial, answer.size)
        self._answer = answer

    def result(self) -> bytes:
        return self._answer.ended(self.outcome)


def _numbers(what: str, numbers: Iterable[int], highest: int) -> Sequence[int]:
    """What a Session names, each once; two bytes each, as there may be thousands."""
    once = sorted(set(numbers))
    if once and once[-1] > highest:
        raise invalid(f"{what} {once[-1]} is out of range: 0 to {highest}")
    return array("H", once)


def not_opened() -> VmError:
    """OPENING_PATIENCE is over."""
    return VmError(errno.ETIMEDOUT, f"the Session was not opened within {OPENING_PATIENCE:g} s")


def too_many_unopened(most: int) -> VmError:
    """The oldest of connections that are not Sessions has to go."""
    return VmError(errno.ENOSPC, f"{most} newer connections wait to be opened, the most that this daemon allows")


def opening(message: pb.SessionRequest) -> pb.SessionOpen:
    """The first message's content."""
    if message.WhichOneof("message") != "open":
        raise invalid("the first message of a Session must be open")
    return message.open


def following(message: pb.SessionRequest) -> pb.Batch | pb.HaltGivenUp:
    """The content of any other message."""
    match message.WhichOneof("message"):
        case "batch":
            return message.batch
        case "halt_given_up":
            return message.halt_given_up
        case _:
            raise invalid("every message of a Session but the first must be a batch, or halt_given_up")
