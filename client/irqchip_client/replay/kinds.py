"""The kinds of arguments of a trace's operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The values that an argument may have."""

    description: str
    accepts: Callable[[Any], bool]


def number(bits: int) -> Kind:
    """An unsigned number. A JSON true is not a number, although Python's True is an int."""
    limit = 1 << bits
    return Kind(f"a number of {bits} bits", lambda value: type(value) is int and 0 <= value < limit)


def _is_hex(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(bytes.fromhex(value)) * 2 == len(value)
    except ValueError:
        return False


U32, U64 = number(32), number(64)
LEVEL = Kind("0 or 1", lambda value: type(value) is int and value in (0, 1))
HEX = Kind("bytes in hexadecimal", _is_hex)

# The operations of an architecture, each with its arguments in their order.
Operations = Mapping[str, Mapping[str, Kind]]
