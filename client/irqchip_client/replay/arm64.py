"""The operations of an arm64 trace: ioctls, device attributes, and instructions of a vCPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from irqchip_client import arm64

from .kinds import U32, U64, Kind, Operations

# A guest's system registers: the GIC's without ICC_, and two more.
SYSREGS = {
    name.removeprefix("ICC_").removesuffix("_EL1"): number
    for name, number in arm64.SYSREGS.items()
    if name.startswith("ICC_") or name == "ISR_EL1"
} | {"MPIDR": arm64.sysreg(3, 0, 0, 0, 5)}

UNDEFINED = "fault 0x2000000"  # a guest's undefined instruction: ESR_EL1
UNCLAIMED = "mmio exit"  # a guest's access at an address that nothing in the kernel claims


def _is_route(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) < 2 or not U32.accepts(entry[0]):
        return False
    match entry[1:]:
        case ["irqchip", chip, pin]:
            return U32.accepts(chip) and U32.accepts(pin)
        case ["msi", address, data, devid]:
            return U64.accepts(address) and U32.accepts(data) and (devid is None or U32.accepts(devid))
        case [kind]:
            return U32.accepts(kind)
    return False


def _is_block(block: Any, *, of_values: bool) -> bool:
    if not isinstance(block, list) or len(block) != 4:
        return False
    group, first, step, last = block
    if not (U32.accepts(group) and U64.accepts(first) and U32.accepts(step)):
        return False
    if of_values:
        return isinstance(last, list) and all(U64.accepts(value) or isinstance(value, str) for value in last)
    return U32.accepts(last)


def _blocks(*, of_values: bool) -> Kind:
    last = "values" if of_values else "how many"
    return Kind(
        f"a list of [group, first attribute, step, {last}]",
        lambda value: isinstance(value, list) and all(_is_block(block, of_values=of_values) for block in value),
    )


ROUTES = Kind(
    'a list of [gsi, "irqchip", chip, pin], [gsi, "msi", address, data, devid or null] and [gsi, type]',
    lambda value: isinstance(value, list) and all(map(_is_route, value)),
)
TARGET = Kind("-1 or a number of 32 bits", lambda value: type(value) is int and -1 <= value < 1 << 32)
WHOSE = Kind('"vm" or "sys"', lambda value: value in ("vm", "sys"))
REGISTER = Kind(f"one of {', '.join(SYSREGS)}", lambda value: value in SYSREGS)
SIZE = Kind("1, 2, 4 or 8", lambda value: type(value) is int and value in (1, 2, 4, 8))
BLOCKS, STATE = _blocks(of_values=False), _blocks(of_values=True)

_ATTR = {"group": U32, "attr": U64}

# Every operation, and its arguments in their order.
OPERATIONS: Operations = {
    "new_vm": {},
    "create_irqchip": {},
    "create_device": {"type": U32, "flags": U32},
    "device_addr": {"id": U64, "address": U64},
    "set_attr": {"device": U32, **_ATTR, "value": U64},
    "get_attr": {"device": U32, **_ATTR, "before": U64},
    "has_attr": {"device": U32, **_ATTR},
    "create_vcpu": {"vcpu": U32},
    "vcpu_init": {"vcpu": U32, "features": U32, "target": TARGET},
    "vcpu_set_attr": {"vcpu": U32, **_ATTR, "value": U64},
    "vcpu_get_attr": {"vcpu": U32, **_ATTR, "before": U64},
    "vcpu_has_attr": {"vcpu": U32, **_ATTR},
    "irq_line": {"irq": U32, "level": U32},
    "set_gsi_routing": {"table": ROUTES, "flags": U32},
    "irqfd": {"slot": U32, "gsi": U32, "flags": U32},
    "irqfd_signal": {"slot": U32},
    "irqfd_resampled": {"slot": U32},
    "signal_msi": {"address": U64, "data": U32, "flags": U32, "devid": U32},
    "check_extension": {"whose": WHOSE, "capability": U32},
    "read": {"vcpu": U32, "address": U64, "size": SIZE},
    "write": {"vcpu": U32, "address": U64, "size": SIZE, "value": U64},
    "mrs": {"vcpu": U32, "register": REGISTER},
    "msr": {"vcpu": U32, "register": REGISTER, "value": U64},
    "state": {"device": U32, "blocks": BLOCKS},
}


def with_arguments(op: list[Any]) -> list[Any]:
    """An operation of a file, with its arguments apart from its answer.

    A state's answer has its blocks, with values: its arguments are the blocks with the number of their values.
    """
    if op[0] != "state" or len(op) != 3 or not STATE.accepts(op[2]):
        return op
    return [*op[:2], [[*block[:3], len(block[3])] for block in op[2]], op[2]]


def differing_attributes(expected: Sequence[Any], actual: Sequence[Any]) -> Iterator[str]:
    """The attributes in which two states differ."""
    for (group, first, step, theirs), (*_, ours) in zip(expected, actual, strict=True):
        for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            if their != our:
                yield f"group {group} attribute {first + number * step:#x} ({_hex(our)}, expected {_hex(their)})"


def _hex(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:#x}"
