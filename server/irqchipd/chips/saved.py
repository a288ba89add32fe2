"""What every chip checks of a saved state before it resumes it: a snapshot may come from anywhere."""

from __future__ import annotations

from typing import Final

# How late a periodic timer is at the most when it resumes, nanoseconds. A snapshot may say that a timer is centuries
# late, and a VM may have more timers than time: the expiries before that are lost.
MAX_LATE: Final = 60_000_000_000


class StateError(ValueError):
    """No chip can be in this state; the message says why."""


def check(condition: object, what: str) -> None:
    """Refuse a state unless a condition holds; what names the contradiction."""
    if not condition:
        raise StateError(what)


def in_range(value: int | None, least: int, most: int, what: str) -> None:
    """Refuse a number outside a range. An absent number is in range."""
    check(value is None or least <= value <= most, f"{what} is {value}; {least} to {most} are allowed")


def not_too_late(expires: int, period: int, now: int) -> int:
    """When a periodic timer is due: a multiple of its period later where it would be more than MAX_LATE late."""
    missed = now - MAX_LATE - expires
    return expires + -(-missed // period) * period if missed > 0 else expires
