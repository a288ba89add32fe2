"""A Session without its transport: what an edge does with its messages."""

from __future__ import annotations

from collections.abc import Callable

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.executor import execute_batch
from irqchipd.edge.outbound import EventQueue
from irqchipd.limits import Limits
from irqchipd.vm.errors import invalid
from irqchipd.vm.machine import MAX_VCPU_ID
from irqchipd.vm.registry import Registry

MAX_CLIENT_NAME = 64


class Session:
    """One client's line source, batches and events.

    wake is called when take_event has something to give, and on_deleted when the VM is deleted; both from any thread.
    """

    def __init__(
        self,
        registry: Registry,
        limits: Limits,
        request: pb.SessionOpen,
        wake: Callable[[], None],
        on_deleted: Callable[[], None],
    ) -> None:
        if len(request.client) > MAX_CLIENT_NAME or not request.client.isprintable():
            raise invalid(f"{request.client[:MAX_CLIENT_NAME]!r} is no client name: at most 64 printable characters")
        self._vcpus = sorted(set(request.vcpus))
        if self._vcpus and self._vcpus[-1] > MAX_VCPU_ID:
            raise invalid(f"vCPU id {self._vcpus[-1]} is out of range: 0 to {MAX_VCPU_ID}")
        self._vm = registry.get(request.vm)
        self._limits = limits
        self._source = self._vm.open_source(request.client, on_deleted)
        self._events = EventQueue(limits.queued_events, wake, self._count_dropped)
        self.take_event = self._events.take
        self._vm.subscribe(self._vcpus, self._events.put)

    def _count_dropped(self) -> None:
        self._source.dropped_events += 1

    def opened(self) -> pb.SessionOpened:
        """The answer to the message that opened it."""
        return pb.SessionOpened(
            source=self._source.number,
            max_operations=self._limits.batch_operations,
            max_message_bytes=self._limits.message_bytes,
        )

    def execute(self, batch: pb.Batch) -> pb.BatchResult:
        """Execute a batch."""
        return execute_batch(self._vm, batch, self._source, self._limits)

    def close(self) -> None:
        """The Session is over: its levels drop."""
        self._vm.unsubscribe(self._vcpus, self._events.put)
        self._vm.close_source(self._source)


def opening(message: pb.SessionRequest) -> pb.SessionOpen:
    """The first message's content."""
    if message.WhichOneof("message") != "open":
        raise invalid("the first message of a Session must be open")
    return message.open


def following(message: pb.SessionRequest) -> pb.Batch:
    """The content of any other message."""
    if message.WhichOneof("message") != "batch":
        raise invalid("every message of a Session but the first must be a batch")
    return message.batch
