"""The GIC's frames on the I/O bus. The running vCPU makes an access: see Running.

An access to the distributor or a redistributor traps: the vCPU exits its guest, and enters it after the access. The
GICC frame of a GICv2 is hardware: the vCPU exits its guest only after the access.
"""

from __future__ import annotations

from typing import Final, Protocol

from irqchipd.chips.gic.gicc import Gicc, GiccFrame
from irqchipd.chips.gic.registers import Registers
from irqchipd.chips.gic.vgic import GicCpu
from irqchipd.observe.observer import Observer
from irqchipd.vm.arm64.cpu import Arm64Cpu

_INTID: Final = 0x3FF  # of GICC_IAR and GICC_EOIR


class Running(Protocol):
    """The vCPU whose access a frame answers, and the observer."""

    running: Arm64Cpu
    observer: Observer | None


class RegistersFrame:
    """The distributor, or a redistributor, which has the registers of one vCPU whichever vCPU accesses them.

    KVM: vgic-mmio.c dispatch_mmio_read, dispatch_mmio_write.
    """

    def __init__(self, board: Running, registers: Registers, base: int, of: GicCpu | None = None) -> None:
        self._board = board
        self._registers = registers
        self._base = base
        self._of = of

    def read(self, address: int, size: int) -> int:
        """A guest's read."""
        cpu = self._board.running
        value = self._registers.read(self._of or cpu.in_gic, address - self._base, size)
        cpu.step()
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write."""
        cpu = self._board.running
        self._registers.write(self._of or cpu.in_gic, address - self._base, size, value)
        cpu.step()


class CpuInterfaceFrame:
    """GICC: every vCPU accesses its own CPU interface."""

    def __init__(self, board: Running, frames: list[GiccFrame], base: int) -> None:
        self._board = board
        self._frames = frames
        self._base = base

    def read(self, address: int, size: int) -> int:
        """A guest's read."""
        cpu = self._board.running
        value = self._frames[cpu.index].read(address - self._base, size)
        if self._board.observer is not None and address - self._base == Gicc.IAR:
            self._board.observer.gic_acknowledged(cpu.id, value & _INTID)
        cpu.exit_guest()
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write."""
        cpu = self._board.running
        self._frames[cpu.index].write(address - self._base, value, size)
        if self._board.observer is not None and address - self._base == Gicc.EOIR:
            self._board.observer.gic_ended(cpu.id, value & _INTID)
        cpu.exit_guest()
