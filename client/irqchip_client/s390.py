"""s390's values: interrupts in the kernel's form, masks, adapters' routes and resets."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from irqchip.v1 import irqchip_pb2 as pb

IRQ_SIZE: Final = 72  # struct kvm_s390_irq
IO_MAX: Final = 0xFFFD_FFFF
IO_ADAPTER: Final = 0x0400_0000  # KVM_S390_INT_IO(1, 0, 0, 0)
KVM_CAP_S390_IRQCHIP: Final = 99  # <linux/kvm.h>
KVM_CAP_S390_AIS: Final = 141


class S390IrqType(IntEnum):
    """The types of struct kvm_s390_irq. Every number up to fffdffffh is the type of an I/O interrupt."""

    SIGP_STOP = 0xFFFE_0000
    PROGRAM = 0xFFFE_0001
    SET_PREFIX = 0xFFFE_0002
    RESTART = 0xFFFE_0003
    PFAULT_INIT = 0xFFFE_0004
    PFAULT_DONE = 0xFFFE_0005
    MACHINE_CHECK = 0xFFFE_1000
    CLOCK_COMPARATOR = 0xFFFF_1004
    CPU_TIMER = 0xFFFF_1005
    EMERGENCY = 0xFFFF_1201
    EXTERNAL_CALL = 0xFFFF_1202
    SERVICE = 0xFFFF_2401
    VIRTIO = 0xFFFF_2603


_Layout = tuple[struct.Struct, tuple[str, ...]]
_IO: Final[_Layout] = (struct.Struct(">HHII"), ("subchannel_id", "subchannel_nr", "io_int_parm", "io_int_word"))
_EXT: Final[_Layout] = (struct.Struct(">I4xQ"), ("ext_params", "ext_params2"))
_CODE: Final[_Layout] = (struct.Struct(">H"), ("code",))
_NOTHING: Final[_Layout] = (struct.Struct(">"), ())
_PGM: Final[_Layout] = (
    struct.Struct(">QQQIHHBBBBBB"),
    (
        *("trans_exc_code", "mon_code", "per_address", "data_exc_code", "code", "mon_class_nr", "per_code"),
        *("per_atmid", "exc_access_id", "per_access_id", "op_access_id", "flags"),
    ),
)
_MCHK: Final[_Layout] = (
    struct.Struct(">QQQI"),
    ("cr14", "mcic", "failing_storage_address", "ext_damage_code"),
)
_LAYOUTS: Final[dict[int, _Layout]] = {
    S390IrqType.SIGP_STOP: (struct.Struct(">I"), ("flags",)),
    S390IrqType.PROGRAM: _PGM,
    S390IrqType.SET_PREFIX: (struct.Struct(">I"), ("address",)),
    S390IrqType.RESTART: _NOTHING,
    S390IrqType.PFAULT_INIT: _EXT,
    S390IrqType.PFAULT_DONE: _EXT,
    S390IrqType.MACHINE_CHECK: _MCHK,
    S390IrqType.CLOCK_COMPARATOR: _NOTHING,
    S390IrqType.CPU_TIMER: _NOTHING,
    S390IrqType.EMERGENCY: _CODE,
    S390IrqType.EXTERNAL_CALL: _CODE,
    S390IrqType.SERVICE: _EXT,
    S390IrqType.VIRTIO: _EXT,
}


@dataclass(frozen=True, slots=True)
class S390Irq:
    """struct kvm_s390_irq: `S390Irq.make(S390IrqType.EMERGENCY, code=1)`, `S390Irq.adapter(3)`.

    A machine check's fixed_logout is in the struct alone.
    """

    kvm_struct: bytes

    def __post_init__(self) -> None:
        if len(self.kvm_struct) != IRQ_SIZE:
            raise ValueError(f"struct kvm_s390_irq has {IRQ_SIZE} bytes, and not {len(self.kvm_struct)}")

    @classmethod
    def make(cls, type: int, **fields: int) -> Self:  # noqa: A002 - the kernel's name
        """An interrupt of a type, with the fields of its part of the union; those left out are 0."""
        layout, names = _layout(type)
        if unknown := fields.keys() - set(names):
            known = ", ".join(names) or "none"
            raise ValueError(f"an interrupt of type {type:#x} has no {', '.join(unknown)}; its fields are: {known}")
        packed = struct.pack(">Q", type) + layout.pack(*(fields.get(name, 0) for name in names))
        return cls(packed.ljust(IRQ_SIZE, b"\0"))

    @classmethod
    def io(cls, subchannel: int, isc: int, parameter: int = 0) -> Self:
        """An I/O interrupt of a subchannel, by its subsystem identification word."""
        identifier, number = subchannel >> 16, subchannel & 0xFFFF
        kind = number | (identifier >> 1 & 3) << 16 | identifier >> 8 << 18  # KVM_S390_INT_IO(0, cssid, ssid, schid)
        word = _word(isc)
        return cls.make(
            kind, subchannel_id=identifier, subchannel_nr=number, io_int_parm=parameter, io_int_word=word & ~(1 << 31)
        )

    @classmethod
    def adapter(cls, isc: int) -> Self:
        """An adapter interrupt of a subclass."""
        return cls.make(IO_ADAPTER, io_int_word=_word(isc))

    @property
    def type(self) -> int:
        """The type: an S390IrqType, or a lower number for I/O."""
        (kind,) = struct.unpack_from(">Q", self.kvm_struct)
        return S390IrqType(kind) if kind in set(S390IrqType) else int(kind)

    @property
    def isc(self) -> int | None:
        """The interruption subclass of an I/O interrupt."""
        word = self.fields.get("io_int_word")
        return None if word is None else word >> 27 & 7

    @property
    def fields(self) -> dict[str, int]:
        """The fields of the type's part of the union, by the kernel's names."""
        layout, names = _layout(self.type)
        return dict(zip(names, layout.unpack_from(self.kvm_struct, 8), strict=True))

    def __str__(self) -> str:
        kind = self.type
        adapter = "adapter" if kind & IO_ADAPTER else "I/O"
        name = kind.name.lower().replace("_", " ") if isinstance(kind, S390IrqType) else adapter
        fields = self.fields
        shown = [f"{field} {value:#x}" for field, value in fields.items() if value or len(fields) == 1]
        if (isc := self.isc) is not None:
            shown.insert(0, f"ISC {isc}")
        return ", ".join([name, *shown])


def irqs_of(data: bytes) -> list[S390Irq]:
    """The interrupts of an array from the FLIC or from KVM_S390_GET_IRQ_STATE."""
    return [S390Irq(data[at : at + IRQ_SIZE]) for at in range(0, len(data), IRQ_SIZE)]


def _layout(kind: int) -> _Layout:
    if 0 <= kind <= IO_MAX:
        return _IO
    layout = _LAYOUTS.get(kind)
    if layout is None:
        raise ValueError(f"there is no interrupt of type {kind:#x}; use an S390IrqType, or at most {IO_MAX:#x} for I/O")
    return layout


def _word(isc: int) -> int:
    if not 0 <= isc <= 7:
        raise ValueError(f"interruption subclass {isc} is out of range: use 0 to 7")
    return isc << 27 | 1 << 31


@dataclass(frozen=True, slots=True)
class InterruptMasks:
    """The bits of a vCPU's registers that choose the interrupts it takes. The defaults are those after a reset."""

    psw_mask: int = 0
    cr0: int = 0xE0
    cr6: int = 0
    cr14: int = 0xC200_0000

    @classmethod
    def all(cls) -> Self:
        """The masks with which the vCPU takes every interrupt."""
        return cls(0x0304_0000_0000_0000, 0xFFFF_FFFF, 0xFF00_0000, 0xFFFF_FFFF)

    @classmethod
    def from_proto(cls, masks: pb.InterruptMasks) -> Self:
        return cls(masks.psw_mask, masks.cr0, masks.cr6, masks.cr14)

    def to_proto(self) -> pb.InterruptMasks:
        return pb.InterruptMasks(psw_mask=self.psw_mask, cr0=self.cr0, cr6=self.cr6, cr14=self.cr14)


class VcpuReset(IntEnum):
    """A reset of an s390 vCPU."""

    NORMAL = 1  # KVM_S390_NORMAL_RESET: removes its own interrupts.
    INITIAL = 2  # KVM_S390_INITIAL_RESET: also resets its masks.
    CLEAR = 3  # KVM_S390_CLEAR_RESET.


class FlicGroup(IntEnum):
    """The groups of the FLIC's attributes: KVM_DEV_FLIC_*."""

    GET_ALL_IRQS = 1
    ENQUEUE = 2
    CLEAR_IRQS = 3
    APF_ENABLE = 4
    APF_DISABLE_WAIT = 5
    ADAPTER_REGISTER = 6
    ADAPTER_MODIFY = 7
    CLEAR_IO_IRQ = 8
    AISM = 9
    AIRQ_INJECT = 10
    AISM_ALL = 11


def adapter_registration(
    id: int,  # noqa: A002 - the kernel's name
    isc: int,
    *,
    maskable: bool = False,
    swap: bool = False,
    suppressible: bool = False,
) -> bytes:
    """struct kvm_s390_io_adapter, for FlicGroup.ADAPTER_REGISTER."""
    return struct.pack(">IBBBB", id, isc, maskable, swap, suppressible)


def adapter_mask(id: int, masked: bool) -> bytes:  # noqa: A002
    """struct kvm_s390_io_adapter_req that masks or unmasks an adapter, for FlicGroup.ADAPTER_MODIFY."""
    return struct.pack(">IBBHQ", id, 1, masked, 0, 0)


def ais_mode(isc: int, single: bool) -> bytes:
    """struct kvm_s390_ais_req, for FlicGroup.AISM."""
    return struct.pack(">BxH", isc, single)
