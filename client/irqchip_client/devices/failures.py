"""Describes a device's exception to the device's author: the call, and the place in the device's own code."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .device import Device

# Files whose frames belong to no device.
_CALLERS = tuple(
    str(Path(__file__).with_name(f"{name}.py")) for name in ("device", "host", "bells", "reactor", "failures")
)


class _Blame(str):
    """A note that this module has added."""

    __slots__ = ()


def blame(error: BaseException, device: Device, call: str) -> None:
    """Adds a note to an exception: the device, and the call that failed."""
    if _blame_of(error) is None:
        error.add_note(_Blame(f"{type(device).__name__} failed in {call}"))


def call_device(device: Device, what: str, call: Callable[[], None]) -> None:
    """Calls a device. An exception gets a note with the device and the call."""
    try:
        call()
    except Exception as error:
        blame(error, device, what)
        raise


def describe_failure(error: BaseException) -> str | None:
    """The device, the call, and the device's own part of the traceback; None for an exception of no device."""
    note = _blame_of(error)
    if note is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    begin = max((at for at, frame in enumerate(frames, 1) if frame.filename in _CALLERS), default=0)
    own = "".join(traceback.format_list(frames[begin:])).rstrip()
    return "\n".join(filter(None, (f"{note}:", own, f"{type(error).__name__}: {error}")))


def _blame_of(error: BaseException) -> str | None:
    return next((note for note in getattr(error, "__notes__", ()) if isinstance(note, _Blame)), None)
