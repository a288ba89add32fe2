"""A flattened device tree: a machine's description for its guest. Devicetree Specification 0.4, chapter 5."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

MAGIC, VERSION, LAST_COMPATIBLE = 0xD00D_FEED, 17, 16
BEGIN_NODE, END_NODE, PROPERTY, END = (struct.pack(">I", token) for token in (1, 2, 3, 9))
HEADER: Final = struct.Struct(">10I")

Value = str | int | bytes | tuple[int, ...] | tuple[str, ...] | None


def address(*numbers: int) -> tuple[int, ...]:
    """Addresses and sizes of 64 bits, in two cells each."""
    return tuple(cell for number in numbers for cell in (number >> 32, number & 0xFFFF_FFFF))


@dataclass(frozen=True, slots=True)
class Node:
    """A node. A property's value is a text, texts, cells of 32 bits, bytes, or None for an empty property."""

    name: str
    properties: Mapping[str, Value]
    children: Iterable[Node] = field(default=())


def flatten(root: Node) -> bytes:
    """The tree in the form that a guest reads."""
    strings = bytearray()
    places: dict[str, int] = {}
    structure = bytearray()
    _append(root, structure, strings, places)
    structure += END
    reservations = HEADER.size
    at = reservations + 16  # no reserved memory: one empty entry
    behind = at + len(structure)
    header = HEADER.pack(
        *(MAGIC, behind + len(strings), at, behind, reservations, VERSION, LAST_COMPATIBLE, 0),
        *(len(strings), len(structure)),
    )
    return header + bytes(16) + structure + strings


def _append(node: Node, structure: bytearray, strings: bytearray, places: dict[str, int]) -> None:
    structure += BEGIN_NODE + _padded(node.name.encode() + b"\0")
    for name, value in node.properties.items():
        if name not in places:
            places[name] = len(strings)
            strings += name.encode() + b"\0"
        data = _encode(value)
        structure += PROPERTY + struct.pack(">2I", len(data), places[name]) + _padded(data)
    for child in node.children:
        _append(child, structure, strings, places)
    structure += END_NODE


def _encode(value: Value) -> bytes:
    match value:
        case None:
            return b""
        case bytes():
            return value
        case str():
            return value.encode() + b"\0"
        case int():
            return struct.pack(">I", value)
    return b"".join(map(_encode, value))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
