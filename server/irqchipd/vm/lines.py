"""The lines of a VM: line sources and the levels that they drive, MSIs, and irqfds."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from irqchipd.vm.agenda import TURN_WORK, Agenda
from irqchipd.vm.backlog import Backlog
from irqchipd.vm.board import Board
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.events import GsiResampled, Listener
from irqchipd.vm.routing import MAX_GSIS, MSI_VALID_DEVID
from irqchipd.vm.sources import MAX_SOURCES, PIT, RESAMPLERS, SHARED, LineSource, SourcesBytes, numbers_of, reach_for
from irqchipd.vm.turns import Turns, finish

TURN_CHANGES: Final = 16  # of lines


@dataclass(frozen=True, slots=True)
class Irqfd:
    """An irqfd of a GSI: an edge from its source; or, resampled, a level from the source RESAMPLERS."""

    source: LineSource
    gsi: int
    resampler: LineSource | None


class Lines(Turns):
    """The operations on a VM's lines."""

    def __init__(self, agenda: Agenda, board: Board) -> None:
        super().__init__(agenda, board)
        self._shared_source = LineSource(SHARED)
        # In the order in which they were opened.
        self._sources: dict[int, LineSource] = {}
        self._sources_bytes = SourcesBytes()
        self._last_serial = 0
        # The number of lines in a source's bitmap, and the bytes of a line's number in a message.
        self._lines = MAX_GSIS
        self._number_bytes = 2

    def irq_line(self, gsi: int, level: bool, source: LineSource | None = None, *, line_status: bool = True) -> int:
        """KVM_IRQ_LINE_STATUS from a line source, by default the shared one: its status, -1 for a GSI with no route.

        Without line_status this is KVM_IRQ_LINE, which the tracking of the RTC's ticks ignores. A GSI that the source
        resamples is raised from the source that resamplers share; lowering such a GSI is EINVAL. ENOSPC where the VM's
        sources hold too much.
        """
        with self._turn:
            if source is None:
                source = self._shared_source
            if source.resampled or source.closed or not self._board.has_irqchip:
                self._check_source(source, (gsi << 1 | bool(level),))
            if level and gsi >= source.reach:
                self._reach(source, gsi)
            return self._set_level(source, gsi, bool(level), line_status)

    def irq_lines(self, changes: Sequence[int], source: LineSource | None = None) -> list[int]:
        """irq_line for several changes, each gsi << 1 | level: all are made, in order; or none, if any is refused."""
        return finish(self.driving(changes, source))

    def driving(
        self, changes: Sequence[int], source: LineSource | None = None
    ) -> Generator[Backlog | None, None, list[int]]:
        """As irq_lines, in turns of TURN_CHANGES or TURN_WORK. Between turns other operations run, and the caller waits
        for a backlog. If the source is closed or the VM is deleted meanwhile, the work ends with an error.
        """
        statuses: list[int] = []
        driver = source if source is not None else self._shared_source
        while True:
            with self._turn:
                self._check_source(driver, changes if not statuses else ())
                if not statuses:
                    self._reach_all(driver, changes)
                agenda = self.agenda
                most = agenda.work + TURN_WORK
                for change in changes[len(statuses) : len(statuses) + TURN_CHANGES]:
                    statuses.append(self._set_level(driver, change >> 1, change & 1))
                    if agenda.work >= most:
                        break
            if len(statuses) == len(changes):
                return statuses
            yield agenda.backlog

    def _set_level(self, source: LineSource, gsi: int, level: int, line_status: bool = True) -> int:
        if gsi in source.resampled:
            return self._board.set_irq(gsi, 1, 1 << RESAMPLERS, line_status=False)
        if gsi < MAX_GSIS:
            if level:
                source.asserted |= 1 << gsi
            else:
                source.asserted &= ~(1 << gsi)
        return self._board.set_irq(gsi, level, 1 << source.number, line_status)

    def _reach_all(self, source: LineSource, changes: Sequence[int]) -> None:
        """Charge the source for the GSIs that it may raise: ENOSPC where the VM's sources hold too much."""
        if source.reach < MAX_GSIS and max(changes, default=0) >> 1 >= source.reach:
            raised = (change >> 1 for change in changes if change & 1)
            self._reach(source, max((gsi for gsi in raised if gsi < MAX_GSIS), default=0))

    def _reach(self, source: LineSource, highest: int) -> None:
        if source.reach <= highest < MAX_GSIS:
            self._sources_bytes.charge(source, reach_for(highest), len(source.resampled))

    def _numbers(self, asserted: int) -> list[int]:
        """The numbers that operations use for the lines in a bitmap."""
        return numbers_of(asserted)

    def _check_source(self, source: LineSource, changes: Sequence[int]) -> None:
        """Refuse changes that a source may not make: ENXIO without an irqchip, ENOENT of a closed source, EINVAL."""
        if not self._board.has_irqchip:
            raise self._no_irqchip()
        if source.closed:
            raise VmError(errno.ENOENT, f"line source {source.number} has been closed")
        for change in changes if source.resampled else ():
            if not change & 1 and change >> 1 in source.resampled:
                raise invalid(
                    f"GSI {change >> 1} is resampled: it can only be raised, and falls when it is acknowledged"
                )

    def open_source(
        self,
        client: str,
        on_deleted: Callable[[], None] | None = None,
        *,
        resampled: Sequence[int] = (),
        listener: Listener | None = None,
        resume: bool = False,
    ) -> LineSource:
        """A new line source, or the one that a restored VM kept for a client: ENOENT if it kept none.

        on_deleted is called, from any thread, when the VM is deleted before the source is closed. listener is notified
        of the GSIs that the source resamples: EINVAL without a full irqchip. ENOSPC where the VM has too many sources,
        or its sources hold too much.
        """
        with self._turn:
            self._check_resampling(bool(resampled))
            source = self._detached(client) if resume else self._new_source(client)
            self._sources_bytes.charge(source, source.reach, len(source.resampled.keys() | resampled))
            self._sources[source.number] = source
            source.on_deleted, source.listener, source.detached = on_deleted, listener, False
            for gsi, count in source.resampled.items():
                if count and listener is not None:
                    self.agenda.notify((listener,), GsiResampled(gsi, count))
                source.resampled[gsi] = 0
            for gsi in resampled:
                if gsi not in source.resampled:
                    source.resampled[gsi] = 0
                    self._board.notices.resample(gsi, source)
            return source

    def _detached(self, client: str) -> LineSource:
        for source in self._sources.values():
            if source.detached and source.client == client:
                return source
        raise VmError(
            errno.ENOENT,
            f"VM {self.name!r} keeps no line source for a client {client!r}; open the Session without resume",
        )

    def _new_source(self, client: str) -> LineSource:
        if len(self._sources) >= MAX_SOURCES:
            raise VmError(errno.ENOSPC, f"VM {self.name!r} has {MAX_SOURCES} line sources, the most that it may have")
        number = SHARED + 1
        while number in self._sources or number in (PIT, RESAMPLERS):
            number += 1
        return self._numbered(LineSource(number, client))

    def _numbered(self, source: LineSource) -> LineSource:
        """Give a new source its serial number."""
        self._last_serial += 1
        source.serial, source.reach = self._last_serial, 0
        return source

    def close_source(self, source: LineSource) -> None:
        """Close a line source: its levels drop. A closed source, or a deleted VM's, does not change."""
        with suppress(VmError), self._turn:
            if self._sources.get(source.number) is source:
                del self._sources[source.number]
                source.closed = True
                source.asserted = 0
                self._sources_bytes.release(source)
                self._board.drop_source(1 << source.number)
                for gsi in source.resampled:
                    self._board.notices.stop_resampling(gsi, source)
                source.resampled.clear()
                self._board.regions.drop(source)

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: how many vCPUs took it, or -1; EINVAL without an irqchip, or for bad flags or data."""
        with self._turn:
            if not self._board.has_irqchip:
                raise invalid(f"VM {self.name!r} has no irqchip to signal an MSI to")
            if flags & ~MSI_VALID_DEVID:
                raise invalid(f"flags {flags:#x} of an MSI: use 0 or {MSI_VALID_DEVID}")
            if data >> 32:
                raise invalid(f"data {data:#x} of an MSI, which has 32 bits")
            self._check_msi_address(address)
            return self._board.signal_msi(address, data)

    # irqfds.

    def add_irqfd(self, source: LineSource, gsi: int, resampled: Listener | None = None) -> Irqfd:
        """Add an irqfd, which interrupts a GSI for a source: EAGAIN without an irqchip.

        With resampled the irqfd raises the GSI until the interrupt is acknowledged, of which resampled is notified;
        EINVAL without a full irqchip. KVM: eventfd.c kvm_irqfd_assign, kvm_arch_irqfd_allowed.
        """
        with self._turn:
            self._check_irqfd(resampled is not None)
            if resampled is None:
                return Irqfd(source, gsi, None)
            resampler = LineSource(RESAMPLERS, listener=resampled)
            self._board.notices.resample(gsi, resampler)
            return Irqfd(source, gsi, resampler)

    def check_irqfd(self, resampled: bool) -> None:
        """Raise the error that add_irqfd would raise."""
        with self._turn:
            self._check_irqfd(resampled)

    def _check_irqfd(self, resampled: bool) -> None:
        if not self._board.has_irqchip:
            raise VmError(errno.EAGAIN, self._no_irqchip().message)
        self._check_resampling(resampled)

    def _check_resampling(self, resampled: bool) -> None:
        if resampled and not self._board.can_resample:
            raise invalid(f"VM {self.name!r} has no PICs and IOAPIC; only their interrupts can be resampled")

    def trigger(self, irqfd: Irqfd, *, assigned: bool = False) -> None:  # noqa: ARG002
        """An irqfd was written: an edge, or a level until the acknowledgement. KVM: eventfd.c irqfd_inject.

        assigned: the eventfd was written before the irqfd was assigned.
        """
        with suppress(VmError), self._turn:
            set_irq, gsi = self._board.set_irq, irqfd.gsi
            if irqfd.resampler is not None:
                set_irq(gsi, 1, 1 << RESAMPLERS, line_status=False)
            elif not irqfd.source.closed:
                bit = 1 << irqfd.source.number
                set_irq(gsi, 1, bit, line_status=False)
                set_irq(gsi, 0, bit, line_status=False)
                if gsi < MAX_GSIS:
                    irqfd.source.asserted &= ~(1 << gsi)

    def remove_irqfd(self, irqfd: Irqfd) -> None:
        """Remove an irqfd; a GSI falls with the last irqfd that resamples it."""
        with suppress(VmError), self._turn:
            if irqfd.resampler is not None:
                self._board.notices.stop_resampling(irqfd.gsi, irqfd.resampler)

    # Checks.

    def _check_msi_address(self, address: int) -> None:
        """Refuse an address that no MSI can have: EINVAL."""
