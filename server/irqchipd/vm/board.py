"""The board of a VM: what its chips are wired to. Each architecture has a board of its own.

Everything here runs under the lock of the agenda, and calls nothing that waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.bus import Device, IoBus
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.notices import Notices
from irqchipd.vm.regions import Regions, Space
from irqchipd.vm.routing import Route
from irqchipd.vm.sources import RESAMPLERS

# By name: how many bits wide a probe is, and its value.
Probes = dict[str, tuple[int, int]]
RawProbes = tuple[Any, ...]


class Board:
    """Buses, regions and routes. A subclass adds its chips."""

    notices: Notices

    def __init__(self, agenda: Agenda, *, has_indicators: bool = False) -> None:
        """has_indicators: this architecture sets indicators in the guest's memory."""
        self.agenda = agenda
        self.observer: Observer | None = None
        self.pio = IoBus()
        self.mmio = IoBus()
        self.has_irqchip = False  # KVM: irqchip_in_kernel, or an architecture's equivalent
        self.can_resample = False  # whether the chips report the end of an interrupt
        self.routes: Sequence[Route] = ()
        self.memory = IoBus()
        buses = {Space.PIO: self.pio, Space.MMIO: self.mmio, Space.MEMORY: self.memory}
        self.regions = Regions(agenda, buses, has_indicators=has_indicators)

    def reset(self) -> None:
        """RESET of all chips and vCPUs; the levels that sources drive stay, and are driven into the chips again."""
        raise NotImplementedError

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routing; inputs that are high stay so. The routes have been checked."""
        raise NotImplementedError

    def set_irq(self, gsi: int, level: int, source: int, line_status: bool = True) -> int:
        """Drive a GSI from a source (one bit set) and return the sum of the statuses of its inputs.

        KVM: irqchip.c kvm_set_irq; negative statuses are ignored if there are others.
        """
        raise NotImplementedError

    def drop_source(self, source: int) -> None:
        """Drop a source: every input that it drives is driven by the OR of the others."""
        raise NotImplementedError

    def lower_resampled(self, gsi: int) -> None:
        """A resampled GSI's interrupt was ended: the source that resamplers share stops driving the GSI."""
        self.set_irq(gsi, 0, 1 << RESAMPLERS, line_status=False)

    def signal_msi(self, address: int, data: int) -> int:
        """Send an MSI and return how many vCPUs took the message, or -1 if the message addresses no vCPU."""
        raise NotImplementedError

    def observe(self, observer: Observer | None) -> None:
        """Report events to an observer from now on."""
        self.observer = observer
        self.regions.observer = observer if observer is not None and observer.sees_accesses else None

    # Probes: the state of the chips that a logic analyser would show. See vm/probing.py.

    def raw_probes(self) -> list[RawProbes]:
        """The raw values of each part."""
        return []

    def named_probes(self, part: int, raw: RawProbes) -> Probes:  # noqa: ARG002
        """The probes of a part that has these raw values."""
        return {}

    def raw_lines(self) -> RawProbes:
        """The levels that are not in the sources' bitmaps."""
        return ()

    def named_lines(self, raw: RawProbes) -> dict[str, int]:  # noqa: ARG002
        """The lines that are high with these levels: bit n is source n."""
        return {}

    # For the counting of interrupts: observe/latency.py, Wiring.

    def pic_line(self, vector: int) -> int:  # noqa: ARG002
        """The PICs' line, 0 to 15, that has a vector, or -1."""
        return -1

    def gsi_of_vector(self, vector: int) -> int:  # noqa: ARG002
        """The GSI of an IOAPIC's pin whose entry has a vector, or -1."""
        return -1

    def gsi_of_intid(self, intid: int) -> int:  # noqa: ARG002
        """The GSI that leads to an INTID, or -1."""
        return -1

    def is_level(self, vcpu: int, intid: int) -> bool:  # noqa: ARG002
        """Whether an INTID is level-triggered."""
        return False

    def wake_timers(self) -> None:
        """Set the alarms of dormant timers, before their state is read or observed."""

    # Guest accesses.

    def find_mmio(self, cpu: Vcpu, address: int, size: int) -> Device | None:  # noqa: ARG002
        """The device that a vCPU's access to memory is for."""
        return self.mmio.find(address, size)
