"""Packets of records for the port, and descriptors to send with any packet."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from random import Random

from irqchip.lapic_page import PAGE_SIZE
from irqchip.records import EVENT, HEADER, NUMBERS, OPERATION
from tests.fuzz.messages import ADDRESSES, MSRS, PORTS, WIDE

_LENGTHS = (0, 1, 2, 8, 15, 16, 17, 23, 24, 39, 40, 41, 63, 64, 65, 4096, 65535, 65536, 65537)


def record(random: Random) -> bytes:
    """A record, mostly of an existing operation."""
    name = random.choice(_NAMES)
    number = NUMBERS[name] if random.random() < 0.95 else random.randrange(256)
    size = random.choice((0, 1, 1, 2, 4, 4, 8, 0x81, 0x82, 255) if random.random() < 0.1 else _SIZES.get(name, (0,)))
    index = random.choice((0, 0, 0, 1, 2, 3)) if random.random() < 0.9 else random.choice((20, 254, 4096, 2**32 - 1))
    likely = PORTS if "pio" in name else MSRS if "msr" in name else ADDRESSES
    address = random.choice(likely if random.random() < 0.9 else WIDE)
    value = random.choice((0, 1, 1, 2, 0x41, 0x400, 0x1FF, random.getrandbits(8), random.getrandbits(64)))
    if name == "halt":
        value = random.choice((1, 1000, 1_000_000, 0))
    elif "write" in name and random.random() < 0.8:
        value &= (1 << 8 * size) - 1 if size else 0xFF
    return OPERATION.pack(number, size, index, address, value)


def packet(random: Random) -> bytes:
    """A batch of records, or something similar."""
    choice = random.random()
    serial = random.getrandbits(random.choice((4, 64)))
    if choice < 0.5:
        return HEADER.pack(0, serial) + record(random)
    if choice < 0.85:
        return HEADER.pack(0, serial) + b"".join(record(random) for _ in range(random.choice((0, 2, 4, 16, 64))))
    if choice < 0.90:
        return EVENT.pack(0, random.randrange(4), serial, random.choice(_NUMBERS), 1, 0, 0x300, 1)
    if choice < 0.97:
        whole = bytearray(HEADER.pack(0, serial) + b"".join(record(random) for _ in range(3)))
        whole[random.randrange(1, len(whole))] = random.randrange(256)
        return bytes(whole[: random.choice((*_LENGTHS[:-4], len(whole)))])
    return bytes(random.choice(_LENGTHS))


_NUMBERS = tuple(NUMBERS.values())
_NAMES = tuple(NUMBERS)
_SIZES = {
    "pio_read": (1, 1, 2, 4),
    "pio_write": (1, 1, 2, 4),
    "mmio_read": (4, 4, 1, 8),
    "mmio_write": (4, 4, 1, 8),
    "ack_interrupt": (0, 0, 1, 2),
    "halt": (0, 1),
    "register_region": (1, 2, 0x81, 0x82),
}


class Descriptors:
    """One descriptor of each kind that a client may send, except those whose close() blocks (bench/stall.py)."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        for make in (_eventfds, _memory, _pipe, _sockets, _files, _others):
            self._kept += make()
        # Eventfds and a page of memory are valid, and therefore likelier.
        self._eventfds, self._right = self._kept[:4], [*self._kept[:4], self._kept[5]]

    def some(self, random: Random, own: int) -> list[int]:
        """Descriptors for one packet; `own` is the descriptor of its connection."""
        count = random.choice((0, 1, 1, 1, 2, 2, 3, 8, 253))
        kinds = self._right if random.random() < 0.4 else [*self._kept, own]
        return [random.choice(kinds) for _ in range(count)]

    def ring(self, random: Random) -> None:
        """Write to an eventfd, as a device does."""
        with suppress(BlockingIOError):  # the counter is full
            os.eventfd_write(random.choice(self._eventfds), random.choice((1, 2, 2**64 - 2)))

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in self._kept:
            os.close(descriptor)


def _eventfds() -> list[int]:
    made = [os.eventfd(count, os.EFD_NONBLOCK | flags) for count, flags in ((0, 0), (1, 0), (7, os.EFD_SEMAPHORE))]
    full = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(full, 2**64 - 2)
    return [*made, full, os.eventfd(0)]


def _memory() -> list[int]:
    sealed = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, PAGE_SIZE)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return [sealed]


def _pipe() -> list[int]:
    return list(os.pipe())


def _sockets() -> list[int]:
    here, there = socket.socketpair()
    closed, peer = socket.socketpair()
    peer.close()
    return [found.detach() for found in (here, there, closed, socket.socket(), socket.socket(type=socket.SOCK_DGRAM))]


def _files() -> list[int]:
    with tempfile.TemporaryFile() as file:
        copy = os.dup(file.fileno())
    return [
        copy,
        os.open("/dev/null", os.O_RDWR),
        os.open("/", os.O_RDONLY),
        os.open("/proc/self/status", os.O_RDONLY),
        os.open("/", os.O_PATH),
    ]


def _others() -> list[int]:
    epoll = select.epoll()
    made: list[Callable[[], int]] = [lambda: os.memfd_create("fuzz"), lambda: os.pidfd_open(os.getpid())]
    return [os.dup(epoll.fileno()), *(make() for make in made)]
