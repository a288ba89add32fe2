"""Trace events in the format of the kernel's ftrace: the text of /sys/kernel/tracing/trace on a KVM host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import irqchip_client
from irqchip_client.s390 import IO_ADAPTER, S390IrqType

Fields = Mapping[str, int]

# KVM: arch/x86/kvm/trace.h kvm_deliver_mode, kvm_irqchips, kvm_apic_dst_shorthand; trace_arm.h kvm_irq_line.
_MODES = ("Fixed", "LowPrio", "SMI", "Res3", "NMI", "INIT", "SIPI", "ExtINT")
_CHIPS = ("PIC master", "PIC slave", "IOAPIC")
_SHORTHANDS = ("dst", "self", "all", "all-but-self")
_LINES = ("CPU", "VGIC SPI", "VGIC PPI")

# Kernel: kernel/trace/trace.c print_func_help_header_irq, with an empty buffer.
_HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 0/0   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |"""


def _direction(f: Fields) -> str:
    return "write" if f["write"] else "read"


def _pic_set_irq(f: Fields) -> str:
    bit = 1 << f["pin"]
    trigger, masked = "level" if f["elcr"] & bit else "edge", "|masked" if f["imr"] & bit else ""
    return f"chip {f['chip']} pin {f['pin']} ({trigger}{masked}){_coalesced(f)}"


def _entry(f: Fields) -> str:
    entry = f["entry"]
    masked = "|masked" if entry & 1 << 16 else ""
    return (
        f"dst {entry >> 56 & 0xFF:x} vec {entry & 0xFF}"
        f" ({_MODES[entry >> 8 & 7]}|{_logical(entry, 11)}|{_level(entry)}{masked})"
    )


def _msi_set_irq(f: Fields) -> str:
    address, data = f["address"], f["data"]
    hint = "|rh" if address & 1 << 3 else ""
    return (
        f"dst {address >> 12 & 0xFF | address >> 32 & 0xFFFFFF00:x} vec {data & 0xFF}"
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


def _signed(value: int) -> int:
    """A field that the kernel prints with %d."""
    return (value + (1 << 31) & 0xFFFF_FFFF) - (1 << 31)


def _s390_type(f: Fields) -> str:
    kind = f["type"]
    name = S390IrqType(kind).name.lower() if kind in set(S390IrqType) else "adapter" if kind & IO_ADAPTER else "I/O"
    return f"type:{kind:x} ({name})"


def _irq_line(f: Fields) -> str:
    kind = _LINES[f["kind"]] if f["kind"] < len(_LINES) else "UNKNOWN"
    return f"Inject {kind} interrupt ({f['kind']}), vcpu->idx: {f['vcpu']}, num: {f['number']}, level: {f['level']}"


# The kernel's TP_printk formats; kvm_pio ends with a space there, too.
_FORMATS: dict[str, Callable[[Fields], str]] = {
    "kvm_pio": lambda f: f"pio_{_direction(f)} at {f['port']:#x} size {f['size']} count 1 val {f['value']:#x} ",
    "kvm_mmio": lambda f: f"mmio {_direction(f)} len {f['size']} gpa {f['address']:#x} val {f['value']:#x}",
    "kvm_msr": lambda f: f"msr_{_direction(f)} {f['ecx']:x} = {f['data']:#x}{' (#GP)' if f['exception'] else ''}",
    "kvm_cr": lambda f: f"cr_{_direction(f)} {f['cr']:x} = {f['val']:#x}",
    "kvm_set_irq": lambda f: f"gsi {f['gsi']} level {f['level']} source {f['source']}",
    "kvm_pic_set_irq": _pic_set_irq,
    "kvm_ioapic_set_irq": lambda f: f"pin {f['pin']} {_entry(f)}{_coalesced(f)}",
    "kvm_ioapic_delayed_eoi_inj": _entry,
    "kvm_msi_set_irq": _msi_set_irq,
    "kvm_apic_ipi": _apic_ipi,
    "kvm_apic_accept_irq": _apic_accept_irq,
    "kvm_inj_virq": lambda f: f"IRQ {f['vector']:#x}",
    "kvm_eoi": lambda f: f"apicid {f['vcpu']:x} vector {_signed(f['vector'])}",
    "kvm_ack_irq": lambda f: f"irqchip {_CHIPS[f['chip']]} pin {f['pin']}",
    "kvm_irq_line": _irq_line,
    "kvm_timer_update_irq": lambda f: f"VCPU: {f['vcpu']}, IRQ {f['intid']}, level {f['level']}",
    "vgic_update_irq_pending": lambda f: f"VCPU: {f['vcpu']}, IRQ {f['intid']}, level: {f['level']}",
    "kvm_s390_inject_vm": lambda f: f"inject: {_s390_type(f)} parm:{f['parm']:x} parm64:{f['parm64']:x}",
    "kvm_s390_inject_vcpu": lambda f: (
        f"inject (vcpu {f['vcpu']}): {_s390_type(f)} parm:{f['parm']:x} parm64:{f['parm64']:x}"
    ),
    "kvm_s390_deliver_interrupt": lambda f: (
        f"deliver interrupt (vcpu {f['vcpu']}): {_s390_type(f)} data:{f['data0']:08x} {f['data1']:016x}"
    ),
}
TRACEPOINTS = tuple(_FORMATS)

_NO_SYMBOLS = {"kvm_ack_irq": lambda f: f"irqchip {f['chip']} pin {f['pin']}"}  # but on x86


def full_name(tracepoint: str) -> str:
    """A tracepoint's full name, also for a name without "kvm_"."""
    return tracepoint if tracepoint.startswith(("kvm_", "vgic_")) else f"kvm_{tracepoint}"


class Ftrace:
    """Prints the events of a VM as the kernel of its architecture does."""

    def __init__(self, architecture: irqchip_client.Architecture) -> None:
        x86 = architecture == irqchip_client.Architecture.X86
        self._formats = _FORMATS if x86 else _FORMATS | _NO_SYMBOLS

    def header(self, cpus: int) -> str:
        """The first lines of the file `trace`."""
        return _HEADER.format(cpus=cpus)

    def body(self, event: irqchip_client.TraceEvent) -> str:
        """The text behind the tracepoint's name."""
        # A daemon of another version may have other tracepoints, or other fields in them.
        if event.tracepoint in self._formats:
            with suppress(KeyError, IndexError):
                return self._formats[event.tracepoint](event.fields)
        return " ".join(f"{name}={value}" for name, value in event.fields.items())

    def line(self, event: irqchip_client.TraceEvent | irqchip_client.EventsDropped) -> str:
        """A line of the file `trace`. Its task and CPU are the vCPU's; without a vCPU, the daemon's, on CPU 0.

        Kernel: kernel/trace/trace_output.c trace_print_context. The process ids are of this trace alone.
        """
        if isinstance(event, irqchip_client.EventsDropped):
            return f"CPU:0 [LOST {event.count} EVENTS]"
        vcpu = event.fields.get("vcpu")
        task, pid, cpu = ("irqchipd", 1, 0) if vcpu is None else (f"vcpu{vcpu}", vcpu + 2, vcpu)
        return f"{task:>16}-{pid:<7} [{cpu:03}] ..... {seconds(event.time_ns)}: {event.tracepoint}: {self.body(event)}"


def seconds(time_ns: int) -> str:
    """A time as the kernel prints it."""
    whole, rest = divmod(time_ns, 10**9)
    return f"{whole:5}.{rest // 1000:06}"
