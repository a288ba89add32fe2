"""Chip states as text, in the words and columns of QEMU's monitor (`info pic`, `info lapic`)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .durations import show_duration

if TYPE_CHECKING:
    from irqchip.v1 import irqchip_pb2 as pb
    from irqchip_client import IoapicState, LapicState, PicState, PitChannel, PitState, RedirectionEntry

IOAPIC_VERSION = 0x11  # KVM's; the state has none
WIDTH = 96

_MODES = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "SIPI", "extINT")  # bits 10:8
_SHORTHANDS = ("no-shorthand", "self", "all-self", "all")  # bits 19:18 of the ICR
_DELIVERY_STATUS, _ACTIVE_LOW, _REMOTE_IRR = 1 << 12, 1 << 13, 1 << 14
_LEVEL, _MASKED = 1 << 15, 1 << 16

_APIC_BOOT, _X2APIC, _APIC_ENABLED = 1 << 8, 1 << 10, 1 << 11  # of IA32_APIC_BASE

_PIT_FREQUENCY = 1_193_182  # Hz
_PIT_MODES = (
    "interrupt on terminal count",
    "retriggerable one-shot",
    "rate generator",
    "square wave",
    "software strobe",
    "hardware strobe",
)
_PIT_ACCESSES = ("none", "low", "high", "low/high")  # bits 5:4 of a control word
_PIT_HPET, _PIT_SPEAKER_DATA = 1, 2  # flags
_PIT_OUT = 1 << 7  # of a status


def dump_pic(name: str, pic: PicState) -> str:
    """One line, and a second one for modes that QEMU's line does not show."""
    line = (
        f"{name}: irr={pic.irr:02x} imr={pic.imr:02x} isr={pic.isr:02x} hprio={pic.priority_add}"
        f" irq_base={pic.irq_base:02x} rr_sel={pic.read_reg_select} elcr={pic.elcr:02x}"
        f" fnm={pic.special_fully_nested_mode}"
    )
    modes = [
        (pic.init_state, f"expects ICW{pic.init_state + 1}"),
        (pic.auto_eoi, "auto-EOI"),
        (pic.rotate_on_auto_eoi, "rotates on auto-EOI"),
        (pic.special_mask, "special mask mode"),
        (pic.poll, "polled next"),
    ]
    words = ", ".join(word for is_on, word in modes if is_on)
    return f"{line}\n  {words}" if words else line


def dump_ioapic(ioapic: IoapicState) -> str:
    """A line for each pin, and the pins that wait."""
    remote_irr = [pin for pin, entry in enumerate(ioapic.entries) if entry.remote_irr]
    irr = [pin for pin in range(len(ioapic.entries)) if ioapic.irr >> pin & 1]
    lines = [f"ioapic0: ver={IOAPIC_VERSION:#x} id={ioapic.id:#04x} sel={ioapic.ioregsel:#04x}"]
    lines += [_redirection(pin, entry) for pin, entry in enumerate(ioapic.entries)]
    lines += [f"  IRR        {_numbers(irr)}", f"  Remote IRR {_numbers(remote_irr)}"]
    return "\n".join(lines)


def _redirection(pin: int, entry: RedirectionEntry) -> str:
    words = (
        f"  pin {pin:<2} 0x{entry.raw:016x} dest={entry.destination:<3} vec={entry.vector:<3}"
        f" {'active-lo' if entry.active_low else 'active-hi'}"
        f" {'level' if entry.level_triggered else 'edge':5} {'masked' if entry.masked else '':6}"
        f" {_MODES[entry.delivery_mode]:6} {'logical' if entry.logical else 'physical':8}"
        f" {'pending' if entry.pending else ''}"
    )
    return words.rstrip()


def dump_pit(pit: PitState, timer: pb.PitSnapshot | None = None, now_ns: int = 0) -> str:
    """A line for the chip, and one for each channel; a second one if a channel has latched a value or awaits one.

    A read-back latches OUT; otherwise OUT is unknown. `timer` is channel 0's part of a VM's snapshot.
    """
    words = [f"pit0: flags={pit.flags:02x}"]
    words += ["channel 0 stopped for an HPET"] if pit.flags & _PIT_HPET else []
    words += ["speaker data on"] if pit.flags & _PIT_SPEAKER_DATA else []
    if timer is not None:
        words += [f"next tick in {_left(timer.expires_ns, now_ns)}"] if timer.running else []
        words += [f"{timer.pending} ticks wait"] if timer.reinject and timer.pending else []
        words += [] if timer.reinject else ["lost ticks are not reinjected"]
    lines = [", ".join(words)]
    for number, channel in enumerate(pit.channels):
        lines += _pit_channel(number, channel)
    return "\n".join(lines)


def _pit_channel(number: int, channel: PitChannel) -> list[str]:
    mode = _PIT_MODES[channel.mode] if channel.mode < len(_PIT_MODES) else "not programmed"
    frequency = f" ({_PIT_FREQUENCY / channel.count:.2f} Hz)" if channel.mode in (2, 3) and channel.count else ""
    latched = [
        (channel.count_latched, f"count {channel.latched_count} latched"),
        (
            channel.status_latched,
            f"status {channel.status:02x} latched: OUT {'high' if channel.status & _PIT_OUT else 'low'}",
        ),
        (channel.write_state == 4, f"low half {channel.write_latch:02x} written, the high one awaited"),
        (channel.read_state == 4, "low half read, the high one awaited"),
        (channel.bcd, "BCD, which KVM does not act on"),
    ]
    lines = [
        f"  channel {number} mode={channel.mode} ({mode}) access={_PIT_ACCESSES[channel.rw_mode & 3]}"
        f" count={channel.count}{frequency} gate={channel.gate}"
    ]
    if words := ", ".join(word for is_on, word in latched if is_on):
        lines.append(f"    {words}")
    return lines


def dump_lapic(cpu: int, lapic: LapicState, vcpu: pb.VcpuSnapshot | None = None, now_ns: int = 0) -> str:
    """As `info lapic`: the LVT, the timer, and the vectors that are requested and in service.

    A VM's snapshot of the vCPU adds its run state, the APIC's mode and the timer's end.
    """
    x2apic = vcpu is not None and bool(vcpu.apic_base & _X2APIC)
    return "\n".join(
        [
            f"dumping local APIC state for CPU {cpu}",
            "",
            *([] if vcpu is None else [f"STATE    {_run_state(vcpu)}", f"BASE     {_apic_base(vcpu.apic_base)}"]),
            _lvt("LVT0", lapic.lvt_lint0),
            _lvt("LVT1", lapic.lvt_lint1),
            _lvt("LVTPC", lapic.lvt_performance),
            _lvt("LVTERR", lapic.lvt_error),
            _lvt("LVTTHMR", lapic.lvt_thermal),
            _lvt("LVTT", lapic.lvt_timer, _timer_mode(lapic.lvt_timer)),
            f"Timer    DCR={lapic.timer_divide & 0xB:#x} (divide by {_divider(lapic.timer_divide)})"
            f" initial_count = {lapic.timer_initial_count} current_count = {lapic.timer_current_count}"
            f"{'' if vcpu is None else _timer(lapic, vcpu, now_ns)}",
            f"SPIV     0x{lapic.svr:08x} APIC {'enabled' if lapic.svr & 1 << 8 else 'disabled'},"
            f" focus={'on' if lapic.svr & 1 << 9 else 'off'}, spurious vec {lapic.svr & 0xFF}",
            f"ICR      0x{lapic.icr:08x} {'logical' if lapic.icr & 1 << 11 else 'physical'}"
            f" {'level' if lapic.icr & _LEVEL else 'edge'} {'assert' if lapic.icr & 1 << 14 else 'de-assert'}"
            f" {_SHORTHANDS[lapic.icr >> 18 & 3]} {_MODES[lapic.icr >> 8 & 7]} (vec {lapic.icr & 0xFF})",
            f"ICR2     0x{lapic.icr2:08x}{_icr_destination(lapic, x2apic)}",
            f"ESR      0x{lapic.esr:08x}",
            _vectors("ISR", lapic.isr, lapic.tmr),
            _vectors("IRR", lapic.irr, lapic.tmr),
            "",
            f"APR 0x{lapic.rest[0x90]:02x} TPR 0x{lapic.tpr:02x} DFR 0x{lapic.dfr >> 28:02x}"
            f" LDR {_logical_id(lapic, x2apic)} PPR 0x{lapic.ppr:02x}",
        ]
    )


def _lvt(name: str, lvt: int, timer_mode: str = "") -> str:
    mode = _MODES[lvt >> 8 & 7]
    words = (
        f"{name:8} 0x{lvt:08x} {'active-lo' if lvt & _ACTIVE_LOW else 'active-hi'}"
        f" {'level' if lvt & _LEVEL else 'edge':5} {'masked' if lvt & _MASKED else '':6}"
        f" {'pending' if lvt & _DELIVERY_STATUS else '':7} {timer_mode:12} {mode:6}"
    )
    return words.rstrip() if mode == "NMI" else f"{words} (vec {lvt & 0xFF})"


def _timer_mode(lvt: int) -> str:
    return ("one-shot", "periodic", "tsc-deadline", "...")[lvt >> 17 & 3]


def _divider(divide: int) -> int:
    """Bits 3, 1 and 0: 000 is 2, 110 is 128, and 111 is 1."""
    code = divide >> 1 & 4 | divide & 3
    return 1 << (code + 1 & 7)


def _icr_destination(lapic: LapicState, x2apic: bool) -> str:
    if lapic.icr >> 18 & 3:
        return ""
    destination = lapic.icr2 if x2apic else lapic.icr2 >> 24
    return f" mask 0x{destination:02x}" if lapic.icr & 1 << 11 else f" cpu {destination}"


def _logical_id(lapic: LapicState, x2apic: bool) -> str:
    """The LDR, with the ID in the cluster model, which x2APIC always uses; the flat model's ID is the LDR itself."""
    if x2apic:
        return f"0x{lapic.ldr:08x} (cluster {lapic.ldr >> 16}: id {lapic.ldr & 0xFFFF})"
    ldr = lapic.ldr >> 24
    return f"0x{ldr:02x}" if lapic.dfr >> 28 else f"0x{ldr:02x} (cluster {ldr >> 4}: id {ldr & 0xF})"


_RUN_STATES = {1: "runnable", 2: "uninitialized", 3: "wait for SIPI", 4: "halted", 10: "AP reset hold"}  # MpState


def _run_state(vcpu: pb.VcpuSnapshot) -> str:
    """The MP state, and everything that waits beside the requested vectors."""
    state = _RUN_STATES.get(vcpu.mp_state, "-")
    waiting = [
        (vcpu.init, "INIT"),
        (vcpu.HasField("sipi_vector"), f"SIPI (page 0x{vcpu.sipi_vector:02x})"),
        (vcpu.smi, "SMI"),
        (vcpu.nmis, f"NMI ({vcpu.nmis})"),
        *((True, f"accepted interrupt (vec {queued.vector})") for queued in vcpu.queued),
        (vcpu.HasField("external_vector"), f"external interrupt (vec {vcpu.external_vector})"),
    ]
    words = ", ".join(word for is_on, word in waiting if is_on)
    return f"{state}; to take: {words}" if words else state


def _apic_base(base: int) -> str:
    mode = "x2APIC" if base & _X2APIC else "xAPIC"
    return f"0x{base:08x} {mode if base & _APIC_ENABLED else 'disabled'}{', boot CPU' if base & _APIC_BOOT else ''}"


def _timer(lapic: LapicState, vcpu: pb.VcpuSnapshot, now_ns: int) -> str:
    """A second line for a timer that runs, or has expired while it was masked."""
    if vcpu.timer_pending:
        return "\n         expired while it was masked"
    if not vcpu.HasField("timer_expires_ns"):
        return ""
    line = f"\n         expires in {_left(vcpu.timer_expires_ns, now_ns)}"
    match _timer_mode(lapic.lvt_timer):
        case "periodic":
            return f"{line}, and then every {show_duration(vcpu.timer_period_ns)}"
        case "tsc-deadline":
            return f"{line}, at TSC {vcpu.tsc_deadline}"
    return line


def _left(at_ns: int, now_ns: int) -> str:
    return show_duration(max(at_ns - now_ns, 0))


def _vectors(name: str, vectors: Iterable[int], level: Iterable[int]) -> str:
    level = set(level)
    # A character that no line breaks at holds the words together.
    words = [f"{vector}\xa0(level)" if vector in level else str(vector) for vector in vectors]
    margin = " " * 9
    text = textwrap.fill(" ".join(words) or "(none)", WIDTH, initial_indent=f"{name:9}", subsequent_indent=margin)
    return text.replace("\xa0", " ")


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) or "(none)"
