"""Changes of saved states, which are dataclasses and tuples in each other."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any


def leaves(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a state."""
    if is_dataclass(part):
        return [leaf for field in fields(part) for leaf in leaves(getattr(part, field.name), (*path, field.name))]
    if isinstance(part, tuple):
        return [leaf for n, inner in enumerate(part) for leaf in leaves(inner, (*path, n))]
    return [path]


def value_at(state: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for step in path:
        state = getattr(state, step) if isinstance(step, str) else state[step]
    return state


def changed(part: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A state with another value at a path."""
    if not path:
        return value
    first, *rest = path
    if is_dataclass(part):
        assert not isinstance(part, type)
        return replace(part, **{first: changed(getattr(part, first), tuple(rest), value)})
    return (*part[:first], changed(part[first], tuple(rest), value), *part[first + 1 :])
