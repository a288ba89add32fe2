"""The port, as a connection uses it."""

from __future__ import annotations

from typing import Generic, TypeVar

from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.edge.ring import Ring, Rings
from irqchipd.edge.work import Watcher, Work
from irqchipd.limits import Limits
from irqchipd.vm.registry import Registry

_T = TypeVar("_T")


class Host(Watcher, Generic[_T]):
    """Serves connections.

    alone  whether only one descriptor is ready and no work waits: then its input is handled at once
    """

    alone: bool
    registry: Registry
    limits: Limits
    quota: SessionQuota
    in_use: EventfdsInUse
    rings: Rings

    def watch_for(self, descriptor: int, events: int) -> None:
        """Change the events that a descriptor is watched for; from any thread."""
        raise NotImplementedError

    def rouse(self, ring: Ring) -> None:
        """Poll a ring again that needs service; from any thread."""
        raise NotImplementedError

    def do(self, work: Work) -> None:
        """Do a piece of some work: at once if it would be the next, else in the order of the holders."""
        raise NotImplementedError

    def do_later(self, work: Work) -> None:
        """Do a piece of some work in the order of the holders; from any thread."""
        raise NotImplementedError

    def allows(self, holder: object) -> bool:
        """Whether a new piece may be done at once although others wait: it would be the next."""
        raise NotImplementedError

    def opened(self, connection: _T) -> None:
        """A connection is a Session now, or has failed to become one."""
        raise NotImplementedError

    def suspect(self, connection: _T) -> None:
        """The process that connected has ended. Another process may still have the socket."""
        raise NotImplementedError

    def close(self, connection: _T) -> None:
        """A connection has ended."""
        raise NotImplementedError
