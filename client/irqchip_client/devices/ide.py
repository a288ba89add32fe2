"""An IDE channel with two ATA disks, as a PC's first: ports 1f0h-1f7h and 3f6h, GSI 14.

    base + 0  16, 32 bits  RW  data
    base + 1  8 bits       R   error            W  features
    base + 2               RW  sector count
    base + 3 to 5          RW  LBA low, mid, high
    base + 6               RW  device: bit 4 selects the disk, bit 6 LBA
    base + 7               R   status, which clears the interrupt            W  command
    control                R   alternate status, which does not              W  device control: HOB, SRST, nIEN

ATA/ATAPI-6 (T13/1410D), chapter 7 for the registers, and 9 for the protocols. The disks are in ata.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from .ata import DEV, Command, Disk, Status
from .device import Device
from .saving import Bits, Fields, OrNone, Part, refused

PORTS = 8
DATA, DEVICE, STATUS = 0, 6, 7
WIDTH = 4  # bytes of the widest access
NIEN, SRST, HOB = 0x02, 0x04, 0x80  # device control: 7.8


class Ide(Device):
    """An IDE channel. Data are transferred by PIO; there is no DMA.

    image      the file of disk 0; the guest cannot reach an incomplete last sector
    second     the file of disk 1, or None
    base, gsi  the first port of the command block, and the line, which is high while the selected disk interrupts
    control    the port of alternate status and device control
    read_only  both disks end writes with ABRT
    seek       seconds for which a disk is BSY, for each block of data

    A saved state does not contain the files. Restore the device with files of the same content.
    """

    def __init__(
        self,
        image: str | os.PathLike[str],
        second: str | os.PathLike[str] | None = None,
        base: int = 0x1F0,
        gsi: int = 14,
        control: int = 0x3F6,
        *,
        read_only: bool = False,
        seek: float = 0.0,
    ) -> None:
        super().__init__("IDE")
        self.seek = seek
        self.disk0 = Disk(image, 0, read_only=read_only)
        self.disk1: Disk | None = None
        try:
            if second is not None:
                self.disk1 = Disk(second, 1, read_only=read_only)
            self.pio(base, PORTS, self.read, self.write, width=WIDTH)
            self.pio(control, 1, self.read_control, self.write_control)
            self._line = self.line(gsi)
        except BaseException:
            self.close()
            raise
        self._done = self.timer(self._work)
        self.control = 0

    @property
    def disks(self) -> list[Disk]:
        """The disks of the channel."""
        return [self.disk0] if self.disk1 is None else [self.disk0, self.disk1]

    @property
    def selected(self) -> Disk | None:
        """The disk that the device register selects. None without a disk 1: disk 0 then answers for it."""
        return self.disk1 if self.disk0.device & DEV else self.disk0

    def reset(self) -> None:
        """The signal RESET-: both disks are as after power-on."""
        self.control = 0
        for disk in self.disks:
            disk.reset(hardware=True)
        self._update()

    def close(self) -> None:
        """Closes the files."""
        for disk in self.disks:
            disk.close()

    # The command block.

    def read(self, offset: int, size: int) -> int:
        """A guest's IN: of the data register, or of the others byte by byte."""
        if offset == DATA:
            disk = self.selected
            if disk is None or disk.busy:
                return (1 << 8 * size) - 1
            value = disk.read_data(size)
            self._seek_if_busy(disk)
            return value
        return int.from_bytes(bytes(self._read_byte(offset + byte) for byte in range(size)), "little")

    def _read_byte(self, offset: int) -> int:
        if offset >= PORTS:
            return 0xFF
        if offset == STATUS:
            if self.selected is not None:
                self.selected.interrupt = False
                self._update()
            return self._status()
        return (self.selected or self.disk0).read_register(offset, previous=bool(self.control & HOB))

    def _status(self) -> int:
        if self.control & SRST:
            return Status.BSY
        # 9.16.1: disk 0 answers 0 for a missing disk 1.
        if self.selected is None:
            return 0
        status = self.selected.status
        return status & Status.BSY or status  # the other bits are not valid

    def write(self, offset: int, value: int, size: int) -> None:
        """A guest's OUT: to the data register, or to the others byte by byte."""
        if offset == DATA:
            disk = self.selected
            if disk is not None and not disk.busy:
                disk.write_data(value, size)
                self._seek_if_busy(disk)
            return
        for byte in range(min(size, PORTS - offset)):
            self._write_byte(offset + byte, value >> 8 * byte & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        if self.control & SRST:
            return
        self.control &= ~HOB  # 7.8: a write to the command block clears it
        disk = self.selected
        if offset == STATUS:
            if value == Command.DIAGNOSTIC:
                self._diagnose()
            elif disk is not None and not disk.busy:
                disk.begin(value)
                self._seek_if_busy(disk)
        elif disk is None or not disk.status & (Status.BSY | Status.DRQ):
            for each in self.disks:  # Both take the registers; the device register selects.
                each.write_register(offset, value)
        self._update()

    def _seek_if_busy(self, disk: Disk) -> None:
        """Makes a disk that an access has made BSY work at the end of a seek."""
        if disk.busy:
            self._done.start(self.seek)

    def _diagnose(self) -> None:
        """8.9: both disks execute it, and disk 0 interrupts for both."""
        for disk in self.disks:
            disk.reset()
        self.disk0.interrupt = True

    def _work(self) -> None:
        """The end of a seek."""
        for disk in self.disks:
            if disk.busy:
                disk.work()
        self._update()

    def _update(self) -> None:
        disk = self.selected
        self._line.set(disk is not None and disk.interrupt and not self.control & NIEN)

    # The control block.

    def read_control(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """Alternate status: the status, without an effect on the interrupt."""
        return self._status()

    def write_control(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        """Device control. SRST resets both disks, which are BSY while it is set: 9.2."""
        begins = value & ~self.control & SRST
        self.control = value & (NIEN | SRST | HOB)
        if begins:
            self._done.stop()
            for disk in self.disks:
                disk.reset()
        self._update()

    # State.

    STATE: ClassVar[Fields] = {
        "control": Bits(NIEN | SRST | HOB),
        "disk0": Part(Disk.STATE),
        "disk1": OrNone(Part(Disk.STATE)),
    }

    def check_state(self, values: Mapping[str, Any]) -> None:
        self.disk0.check_state(values["disk0"], "state.disk0")
        second = values["disk1"]
        if self.disk1 is None or second is None:
            if self.disk1 is not None or second is not None:
                raise refused("state.disk1", second, "a disk if, and only if, the channel has a disk 1")
        else:
            self.disk1.check_state(second, "state.disk1")

    def restored(self) -> None:
        if any(disk.busy for disk in self.disks) and self._done.due is None:
            self._done.start(self.seek)
        self._update()
