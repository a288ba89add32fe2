"""A port in the test's own process, so that tests can inspect it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from irqchipd.edge.admission import SessionQuota
from irqchipd.edge.eventfds import EventfdsInUse
from irqchipd.edge.port import Port
from irqchipd.limits import Limits
from irqchipd.timers import Timers
from irqchipd.vm.regions import ACCESS_NS
from irqchipd.vm.registry import Registry
from irqchipd.vm.x86.machine import X86Vm
from tests.service.test_port import Peer


class Served:
    """A port with everything behind it."""

    def __init__(self, directory: Path, places: int, irqfds: int, access_ns: int) -> None:
        self.timers = Timers()
        self.registry = Registry(10, access_ns=access_ns, deadlines=self.timers)
        self.quota = SessionQuota(places)
        self.in_use = EventfdsInUse(irqfds)
        self.target = f"unix://{directory}/s"
        self.port = Port(self.registry, Limits(), self.quota, self.in_use, directory / "s.port")

    def vm(self, name: str = "vm") -> X86Vm:
        """A VM with an irqchip and a vCPU."""
        vm = self.registry.create(name)
        assert isinstance(vm, X86Vm)
        vm.create_irqchip()
        vm.create_vcpu(0)
        return vm

    def peer(self, **opening: Any) -> Peer:
        """A client; it opens a Session if given an opening."""
        return Peer(self, **opening)  # type: ignore[arg-type]

    @property
    def connections(self) -> int:
        return len(self.port._connections)


@contextmanager
def served(directory: Path, places: int = 100, irqfds: int = 100, access_ns: int = ACCESS_NS) -> Iterator[Served]:
    """A port for the duration of a `with`."""
    served = Served(directory, places, irqfds, access_ns)
    try:
        yield served
    finally:
        served.port.stop()
