"""Durations, as users write them: 1.5s, 10ms, 500us, 20ns; without a unit, nanoseconds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import click

_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LENGTH = re.compile(r"(?P<number>[0-9]{1,40}(\.[0-9]{1,40})?)(?P<unit>s|ms|us|ns)?")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    name = "duration"
    example = "10ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        written = _LENGTH.fullmatch(value)
        if written is None:
            self.fail(
                f"{value!r:.100} is no length of time: write 1.5s, 10ms, 500us or 20ns; without a unit it is ns",
                param,
                ctx,
            )
        nanoseconds = Fraction(written["number"]) * _UNITS[written["unit"] or "ns"]
        if nanoseconds.denominator > 1:
            self.fail(
                f"{value!r:.100} is not a whole number of ns: write {value:.40}s or {value:.40}ms",
                param,
                ctx,
            )
        return int(nanoseconds)


DURATION = _Duration()


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    """A number of seconds, more than 0."""

    name = "seconds"
    example = 10

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r:.100} is no number of seconds: write 10 or 0.5", param, ctx)
        if not 0 < seconds <= _MOST_SECONDS:
            self.fail(f"{value} is out of range: use more than 0, and at most {_MOST_SECONDS:,}", param, ctx)
        return seconds


_MOST_SECONDS = 10_000_000  # Python's timers wait no longer than a few times this.
SECONDS = _Seconds()


def show_duration(nanoseconds: int) -> str:
    """A duration, exactly, in the largest unit up to seconds in which it is 1 or more: "1.5ms"."""
    unit = next((unit for unit in ("s", "ms", "us") if nanoseconds >= _UNITS[unit]), "ns")
    whole, rest = divmod(nanoseconds, _UNITS[unit])
    digits = len(str(_UNITS[unit])) - 1
    fraction = f"{rest:0{digits}}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}{unit}" if fraction else f"{whole}{unit}"
