"""A daemon's VMs, and the things that its limits count, for all edges."""

from __future__ import annotations

from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.limits import Limits
from irqchipd.timers import Timers
from irqchipd.vm.registry import Registry


class Holdings:
    """The VMs with their timers, and the Sessions and eventfds in use."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.timers = Timers()
        self.registry = Registry(limits.vms, limits.vcpus, limits.access_ms * 1_000_000, self.timers)
        self.quota = SessionQuota(limits.sessions)
        self.eventfds = EventfdsInUse(limits.irqfds)
