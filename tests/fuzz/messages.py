"""Messages of the contract, made by reflection from a seed: each field has values that are interesting for its name."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from irqchip.v1 import irqchip_pb2 as pb

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 23, 24, 63, 64, 127, 128, 255, 256, 0x400, 4095, 4096, 65535, 65536)
WIDE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x300, 0x301, 0x304, 0xFFFF, 0x10000)
ADDRESSES = (
    *(LAPIC + offset for offset in range(0, 0x400, 0x10)),
    *(IOAPIC + offset for offset in (0, 0x10, 0x40, 0xFF)),
    *(LAPIC | low for low in (0x1000, 0xFF000, 0x3000, 0xC)),
    0xFEE0_0001,
    0xFEDF_FFFF,
    0xD000_0000,
    0xD000_0004,
)
MSRS = (0x10, 0x1B, 0x6E0, 0x800, 0x802, 0x80B, 0x80D, 0x830, 0x832, 0x838, 0x83E, 0x83F, 0x8FF, 0x900)
STRUCTS = (0, 1, 15, 16, 17, 32, 111, 112, 113, 215, 216, 217, 1023, 1024, 1025)
NAMES = ("", "-", "x" * 64, "x" * 65, "x" * 300, "a/b", "nobody", "good\n", "\x1b]0;x\x07", "\U0001d7d8" * 20, "é")
TRACEPOINTS = ("kvm_pic_set_irq", "kvm_ioapic_set_irq", "kvm_eoi", "kvm_set_irq", "kvm_apic_accept_irq", "nothing")
REPEATED = (0, 1, 1, 1, 2, 2, 3, 5, 24)
# Of what the kernel has a register for each of: sometimes so many.
EXACT = {"redirection_entries": 24, "channels": 3, "successive_eois": 24, "sources": 40}


class Messages:
    """Makes valid and nearly valid messages about some VMs. The same random numbers make the same messages."""

    def __init__(self, random: Random, vms: Sequence[str]) -> None:
        self._random = random
        self.vms = vms

    def make(self, descriptor: Descriptor) -> Message:
        """A message of this kind."""
        message: Message = GetMessageClass(descriptor)()
        self.fill(message)
        return message

    def fill(self, message: Message) -> None:
        """Set the fields of a message, each perhaps; of a oneof, one."""
        random = self._random
        for oneof in message.DESCRIPTOR.oneofs:
            choices = _fields(oneof)
            if len(choices) > 1 and random.random() < 0.95:
                self._set(message, random.choice(choices))
        for field in _fields(message):
            within = field.containing_oneof
            if (within is None or len(within.fields) == 1) and random.random() < (0.98 if field.name == "vm" else 0.9):
                self._set(message, field)

    def alter(self, message: Message) -> None:
        """Set one field, somewhere in a message, to something else."""
        random = self._random
        for _ in range(8):
            inner = [found for found in message.ListFields() if found[0].message_type and not _is_map(found[0])]
            if not inner or random.random() < 0.3:
                break
            outer, value = random.choice(inner)
            message = random.choice(value) if outer.is_repeated else value
        choices = _fields(message)
        if not choices:
            return
        field = random.choice(choices)
        if random.random() < 0.2:
            message.ClearField(field.name)
        elif field.is_repeated and not _is_map(field) and not field.message_type and getattr(message, field.name):
            values = getattr(message, field.name)
            values[random.randrange(len(values))] = self._value(field)
        else:
            self._set(message, field)

    def operation(self) -> pb.Operation:
        """An operation, of which some are more likely: what changes much, and what is over soon."""
        operation = pb.Operation()
        fields = _fields(operation)
        field = self._random.choice(fields)
        if field.name == "halt" and self._random.random() < 0.7:
            field = self._random.choice(fields)
        self._set(operation, field)
        request = getattr(operation, field.name)
        if "vm" in request.DESCRIPTOR.fields_by_name and self._random.random() < 0.98:  # it is the Session's
            request.ClearField("vm")
        return operation

    def batch(self, operations: int) -> pb.SessionRequest:
        """A batch of so many at the most."""
        batch = pb.Batch(serial=self._number(64))
        batch.operations.extend(self.operation() for _ in range(self._random.randint(0, operations)))
        return pb.SessionRequest(batch=batch)

    def opening(self) -> pb.SessionRequest:
        """The first message of a Session, mostly one that opens it."""
        random = self._random
        opening = pb.SessionOpen(vm=self._vm())
        if random.random() < 0.5:
            opening.vcpus.extend(range(random.choice((1, 3, 255))))
            opening.gsis.extend(random.sample(range(24), 4))
        if random.random() < 0.2:
            opening.resampled_gsis.extend((9, 11))
        if random.random() < 0.2:
            self.fill(opening)
        return pb.SessionRequest(open=opening)

    def _set(self, message: Message, field: FieldDescriptor) -> None:
        random = self._random
        if _is_map(field):
            entries = getattr(message, field.name)
            key, value = _fields(getattr(message, field.name).GetEntryClass())
            for _ in range(random.choice(REPEATED)):
                entries[self._value(key)] = self._value(value)
        elif field.is_repeated:
            count = EXACT.get(field.name, 0) if random.random() < 0.5 else 0
            self._extend(getattr(message, field.name), field, count or random.choice(REPEATED))
        elif field.message_type:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self.fill(inner)
        else:
            setattr(message, field.name, self._value(field))

    def _extend(self, values: Any, field: FieldDescriptor, count: int) -> None:
        if field.name == "changes":
            values.extend(self._random.randrange(64) for _ in range(self._random.choice((1, 8, 64, 512))))
        elif field.name == "operations":
            values.extend(self.operation() for _ in range(count))
        elif field.message_type:
            for _ in range(count):
                self.fill(values.add())
        else:
            values.extend(self._value(field) for _ in range(count))

    def _value(self, field: FieldDescriptor) -> Any:
        random = self._random
        kind = field.cpp_type
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.choice(STRUCTS))
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field.name)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            known = [value.number for value in field.enum_type.values] if field.enum_type else []
            return random.choice(known) if random.random() < 0.9 else random.choice((-1, 99))
        value = self._integer(field.name)
        if kind == FieldDescriptor.CPPTYPE_INT32 or kind == FieldDescriptor.CPPTYPE_INT64:
            bits = 31 if kind == FieldDescriptor.CPPTYPE_INT32 else 63
            return value & (1 << bits) - 1 if random.random() < 0.7 else -1 - (value & (1 << bits) - 1)
        return value & (0xFFFF_FFFF if kind == FieldDescriptor.CPPTYPE_UINT32 else 2**64 - 1)

    def _vm(self) -> str:
        """A VM's name: the first have more that can be reached."""
        return self._random.choice(self.vms[:2] if self._random.random() < 0.6 else self.vms)

    def _text(self, name: str) -> str:
        random = self._random
        if name == "vm":
            return self._vm() if random.random() < 0.95 else random.choice(NAMES)
        if name == "tracepoints":
            return random.choice(TRACEPOINTS[:-1] if random.random() < 0.9 else TRACEPOINTS)
        return random.choice(NAMES) if random.random() < 0.3 else f"client-{random.randrange(4)}"

    def _integer(self, name: str) -> int:
        random = self._random
        odd = random.random() < 0.1
        if odd:
            return self._number(64)
        match name:
            case "vcpu" | "vcpus" | "rtc_vectors":
                return random.choice((0, 0, 0, 1, 1, 2, 3, 254))
            case "gsi" | "gsis" | "resampled_gsis" | "asserted_gsis" | "pin":
                return random.randrange(26)
            case "size":
                return random.choice((1, 1, 2, 4, 4, 8))
            case "port":
                return random.choice(PORTS)
            case "address":
                return random.choice(ADDRESSES) if random.random() < 0.7 else random.choice(PORTS)
            case "length":
                return random.choice((1, 2, 4, 8, 64, 4096))
            case "msr":
                return random.choice(MSRS)
            case "flags" | "version" | "space" | "chip_id":
                return random.choice((0, 0, 1, 1, 2, 3))
            case "timeout_ns":
                return random.choice((1, 1000, 1_000_000, 5_000_000))
            case "nanoseconds":
                return random.choice((0, 1, 1000, 1_000_000))
            case "capability":
                return random.choice((121, 121, 0, 25, 33, 36, 66, 120))
            case "access":
                return random.randrange(64)
            case "mode" | "rw_mode" | "vector":
                return random.randrange(256)
            case "page_size":
                return random.choice((0, 1, 2, 1000))
        return self._number(random.choice((4, 8, 8, 16, 32, 64)))

    def _number(self, bits: int) -> int:
        random = self._random
        choice = random.random()
        if choice < 0.4:
            return random.choice(EDGES)
        return random.getrandbits(bits) if choice < 0.8 else random.choice(WIDE)


def _fields(of: Any) -> list[FieldDescriptor]:
    """Of a message, or of a oneof."""
    fields: list[FieldDescriptor] = list(getattr(of, "DESCRIPTOR", of).fields)
    return fields


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)
