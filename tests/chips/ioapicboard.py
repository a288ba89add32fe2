"""A board for the IOAPIC: a guest that programs it, and a bus that records the messages it sends."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from irqchipd.chips.ioapic import DEFAULT_BASE, Ioapic
from irqchipd.chips.message import Message

SELECT, WINDOW = 0x00, 0x10
NO_CPU = 0xEE  # a destination that no CPU of the board matches
MASKED, LEVEL, REMOTE_IRR = 1 << 16, 1 << 15, 1 << 14


def edge(vector: int, *, masked: bool = False, destination: int = 0) -> int:
    """An edge-triggered, fixed redirection entry."""
    return destination << 56 | (MASKED if masked else 0) | vector


def level(vector: int, *, masked: bool = False, destination: int = 0) -> int:
    """A level-triggered, fixed redirection entry."""
    return edge(vector, masked=masked, destination=destination) | LEVEL


class _Matching(dict[int, int]):
    """The CPUs that match the address bits of a redirection entry."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def __missing__(self, address: int) -> int:
        destination, logical = address >> 56, bool(address & 1 << 11)
        self._board.asked.append((destination, logical))
        return self._board.matching if destination != NO_CPU else 0


class Board:
    """The IOAPIC's surroundings."""

    def __init__(self) -> None:
        self.ioapic = Ioapic(self)
        # The bus's status, and the CPUs that accept a message.
        self.status = 1
        self.takers: list[int] = [0]
        # The CPUs that match a destination, and those that have a given vector pending.
        self.matching = 0
        self.pending: dict[int, int] = {}
        # A record of the IOAPIC's calls.
        self.sent: list[Message] = []
        self.acked: list[int] = []
        self.entries_at_ack: list[int] = []
        self.changed: list[tuple[int, int]] = []
        self.replaced = 0
        self.asked: list[tuple[int, bool]] = []
        self.masks: list[tuple[int, bool]] = []
        self.resampled: list[int] = []
        self.served_later: list[int] = []
        # Whether the pins are resampled, and which pins have a listener.
        self.resamples = False
        self.ioapic_noticed = 0

    # The wires.

    def deliver(self, message: Message, accepted: MutableMapping[int, int] | None = None) -> int:
        self.sent.append(message)
        if accepted is not None:
            accepted.update(dict.fromkeys(self.takers, message.vector))
        return self.status

    def ioapic_acked(self, pin: int) -> None:
        self.acked.append(pin)
        self.entries_at_ack.append(self.ioapic.redirection[pin])

    def ioapic_masked(self, pin: int, masked: bool) -> None:
        self.masks.append((pin, masked))

    def resample(self, pin: int) -> bool:
        self.resampled.append(pin)
        return self.resamples

    def serve_ioapic_later(self, pin: int, nanoseconds: int) -> None:  # noqa: ARG002
        self.served_later.append(nanoseconds)

    def asserted_anew(self, pin: int, entry: int, status: int) -> None:
        pass

    def entry_changed(self, old: int, new: int) -> None:
        self.changed.append((old, new))

    def entries_replaced(self) -> None:
        self.replaced += 1

    @property
    def cpus_matching(self) -> Mapping[int, int]:
        return _Matching(self)

    def cpus_pending(self, vector: int) -> int:
        return self.pending.get(vector, 0)

    # The guest.

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.ioapic.write(DEFAULT_BASE + offset, size, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.ioapic.read(DEFAULT_BASE + offset, size)

    def select(self, register: int) -> None:
        self.write(SELECT, register)

    def write_register(self, register: int, value: int) -> None:
        self.select(register)
        self.write(WINDOW, value)

    def read_register(self, register: int) -> int:
        self.select(register)
        return self.read(WINDOW)

    def program(self, pin: int, entry: int) -> None:
        """Write an entry as drivers do: the high half first, because the low half unmasks."""
        self.write_register(0x11 + 2 * pin, entry >> 32)
        self.write_register(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def entry(self, pin: int) -> int:
        return self.read_register(0x11 + 2 * pin) << 32 | self.read_register(0x10 + 2 * pin)

    def vectors(self) -> list[int]:
        """The vectors sent so far."""
        return [message.vector for message in self.sent]
