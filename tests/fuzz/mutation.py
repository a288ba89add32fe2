"""Mutations of encoded messages."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Mutation = Callable[[Random, bytearray], None]


def mutate(random: Random, data: bytes) -> bytes:
    """Apply one to four mutations."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(MUTATIONS)(random, changed)
    return bytes(changed)


def _place(random: Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def flip_a_bit(random: Random, data: bytearray) -> None:
    """Flip a bit of any byte."""
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def set_a_byte(random: Random, data: bytearray) -> None:
    """Set a byte to a value with a meaning in varints or tags."""
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def truncate(random: Random, data: bytearray) -> None:
    """Cut the message at any place."""
    del data[_place(random, data) :]


def remove(random: Random, data: bytearray) -> None:
    """Remove a few bytes."""
    at = _place(random, data)
    del data[at : at + random.choice((1, 2, 8))]


def duplicate(random: Random, data: bytearray) -> None:
    """Repeat a slice in place, so that fields come twice."""
    at = _place(random, data)
    data[at:at] = data[at : at + random.choice((1, 2, 8, 64))]


def splice(random: Random, data: bytearray) -> None:
    """Copy a slice to another place."""
    at, to = _place(random, data), _place(random, data)
    data[to : to + random.choice((0, 1, 8))] = data[at : at + random.choice((1, 4, 16))]


def insert(random: Random, data: bytearray) -> None:
    """Insert random bytes."""
    at = _place(random, data)
    data[at:at] = random.randbytes(random.choice((1, 2, 8)))


def append_a_field(random: Random, data: bytearray) -> None:
    """Append a field of any number and wire type, including groups and invalid wire types."""
    data += _varint(random.choice((0, 1, 2, 5, 31, 99, 2**29 - 1)) << 3 | random.randrange(8))
    data += random.choice((b"", b"\x00", b"\x01", b"\xff" * 10, b"\xff" * 9 + b"\x01", b"\x04abc", bytes(8)))


def renumber(random: Random, data: bytearray) -> None:
    """Change the number of the first field."""
    if data:
        data[0] = random.randrange(32) << 3 & 0xFF | data[0] & 7


def nest(random: Random, data: bytearray) -> None:
    """Append nested groups or messages."""
    depth = random.choice((2, 100, 300))
    data[:0] = b"\x0b" * depth if random.random() < 0.5 else b"\x12\x02" * depth


def claim_a_length(random: Random, data: bytearray) -> None:
    """Append a length that exceeds the message."""
    at = _place(random, data)
    data[at : at + 1] = _varint(random.choice((0x7F, 0x4000, 2**31 - 1, 2**32 - 1, 2**63)))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit,
    flip_a_bit,
    set_a_byte,
    truncate,
    remove,
    duplicate,
    splice,
    insert,
    append_a_field,
    renumber,
    nest,
    claim_a_length,
)
