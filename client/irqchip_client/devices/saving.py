"""The state of a device model as plain data, which JSON can hold, and which a restore checks.

A model lists the attributes that are its state, and the values that each may have:

    class Doorbell(Device):
        STATE = {"rung": Number(0, 255), "_pending": FLAG}

Restored data are hostile: nothing is set before all of them have been checked.
"""

from __future__ import annotations

import errno
import reprlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from irqchip_client._errors import InvalidArgument

# The results of json.loads().
Plain = Any


class Kind:
    """The values that an attribute may have, and their plain form."""

    def save(self, value: Any) -> Plain:
        """The value as plain data."""
        return value

    def load(self, data: Plain, what: str) -> Any:
        """The value that plain data stand for. InvalidArgument, which names `what`, for other data."""
        raise NotImplementedError

    def put(self, owner: object, name: str, value: Any) -> None:
        """Sets the attribute to a value from load()."""
        setattr(owner, name, value)


Fields = Mapping[str, Kind]


def refused(what: str, data: Plain, allowed: str) -> InvalidArgument:
    """The error for a value that a device's state can't have."""
    try:
        shown = reprlib.repr(data)
    except ValueError:  # Python does not print numbers of more than some thousand digits.
        shown = "a very long number"
    return InvalidArgument(errno.EINVAL, f"a device's state: {what} is {shown}, and not {allowed}")


class Number(Kind):
    """A whole number within bounds."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._highest = lowest, highest

    def save(self, value: Any) -> Plain:
        return int(value)

    def load(self, data: Plain, what: str) -> int:
        if type(data) is not int or not self._lowest <= data <= self._highest:
            raise refused(what, data, f"a number from {self._lowest} to {self._highest}")
        return data


class Bits(Kind):
    """A register in which only some bits may be set; `made` makes the value from a number."""

    def __init__(self, mask: int, made: Callable[[int], Any] = int) -> None:
        self._mask, self._made = mask, made

    def save(self, value: Any) -> Plain:
        return int(value)

    def load(self, data: Plain, what: str) -> Any:
        if type(data) is not int or data < 0 or data & ~self._mask:
            raise refused(what, data, f"a combination of the bits {self._mask:#x}")
        return self._made(data)


class Choice(Kind):
    """One of some numbers; `made` makes the value from a number."""

    def __init__(self, numbers: Collection[int], made: Callable[[int], Any] = int) -> None:
        self._numbers, self._made = numbers, made

    def save(self, value: Any) -> Plain:
        return int(value)

    def load(self, data: Plain, what: str) -> Any:
        if type(data) is not int or data not in self._numbers:
            raise refused(what, data, f"one of {', '.join(str(int(each)) for each in self._numbers)}")
        return self._made(data)


class _Flag(Kind):
    def save(self, value: Any) -> Plain:
        return bool(value)

    def load(self, data: Plain, what: str) -> bool:
        if type(data) is not bool:
            raise refused(what, data, "true or false")
        return data


class _Seconds(Kind):
    """A time or duration within the range of any clock."""

    def load(self, data: Plain, what: str) -> float:
        if type(data) not in (int, float) or not -1e12 < data < 1e12:  # nan, too
            raise refused(what, data, "a number of seconds")
        return float(data)


class Text(Kind):
    """A deque of characters."""

    def save(self, value: Any) -> Plain:
        return "".join(value)

    def load(self, data: Plain, what: str) -> deque[str]:
        if type(data) is not str:
            raise refused(what, data, "a text")
        return deque(data)


BYTE = Number(0, 0xFF)
FLAG = _Flag()
SECONDS = _Seconds()


class OrNone(Kind):
    """A value of a kind, or None."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def save(self, value: Any) -> Plain:
        return None if value is None else self._kind.save(value)

    def load(self, data: Plain, what: str) -> Any:
        return None if data is None else self._kind.load(data, what)

    def put(self, owner: object, name: str, value: Any) -> None:
        if value is None:
            setattr(owner, name, None)
        else:
            self._kind.put(owner, name, value)


class TupleOf(Kind):
    """A tuple with these kinds of values, one each."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds

    def save(self, value: Any) -> Plain:
        return [kind.save(each) for kind, each in zip(self._kinds, value, strict=True)]

    def load(self, data: Plain, what: str) -> tuple[Any, ...]:
        if type(data) is not list or len(data) != len(self._kinds):
            raise refused(what, data, f"a list of {len(self._kinds)}")
        return tuple(
            kind.load(each, f"{what}[{at}]") for at, (kind, each) in enumerate(zip(self._kinds, data, strict=True))
        )


class Queue(Kind):
    """A deque of bounded length; with `keeps`, one that drops its oldest when it is full."""

    def __init__(self, kind: Kind, most: int, *, keeps: int | None = None) -> None:
        self._kind, self._most, self._keeps = kind, most, keeps

    def save(self, value: Any) -> Plain:
        return [self._kind.save(each) for each in value]

    def load(self, data: Plain, what: str) -> deque[Any]:
        if type(data) is not list or len(data) > self._most:
            raise refused(what, data, f"a list of at most {self._most}")
        return deque((self._kind.load(each, f"{what}[{at}]") for at, each in enumerate(data)), self._keeps)


class Octets(Kind):
    """A bytearray of fixed length, in hexadecimal."""

    def __init__(self, length: int) -> None:
        self._length = length

    def save(self, value: Any) -> Plain:
        return bytes(value).hex()

    def load(self, data: Plain, what: str) -> bytearray:
        try:
            value = bytearray.fromhex(data)
        except (TypeError, ValueError):
            value = bytearray()
        if len(value) != self._length or not isinstance(data, str):
            raise refused(what, data, f"{self._length} bytes in hexadecimal")
        return value


class Part(Kind):
    """An object with attributes of its own. A restore does not replace the object."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def save(self, value: Any) -> Plain:
        return save_fields(value, self._fields)

    def load(self, data: Plain, what: str) -> dict[str, Any]:
        return load_fields(data, self._fields, what)

    def put(self, owner: object, name: str, value: Any) -> None:
        put_fields(getattr(owner, name), self._fields, value)


def save_fields(owner: object, fields: Fields) -> dict[str, Plain]:
    """An object's attributes by name, as plain data."""
    return {_key(name): kind.save(getattr(owner, name)) for name, kind in fields.items()}


def load_fields(data: Plain, fields: Fields, what: str) -> dict[str, Any]:
    """The attributes' values from plain data. InvalidArgument for an invalid value, a missing or an unknown name."""
    check_keys(data, map(_key, fields), what)
    return {name: kind.load(data[_key(name)], f"{what}.{_key(name)}") for name, kind in fields.items()}


def put_fields(owner: object, fields: Fields, values: Mapping[str, Any]) -> None:
    """Sets the attributes."""
    for name, kind in fields.items():
        kind.put(owner, name, values[name])


def check_keys(data: Plain, keys: Iterable[str], what: str) -> None:
    """InvalidArgument unless data is an object with exactly these keys."""
    expected = list(keys)
    if type(data) is not dict or set(data) != set(expected):
        raise refused(what, data, f"an object of {', '.join(expected) or 'nothing'}")


def _key(attribute: str) -> str:
    return attribute.lstrip("_")
