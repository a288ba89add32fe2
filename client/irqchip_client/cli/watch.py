"""watch: trace events, as the kernel prints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import click

import irqchip_client
from irqchip_client.s390 import IO_ADAPTER, S390IrqType

from ._common import VCPU, command, number, pass_vm
from .output import echo_json, json_option

Fields = Mapping[str, int]

_LAST_GSI = 4095

# KVM: arch/x86/kvm/trace.h kvm_deliver_mode, kvm_irqchips, __print_symbolic of kvm_apic_ipi.
_MODES = ("Fixed", "LowPrio", "SMI", "Res3", "NMI", "INIT", "SIPI", "ExtINT")
_CHIPS = ("PIC master", "PIC slave", "IOAPIC")
_SHORTHANDS = ("dst", "self", "all", "all-but-self")


def _pio(f: Fields) -> str:
    direction = "write" if f["write"] else "read"
    return f"pio_{direction} at {f['port']:#x} size {f['size']} count 1 val {f['value']:#x}"


def _mmio(f: Fields) -> str:
    direction = "write" if f["write"] else "read"
    return f"mmio {direction} len {f['size']} gpa {f['address']:#x} val {f['value']:#x}"


def _pic_set_irq(f: Fields) -> str:
    bit = 1 << (f["pin"] & 7)
    trigger, masked = "level" if f["elcr"] & bit else "edge", "|masked" if f["imr"] & bit else ""
    return f"chip {f['chip']} pin {f['pin']} ({trigger}{masked}){_coalesced(f)}"


def _ioapic_set_irq(f: Fields) -> str:
    entry = f["entry"]
    masked = "|masked" if entry & 1 << 16 else ""
    return (
        f"pin {f['pin']} dst {entry >> 56 & 0xFF:x} vec {entry & 0xFF}"
        f" ({_MODES[entry >> 8 & 7]}|{_logical(entry, 11)}|{_level(entry)}{masked}){_coalesced(f)}"
    )


def _msi_set_irq(f: Fields) -> str:
    address, data = f["address"], f["data"]
    hint = "|rh" if address & 1 << 3 else ""
    return (
        f"dst {address >> 12 & 0xFF:x} vec {data & 0xFF}"
        f" ({_MODES[data >> 8 & 7]}|{_logical(address, 2)}|{_level(data)}{hint})"
    )


def _apic_ipi(f: Fields) -> str:
    icr = f["icr"]
    asserted = "assert" if icr & 1 << 14 else "de-assert"
    return (
        f"dst {f['destination']:x} vec {icr & 0xFF}"
        f" ({_MODES[icr >> 8 & 7]}|{_logical(icr, 11)}|{asserted}|{_level(icr)}|{_SHORTHANDS[icr >> 18 & 3]})"
    )


def _apic_accept_irq(f: Fields) -> str:
    trigger = "level" if f["level_triggered"] else "edge"
    return f"apicid {f['vcpu']:x} vec {f['vector']} ({_MODES[f['delivery_mode'] & 7]}|{trigger})"


def _level(value: int) -> str:
    return "level" if value & 1 << 15 else "edge"


def _logical(value: int, bit: int) -> str:
    return "logical" if value & 1 << bit else "physical"


def _coalesced(f: Fields) -> str:
    return " (coalesced)" if f["coalesced"] else ""


def _s390_type(f: Fields) -> str:
    kind = f["type"]
    name = S390IrqType(kind).name.lower() if kind in set(S390IrqType) else "adapter" if kind & IO_ADAPTER else "I/O"
    return f"type:{kind:x} ({name})"


# The kernel's TP_printk formats. For kvm_inj_virq the kernel has no vCPU: the task has its own column there.
_FORMATS: dict[str, Callable[[Fields], str]] = {
    "kvm_pio": _pio,
    "kvm_mmio": _mmio,
    "kvm_set_irq": lambda f: f"gsi {f['gsi']} level {f['level']} source {f['source']}",
    "kvm_pic_set_irq": _pic_set_irq,
    "kvm_ioapic_set_irq": _ioapic_set_irq,
    "kvm_msi_set_irq": _msi_set_irq,
    "kvm_apic_ipi": _apic_ipi,
    "kvm_apic_accept_irq": _apic_accept_irq,
    "kvm_inj_virq": lambda f: f"vcpu {f['vcpu']} IRQ {f['vector']:#x}",
    "kvm_eoi": lambda f: f"apicid {f['vcpu']:x} vector {f['vector']}",
    "kvm_ack_irq": lambda f: f"irqchip {_CHIPS[f['chip']]} pin {f['pin']}",
    "kvm_s390_inject_vm": lambda f: f"inject: {_s390_type(f)} parm:{f['parm']:x} parm64:{f['parm64']:x}",
    "kvm_s390_inject_vcpu": lambda f: (
        f"inject (vcpu {f['vcpu']}): {_s390_type(f)} parm:{f['parm']:x} parm64:{f['parm64']:x}"
    ),
    "kvm_s390_deliver_interrupt": lambda f: (
        f"deliver interrupt (vcpu {f['vcpu']}): {_s390_type(f)} data:{f['data0']:08x} {f['data1']:016x}"
    ),
}


def trace_line(event: irqchip_client.TraceEvent | irqchip_client.EventsDropped) -> str:
    """One line of the kernel's trace, without its columns of task and CPU."""
    if isinstance(event, irqchip_client.EventsDropped):
        return f"[LOST {event.count} EVENTS]"
    seconds, nanoseconds = divmod(event.time_ns, 10**9)
    return f"{seconds:5}.{nanoseconds // 1000:06}: {event.tracepoint}: {_body(event)}"


def _body(event: irqchip_client.TraceEvent) -> str:
    # A daemon of another version may have other tracepoints, or other fields in them.
    if event.tracepoint in _FORMATS:
        with suppress(KeyError, IndexError):
            return _FORMATS[event.tracepoint](event.fields)
    return " ".join(f"{name}={value}" for name, value in event.fields.items())


@command(epilog=f"Tracepoints: {', '.join(_FORMATS)}.", example="kvm_set_irq")
@pass_vm
@click.argument("tracepoints", nargs=-1, metavar="[TRACEPOINT]...")
@click.option(
    "--gsi",
    "gsis",
    type=number(0, _LAST_GSI),
    multiple=True,
    metavar="N",
    help="Print only events of this GSI. May be repeated.",
)
@click.option(
    "--vcpu", "vcpus", type=VCPU, multiple=True, metavar="ID", help="Print only events of this vCPU. May be repeated."
)
@json_option
def watch(
    vm: irqchip_client.Vm, tracepoints: tuple[str, ...], gsis: tuple[int, ...], vcpus: tuple[int, ...], as_json: bool
) -> None:
    """Print what happens in a VM, until Ctrl-C.

    Each trace event is a line, in the format of the kernel's trace. Tracepoints have the kernel's names, with or
    without "kvm_". Without TRACEPOINT, all are printed. The time is the daemon's monotonic clock, in seconds.

    --gsi selects events of the GSI, and of the chips' pins to which the GSI led when the command started. --vcpu
    selects the interrupts that the vCPU's local APIC is sent, accepts and ends. With both, an event that matches either
    is printed.
    """
    names = [name if name.startswith("kvm_") else f"kvm_{name}" for name in tracepoints]
    there = vm.info().vcpus if vcpus else ()
    if missing := [vcpu for vcpu in vcpus if vcpu not in there]:
        have = ", ".join(map(str, there)) or "none"
        click.echo(
            f"VM {vm.name!r} has no vCPU {missing[0]} yet; it has {have}:"
            f" create vCPU {missing[0]}, or press Ctrl-C and name another",
            err=True,
        )
    concerns = _filter(vm, gsis, vcpus)
    with suppress(KeyboardInterrupt), vm.watch(names) as events:
        for event in events:
            if not isinstance(event, irqchip_client.EventsDropped) and not concerns(event):
                continue
            if not as_json:
                click.echo(trace_line(event))
            elif isinstance(event, irqchip_client.EventsDropped):
                echo_json({"dropped": event.count})
            else:
                echo_json(event)


def _filter(
    vm: irqchip_client.Vm, gsis: tuple[int, ...], vcpus: tuple[int, ...]
) -> Callable[[irqchip_client.TraceEvent], bool]:
    """Whether an event belongs to one of the GSIs or vCPUs, or none are given."""
    if not gsis and not vcpus:
        return lambda _: True
    pins = {
        (int(route.chip), route.pin)
        for route in (vm.routing() if gsis else ())
        if route.gsi in gsis and isinstance(route, irqchip_client.PinRoute)
    }

    def concerns(event: irqchip_client.TraceEvent) -> bool:
        fields = event.fields
        if fields.get("vcpu") in vcpus or fields.get("gsi") in gsis:
            return True
        # The IOAPIC's own tracepoint has no number of a chip.
        return (fields.get("chip", irqchip_client.Chip.IOAPIC), fields.get("pin")) in pins

    return concerns
