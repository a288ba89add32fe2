"""Checks that every chip makes of a saved state before it resumes: a snapshot may come from anywhere."""

from __future__ import annotations

from typing import Final

# How late a periodic timer is at the most when it resumes, nanoseconds. Earlier expiries are lost: in a snapshot a
# timer may be centuries late, and many such timers could keep a VM busy.
MAX_LATE: Final = 60_000_000_000


class StateError(ValueError):
    """A state that no chip can have; the message says why."""


def check(condition: object, what: str) -> None:
    """Refuse a state unless a condition holds; the text `what` describes the contradiction."""
    if not condition:
        raise StateError(what)


def in_range(value: int | None, least: int, most: int, what: str) -> None:
    """Refuse a number outside a range. An absent number is in range."""
    check(value is None or least <= value <= most, f"{what} is {value}; {least} to {most} are allowed")


def not_too_late(expires: int, period: int, now: int) -> int:
    """When a periodic timer is due; if it is more than MAX_LATE late, some of its periods later."""
    missed = now - MAX_LATE - expires
    return expires + -(-missed // period) * period if missed > 0 else expires
