"""The side that operations are executed for: a unary call, or a Session."""

from __future__ import annotations

import logging

from irqchipd.edge.eventfds import Eventfds
from irqchipd.edge.events import EventQueue
from irqchipd.fields import fields
from irqchipd.vm.machine import Vm
from irqchipd.vm.sources import LineSource

log = logging.getLogger("irqchipd.edge.session")


class Caller:
    """A unary call has no line source: it drives the shared one."""

    __slots__ = ("source", "vm")

    def __init__(self, vm: Vm, source: LineSource | None = None) -> None:
        self.vm = vm
        self.source = source


class SessionCaller(Caller):
    """A Session has a line source, events, and perhaps eventfds."""

    __slots__ = ("eventfds", "events")

    source: LineSource

    def __init__(self, vm: Vm, source: LineSource, events: EventQueue, eventfds: Eventfds) -> None:
        super().__init__(vm, source)
        self.events = events
        self.eventfds = eventfds

    def log(self, level: int, message: str, **values: object) -> None:
        """Log something for the operator; to be called without the VM's lock."""
        if log.isEnabledFor(level):
            about = fields(vm=self.vm.name, source=self.source.number, client=self.source.client, **values)
            log.log(level, message, extra=about, stacklevel=2)  # the log limits each line of code by itself
