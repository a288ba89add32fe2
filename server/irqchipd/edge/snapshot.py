"""Between VmSnapshot and VmState, whose fields have the same names and values: both directions use these names.

A message that a state can't hold is refused with EINVAL; the VM checks whether the state is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.chips.gic.gicv2 import SavedGicV2
from irqchipd.chips.gic.gicv3 import SavedGicV3, SavedRedistributor
from irqchipd.chips.gic.interrupt import PRIVATE
from irqchipd.chips.gic.saving import MOST_INTERRUPTS, SavedGicCpu, SavedInterrupt, SavedListRegister
from irqchipd.chips.i8254_state import SavedPit
from irqchipd.chips.s390.adapters import MAX_ADAPTERS, Adapter
from irqchipd.chips.s390.flic import SavedFlic
from irqchipd.chips.s390.floating import SavedFloating
from irqchipd.chips.s390.local import SavedLocal
from irqchipd.edge.convert import interrupt_to, route_from, route_to
from irqchipd.vm.arm64.host import MOST_LIST_REGISTERS
from irqchipd.vm.arm64.numbers import MAX_DEVICES
from irqchipd.vm.arm64.places import MAX_REGIONS
from irqchipd.vm.arm64.states import Arm64State, Arm64VcpuState, ItsState, PlaceState, RegionState
from irqchipd.vm.arm64.timer import SavedTimer
from irqchipd.vm.errors import invalid
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import MAX_GSIS
from irqchipd.vm.s390.cpu import MAX_ACCEPTED, SavedS390Vcpu
from irqchipd.vm.snapshot import X86, ChipsState, S390State, SourceState, VmState
from irqchipd.vm.sources import MAX_SOURCES
from irqchipd.vm.x86.vcpu_state import MAX_QUEUED, SavedVcpu

VERSION = 2

_T = TypeVar("_T")

# The meaning of unspecified numbers, in snapshots of older daemons.
_UNSPECIFIED = {"architecture": X86}
# The parts that an s390 VM's state always has.
_ALWAYS = {"flic", "floating", "local"}
# The maximum number of parts, by kind.
_MOST = {
    "routing": MAX_GSIS,
    "vcpus": MAX_VCPUS,
    "sources": MAX_SOURCES,
    "queued": MAX_QUEUED,
    "adapters": MAX_ADAPTERS,
    "accepted": MAX_ACCEPTED,
    "cpus": MAX_VCPUS,
    "redistributors": MAX_VCPUS,
    "private": PRIVATE,
    "spis": MOST_INTERRUPTS,
    "regions": MAX_REGIONS,
    "its": MAX_DEVICES,
    "list_registers": MOST_LIST_REGISTERS,
}


def snapshot_to(state: VmState) -> pb.VmSnapshot:
    """The message that holds a VM's state."""
    snapshot: pb.VmSnapshot = _message_of(pb.VmSnapshot, state)
    snapshot.version = VERSION
    return snapshot


def snapshot_from(snapshot: pb.VmSnapshot) -> VmState:
    """The state that a message holds."""
    if snapshot.version != VERSION:
        raise invalid(f"the snapshot has version {snapshot.version}; this daemon takes version {VERSION}")
    return _state_of(VmState, snapshot)


class _Field:
    """The static properties of a field. They are cached, because a VM has hundreds of parts of the same few kinds."""

    __slots__ = ("enum", "has_presence", "is_map", "is_repeated", "most", "name", "parts")

    def __init__(self, field: Any) -> None:
        self.name = field.name
        self.enum = field.enum_type
        self.has_presence = field.has_presence
        self.is_repeated = field.is_repeated
        self.is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        self.parts = None if field.message_type is None or self.is_map else _PARTS[field.message_type.name]
        self.most = _MOST.get(field.name)


_FIELDS: dict[str, list[_Field]] = {}  # by the name of the part's message


def _fields_of(part: Any, message: type[Message]) -> list[_Field]:
    name = message.DESCRIPTOR.name
    known = _FIELDS.get(name)
    if known is None:
        descriptors = message.DESCRIPTOR.fields_by_name
        known = _FIELDS[name] = [_Field(descriptors[field.name]) for field in fields(part)]
    return known


def _message_of(kind: type[Message], state: Any) -> Any:
    """A message of a kind, with the fields of a state."""
    known = _fields_of(state, kind)
    return kind(**{field.name: _wire_value(field, getattr(state, field.name)) for field in known})


def _wire_value(field: _Field, value: Any) -> Any:
    """The value of a field for the constructor of a message."""
    if value is None or field.parts is None:
        return value
    convert, _ = field.parts
    return [convert(part) for part in value] if field.is_repeated else convert(value)


def _state_of(kind: type[_T], message: Message) -> _T:
    """A state of a kind, with the fields of a message."""
    return kind(**{field.name: _plain_value(field, message) for field in _fields_of(kind, type(message))})


def _plain_value(field: _Field, message: Message) -> Any:
    """The value of a field for a state."""
    if field.has_presence and not message.HasField(field.name) and field.name not in _ALWAYS:
        return None
    value = getattr(message, field.name)
    if field.parts is not None:
        _, convert = field.parts
        if not field.is_repeated:
            return convert(value)
        if field.most is not None and len(value) > field.most:  # converting them all would take long
            raise invalid(f"no VM has this state: {len(value)} {field.name}; at most {field.most} are allowed")
        return tuple(convert(part) for part in value)
    if field.is_map:
        return dict(value)
    if field.enum is not None:
        value = value or _UNSPECIFIED.get(field.name, value)
        _check_number(field.enum, value)
    return tuple(value) if field.is_repeated else value


def _check_number(kind: EnumDescriptor, number: int) -> None:
    numbers = [value.number for value in kind.values if value.number]  # 0 is unspecified
    if number not in numbers:
        raise invalid(f"{kind.name} {number} is invalid; there are {', '.join(map(str, numbers))}")


def _interrupt_from(message: pb.Interrupt) -> tuple[int, bool]:
    if message.source not in (pb.INTERRUPT_SOURCE_PIC, pb.INTERRUPT_SOURCE_LAPIC):
        raise invalid("the source of a queued interrupt is invalid; there are 1 the PIC, 2 the local APIC")
    return message.vector, message.source == pb.INTERRUPT_SOURCE_PIC


# The conversions of the parts of a state to messages in a snapshot, and back.
_PARTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "RoutingEntry": (route_to, route_from),
    "Interrupt": (interrupt_to, _interrupt_from),
    "ChipsSnapshot": (partial(_message_of, pb.ChipsSnapshot), partial(_state_of, ChipsState)),
    "PitSnapshot": (partial(_message_of, pb.PitSnapshot), partial(_state_of, SavedPit)),
    "VcpuSnapshot": (partial(_message_of, pb.VcpuSnapshot), partial(_state_of, SavedVcpu)),
    "Arm64Snapshot": (partial(_message_of, pb.Arm64Snapshot), partial(_state_of, Arm64State)),
    "Arm64VcpuSnapshot": (partial(_message_of, pb.Arm64VcpuSnapshot), partial(_state_of, Arm64VcpuState)),
    "TimerSnapshot": (partial(_message_of, pb.TimerSnapshot), partial(_state_of, SavedTimer)),
    "GicRegionSnapshot": (partial(_message_of, pb.GicRegionSnapshot), partial(_state_of, RegionState)),
    "GicPlaceSnapshot": (partial(_message_of, pb.GicPlaceSnapshot), partial(_state_of, PlaceState)),
    "GicV2Snapshot": (partial(_message_of, pb.GicV2Snapshot), partial(_state_of, SavedGicV2)),
    "GicV3Snapshot": (partial(_message_of, pb.GicV3Snapshot), partial(_state_of, SavedGicV3)),
    "ItsSnapshot": (partial(_message_of, pb.ItsSnapshot), partial(_state_of, ItsState)),
    "RedistributorSnapshot": (partial(_message_of, pb.RedistributorSnapshot), partial(_state_of, SavedRedistributor)),
    "GicCpuSnapshot": (partial(_message_of, pb.GicCpuSnapshot), partial(_state_of, SavedGicCpu)),
    "GicInterruptSnapshot": (partial(_message_of, pb.GicInterruptSnapshot), partial(_state_of, SavedInterrupt)),
    "GicListRegisterSnapshot": (
        partial(_message_of, pb.GicListRegisterSnapshot),
        partial(_state_of, SavedListRegister),
    ),
    "S390Snapshot": (partial(_message_of, pb.S390Snapshot), partial(_state_of, S390State)),
    "FlicSnapshot": (partial(_message_of, pb.FlicSnapshot), partial(_state_of, SavedFlic)),
    "FloatingSnapshot": (partial(_message_of, pb.FloatingSnapshot), partial(_state_of, SavedFloating)),
    "AdapterSnapshot": (partial(_message_of, pb.AdapterSnapshot), partial(_state_of, Adapter)),
    "S390VcpuSnapshot": (partial(_message_of, pb.S390VcpuSnapshot), partial(_state_of, SavedS390Vcpu)),
    "LocalSnapshot": (partial(_message_of, pb.LocalSnapshot), partial(_state_of, SavedLocal)),
    "SourceSnapshot": (partial(_message_of, pb.SourceSnapshot), partial(_state_of, SourceState)),
}
