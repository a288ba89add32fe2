"""Buffers in the guest's memory. A buffer consists of parts: their guest addresses and lengths."""

from __future__ import annotations

from collections.abc import Sequence

from irqchip_client._errors import InvalidArgument
from irqchip_client.devices.ram import Ram

from .queue import BrokenQueueError

Parts = Sequence[tuple[int, int]]


def part(parts: Parts, start: int, end: int) -> list[tuple[int, int]]:
    """The parts of a buffer from one offset up to another."""
    found = []
    at = 0
    for address, length in parts:
        first, last = max(start - at, 0), min(end - at, length)
        if first < last:
            found.append((address + first, last - first))
        at += length
    return found


def gather(ram: Ram, parts: Parts, most: int) -> bytes:
    """The first bytes of a buffer. BrokenQueueError."""
    data = bytearray()
    for address, length in parts:
        try:
            data += ram.view(address, length)[: most - len(data)]
        except InvalidArgument as error:
            raise BrokenQueueError(f"a buffer: {error.message}") from None
        if len(data) >= most:
            break
    return bytes(data)


def scatter(ram: Ram, parts: Parts, data: bytes) -> int:
    """Writes bytes to a buffer, as far as it has room, and returns their number. BrokenQueueError."""
    done = 0
    for address, length in parts:
        piece = data[done : done + length]
        try:
            ram.write(address, piece)
        except InvalidArgument as error:
            raise BrokenQueueError(f"a buffer: {error.message}") from None
        done += len(piece)
    return done
