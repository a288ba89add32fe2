"""Programs of operations on KVM/arm64's GIC, and their form for agent.c.

A program is what a trace is before it is recorded: the same operations (tests/conformance/golden/README.md) without
answers. A value that a program writes may be a `Source`, too: what the kernel answers decides it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from irqchip_client.replay.arm64 import SYSREGS

Op = list[Any]
Answer = Any

NOT_DONE = -9999  # agent.c: what the operation needs does not exist, and a trace does not have it
MMIO_EXIT, OTHER_EXIT, FAULT = 1, 2, 4
ACKNOWLEDGES = 16
SAME_TARGET = 0xFFFF_FFFF  # KVM_ARM_PREFERRED_TARGET
U64 = (1 << 64) - 1

OPERATION, ANSWER = struct.Struct("<BBBBIQQ"), struct.Struct("<iIQ")


class Code(IntEnum):
    """agent.c's enum code."""

    (
        NEW_VM,
        CREATE_IRQCHIP,
        CREATE_DEVICE,
        DEVICE_ADDR,
        SET_ATTR,
        GET_ATTR,
        HAS_ATTR,
        CREATE_VCPU,
        VCPU_INIT,
        IRQ_LINE,
        SET_GSI_ROUTING,
        ROUTE,
        IRQFD,
        IRQFD_SIGNAL,
        IRQFD_RESAMPLED,
        SIGNAL_MSI,
        CHECK_EXTENSION,
        GUEST,
        VCPU_SET_ATTR,
        VCPU_GET_ATTR,
        VCPU_HAS_ATTR,
    ) = range(21)


class Source(IntEnum):
    """Which of the interrupts that a vCPU has acknowledged and not ended is written; agent.c's enum source.

    Where there is none, the operation is not done, and the trace does not have it.
    """

    LAST = 2
    LAST_KEPT = 3  # it stays in the list
    FIRST = 4
    LAST_TO_DEACTIVATE = 5  # its priority drops; DEACTIVATE names it later
    DEACTIVATE = 6


@dataclass(frozen=True, slots=True)
class Earlier:
    """The answer of an earlier operation, by its place in the program."""

    number: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Ends a program's `read` or `mrs`: its answer joins the list that `Source` takes from."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to do on a new VM of a host with GICv2 or GICv3."""

    family: str
    seed: int
    gic: int
    vcpus: int
    ops: Sequence[Op]


class Raw(NamedTuple):
    """An operation of the agent's."""

    code: Code
    vcpu: int = 0
    source: int = 0
    device: int = 0
    a: int = 0
    b: int = 0
    c: int = 0


# ---- Instructions of the guest: x1 is the address, x2 the value.

_LOADS = {1: 0x3940_0022, 2: 0x7940_0022, 4: 0xB940_0022, 8: 0xF940_0022}  # ldrb, ldrh, ldr w2, ldr x2 [x1]
_STORES = {1: 0x3900_0022, 2: 0x7900_0022, 4: 0xB900_0022, 8: 0xF900_0022}
_MRS, _MSR = 0xD520_0002, 0xD500_0002


# ---- From operations to the agent's.


def _value(value: Any, places: Sequence[int]) -> tuple[int, int]:
    """The source and c of a value that is written. `places` are those of a program's operations among the agent's."""
    if isinstance(value, Source):
        return value, 0
    if isinstance(value, Earlier):
        return 1, places[value.number]
    return 0, int(value)


def _routing(table: Sequence[Sequence[Any]], flags: int) -> Iterator[Raw]:
    yield Raw(Code.SET_GSI_ROUTING, a=len(table), b=flags)
    for gsi, kind, *where in table:
        if kind == "irqchip":
            yield Raw(Code.ROUTE, vcpu=1, a=gsi, b=where[0], c=where[1])
        elif kind == "msi":
            address, data, devid = where
            valid = devid is not None  # KVM_MSI_VALID_DEVID
            yield Raw(Code.ROUTE, vcpu=2, device=valid, a=gsi, b=address, c=data | (devid or 0) << 32)
        else:
            yield Raw(Code.ROUTE, vcpu=kind, a=gsi)


def encode(op: Op, places: Sequence[int]) -> list[Raw]:
    """An operation for the agent: more than one for a table of routes or a state."""
    match op:
        case ["new_vm"]:
            return [Raw(Code.NEW_VM)]
        case ["create_irqchip"]:
            return [Raw(Code.CREATE_IRQCHIP)]
        case ["create_device", kind, flags]:
            return [Raw(Code.CREATE_DEVICE, b=kind, c=flags)]
        case ["device_addr", ident, address]:
            return [Raw(Code.DEVICE_ADDR, b=ident, c=address)]
        case ["set_attr", device, group, attr, value]:
            source, c = _value(value, places)
            return [Raw(Code.SET_ATTR, source=source, device=device, a=group, b=attr, c=c)]
        case ["get_attr", device, group, attr, before]:
            return [Raw(Code.GET_ATTR, device=device, a=group, b=attr, c=before)]
        case ["has_attr", device, group, attr]:
            return [Raw(Code.HAS_ATTR, device=device, a=group, b=attr)]
        case ["vcpu_set_attr" | "vcpu_get_attr" as name, vcpu, group, attr, value]:
            return [Raw(Code[name.upper()], vcpu=vcpu, a=group, b=attr, c=value)]
        case ["vcpu_has_attr", vcpu, group, attr]:
            return [Raw(Code.VCPU_HAS_ATTR, vcpu=vcpu, a=group, b=attr)]
        case ["create_vcpu", vcpu]:
            return [Raw(Code.CREATE_VCPU, b=vcpu)]
        case ["vcpu_init", vcpu, features, target]:
            return [Raw(Code.VCPU_INIT, vcpu=vcpu, a=target & SAME_TARGET, b=features)]
        case ["irq_line", irq, level]:
            return [Raw(Code.IRQ_LINE, b=irq, c=level)]
        case ["set_gsi_routing", table, flags]:
            return list(_routing(table, flags))
        case ["irqfd", slot, gsi, flags]:
            return [Raw(Code.IRQFD, device=slot, a=flags, b=gsi)]
        case ["irqfd_signal" | "irqfd_resampled" as name, slot]:
            return [Raw(Code[name.upper()], device=slot)]
        case ["signal_msi", address, data, flags, devid]:
            return [Raw(Code.SIGNAL_MSI, a=flags, b=address, c=data | devid << 32)]
        case ["check_extension", whose, capability]:
            return [Raw(Code.CHECK_EXTENSION, a=whose == "sys", b=capability)]
        case ["read", vcpu, address, size, *rest]:
            return [Raw(Code.GUEST, vcpu=vcpu, source=ACKNOWLEDGES * len(rest), a=_LOADS[size], b=address)]
        case ["write", vcpu, address, size, value]:
            source, c = _value(value, places)
            return [Raw(Code.GUEST, vcpu=vcpu, source=source, a=_STORES[size], b=address, c=c)]
        case ["mrs", vcpu, register, *rest]:
            return [Raw(Code.GUEST, vcpu=vcpu, source=ACKNOWLEDGES * len(rest), a=_MRS | SYSREGS[register] << 5)]
        case ["msr", vcpu, register, value]:
            source, c = _value(value, places)
            return [Raw(Code.GUEST, vcpu=vcpu, source=source, a=_MSR | SYSREGS[register] << 5, c=c)]
        case ["state", device, blocks]:
            return [
                Raw(Code.GET_ATTR, device=device, a=group, b=first + number * step)
                for group, first, step, count in blocks
                for number in range(count)
            ]
    raise ValueError(f"{op!r} is not an operation of a program")


def pack(ops: Sequence[Op]) -> tuple[bytes, list[int]]:
    """A program for the agent, and where each operation's first answer is. It starts from a new VM."""
    packed, places = [OPERATION.pack(Code.NEW_VM, 0, 0, 0, 1, 0, 0)], []
    for op in ops:
        places.append(len(packed))
        packed += [OPERATION.pack(*raw[:4], raw.a, raw.b & U64, raw.c & U64) for raw in encode(op, places)]
    return b"".join(packed), places


# ---- From the agent's answers to a trace's.


class Result(NamedTuple):
    """An answer of the agent's."""

    status: int
    how: int
    value: int


def _status(result: Result) -> Answer:
    return result.status if result.status >= 0 else f"-{errno.errorcode[-result.status]}"


def _value_or_errno(result: Result) -> Answer:
    return result.value if result.status >= 0 else _status(result)


def _read(result: Result) -> Answer:
    if result.status < 0:
        return f"exit {result.how >> 8}" if result.how & OTHER_EXIT else _status(result)
    if result.how & FAULT:
        return f"fault {result.value:#x}"
    return "mmio exit" if result.how & MMIO_EXIT else result.value


def _written(result: Result) -> Answer:
    answer = _read(result)
    return answer if isinstance(answer, str) else None


_ANSWERS: dict[str, Callable[[Result], Answer]] = {
    "get_attr": _value_or_errno,
    "vcpu_get_attr": _value_or_errno,
    "irqfd_resampled": _value_or_errno,
    "read": _read,
    "mrs": _read,
    "write": _written,
    "msr": _written,
}


def answered(op: Op, results: Iterator[Result]) -> Op | None:
    """The operation as a trace has it, with the answer. None if it was not done."""
    if op[0] == "state":
        taken = [(block[:3], [next(results) for _ in range(block[3])]) for block in op[2]]
        if any(result.status == NOT_DONE for _, values in taken for result in values):
            return None
        return [*op[:2], [[*block, [_value_or_errno(result) for result in values]] for block, values in taken]]
    result = next(results)
    if result.status == NOT_DONE:
        return None
    arguments = [argument for argument in op if not isinstance(argument, Acknowledge)]
    if isinstance(arguments[-1], Source | Earlier):
        size: int = op[3] if op[0] == "write" else 8
        arguments[-1] = result.value & (1 << 8 * size) - 1
    return [*arguments, _ANSWERS.get(op[0], _status)(result)]


def unpack(ops: Sequence[Op], places: Sequence[int], answers: bytes) -> list[Op]:
    """A trace's operations, from the answers to its program."""
    done = []
    for op, place in zip(ops, places, strict=True):
        results = (Result(*ANSWER.unpack_from(answers, at * ANSWER.size)) for at in range(place, len(answers)))
        if (operation := answered(op, results)) is not None:
            done.append(operation)
    return done
