"""Finds the wrong argument of a call, after protobuf or struct has refused it, and names the allowed values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Any

from ._call import is_flag
from ._model import AdapterRoute, Architecture, InterruptSource, MpState, MsiRoute, PinRoute, ResetReason, Space
from ._state import Chip

_WORD, _LONG = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

# By an argument's name: a description, and the highest number allowed.
_NUMBERS = {
    "adapter_id": ("an adapter's number", _WORD),
    "access": ("the number of a RegionAccess", _LONG),
    "address": ("an address", _LONG),
    "capability": ("a KVM_CAP_* number", _WORD),
    "data": ("a value", _LONG),
    "datamatch": ("the value that rings a doorbell", _LONG),
    "flags": ("KVM's flags", _WORD),
    "gsi": ("a GSI", _WORD),
    "ind_addr": ("a guest physical address", _LONG),
    "ind_offset": ("a number of bits", _LONG),
    "length": ("a number of bytes", _LONG),
    "msr": ("the number of a model-specific register", _WORD),
    "nanoseconds": ("a time in nanoseconds", _LONG),
    "physical_address_bits": ("a number of bits", 52),
    "offset": ("a number of bytes", _LONG),
    "parm": ("a parameter", _WORD),
    "parm64": ("a parameter", _LONG),
    "pin": ("a pin", _WORD),
    "attr": ("the number of an attribute", _LONG),
    "device": ("the number of a device", _WORD),
    "features": ("KVM's features, one bit each,", _WORD),
    "group": ("the group of an attribute", _WORD),
    "id": ("KVM's number of a frame", _LONG),
    "sysreg": ("the number of a system register", 0xFFFF),
    "target": ("a KVM_ARM_TARGET_* number", _WORD),
    "type": ("a KVM_DEV_TYPE_* number", _WORD),
    "port": ("a port", 0xFFFF),
    "size": ("a number of bytes", 8),
    "summary_addr": ("a guest physical address", _LONG),
    "summary_offset": ("a number of bits", _WORD),
    "tsc_khz": ("a frequency in kHz", _WORD),
    "vcpu": ("a vCPU's id", _WORD),
    "value": ("a value of CR8", 15),
    "vector": ("a vector", 0xFF),
}
# Calls whose values have fewer bits than those of other calls.
_NARROW = {("pio_write", "data"): _WORD, ("signal_msi", "data"): _WORD, ("MsiRoute", "data"): _WORD}
_TEXTS = frozenset({"name", "client"})
_MEMBERS: dict[tuple[str, str], type[IntEnum]] = {
    ("register_region", "space"): Space,
    ("register_ioeventfd", "space"): Space,
    ("unregister_region", "space"): Space,
    ("get_irqchip", "chip"): Chip,
    ("set_irqchip", "chip"): Chip,
    ("PinRoute", "chip"): Chip,
    ("ack_interrupt", "source"): InterruptSource,
    ("set_mp_state", "state"): MpState,
    ("reset_vm", "reason"): ResetReason,
    ("create_vm", "architecture"): Architecture,
    ("check_extension", "architecture"): Architecture,
}
_LISTS = {
    "args": ("numbers", "an argument"),
    "vcpus": ("ids of vCPUs", "a vCPU's id"),
    "gsis": ("GSIs", "a GSI"),
    "resampled_gsis": ("GSIs", "a GSI"),
    "tracepoints": ("tracepoints' names", "a tracepoint's name"),
}


def what_is_wrong(
    call: str, arguments: Mapping[str, Any], optional: frozenset[str] = frozenset(), flags: Collection[str] = ()
) -> str | None:
    """The first wrong argument, what it is and what is allowed; None if all arguments look right.

    `optional` names those that may be None, `flags` those that are False or True.
    """
    for name, value in arguments.items():
        if value is None and name in optional:
            continue
        wrong = _wrong_flag(name, value) if name in flags else _wrong(call, name, value)
        if wrong is not None:
            return wrong
    return None


def _wrong(call: str, name: str, value: Any) -> str | None:
    shown = f"{name} is {value!r:.200}"
    if name in _NUMBERS:
        what, most = _NUMBERS[name]
        return _wrong_number(shown, value, what, _NARROW.get((call, name), most))
    if name in _TEXTS:
        return _wrong_text(name, value)
    if name == "changes":
        return _wrong_changes(value)
    if name == "routes":
        return _wrong_routes(value)
    if name in _LISTS:
        return _wrong_list(name, value)
    if (members := _MEMBERS.get((call, name))) is not None and value not in list(members):
        return f"{shown}; use one of {', '.join(f'{members.__name__}.{member.name}' for member in members)}"
    if (
        call.startswith("set_")
        and name == "state"
        and not isinstance(value, bytes)
        and not hasattr(value, "kvm_struct")
    ):
        return f"{shown}, {_kind(value)}; use the chip's state, as the get_ call gives it, or the kernel's struct"
    return f"{shown}, which is not allowed: give a value, or leave it out" if value is None else None


def _wrong_number(shown: str, value: Any, what: str, most: int) -> str | None:
    allowed = f"use {what} from 0 to {most:#x}" if most > 9 else f"use {what} from 0 to {most}"
    if not isinstance(value, int):
        kind = "whole number" if isinstance(value, float) else "number"
        return f"{shown}, {_is_no(value, kind)}; {allowed}{_as_number(value)}"
    if not 0 <= value <= most:
        return f"{shown}, out of range: {allowed}"
    return None


def _wrong_flag(name: str, value: object) -> str | None:
    return None if is_flag(value) else f"{name} is {value!r:.200}: write True or False"


def _wrong_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name} is {value!r:.200}, {_is_no(value, 'text')}: write it in quotes"
    if not value.isprintable():
        return f"{name} is {value!r:.200}, which has characters that can't be printed; leave them out"
    return None


def _wrong_changes(value: Any) -> str | None:
    if not isinstance(value, Iterable):
        return f"changes is {value!r:.200}, {_is_no(value, 'list of GSIs with their levels')}: write [(4, True)]"
    for position, change in enumerate(value):
        shown = f"changes[{position}]"
        if not isinstance(change, tuple | list) or len(change) != 2:
            return f"{shown} is {change!r:.200}, and no GSI with its level: write (4, True)"
        gsi, level = change
        if wrong := _wrong("irq_lines", "gsi", gsi) or _wrong_flag("level", level):
            return f"{shown} is {change!r:.200}: {wrong}"
    return None


def _wrong_routes(value: Any) -> str | None:
    if not isinstance(value, Iterable):
        return f"routes is {value!r:.200}, {_is_no(value, 'list of routes')}: write [PinRoute(...)]"
    for position, route in enumerate(value):
        if not isinstance(route, PinRoute | MsiRoute | AdapterRoute):
            return f"routes[{position}] is {route!r:.200}, {_kind(route)}; use a PinRoute, MsiRoute or AdapterRoute"
        fields = {name: getattr(route, name) for name in type(route).__slots__}
        if (wrong := what_is_wrong(type(route).__name__, fields)) is not None:
            return f"routes[{position}].{wrong}"
    return None


def _wrong_list(name: str, value: Any) -> str | None:
    items, what = _LISTS[name]
    if isinstance(value, str) or not isinstance(value, Iterable):
        item = value if name != "tracepoints" and _as_number(value) else repr(value)
        return f"{name} is {value!r:.200}, {_kind(value)}; it is a list of {items}: write [{item:.200}]"
    for position, item in enumerate(value):
        shown = f"{name}[{position}] is {item!r:.200}"
        if name == "tracepoints":
            if not isinstance(item, str):
                return f"{shown}, {_is_no(item, 'text')}; it is {what}: write 'kvm_pio'"
        elif (wrong := _wrong_number(shown, item, what, _LONG if name == "args" else _WORD)) is not None:
            return wrong
    return None


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _is_no(value: object, what: str) -> str:
    return f"and no {what}" if value is None else f"{_kind(value)} and no {what}"


def _as_number(value: object) -> str:
    """The advice for a text or a float that reads as a number."""
    if isinstance(value, float) and value.is_integer():
        return f": write {value:.0f}"
    if isinstance(value, str):
        with suppress(ValueError):
            int(value, 0)
            return f": write {value.strip():.40} without quotes, or int(text, 0)"
    return ""
