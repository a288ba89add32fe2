"""The operations of an x86 trace, and the forms of their answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .kinds import HEX, LEVEL, U32, U64, Kind, Operations


def _is_routing_table(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list)
        and len(entry) == 4
        and entry[1] in ("irqchip", "msi")
        and U32.accepts(entry[0])
        and (U32 if entry[1] == "irqchip" else U64).accepts(entry[2])
        and U32.accepts(entry[3])
        for entry in value
    )


ROUTES = Kind('a list of [gsi, "irqchip", chip, pin] and [gsi, "msi", address, data]', _is_routing_table)

# Every operation, and its arguments in their order.
OPERATIONS: Operations = {
    "pio_read": {"vcpu": U32, "port": U32, "size": U32},
    "pio_write": {"vcpu": U32, "port": U32, "size": U32, "value": U32},
    "mmio_read": {"vcpu": U32, "address": U64, "size": U32},
    "mmio_write": {"vcpu": U32, "address": U64, "size": U32, "value": U64},
    "irq_line": {"gsi": U32, "level": LEVEL},
    "signal_msi": {"address": U64, "data": U32, "flags": U32},
    "set_gsi_routing": {"table": ROUTES},
    "take_extint": {"vcpu": U32},
    "ack_lapic": {"vcpu": U32},
    "get_irqchip": {"chip": U32},
    "set_irqchip": {"chip": U32, "state": HEX},
    "get_lapic": {"vcpu": U32},
    "create_pit": {"flags": U32},
    "get_pit": {},
    "msr_read": {"vcpu": U32, "msr": U32},
    "msr_write": {"vcpu": U32, "msr": U32, "value": U64},
}

# get_lapic's names of registers, and those of irqchip_client.LapicState and of irqchipd's chip.
LAPIC_REGISTERS = {
    "id": "id",
    "version": "version",
    "tpr": "tpr",
    "ldr": "ldr",
    "dfr": "dfr",
    "svr": "svr",
    "esr": "esr",
    "icr": "icr",
    "icr2": "icr2",
    "lvtt": "lvt_timer",
    "lvtthmr": "lvt_thermal",
    "lvtpc": "lvt_performance",
    "lvt0": "lvt_lint0",
    "lvt1": "lvt_lint1",
    "lvterr": "lvt_error",
}
LAPIC_VECTORS = ("isr", "tmr", "irr")

# get_pit's fields of a channel, by the kernel's names, and the bits of status: those that do not depend on the time.
PIT_FIELDS = (
    "count",
    "count_latched",
    "status_latched",
    "status",
    "read_state",
    "write_state",
    "write_latch",
    "rw_mode",
    "mode",
    "bcd",
    "gate",
)
PIT_STATUS = 0x7F


def pit_answer(channels: Iterable[Any], flags: int) -> list[Any]:
    """get_pit's answer, from channels that have the kernel's names."""
    answer: list[Any] = [{name: getattr(channel, name) for name in PIT_FIELDS} for channel in channels]
    for channel in answer:
        channel["status"] &= PIT_STATUS
    return [*answer, flags]


def msr_answer(claimed: bool, fault: bool, value: int | None) -> int | str | None:
    """The answer of msr_read and msr_write; the kernel claims every register."""
    if not claimed:
        return "unclaimed"
    return "GP" if fault else value
