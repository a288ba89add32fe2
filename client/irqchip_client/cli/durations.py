"""Lengths of time, as people write them: 10ms, 1.5s, 500us; nanoseconds where there is no unit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click

_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}


class _Duration(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        digits = value.rstrip("abcdefghijklmnopqrstuvwxyz")
        try:
            nanoseconds = Fraction(digits) * _UNITS[value[len(digits) :] or "ns"]
        except (ValueError, KeyError, ZeroDivisionError):
            self.fail(f"{value!r} is no length of time: write 10ms, 1.5s or 500us, or a number of ns", param, ctx)
        if nanoseconds.denominator > 1 or nanoseconds < 0:
            self.fail(f"{value!r} is not a whole number of ns, 0 or more", param, ctx)
        return int(nanoseconds)


DURATION = _Duration()


def show_duration(nanoseconds: int) -> str:
    """In the largest unit up to seconds of which it is 1 or more, exactly: "1.5ms"."""
    unit = next((unit for unit in ("s", "ms", "us") if nanoseconds >= _UNITS[unit]), "ns")
    whole, rest = divmod(nanoseconds, _UNITS[unit])
    digits = len(str(_UNITS[unit])) - 1
    fraction = f"{rest:0{digits}}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}{unit}" if fraction else f"{whole}{unit}"
