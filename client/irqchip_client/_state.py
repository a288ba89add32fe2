"""The state of the chips, decoded from the kernel's structs and encoded back into them.

Each state reads `kvm_struct` from its fields, so dataclasses.replace() gives a consistent state. `from_kvm_struct`
makes each from the kernel's bytes, so it also decodes the structs of KVM_GET_IRQCHIP, KVM_GET_LAPIC and KVM_GET_PIT2.
Both raise InvalidArgument: `kvm_struct` for a field that is out of range, `from_kvm_struct` for bytes of the wrong
length.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import Any, Self

from ._errors import InvalidArgument

_PIC = struct.Struct("<16B")
_IOAPIC = struct.Struct("<QIIII24Q")
_LAPIC_BYTES = 1024
_PIT_CHANNEL = struct.Struct("<IH10Bq")
_PIT_REST = struct.Struct("<I36x")  # The flags, and reserved bytes.
_PIT_BYTES = 3 * _PIT_CHANNEL.size + _PIT_REST.size


class Chip(IntEnum):
    """KVM's chip ids."""

    PIC_PRIMARY = 0
    PIC_SECONDARY = 1
    IOAPIC = 2
    GIC = 0  # arm64's only chip, in routes.


class DeliveryMode(IntEnum):
    """Bits 10:8 of a redirection entry, of an LVT entry, of the ICR and of an MSI's data."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    REMOTE_READ = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


@dataclass(frozen=True, slots=True)
class PicState:
    """struct kvm_pic_state: one 8259. All fields are 8 bits wide."""

    last_irr: int = 0  # The lines as last sampled, for edge detection.
    irr: int = 0  # Interrupt request register.
    imr: int = 0  # Interrupt mask register.
    isr: int = 0  # In-service register.
    priority_add: int = 0  # The line that has the highest priority.
    irq_base: int = 0  # Vector base (ICW2).
    read_reg_select: int = 0  # Reads of the even port give ISR (1) or IRR (0).
    poll: int = 0  # The next read is a poll.
    special_mask: int = 0  # KVM stores it and does not act on it.
    init_state: int = 0  # The ICW expected next: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0  # ICW1 asked for ICW4.
    elcr: int = 0  # Edge/level control register: 1 is level.
    elcr_mask: int = 0  # The bits of elcr that a guest may set.

    @classmethod
    def from_kvm_struct(cls, data: bytes) -> Self:
        """The state that the kernel's struct holds. InvalidArgument for bytes of another length."""
        _check_length(data, _PIC.size, "struct kvm_pic_state")
        return cls(*data)

    @property
    def kvm_struct(self) -> bytes:
        """The kernel's struct. Raises InvalidArgument if a field does not fit."""
        return _pack(_PIC, *astuple(self))


@dataclass(frozen=True, slots=True)
class RedirectionEntry:
    """A redirection entry of the IOAPIC.

    63      56 55      17   16     15      14         13         12       11      10        8 7      0
    destination reserved  mask  trigger remote IRR polarity  delivery  logical  delivery mode  vector
                                                             status
    """

    vector: int = 0
    delivery_mode: DeliveryMode = DeliveryMode.FIXED
    logical: bool = False  # The destination is a set of logical APIC ids, not a physical one.
    pending: bool = False  # Delivery status.
    active_low: bool = False  # KVM stores the polarity and does not act on it.
    remote_irr: bool = False  # Level-triggered, delivered, and waiting for the EOI.
    level_triggered: bool = False
    masked: bool = False
    reserved: int = 0  # Bits 55:17, unchanged.
    destination: int = 0

    @classmethod
    def from_raw(cls, raw: int) -> Self:
        """The entry that these 64 bits encode."""
        return cls(
            vector=raw & 0xFF,
            delivery_mode=DeliveryMode(raw >> 8 & 7),
            logical=bool(raw & 1 << 11),
            pending=bool(raw & 1 << 12),
            active_low=bool(raw & 1 << 13),
            remote_irr=bool(raw & 1 << 14),
            level_triggered=bool(raw & 1 << 15),
            masked=bool(raw & 1 << 16),
            reserved=raw >> 17 & (1 << 39) - 1,
            destination=raw >> 56,
        )

    @property
    def raw(self) -> int:
        """The 64 bits. Raises InvalidArgument if a field does not fit."""
        if not (0 <= self.vector < 256 and 0 <= self.destination < 256 and 0 <= self.reserved < 1 << 39):
            raise InvalidArgument(errno.EINVAL, f"vector and destination are 0 to 255, reserved has 39 bits: {self}")
        return (
            self.vector
            | self.delivery_mode << 8
            | self.logical << 11
            | self.pending << 12
            | self.active_low << 13
            | self.remote_irr << 14
            | self.level_triggered << 15
            | self.masked << 16
            | self.reserved << 17
            | self.destination << 56
        )


_MASKED_ENTRY = RedirectionEntry(masked=True)


@dataclass(frozen=True, slots=True)
class IoapicState:
    """struct kvm_ioapic_state. The defaults are the reset state."""

    base_address: int = 0xFEC00000  # Guest physical address of the register window.
    ioregsel: int = 0  # The selected register.
    id: int = 0
    irr: int = 0  # Pins that are asserted and not delivered, one bit a pin.
    entries: tuple[RedirectionEntry, ...] = (_MASKED_ENTRY,) * 24

    @classmethod
    def from_kvm_struct(cls, data: bytes) -> Self:
        """The state that the kernel's struct holds. InvalidArgument for bytes of another length."""
        _check_length(data, _IOAPIC.size, "struct kvm_ioapic_state")
        base_address, ioregsel, id_, irr, _padding, *entries = _IOAPIC.unpack(data)
        return cls(base_address, ioregsel, id_, irr, tuple(RedirectionEntry.from_raw(entry) for entry in entries))

    @property
    def kvm_struct(self) -> bytes:
        """The kernel's struct. Raises InvalidArgument if a field does not fit."""
        entries = [entry.raw for entry in self.entries]
        return _pack(_IOAPIC, self.base_address, self.ioregsel, self.id, self.irr, 0, *entries)


_LAPIC_REGISTERS = {
    "id": 0x020,
    "version": 0x030,
    "tpr": 0x080,
    "ppr": 0x0A0,
    "ldr": 0x0D0,
    "dfr": 0x0E0,
    "svr": 0x0F0,
    "esr": 0x280,
    "icr": 0x300,
    "icr2": 0x310,
    "lvt_timer": 0x320,
    "lvt_thermal": 0x330,
    "lvt_performance": 0x340,
    "lvt_lint0": 0x350,
    "lvt_lint1": 0x360,
    "lvt_error": 0x370,
    "timer_initial_count": 0x380,
    "timer_current_count": 0x390,
    "timer_divide": 0x3E0,
}
_LAPIC_VECTORS = {"isr": 0x100, "tmr": 0x180, "irr": 0x200}  # 256 bits each, 32 in every 16 bytes.
_REGISTER = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class LapicState:
    """struct kvm_lapic_state: the local APIC's register page. Registers hold their raw 32 bits."""

    id: int  # The id in bits 31:24; with KVM_CAP_X2APIC_API, an x2APIC's id in all 32.
    version: int
    tpr: int  # Task priority.
    ppr: int  # Processor priority.
    ldr: int  # Logical destination.
    dfr: int  # Destination format.
    svr: int  # Spurious interrupt vector; bit 8 enables the APIC.
    esr: int  # Error status.
    icr: int  # Interrupt command, low half.
    icr2: int  # Interrupt command, high half.
    lvt_timer: int
    lvt_thermal: int
    lvt_performance: int
    lvt_lint0: int
    lvt_lint1: int
    lvt_error: int
    timer_initial_count: int
    timer_current_count: int
    timer_divide: int
    isr: tuple[int, ...]  # Vectors in service, ascending.
    tmr: tuple[int, ...]  # Vectors whose last acceptance was level-triggered, ascending.
    irr: tuple[int, ...]  # Vectors requested, ascending.
    # The bytes of the page without a field above: kept, because the kernel keeps them.
    rest: bytes = field(default=bytes(_LAPIC_BYTES), repr=False)

    @classmethod
    def from_kvm_struct(cls, data: bytes) -> Self:
        """The state that the kernel's struct holds. InvalidArgument for bytes of another length."""
        _check_length(data, _LAPIC_BYTES, "struct kvm_lapic_state")
        rest = bytearray(data)
        values: dict[str, Any] = {}
        for name, offset in _LAPIC_REGISTERS.items():
            values[name] = _take_register(rest, offset)
        for name, offset in _LAPIC_VECTORS.items():
            bits = sum(_take_register(rest, offset + 16 * i) << 32 * i for i in range(8))
            values[name] = tuple(vector for vector in range(256) if bits >> vector & 1)
        return cls(**values, rest=bytes(rest))

    @property
    def kvm_struct(self) -> bytes:
        """The kernel's struct. Raises InvalidArgument if a field does not fit."""
        _check_length(self.rest, _LAPIC_BYTES, "rest")
        page = bytearray(self.rest)
        for name, offset in _LAPIC_REGISTERS.items():
            page[offset : offset + 4] = _pack(_REGISTER, getattr(self, name))
        for name, offset in _LAPIC_VECTORS.items():
            vectors = getattr(self, name)
            if not all(0 <= vector < 256 for vector in vectors):
                raise InvalidArgument(errno.EINVAL, f"{name} holds vectors, 0 to 255: {vectors}")
            bits = sum(1 << vector for vector in set(vectors))
            for i in range(8):
                _REGISTER.pack_into(page, offset + 16 * i, bits >> 32 * i & 0xFFFFFFFF)
        return bytes(page)


@dataclass(frozen=True, slots=True)
class PitChannel:
    """struct kvm_pit_channel_state: a counter of the 8254. All fields without a width are 8 bits wide."""

    count: int = 0x10000  # The initial count, 1 to 65536. 32 bits.
    latched_count: int = 0  # 16 bits.
    count_latched: int = 0  # The half of latched_count that a read gives: 0 none, 1 the low, 2 the high, 3 both.
    status_latched: int = 0  # The next read gives status.
    status: int = 0  # The latched status byte; bit 7 is OUT.
    read_state: int = 0  # The half of the count that a read gives: 1 the low, 2 the high, 3 and 4 both in turn.
    write_state: int = 0  # The half of the count that a write sets.
    write_latch: int = 0  # The low half, while the high one is awaited.
    rw_mode: int = 0  # The access mode of the last control word.
    mode: int = 0xFF  # 0 to 5; 255 before the first control word.
    bcd: int = 0  # KVM stores it and does not act on it.
    gate: int = 1  # The gate input.
    count_load_time: int = 0  # When the count was loaded, nanoseconds of the VM's time; of channels 1 and 2. Signed.


@dataclass(frozen=True, slots=True)
class PitState:
    """struct kvm_pit_state2: the 8254. The defaults are the reset state."""

    channels: tuple[PitChannel, ...] = (PitChannel(), PitChannel(), PitChannel(gate=0))
    flags: int = 0  # 1 stops channel 0 (an HPET has its place), 2 is bit 1 of port 61h (the speaker's data).

    @classmethod
    def from_kvm_struct(cls, data: bytes) -> Self:
        """The state that the kernel's struct holds. InvalidArgument for bytes of another length."""
        _check_length(data, _PIT_BYTES, "struct kvm_pit_state2")
        end = 3 * _PIT_CHANNEL.size
        (flags,) = _PIT_REST.unpack(data[end:])
        return cls(tuple(PitChannel(*fields) for fields in _PIT_CHANNEL.iter_unpack(data[:end])), flags)

    @property
    def kvm_struct(self) -> bytes:
        """The kernel's struct. Raises InvalidArgument if a field does not fit."""
        if len(self.channels) != 3:
            raise InvalidArgument(errno.EINVAL, f"a PIT has 3 channels, not {len(self.channels)}")
        channels = [_pack(_PIT_CHANNEL, *astuple(channel)) for channel in self.channels]
        return b"".join(channels) + _pack(_PIT_REST, self.flags)


def _take_register(page: bytearray, offset: int) -> int:
    """Reads a register and leaves 0 in its place."""
    (value,) = _REGISTER.unpack_from(page, offset)
    _REGISTER.pack_into(page, offset, 0)
    return int(value)


def _pack(layout: struct.Struct, *values: int) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise InvalidArgument(errno.EINVAL, f"a field does not fit the kernel's struct: {error}") from None


def _check_length(data: bytes, length: int, what: str) -> None:
    if len(data) != length:
        raise InvalidArgument(errno.EINVAL, f"{what} has {length} bytes, not {len(data)}")
