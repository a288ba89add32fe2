"""An ATA disk: the registers of its command block, and its commands. ATA/ATAPI-6 (T13/1410D), PIO without DMA.

A command has the states of chapter 9. The status has BSY while the disk works, DRQ while a block of data can be
transferred, and neither at the command's end. The channel is in ide.py: its ports, line and timer, and the selection.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from irqchip_client._errors import InvalidArgument

from .image_file import SECTOR, count_sectors, open_image, read_sectors, write_sectors
from .saving import BYTE, FLAG, Bits, Choice, Fields, Number, Octets, refused

MOST_AT_ONCE = 16  # the most sectors in a block of data
HEADS, SECTORS_PER_TRACK, MOST_CYLINDERS = 16, 63, 16383  # the default translation of a large disk
LBA28, LBA48 = 1 << 28, 1 << 48
WORD = 0xFFFF


class Status(IntFlag):
    """7.15: the status register."""

    ERR = 0x01
    DRQ = 0x08
    DSC = 0x10  # seek complete: obsolete, but old drivers wait for it
    DF = 0x20
    DRDY = 0x40
    BSY = 0x80


READY = Status.DRDY | Status.DSC


class Error(IntFlag):
    """7.10: the error register. After a reset or a diagnostic it has a diagnostic code instead: PASSED."""

    ABRT = 0x04
    IDNF = 0x10
    UNC = 0x40


PASSED = 0x01

# The device register.
DEV = 0x10  # selects disk 1
LBA = 0x40  # the address is an LBA; without this bit, it is a cylinder, a head and a sector
ADDRESS_HIGH = 0x0F  # bits 27 to 24 of the LBA, or the head


class Command(IntEnum):
    """Chapter 8: the commands that the disk executes."""

    NONE = 0x00  # no command, or NOP, which ends with ABRT
    RECALIBRATE = 0x10
    READ_SECTORS = 0x20
    READ_SECTORS_ONCE = 0x21
    READ_SECTORS_EXT = 0x24
    READ_NATIVE_MAX_EXT = 0x27
    READ_MULTIPLE_EXT = 0x29
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_ONCE = 0x31
    WRITE_SECTORS_EXT = 0x34
    WRITE_MULTIPLE_EXT = 0x39
    VERIFY_SECTORS = 0x40
    VERIFY_SECTORS_ONCE = 0x41
    VERIFY_SECTORS_EXT = 0x42
    SEEK = 0x70
    DIAGNOSTIC = 0x90
    INITIALIZE_PARAMETERS = 0x91
    READ_MULTIPLE = 0xC4
    WRITE_MULTIPLE = 0xC5
    SET_MULTIPLE = 0xC6
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER_MODE = 0xE5
    SLEEP = 0xE6
    FLUSH_CACHE = 0xE7
    FLUSH_CACHE_EXT = 0xEA
    IDENTIFY = 0xEC
    SET_FEATURES = 0xEF
    READ_NATIVE_MAX = 0xF8


_C = Command
READS = frozenset((_C.READ_SECTORS, _C.READ_SECTORS_ONCE, _C.READ_SECTORS_EXT, _C.READ_MULTIPLE, _C.READ_MULTIPLE_EXT))
WRITES = frozenset(
    (_C.WRITE_SECTORS, _C.WRITE_SECTORS_ONCE, _C.WRITE_SECTORS_EXT, _C.WRITE_MULTIPLE, _C.WRITE_MULTIPLE_EXT)
)
VERIFIES = frozenset((_C.VERIFY_SECTORS, _C.VERIFY_SECTORS_ONCE, _C.VERIFY_SECTORS_EXT))
FLUSHES = frozenset((_C.FLUSH_CACHE, _C.FLUSH_CACHE_EXT))
MULTIPLES = frozenset((_C.READ_MULTIPLE, _C.READ_MULTIPLE_EXT, _C.WRITE_MULTIPLE, _C.WRITE_MULTIPLE_EXT))
EXTENDED = frozenset(
    (
        *(_C.READ_SECTORS_EXT, _C.READ_MULTIPLE_EXT, _C.WRITE_SECTORS_EXT, _C.WRITE_MULTIPLE_EXT),
        *(_C.VERIFY_SECTORS_EXT, _C.READ_NATIVE_MAX_EXT),
    )
)
WORKS = READS | WRITES | FLUSHES | {_C.IDENTIFY}  # commands that take time: the disk is BSY

# 8.46: subcommands of SET FEATURES.
SET_TRANSFER_MODE = 0x03
KEEP_SETTINGS, REVERT_SETTINGS = 0x66, 0xCC  # the effect of a software reset on the settings
ACCEPTED_FEATURES = frozenset((0x02, 0x82, 0x55, 0xAA))  # write cache and look-ahead, on and off
# Transfer modes: 0 and 1 are the default, with and without IORDY; from 8 on they are PIO modes with flow control.
DEFAULT_MODES, PIO_FLOW_CONTROL, BEST_PIO = (0, 1), 0x08, 4


class Disk:
    """A disk of a channel: a file. The guest cannot reach an incomplete last sector.

    path       a file or a block device; NotFound or IrqchipError if it cannot be opened, InvalidArgument if it is
               smaller than a sector
    number     0 or 1: the device's number on its channel
    read_only  end writes with ABRT

    interrupt  the disk asks for an interrupt: INTRQ, if the disk is selected and nIEN is clear
    """

    def __init__(self, path: str | os.PathLike[str], number: int, *, read_only: bool = False) -> None:
        self.number = number
        self.read_only = read_only
        self._file = open_image(path, read_only=read_only)
        self.capacity = min(count_sectors(self._file), LBA48)
        if not self.capacity:
            os.close(self._file)
            raise InvalidArgument(errno.EINVAL, f"{os.fspath(path)} has no sector of {SECTOR} bytes: make it larger")
        self._power_on()

    def _power_on(self) -> None:
        """The state after power-on: translation and settings have their defaults."""
        self.heads = HEADS if self.capacity >= HEADS * SECTORS_PER_TRACK else 1
        self.sectors_per_track = min(self.capacity, SECTORS_PER_TRACK)
        # As on QEMU, READ MULTIPLE needs no SET MULTIPLE MODE before it.
        self.multiple = MOST_AT_ONCE
        self.reverts = False  # whether a software reset makes `multiple` the default
        self.reset()

    def reset(self, *, hardware: bool = False) -> None:
        """9.2: a reset, or a diagnostic. A block that the disk has not written yet is lost."""
        if hardware:
            self._power_on()
            return
        if self.reverts:
            self.multiple = MOST_AT_ONCE
        # The signature of an ATA disk: 9.12. The upper 8 bits of a register are its previous content.
        self.features = 0
        self.count = 1
        self.low, self.mid, self.high = 1, 0, 0
        self.device = 0
        self.error = PASSED
        self.status = READY
        self.interrupt = False
        self.command = Command.NONE
        # The command in progress: its next sector, the number of sectors left, and the sectors in each block of data.
        self.sector = 0
        self.left = 0
        self.block = 1
        # The block of data in transfer: its bytes, how many they are, and how many have been transferred.
        self.buffer = bytearray(MOST_AT_ONCE * SECTOR)
        self.length = 0
        self.position = 0

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    # Registers.

    @property
    def busy(self) -> bool:
        """BSY: the channel calls work() after a while."""
        return Status.BSY in self.status

    def write_register(self, register: int, value: int) -> None:
        """A write to registers 1 to 6 of the command block. What the register had becomes its previous content."""
        match register:
            case 1:
                self.features = self.features << 8 & 0xFF00 | value
            case 2:
                self.count = self.count << 8 & 0xFF00 | value
            case 3:
                self.low = self.low << 8 & 0xFF00 | value
            case 4:
                self.mid = self.mid << 8 & 0xFF00 | value
            case 5:
                self.high = self.high << 8 & 0xFF00 | value
            case 6:
                self.device = value

    def read_register(self, register: int, *, previous: bool) -> int:
        """A read of registers 1 to 6; `previous`: of their previous content, as with HOB."""
        match register:
            case 1:
                return int(self.error)
            case 2:
                value = self.count
            case 3:
                value = self.low
            case 4:
                value = self.mid
            case 5:
                value = self.high
            case _:
                return self.device | 0xA0  # obsolete bits, which read as ones
        return value >> 8 if previous else value & 0xFF

    # Commands.

    def begin(self, number: int) -> None:
        """A write to the command register."""
        self.interrupt = False
        self.status, self.error = READY, 0
        self.position = self.length = 0
        try:
            self.command = Command(number)
        except ValueError:
            self.command = Command.NONE
        command = self.command
        if command in WRITES and self.read_only:
            self._end(Error.ABRT)
        elif command in READS or command in WRITES or command in VERIFIES:
            self._begin_transfer()
        elif command in WORKS:
            self.status = READY | Status.BSY
        else:
            self._end(self._execute(command))

    def _begin_transfer(self) -> None:
        """A command on sectors."""
        command = self.command
        at, count = self._address(), self._count()
        self.block = self.multiple if command in MULTIPLES else 1
        if not self.block:
            self._end(Error.ABRT)
        elif at is None or at + count > self.capacity:
            if at is not None:
                self._set_address(max(at, self.capacity))
            self._end(Error.IDNF)
        elif command in VERIFIES:
            self._end()
        else:
            self.sector, self.left = at, count
            if command in WRITES:
                self._await_data()
            else:
                self.status = READY | Status.BSY

    def _execute(self, command: Command) -> int:
        """Executes a command without data. Returns its error, or 0."""
        match command:
            case Command.RECALIBRATE:
                self.low = self.mid = self.high = 0
            case Command.SEEK:
                at = self._address()
                return Error.IDNF if at is None or at >= self.capacity else 0
            case Command.INITIALIZE_PARAMETERS:
                if not self.count & 0xFF:
                    return Error.ABRT
                self.heads, self.sectors_per_track = (self.device & ADDRESS_HIGH) + 1, self.count & 0xFF
            case Command.SET_MULTIPLE:
                count = self.count & 0xFF
                if count > MOST_AT_ONCE or count & count - 1:
                    return Error.ABRT
                self.multiple = count
            case Command.CHECK_POWER_MODE:
                self.count = 0xFF  # active or idle: there is nothing to spin down
            case Command.READ_NATIVE_MAX | Command.READ_NATIVE_MAX_EXT:
                self._set_address(self.capacity - 1)
            case Command.SET_FEATURES:
                return self._set_features()
            case Command.STANDBY_IMMEDIATE | Command.IDLE_IMMEDIATE | Command.STANDBY | Command.IDLE | Command.SLEEP:
                pass
            case _:
                return Error.ABRT
        return 0

    def _set_features(self) -> int:
        """SET FEATURES. Returns its error, or 0."""
        feature, mode = self.features & 0xFF, self.count & 0xFF
        if feature == SET_TRANSFER_MODE:
            is_pio = mode in DEFAULT_MODES or PIO_FLOW_CONTROL <= mode <= PIO_FLOW_CONTROL + BEST_PIO
            return 0 if is_pio else Error.ABRT
        if feature in (KEEP_SETTINGS, REVERT_SETTINGS):
            self.reverts = feature == REVERT_SETTINGS
            return 0
        return 0 if feature in ACCEPTED_FEATURES else Error.ABRT

    def work(self) -> None:
        """Does the work that the disk is BSY with."""
        try:
            if self.command in READS:
                self._offer(read_sectors(self._file, self.sector, min(self.block, self.left)))
            elif self.command in WRITES:
                write_sectors(self._file, self.sector, self.buffer[: self.length])
                if self._advance():
                    self._await_data()
                    self.interrupt = True
                else:
                    self._end()
            elif self.command == Command.IDENTIFY:
                self.left = 1
                self._offer(self._identity())
            else:
                os.fsync(self._file)
                self._end()
        except OSError:
            self._set_address(self.sector)
            if self.command in READS:
                self._end(Error.UNC)
            else:
                self.status, self.interrupt = READY | Status.DF, True

    def _end(self, error: int = 0) -> None:
        """The end of a command, with an interrupt."""
        self.error = error
        self.status = READY | Status.ERR if error else READY
        self.interrupt = True

    def _offer(self, data: bytes) -> None:
        """DRQ: the host reads a block."""
        self.buffer[: len(data)] = data
        self.length, self.position = len(data), 0
        self.status = READY | Status.DRQ
        self.interrupt = True

    def _await_data(self) -> None:
        """DRQ: the host writes a block. No interrupt asks for the first one."""
        self.length, self.position = min(self.block, self.left) * SECTOR, 0
        self.status = READY | Status.DRQ

    def _advance(self) -> int:
        """A block has been transferred. Returns how many sectors are left."""
        done = self.length // SECTOR
        self.sector += done
        self.left -= done
        return self.left

    # Addresses.

    def _count(self) -> int:
        """The number of sectors of a command. A register of 0 stands for the largest: 256, or 65536."""
        if self.command in EXTENDED:
            return self.count or 0x1_0000
        return self.count & 0xFF or 0x100

    def _address(self) -> int | None:
        """The first sector of a command; None if there is no such cylinder, head and sector."""
        if self.command in EXTENDED:
            low = self.high << 16 & 0xFF_0000 | self.mid << 8 & 0xFF00 | self.low & 0xFF
            return (self.high >> 8) << 40 | (self.mid >> 8) << 32 | (self.low >> 8) << 24 | low
        low, cylinder = self.low & 0xFF, self.high << 8 & 0xFF00 | self.mid & 0xFF
        head = self.device & ADDRESS_HIGH
        if self.device & LBA:
            return head << 24 | cylinder << 8 | low
        if not low or low > self.sectors_per_track or head >= self.heads:
            return None
        return (cylinder * self.heads + head) * self.sectors_per_track + low - 1

    def _set_address(self, sector: int) -> None:
        """Puts a sector into the registers: the one at which a command failed, or the disk's last one."""
        if self.command in EXTENDED:
            self.low = sector >> 16 & 0xFF00 | sector & 0xFF
            self.mid = sector >> 24 & 0xFF00 | sector >> 8 & 0xFF
            self.high = sector >> 32 & 0xFF00 | sector >> 16 & 0xFF
        elif self.device & LBA:
            sector = min(sector, LBA28 - 1)
            self.low, self.mid, self.high = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF
            self.device = self.device & ~ADDRESS_HIGH | sector >> 24
        else:
            track, low = divmod(sector, self.sectors_per_track)
            cylinder, head = divmod(track, self.heads)
            self.low, self.mid, self.high = low + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & ~ADDRESS_HIGH | head

    # Data.

    def read_data(self, size: int) -> int:
        """A read of the data register. All bits are ones if the disk offers no data."""
        if Status.DRQ not in self.status or self.command in WRITES:
            return (1 << 8 * size) - 1
        at = self.position
        self.position = min(at + max(size, 2), self.length)  # a register of 16 bits: a byte access takes a word
        data = self.buffer[at : min(at + size, self.length)]
        if self.position == self.length:
            if self._advance():
                self.status = READY | Status.BSY
            else:
                self.status = READY  # and no interrupt
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def write_data(self, value: int, size: int) -> None:
        """A write to the data register."""
        if Status.DRQ not in self.status or self.command not in WRITES:
            return
        at, end = self.position, min(self.position + max(size, 2), self.length)
        self.buffer[at:end] = value.to_bytes(max(size, 2), "little")[: end - at]
        self.position = end
        if end == self.length:
            self.status = READY | Status.BSY

    def _identity(self) -> bytes:
        """8.15: the answer of IDENTIFY DEVICE."""
        words = [0] * 256
        lba28, track = min(self.capacity, LBA28 - 1), self.heads * self.sectors_per_track
        cylinders = min(self.capacity // track, MOST_CYLINDERS)
        words[0] = 0x0040  # an ATA disk, not removable
        words[1], words[3], words[6] = cylinders, self.heads, self.sectors_per_track
        words[10:20] = _text(f"{self.number + 1:08}", 20)
        words[23:27] = _text("1", 8)
        words[27:47] = _text("irqchipd ATA disk", 40)
        words[47] = 0x8000 | MOST_AT_ONCE
        words[49] = 0x0A00  # IORDY, LBA; no DMA
        words[50] = 0x4000
        words[51] = 0x0200
        words[53] = 0x0003  # words 54 to 58 and 64 to 70 are valid
        words[54], words[55], words[56] = cylinders, self.heads, self.sectors_per_track
        words[57], words[58] = cylinders * track & WORD, cylinders * track >> 16
        words[59] = 0x0100 | self.multiple if self.multiple else 0
        words[60], words[61] = lba28 & WORD, lba28 >> 16
        words[64] = 0x0003  # PIO modes 3 and 4
        words[67] = words[68] = 120  # ns of a PIO cycle
        words[80] = 0x0070  # ATA/ATAPI-4 to -6
        words[82] = words[85] = 0x4068  # NOP, look-ahead, write cache, power management
        words[83] = 0x7400  # FLUSH CACHE and FLUSH CACHE EXT, 48-bit addresses; bit 14: the word is valid
        words[86] = 0x3400  # the same without bit 14
        words[84] = words[87] = 0x4000
        words[93] = 0x4001 | (0x0700 if self.number else 0) | 0x0008  # how it found its number: by a jumper
        words[100:104] = struct.unpack("<4H", self.capacity.to_bytes(8, "little"))
        answer = struct.pack("<255H", *words[:255]) + b"\xa5"
        return answer + bytes((-sum(answer) & 0xFF,))

    # State.

    STATE: ClassVar[Fields] = {
        "capacity": Number(1, LBA48),
        "heads": Number(1, 16),
        "sectors_per_track": Number(1, 255),
        "multiple": Choice((0, 1, 2, 4, 8, MOST_AT_ONCE)),
        "reverts": FLAG,
        **dict.fromkeys(("features", "count", "low", "mid", "high"), Number(0, WORD)),
        "device": BYTE,
        "error": BYTE,
        "status": Choice(
            (READY, READY | Status.ERR, READY | Status.DF, READY | Status.DRQ, READY | Status.BSY), Status
        ),
        "interrupt": FLAG,
        "command": Choice(tuple(Command), Command),
        "sector": Number(0, LBA48),
        "left": Number(0, 0x1_0000),
        "block": Bits(0x1F),
        "buffer": Octets(MOST_AT_ONCE * SECTOR),
        "length": Number(0, MOST_AT_ONCE * SECTOR),
        "position": Number(0, MOST_AT_ONCE * SECTOR),
    }

    def check_state(self, values: Mapping[str, Any], what: str) -> None:
        """Refuses attributes that contradict each other, or the file."""
        if values["capacity"] != self.capacity:
            raise refused(f"{what}.capacity", values["capacity"], f"{self.capacity}, the file's capacity")
        command, status, length = values["command"], values["status"], values["length"]
        if status & (Status.BSY | Status.DRQ):
            if command not in WORKS or (Status.DRQ in status and command in FLUSHES):
                raise refused(f"{what}.command", int(command), f"a command that fits status {int(status)}")
            if command in WRITES and self.read_only:
                raise refused(f"{what}.command", int(command), "a command for a read-only disk")
        transfers = command in READS or command in WRITES
        if transfers and values["sector"] + values["left"] > self.capacity:
            raise refused(f"{what}.left", values["left"], f"a number within the disk's {self.capacity} sectors")
        if transfers and not 1 <= values["block"] <= MOST_AT_ONCE:
            raise refused(f"{what}.block", values["block"], f"a number from 1 to {MOST_AT_ONCE}")
        moves = Status.DRQ in status or (Status.BSY in status and command in WRITES)
        if moves:
            most = min(values["block"], values["left"]) if transfers else 1
            if length != most * SECTOR or (values["position"] >= length) is (Status.DRQ in status):
                raise refused(f"{what}.length", length, f"{most * SECTOR}, with a position for status {int(status)}")
        if Status.BSY in status and command in READS and not values["left"]:
            raise refused(f"{what}.left", 0, "1 or more during a read")


def _text(text: str, size: int) -> tuple[int, ...]:
    """A string of IDENTIFY DEVICE: the first character is the upper half of a word."""
    return struct.unpack(f">{size // 2}H", text.ljust(size).encode())
