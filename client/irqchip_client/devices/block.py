"""A block device of 16 ports, made for this project: one sector at a time, an interrupt when it is done.

    offset  size     access  register
    0       4        RW      sector: the number of the next command's sector, of 512 bytes
    4       1        R       status: bit 0 BUSY, bit 1 DATA, bit 2 ERROR of the last command; ffh: no device
    4       1        W       command: 1 read, 2 write, 3 flush; ignored while BUSY
    5       1        R       error: 0 none, 1 no such sector, 2 the file failed, 3 no such command, 4 read-only
    6       1        RW      interrupt: bit 0 pending; writing a 1 to it clears it
    7       1        RW      control: bit 0 enables the interrupt line; bit 1 resets the device, and reads 0
    8       1, 2, 4  RW      data: the next bytes of the sector
    12      4        R       capacity, sectors

docs/devices.md has the commands, step by step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from .device import Device
from .image_file import SECTOR, count_sectors, open_image, read_sectors, write_sectors
from .saving import FLAG, Choice, Fields, Number, Octets, refused

PORTS = 16
WIDTH = 4  # bytes of the widest register
MOST_SECTORS = 0xFFFF_FFFF


class Register(IntEnum):
    """Offsets."""

    SECTOR = 0
    STATUS = COMMAND = 4
    ERROR = 5
    INTERRUPT = 6
    CONTROL = 7
    DATA = 8
    CAPACITY = 12


class Status(IntFlag):
    """The status register: the state of the device."""

    BUSY = 0x01
    DATA = 0x02  # bytes can be transferred
    ERROR = 0x04


class Command(IntEnum):
    """Commands to the device."""

    NONE = 0  # in reset
    READ = 1
    WRITE = 2
    FLUSH = 3


class Error(IntEnum):
    """The error of the last command."""

    NONE = 0
    NO_SUCH_SECTOR = 1
    FILE_FAILED = 2
    NO_SUCH_COMMAND = 3
    READ_ONLY = 4


INTERRUPT_PENDING = 0x01
CONTROL_ENABLE, CONTROL_RESET = 0x01, 0x02


class BlockDevice(Device):
    """A file as a block device. The guest cannot reach the bytes behind the last whole sector.

    path       a file or a block device; NotFound or IrqchipError if it cannot be opened
    base, gsi  the first port, and the level-triggered line
    mmio       base is an address, and not a port
    read_only  refuse writes
    seek       seconds that a command takes

    A saved state does not contain the file. Restore the device with a file of the same content.
    """

    STATE: ClassVar[Fields] = {
        "capacity": Number(0, MOST_SECTORS),
        "sector": Number(0, MOST_SECTORS),
        "status": Choice((0, Status.BUSY, Status.DATA, Status.ERROR), Status),
        "error": Choice(tuple(Error), Error),
        "pending": FLAG,
        "enabled": FLAG,
        "_command": Choice(tuple(Command), Command),
        "_at": Number(0, MOST_SECTORS),
        "_buffer": Octets(SECTOR),
        "_position": Number(0, SECTOR),
    }

    def __init__(
        self,
        path: str | os.PathLike[str],
        base: int = 0x620,
        gsi: int = 11,
        *,
        mmio: bool = False,
        read_only: bool = False,
        seek: float = 0.0,
    ) -> None:
        super().__init__("block device")
        self.read_only = read_only
        self.seek = seek
        self._file = open_image(path, read_only=read_only)
        self.capacity = min(count_sectors(self._file), MOST_SECTORS)
        (self.mmio if mmio else self.pio)(base, PORTS, self.read, self.write, width=WIDTH)
        self._line = self.line(gsi)
        self._done = self.timer(self._work)
        self._power_on()

    def _power_on(self) -> None:
        """Drops a command under way: a sector that was to be written keeps its bytes."""
        self.sector = 0
        self.status = Status(0)
        self.error = Error.NONE
        self.pending = False
        self.enabled = False
        # The command under way, its sector and the sector's bytes, and how many of them have been transferred.
        self._command = Command.NONE
        self._at = 0
        self._buffer = bytearray(SECTOR)
        self._position = 0
        self._done.stop()

    def reset(self) -> None:
        """Resets the device, and disables its line."""
        self._power_on()
        self._line.set(False)

    def check_state(self, values: Mapping[str, Any]) -> None:
        if values["capacity"] != self.capacity:
            raise refused("state.capacity", values["capacity"], f"{self.capacity}, the file's capacity")
        command, status, position = values["_command"], values["status"], values["_position"]
        if (values["error"] != Error.NONE) != (status == Status.ERROR):
            raise refused("state.error", int(values["error"]), f"an error that fits status {int(status)}")
        allowed = {
            Status.BUSY: (Command.READ, Command.WRITE, Command.FLUSH),
            Status.DATA: (Command.READ, Command.WRITE),
        }.get(status, tuple(Command))
        if command not in allowed:
            raise refused("state.command", int(command), f"a command that fits status {int(status)}")
        if status in (Status.BUSY, Status.DATA) and command != Command.FLUSH and values["_at"] >= self.capacity:
            raise refused("state.at", values["_at"], f"a sector of the disk, which has {self.capacity}")
        if status == Status.DATA and position == SECTOR:
            raise refused("state.position", position, f"less than {SECTOR} in status {int(status)}")

    def restored(self) -> None:
        if self.status == Status.BUSY and self._done.due is None:
            self._done.start(self.seek)
        self._line.set(self.pending and self.enabled)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    # Ports.

    def read(self, offset: int, size: int) -> int:
        """A guest's IN of 1, 2 or 4 bytes, the lowest register first. Bytes without a register are ffh."""
        if offset == Register.DATA:
            return self._read_data(size)
        return int.from_bytes(bytes(self._read_byte(offset + byte) for byte in range(size)), "little")

    def _read_byte(self, offset: int) -> int:
        match offset:
            case 0 | 1 | 2 | 3:
                return self.sector >> 8 * offset & 0xFF
            case Register.STATUS:
                return self.status
            case Register.ERROR:
                return self.error
            case Register.INTERRUPT:
                return INTERRUPT_PENDING if self.pending else 0
            case Register.CONTROL:
                return CONTROL_ENABLE if self.enabled else 0
            case 12 | 13 | 14 | 15:
                return self.capacity >> 8 * (offset - Register.CAPACITY) & 0xFF
            case _:
                return 0xFF

    def write(self, offset: int, value: int, size: int) -> None:
        """A guest's OUT of 1, 2 or 4 bytes, the lowest register first."""
        if offset == Register.DATA:
            self._write_data(value.to_bytes(size, "little"))
            return
        for byte in range(size):
            self._write_byte(offset + byte, value >> 8 * byte & 0xFF)
        self._line.set(self.pending and self.enabled)

    def _write_byte(self, offset: int, value: int) -> None:
        match offset:
            case 0 | 1 | 2 | 3:
                self.sector = self.sector & ~(0xFF << 8 * offset) | value << 8 * offset
            case Register.COMMAND:
                if Status.BUSY not in self.status:
                    self._begin(value)
            case Register.INTERRUPT:
                if value & INTERRUPT_PENDING:
                    self.pending = False
            case Register.CONTROL:
                if value & CONTROL_RESET:
                    self._power_on()
                self.enabled = bool(value & CONTROL_ENABLE)

    # Commands.

    def _begin(self, command: int) -> None:
        """A write to the command register: begins the command, or refuses it."""
        self.status, self.error, self._position = Status(0), Error.NONE, 0
        self._command, self._at = Command.NONE, self.sector
        match command:
            case Command.READ | Command.WRITE if self._at >= self.capacity:
                self._end(Error.NO_SUCH_SECTOR)
            case Command.WRITE if self.read_only:
                self._end(Error.READ_ONLY)
            case Command.WRITE:
                self._command, self.status = Command.WRITE, Status.DATA
            case Command.READ | Command.FLUSH:
                self._command, self.status = Command(command), Status.BUSY
                self._done.start(self.seek)
            case _:
                self._end(Error.NO_SUCH_COMMAND)

    def _work(self) -> None:
        """The end of a seek."""
        data = False
        try:
            match self._command:
                case Command.READ:
                    self._buffer[:] = read_sectors(self._file, self._at, 1)
                    data = True
                case Command.WRITE:
                    write_sectors(self._file, self._at, self._buffer)
                case Command.FLUSH:
                    os.fsync(self._file)
        except OSError:
            self._end(Error.FILE_FAILED)
        else:
            self._end(Error.NONE, Status.DATA if data else Status(0))

    def _end(self, error: Error, status: Status = Status(0)) -> None:  # noqa: B008 - it is immutable
        """The end of a command, or the arrival of a read's data."""
        self.error = error
        self.status = Status.ERROR if error else status
        self.pending = True
        self._line.set(self.enabled)

    # Data.

    def _read_data(self, size: int) -> int:
        data = b""
        if self.status == Status.DATA and self._command == Command.READ:
            data = bytes(self._buffer[self._position : self._position + size])
            self._position += len(data)
            if self._position == SECTOR:
                self.status = Status(0)
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def _write_data(self, data: bytes) -> None:
        if self.status == Status.DATA and self._command == Command.WRITE:
            end = min(self._position + len(data), SECTOR)
            self._buffer[self._position : end] = data[: end - self._position]
            self._position = end
            if end == SECTOR:
                self.status = Status.BUSY
                self._done.start(self.seek)
