"""Chip states as text, in the words and columns of QEMU's monitor (`info pic`, `info lapic`)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irqchip_client import IoapicState, LapicState, PicState, RedirectionEntry

IOAPIC_VERSION = 0x11  # KVM's; the state has none
WIDTH = 96

_MODES = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "SIPI", "extINT")  # bits 10:8
_SHORTHANDS = ("no-shorthand", "self", "all-self", "all")  # bits 19:18 of the ICR
_DELIVERY_STATUS, _ACTIVE_LOW, _REMOTE_IRR = 1 << 12, 1 << 13, 1 << 14
_LEVEL, _MASKED = 1 << 15, 1 << 16


def dump_pic(name: str, pic: PicState) -> str:
    """One line, and a second one where the chip is in a mode that the first has no word for."""
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
    """A line a pin, and the pins that wait."""
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


def dump_lapic(cpu: int, lapic: LapicState) -> str:
    """As `info lapic`: the LVT, the timer, and what is requested and in service."""
    return "\n".join(
        [
            f"dumping local APIC state for CPU {cpu}",
            "",
            _lvt("LVT0", lapic.lvt_lint0),
            _lvt("LVT1", lapic.lvt_lint1),
            _lvt("LVTPC", lapic.lvt_performance),
            _lvt("LVTERR", lapic.lvt_error),
            _lvt("LVTTHMR", lapic.lvt_thermal),
            _lvt("LVTT", lapic.lvt_timer, _timer_mode(lapic.lvt_timer)),
            f"Timer    DCR={lapic.timer_divide & 0xB:#x} (divide by {_divider(lapic.timer_divide)})"
            f" initial_count = {lapic.timer_initial_count} current_count = {lapic.timer_current_count}",
            f"SPIV     0x{lapic.svr:08x} APIC {'enabled' if lapic.svr & 1 << 8 else 'disabled'},"
            f" focus={'on' if lapic.svr & 1 << 9 else 'off'}, spurious vec {lapic.svr & 0xFF}",
            f"ICR      0x{lapic.icr:08x} {'logical' if lapic.icr & 1 << 11 else 'physical'}"
            f" {'level' if lapic.icr & _LEVEL else 'edge'} {'assert' if lapic.icr & 1 << 14 else 'de-assert'}"
            f" {_SHORTHANDS[lapic.icr >> 18 & 3]} {_MODES[lapic.icr >> 8 & 7]} (vec {lapic.icr & 0xFF})",
            f"ICR2     0x{lapic.icr2:08x}{_icr_destination(lapic)}",
            f"ESR      0x{lapic.esr:08x}",
            _vectors("ISR", lapic.isr, lapic.tmr),
            _vectors("IRR", lapic.irr, lapic.tmr),
            "",
            f"APR 0x{lapic.rest[0x90]:02x} TPR 0x{lapic.tpr:02x} DFR 0x{lapic.dfr >> 28:02x}"
            f" LDR 0x{lapic.ldr >> 24:02x}{_cluster(lapic)} PPR 0x{lapic.ppr:02x}",
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


def _icr_destination(lapic: LapicState) -> str:
    if lapic.icr >> 18 & 3:
        return ""
    destination = lapic.icr2 >> 24
    return f" mask 0x{destination:02x}" if lapic.icr & 1 << 11 else f" cpu {destination}"


def _cluster(lapic: LapicState) -> str:
    """The logical ID of the cluster model; that of the flat one is the LDR itself."""
    ldr = lapic.ldr >> 24
    return "" if lapic.dfr >> 28 else f" (cluster {ldr >> 4}: id {ldr & 0xF})"


def _vectors(name: str, vectors: Iterable[int], level: Iterable[int]) -> str:
    level = set(level)
    # Held together by a character that no line is broken at.
    words = [f"{vector}\xa0(level)" if vector in level else str(vector) for vector in vectors]
    margin = " " * 9
    text = textwrap.fill(" ".join(words) or "(none)", WIDTH, initial_indent=f"{name:9}", subsequent_indent=margin)
    return text.replace("\xa0", " ")


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) or "(none)"
