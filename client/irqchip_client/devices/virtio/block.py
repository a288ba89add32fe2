"""A virtio block device: a file as a disk. Section 5.2."""

from __future__ import annotations

import errno
import os
import struct
import weakref
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Final

from irqchip_client._errors import InvalidArgument
from irqchip_client.devices.image_file import SECTOR, count_sectors, open_image

from .mmio import VirtioDevice
from .parts import Parts, gather, part, scatter
from .queue import BrokenQueueError, Chain

DEVICE_ID: Final = 2
HEADER: Final = struct.Struct("<IIQ")  # struct virtio_blk_req: type, reserved, sector
MOST_SEGMENTS: Final = 126  # of a request's data: with its header and status, half of a queue
SEGMENT: Final = 1 << 20  # bytes, the most that a segment may have
MOST_BYTES: Final = 32 << 20  # of a request
ID_BYTES: Final = 20
_CONFIG: Final = struct.Struct("<QIIHBBI")  # capacity, size_max, seg_max, geometry, blk_size
_TOPOLOGY: Final = struct.Struct("<BBHI")


class Feature(IntFlag):
    """5.2.3."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9


class Request(IntEnum):
    """Types of requests. 5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Result(IntEnum):
    """The status byte at a request's end. 5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class VirtioBlock(VirtioDevice):
    """A file as a virtio disk. The guest cannot reach an incomplete last sector.

    path          a file or a block device; NotFound or IrqchipError if it cannot be opened
    slot          the device's number among the machine's virtio devices, 0 to 7
    address, gsi  the registers and the line; by default those of the slot
    read_only     refuse writes
    identity      the disk's serial number for the guest, at most 20 characters

    If the process ends during a request, the next process does the whole request again. The result is the same: the
    driver's requests are done in order, and each reads or writes whole sectors.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        slot: int = 0,
        address: int | None = None,
        gsi: int | None = None,
        *,
        read_only: bool = False,
        identity: str = "irqchipd",
    ) -> None:
        features = Feature.SIZE_MAX | Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH
        super().__init__("virtio block", DEVICE_ID, features | (Feature.RO if read_only else 0), 1, slot, address, gsi)
        try:
            self._identity = identity.encode("ascii").ljust(ID_BYTES, b"\0")
        except UnicodeEncodeError:
            raise InvalidArgument(errno.EINVAL, f"identity {identity!r:.100}: use ASCII") from None
        if len(self._identity) > ID_BYTES:
            raise InvalidArgument(errno.EINVAL, f"identity {identity!r:.100}: use at most {ID_BYTES} characters")
        self.read_only = read_only
        self._file = open_image(path, read_only=read_only)
        self._closed = weakref.finalize(self, os.close, self._file)
        self.capacity = count_sectors(self._file)

    def close(self) -> None:
        """Closes the file."""
        self._closed()

    @property
    def config(self) -> bytes:
        return _CONFIG.pack(self.capacity, SEGMENT, MOST_SEGMENTS, 0, 0, 0, SECTOR) + _TOPOLOGY.pack(0, 0, 0, 0)

    def use(self, number: int) -> bool:
        queue = self.queues[number]
        chain = queue.pop()
        if chain is None:
            return False
        queue.push(chain, self._serve(chain))
        return True

    def _serve(self, chain: Chain) -> int:
        """Does a request. Returns the number of bytes that it wrote to the buffer's beginning. BrokenQueueError."""
        header = gather(self.ram, chain.readable, HEADER.size)
        if len(header) < HEADER.size or not chain.room:
            # 2.1.2: no answer is possible.
            raise BrokenQueueError("a request without a header, or without room for its status")
        kind, _, sector = HEADER.unpack(header)
        data = part(chain.readable, HEADER.size, chain.given)
        room = chain.room - 1  # the last byte is the status
        try:
            result, written = self._do(kind, sector, data, part(chain.writable, 0, room))
        except OSError:
            result, written = Result.IOERR, 0
        scatter(self.ram, part(chain.writable, room, room + 1), bytes([result]))
        return written + 1 if written == room else written

    def _do(self, kind: int, sector: int, data: Parts, into: Parts) -> tuple[Result, int]:
        match kind:
            case Request.IN:
                return self._transfer(os.preadv, sector, into)
            case Request.OUT if self.read_only:
                return Result.IOERR, 0
            case Request.OUT:
                result, _ = self._transfer(os.pwritev, sector, data)
                if not self.driver_features & Feature.FLUSH:  # 5.2.5.1: without the feature, writes are durable
                    os.fdatasync(self._file)
                return result, 0
            case Request.FLUSH:
                os.fdatasync(self._file)
                return Result.OK, 0
            case Request.GET_ID:
                return Result.OK, scatter(self.ram, into, self._identity)
            case _:
                return Result.UNSUPP, 0

    def _transfer(
        self, move: Callable[[int, list[memoryview], int], int], sector: int, parts: Parts
    ) -> tuple[Result, int]:
        """Reads or writes sectors: os.preadv or os.pwritev. Returns also the number of bytes that were moved."""
        size = sum(length for _, length in parts)
        if size % SECTOR or size > MOST_BYTES or sector + size // SECTOR > self.capacity:
            return Result.IOERR, 0
        try:
            views = [self.ram.view(address, length) for address, length in parts]
        except InvalidArgument as error:
            raise BrokenQueueError(f"a request's data: {error.message}") from None
        moved = move(self._file, views, sector * SECTOR) if views else 0
        if move is os.preadv:
            for address, length in parts:
                self.ram.flush(address, length)
        # Fewer bytes are moved if the file was truncated, or the host's disk is full.
        return (Result.OK, moved) if moved == size else (Result.IOERR, 0)
