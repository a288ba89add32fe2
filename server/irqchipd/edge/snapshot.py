"""Between VmSnapshot and VmState, whose fields have the same names and values: both directions go by these names.

What a message can say and a state can't hold is refused with EINVAL; whether a VM can be so is the VM's to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.edge.convert import interrupt_to, route_from, route_to
from irqchipd.vm.errors import invalid
from irqchipd.vm.snapshot import ChipsState, PitTimerState, SourceState, VcpuState, VmState

VERSION = 1

_T = TypeVar("_T")


def snapshot_to(state: VmState) -> pb.VmSnapshot:
    """The message that holds a VM's state."""
    snapshot: pb.VmSnapshot = _message_of(pb.VmSnapshot, state)
    snapshot.version = VERSION
    return snapshot


def snapshot_from(snapshot: pb.VmSnapshot) -> VmState:
    """The state that a message holds."""
    if snapshot.version != VERSION:
        raise invalid(f"the snapshot is of version {snapshot.version}; this daemon takes version {VERSION}")
    return _state_of(VmState, snapshot)


def _message_of(kind: Callable[..., Any], state: Any) -> Any:
    """A message of a kind, with the fields of a state."""
    descriptors = kind.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return kind(**{name: _wire_value(descriptors[name], value) for name, value in values.items()})


def _wire_value(field: FieldDescriptor, value: Any) -> Any:
    """What a message's constructor takes for a field."""
    if value is None or field.message_type is None or field.message_type.GetOptions().map_entry:
        return value
    convert, _ = _PARTS[field.message_type.name]
    return [convert(part) for part in value] if field.is_repeated else convert(value)


def _state_of(kind: type[_T], message: Message) -> _T:
    """A state of a kind, with the fields of a message."""
    descriptors = message.DESCRIPTOR.fields_by_name
    return kind(**{field.name: _plain_value(descriptors[field.name], message) for field in fields(kind)})  # type: ignore[arg-type]


def _plain_value(field: FieldDescriptor, message: Message) -> Any:
    """What a state has for a field."""
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return dict(value)
        _, convert = _PARTS[field.message_type.name]
        return tuple(convert(part) for part in value) if field.is_repeated else convert(value)
    if field.enum_type is not None:
        _check_number(field.enum_type, value)
    return tuple(value) if field.is_repeated else value


def _check_number(kind: EnumDescriptor, number: int) -> None:
    numbers = [value.number for value in kind.values if value.number]  # 0 is unspecified
    if number not in numbers:
        raise invalid(f"{kind.name} {number} is none: {numbers[0]} to {numbers[-1]}")


def _interrupt_from(message: pb.AckInterruptResponse) -> tuple[int, bool]:
    if not message.HasField("vector") or message.source not in (pb.INTERRUPT_SOURCE_PIC, pb.INTERRUPT_SOURCE_LAPIC):
        raise invalid("an interrupt that is queued has a vector, and a source: 1 the PIC, 2 the local APIC")
    return message.vector, message.source == pb.INTERRUPT_SOURCE_PIC


# How the messages within a snapshot are made of the parts of a state, and the reverse.
_PARTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "RoutingEntry": (route_to, route_from),
    "AckInterruptResponse": (interrupt_to, _interrupt_from),
    "ChipsSnapshot": (partial(_message_of, pb.ChipsSnapshot), partial(_state_of, ChipsState)),
    "PitSnapshot": (partial(_message_of, pb.PitSnapshot), partial(_state_of, PitTimerState)),
    "VcpuSnapshot": (partial(_message_of, pb.VcpuSnapshot), partial(_state_of, VcpuState)),
    "SourceSnapshot": (partial(_message_of, pb.SourceSnapshot), partial(_state_of, SourceState)),
}
