"""An interrupt, and its layout in memory: struct kvm_s390_irq of include/uapi/linux/kvm.h, 72 bytes.

All layouts here are big-endian, as s390 is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.s390.errors import invalid

IRQ_SIZE: Final = 72
UNION_OFFSET: Final = 8
MAX_ISC: Final = 7  # interruption subclasses are 0 to 7; 0 has the highest priority


class Kind:
    """KVM_S390_*: the types of interrupts. Every type up to IO_MAX is an I/O interrupt."""

    SIGP_STOP: Final = 0xFFFE_0000
    PROGRAM: Final = 0xFFFE_0001
    SET_PREFIX: Final = 0xFFFE_0002
    RESTART: Final = 0xFFFE_0003
    PFAULT_INIT: Final = 0xFFFE_0004
    PFAULT_DONE: Final = 0xFFFE_0005
    MACHINE_CHECK: Final = 0xFFFE_1000
    CLOCK_COMPARATOR: Final = 0xFFFF_1004
    CPU_TIMER: Final = 0xFFFF_1005
    EMERGENCY: Final = 0xFFFF_1201
    EXTERNAL_CALL: Final = 0xFFFF_1202
    SERVICE: Final = 0xFFFF_2401
    VIRTIO: Final = 0xFFFF_2603
    IO_MAX: Final = 0xFFFD_FFFF
    IO_ADAPTER: Final = 0x0400_0000  # KVM_S390_INT_IO(1, 0, 0, 0)


NAMES: Final = {
    Kind.SIGP_STOP: "stop",
    Kind.PROGRAM: "program",
    Kind.SET_PREFIX: "set prefix",
    Kind.RESTART: "restart",
    Kind.PFAULT_INIT: "pfault init",
    Kind.PFAULT_DONE: "pfault done",
    Kind.MACHINE_CHECK: "machine check",
    Kind.CLOCK_COMPARATOR: "clock comparator",
    Kind.CPU_TIMER: "CPU timer",
    Kind.EMERGENCY: "emergency signal",
    Kind.EXTERNAL_CALL: "external call",
    Kind.SERVICE: "service signal",
    Kind.VIRTIO: "virtio",
}


@dataclass(frozen=True, slots=True)
class Io:
    """struct kvm_s390_io_info."""

    subchannel_id: int = 0
    subchannel_number: int = 0
    parameter: int = 0
    word: int = 0

    @property
    def isc(self) -> int:
        """The interruption subclass. KVM: int_word_to_isc."""
        return (self.word & 0x3800_0000) >> 27


@dataclass(frozen=True, slots=True)
class External:
    """struct kvm_s390_ext_info."""

    parameter: int = 0
    pad: int = 0
    parameter2: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """struct kvm_s390_pgm_info, without its pad."""

    trans_exc_code: int = 0
    mon_code: int = 0
    per_address: int = 0
    data_exc_code: int = 0
    code: int = 0
    mon_class_nr: int = 0
    per_code: int = 0
    per_atmid: int = 0
    exc_access_id: int = 0
    per_access_id: int = 0
    op_access_id: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """struct kvm_s390_mchk_info, without its pad."""

    cr14: int = 0
    mcic: int = 0
    failing_storage_address: int = 0
    ext_damage_code: int = 0
    fixed_logout: bytes = bytes(16)


# The content of the union: a structure; a number, for a CPU address, a prefix or flags of a stop; or None.
Info = Io | External | Program | MachineCheck | int | None


@dataclass(frozen=True, slots=True)
class Irq:
    """struct kvm_s390_irq."""

    kind: int
    info: Info = None


_TYPE: Final = struct.Struct(">Q")
_TYPES: Final = struct.Struct(">Q64x")
_WORD_OFFSET: Final = UNION_OFFSET + 8
_IO: Final = struct.Struct(">HHII")
_EXTERNAL: Final = struct.Struct(">IIQ")
_PROGRAM: Final = struct.Struct(">QQQIHHBBBBBB")
_MACHINE_CHECK: Final = struct.Struct(">QQQI4x16s")
# The short forms of an I/O and of an external interrupt.
IO_SIZE: Final = UNION_OFFSET + _IO.size
EXTERNAL_SIZE: Final = UNION_OFFSET + _EXTERNAL.size
_NUMBERS: Final = {
    Kind.SIGP_STOP: struct.Struct(">I"),
    Kind.SET_PREFIX: struct.Struct(">I"),
    Kind.EMERGENCY: struct.Struct(">H"),
    Kind.EXTERNAL_CALL: struct.Struct(">H"),
}
_BARE: Final = frozenset({Kind.RESTART, Kind.CLOCK_COMPARATOR, Kind.CPU_TIMER})
_EXTERNALS: Final = frozenset({Kind.PFAULT_INIT, Kind.PFAULT_DONE, Kind.VIRTIO, Kind.SERVICE})


def is_io(kind: int) -> bool:
    """Whether an interrupt is in the I/O class: KVM_S390_INT_IO_MIN to KVM_S390_INT_IO_MAX."""
    return 0 <= kind <= Kind.IO_MAX


def name_of(kind: int) -> str:
    """The name of a type of interrupt, for messages."""
    if is_io(kind):
        return "adapter" if kind & Kind.IO_ADAPTER else "I/O"
    return NAMES.get(kind, f"type {kind:#x}")


def word_of(isc: int) -> int:
    """The interruption word of an adapter interrupt. KVM: isc_to_int_word, whose result has 32 bits."""
    return isc << 27 & 0xFFFF_FFFF | 0x8000_0000


def short(irq: Irq) -> bytes:
    """An interrupt without the zeros at its end, for lists."""
    kind, info = irq.kind, irq.info
    if isinstance(info, Io):
        packed = _IO.pack(info.subchannel_id, info.subchannel_number, info.parameter, info.word)
    elif isinstance(info, External):
        packed = _EXTERNAL.pack(info.parameter, info.pad, info.parameter2)
    elif isinstance(info, Program):
        packed = _program(info)
    elif isinstance(info, MachineCheck):
        packed = _MACHINE_CHECK.pack(
            info.cr14, info.mcic, info.failing_storage_address, info.ext_damage_code, info.fixed_logout
        )
    elif info is None:
        packed = b""
    else:
        packed = _NUMBERS[kind].pack(info)
    return _TYPE.pack(kind) + packed


def pack(irq: Irq) -> bytes:
    """struct kvm_s390_irq."""
    return padded(short(irq))


def padded(irq: bytes) -> bytes:
    """struct kvm_s390_irq from its short form."""
    return irq.ljust(IRQ_SIZE, b"\0")


def unpack(data: bytes) -> Irq:
    """From struct kvm_s390_irq, or its short form. KVM: copy_irq_from_user; an unknown type is EINVAL."""
    (kind,) = _TYPE.unpack_from(data)
    if is_io(kind):
        return Irq(kind, Io(*_IO.unpack_from(data, UNION_OFFSET)))
    if kind in _EXTERNALS:
        return Irq(kind, External(*_EXTERNAL.unpack_from(data, UNION_OFFSET)))
    if kind == Kind.MACHINE_CHECK:
        return Irq(kind, MachineCheck(*_MACHINE_CHECK.unpack_from(data, UNION_OFFSET)))
    if kind == Kind.PROGRAM:
        return Irq(kind, Program(*_PROGRAM.unpack_from(data, UNION_OFFSET)))
    if kind in _BARE:
        return Irq(kind)
    number = _NUMBERS.get(kind)
    if number is None:
        raise invalid(
            f"an interrupt's type is {kind:#x}; use one of KVM_S390_INT_*, or an I/O type up to {Kind.IO_MAX:#x}"
        )
    return Irq(kind, number.unpack_from(data, UNION_OFFSET)[0])


def kinds_of(data: bytes) -> list[int]:
    """The types of an array of struct kvm_s390_irq."""
    return [kind for (kind,) in _TYPES.iter_unpack(data)]


def isc_of(data: bytes, at: int) -> int:
    """The interruption subclass of an I/O interrupt in an array of struct kvm_s390_irq, from its offset."""
    return data[at + _WORD_OFFSET] >> 3 & 7


def unpack_all(data: bytes) -> list[Irq]:
    """From an array of struct kvm_s390_irq."""
    return [unpack(data[at : at + IRQ_SIZE]) for at in range(0, len(data), IRQ_SIZE)]


def _program(info: Program) -> bytes:
    return _PROGRAM.pack(
        info.trans_exc_code,
        info.mon_code,
        info.per_address,
        info.data_exc_code,
        info.code,
        info.mon_class_nr,
        info.per_code,
        info.per_atmid,
        info.exc_access_id,
        info.per_access_id,
        info.op_access_id,
        info.flags,
    )


def floating_from_parameters(kind: int, parameter: int, parameter64: int) -> Irq:
    """A VM's interrupt, from struct kvm_s390_interrupt. KVM: kvm_s390_inject_vm."""
    if kind == Kind.VIRTIO:
        return Irq(kind, External(parameter, 0, parameter64))
    if kind == Kind.SERVICE:
        return Irq(kind, External(parameter))
    if kind == Kind.PFAULT_DONE:
        return Irq(kind, External(0, 0, parameter64))
    if kind == Kind.MACHINE_CHECK:
        return Irq(kind, MachineCheck(cr14=parameter, mcic=parameter64))
    if is_io(kind):
        return Irq(kind, Io(parameter >> 16, parameter & 0xFFFF, parameter64 >> 32, parameter64 & 0xFFFF_FFFF))
    raise not_floating(kind)


def local_from_parameters(kind: int, parameter: int, parameter64: int) -> Irq:
    """A vCPU's interrupt, from struct kvm_s390_interrupt. KVM: s390int_to_s390irq."""
    if kind in (Kind.PROGRAM, Kind.EXTERNAL_CALL, Kind.EMERGENCY):
        if parameter > 0xFFFF:
            raise invalid(f"a {name_of(kind)} interrupt's parameter is {parameter:#x}; use 0 to 0xffff")
        return Irq(kind, Program(code=parameter)) if kind == Kind.PROGRAM else Irq(kind, parameter)
    if kind in (Kind.SET_PREFIX, Kind.SIGP_STOP):
        return Irq(kind, parameter)
    if kind == Kind.MACHINE_CHECK:
        return Irq(kind, MachineCheck(mcic=parameter64))
    if kind == Kind.PFAULT_INIT:
        return Irq(kind, External(parameter, 0, parameter64))
    if kind in _BARE:
        return Irq(kind)
    raise not_local(kind)


def delivered_data(irq: Irq) -> tuple[int, int]:
    """The data of an interrupt in the kernel's trace of a delivery. KVM: trace_kvm_s390_deliver_interrupt."""
    info = irq.info
    if isinstance(info, Io):
        return info.subchannel_id << 16 | info.subchannel_number, info.parameter << 32 | info.word
    if isinstance(info, External):
        return info.parameter, info.parameter2
    if isinstance(info, MachineCheck):
        return info.cr14, info.mcic
    if isinstance(info, Program):
        return info.code, 0
    return info or 0, 0


def not_floating(kind: int) -> Exception:
    """The error for an interrupt that a VM cannot have: EINVAL."""
    allowed = "virtio, service signal, pfault done, machine check and I/O interrupts are allowed"
    return invalid(f"a floating interrupt cannot be {name_of(kind)}; {allowed}")


def not_local(kind: int) -> Exception:
    """The error for an interrupt that a vCPU cannot have by itself: EINVAL."""
    return invalid(f"a vCPU's interrupt cannot be {name_of(kind)}; inject it into the VM, or use a vCPU's type")
