"""The lines of an arm64 VM: KVM_IRQ_LINE's encoding, irqfds and MSIs. KVM: arch/arm64/kvm/arm.c, vgic-irqfd.c."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from irqchipd.chips.gic.interrupt import PRIVATE, SGIS
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.board import Arm64Board
from irqchipd.vm.arm64.its import ItsFrame
from irqchipd.vm.arm64.line_numbers import LINES, NUMBER_BYTES, VCPU_LINES, irq_of, line_name, line_of, parts_of
from irqchipd.vm.arm64.numbers import LineType
from irqchipd.vm.arm64.routing import CHIPS
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.lines import Irqfd
from irqchipd.vm.machine import Vm
from irqchipd.vm.routing import MSI_VALID_DEVID, Route, check_routes
from irqchipd.vm.sources import RESAMPLERS, LineSource, numbers_of, reach_for

_CPU_LINES: Final = 2  # IRQ and FIQ


class Arm64Lines(Vm):
    """The operations on a VM's lines."""

    def __init__(self, agenda: Agenda, board: Arm64Board, max_vcpus: int) -> None:
        super().__init__(agenda, board, max_vcpus)
        self._arm = board
        board.shared_source = self._shared_source
        self._lines, self._number_bytes = LINES, NUMBER_BYTES
        self._shared_source.reach = LINES

    def _check_alive(self) -> None:
        """EIO of a dead VM. KVM: kvm_main.c kvm_vm_dead."""
        if self._arm.dead is not None:
            raise self._arm.dead

    def irq_line(self, gsi: int, level: bool, source: LineSource | None = None, *, line_status: bool = True) -> int:
        """KVM_IRQ_LINE. gsi has its encoding: type in bits 27:24, vCPU in 31:28 and 23:16, number in 15:0.

        A line that the source resamples is raised from the source that resamplers share; lowering it is EINVAL.
        """
        with self._turn:
            if source is None:
                source = self._shared_source
            self._check_source(source, (gsi << 1 | bool(level),))
            if level:
                self._reach(source, line_of(*parts_of(gsi)))
            return self._set_level(source, gsi, int(level), line_status)

    def _check_source(self, source: LineSource, changes: Sequence[int]) -> None:
        self._check_alive()
        if source.closed:
            raise VmError(errno.ENOENT, f"line source {source.number} has been closed")
        for change in changes:
            self._check_line(change >> 1)
            if not change & 1 and source.resampled and self._resampled_by(source, line_of(*parts_of(change >> 1))):
                raise invalid(f"line {change >> 1:#x} is resampled: it can only be raised, and falls when it is ended")

    def _check_line(self, irq: int) -> None:
        """Refuse a line that KVM refuses: ENXIO, EINVAL, EBUSY. Initialises a GICv2. KVM: kvm_vm_ioctl_irq_line."""
        board = self._arm
        kind, vcpu, number = parts_of(irq)
        if irq >> 32 or kind not in (LineType.CPU, LineType.SPI, LineType.PPI):
            raise invalid(f"interrupt {irq:#x} is of type {kind}: use 0 for a CPU's line, 1 for an SPI, 2 for a PPI")
        if kind == LineType.CPU:
            if board.gic is not None:
                raise VmError(errno.ENXIO, f"VM {self.name!r} has a GIC, which drives vCPUs' lines: use a PPI or SPI")
            least, end = 0, _CPU_LINES
        else:
            if board.gic is None:
                raise self._no_irqchip()
            least, end = (SGIS, PRIVATE) if kind == LineType.PPI else (PRIVATE, VCPU_LINES)
        if kind != LineType.SPI and vcpu not in board.cpu_of:
            raise invalid(f"interrupt {irq:#x}: vCPU {vcpu} does not exist: create it first")
        if number < least:
            raise invalid(f"interrupt {irq:#x} has number {number}; {least} or more is allowed")
        if kind == LineType.SPI:
            board.initialise_lazily()
            assert board.gic is not None
            end = board.gic.interrupts
        if number >= end:
            raise invalid(f"interrupt {irq:#x} has number {number}; {least} to {end - 1} are allowed")
        if kind == LineType.PPI:
            board.initialise_lazily()

    def _resampled_by(self, source: LineSource, line: int) -> bool:
        """Whether a line is an SPI whose GSI a source resamples."""
        gsi = self._arm.spi_notices.gsi_of(line - PRIVATE) if line < VCPU_LINES else None
        return gsi is not None and gsi in source.resampled

    def _set_level(self, source: LineSource, gsi: int, level: int, line_status: bool = True) -> int:  # noqa: ARG002
        board = self._arm
        parts = parts_of(gsi)
        if board.observer is not None:
            board.observer.kvm_irq_line(*parts, level)
        line = line_of(*parts)
        if source.resampled and self._resampled_by(source, line):
            board.drive(line, 1, 1 << RESAMPLERS)
            return 0
        if level:
            source.asserted |= 1 << line
        else:
            source.asserted &= ~(1 << line)
        board.drive(line, level, 1 << source.number)
        return 0

    def _reach_all(self, source: LineSource, changes: Sequence[int]) -> None:
        raised = (line_of(*parts_of(change >> 1)) for change in changes if change & 1)
        self._reach(source, max(raised, default=0))

    def _reach(self, source: LineSource, highest: int) -> None:
        if source.reach <= highest:
            self._sources_bytes.charge(source, reach_for(highest, LINES), len(source.resampled))

    def _numbers(self, asserted: int) -> list[int]:
        return [irq_of(line) for line in numbers_of(asserted)]

    def _line_name(self, line: int) -> str:
        return line_name(line)

    # MSIs.

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI: 0, as an MSI reaches no interrupt. KVM: kvm_send_userspace_msi, vgic_its_inject_msi."""
        with self._turn:
            self._check_alive()
            if self._arm.gic is None or flags & ~MSI_VALID_DEVID:
                raise invalid(f"an MSI needs a GIC, and flags 0 or {MSI_VALID_DEVID}, not {flags:#x}")
            if data >> 32:
                raise invalid(f"data {data:#x} of an MSI, which has 32 bits")
            if not self._arm.its or self._arm.v3 is None:
                raise VmError(errno.ENODEV, f"VM {self.name!r} has no interrupt translation service to take MSIs")
            frame = self._arm.mmio.find(address, 1)
            if not flags or not isinstance(frame, ItsFrame):
                raise invalid(f"no interrupt translation service has address {address:#x}, or the MSI has no devid")
            if not frame.its.enabled:
                raise VmError(errno.EBUSY, "the guest has not enabled the interrupt translation service")
            return 0

    # Routing.

    def _check_routes(self, routes: Sequence[Route]) -> None:
        self._check_alive()
        check_routes(routes, CHIPS)

    # irqfds.

    def _check_irqfd(self, resampled: bool) -> None:  # noqa: ARG002 - an SPI's end is always known
        self._check_alive()
        if not self._arm.initialised:
            raise VmError(errno.EAGAIN, f"VM {self.name!r} has no initialised GIC; initialise it first")

    def _check_resampling(self, resampled: bool) -> None:
        if resampled and not self._board.can_resample:
            raise invalid(f"VM {self.name!r} has no GIC; only SPIs can be resampled: create it first")

    def trigger(self, irqfd: Irqfd, *, assigned: bool = False) -> None:
        """An irqfd was written: its SPI rises, and never falls. KVM: eventfd.c irqfd_wakeup.

        If the eventfd was written before the irqfd was assigned, the SPI also falls (irqfd_inject).
        """
        with suppress(VmError), self._turn:
            if irqfd.resampler is not None or not irqfd.source.closed:
                self._arm.raise_gsi(irqfd.gsi)
                if assigned and irqfd.resampler is None:
                    self._arm.lower_gsi(irqfd.gsi)
