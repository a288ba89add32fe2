"""The part of a vCPU's state for which Unicorn has no registers.

A Unicorn context is a copy of the processor's state, and its layout is private; but some of it must be reached:

- after an exception its error code, and whether it was one or an INT n;
- the exception that is under way, which Unicorn sets and never clears: the second #GP or #PF of a guest's life would
  be a double fault, and the third would end it;
- the shadow of STI and MOV SS, during which no interrupt is taken;
- the base of CS, of which the emulator in 64-bit mode lets one write only the selector.

So find_layout() looks for them, once a process, by experiment: it lets a few instructions do what is known to change
each of them, and compares contexts. It raises ImportError where it finds nothing, or more than one place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from struct import iter_unpack, pack
from typing import NamedTuple

from unicorn import x86_const
from unicorn.unicorn_const import UC_ARCH_X86, UC_HOOK_BLOCK, UC_HOOK_INTR, UC_MODE_16, UC_MODE_32
from unicorn.unicorn_py3.unicorn import Uc, UcContext

from .delivery import BIG, CR0_PE, LONG, VM, Segment

# QEMU's hflags.
CPL, INHIBIT_IRQ, CS32, SS32, ADDSEG, LMA, CS64 = 3, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 14, 1 << 15
NMI_BLOCKED = 1 << 2  # of hflags2, which follows

ES, CS, SS, DS = range(4)
SEGMENT_BYTES = 24

FLAT_CODE, FLAT_DATA = 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
CODE_SELECTOR, DATA_SELECTOR = 8, 16
MXCSR, FPCW = 0x1F80, 0x37F  # After RESET, FNINIT


class _Segment(ctypes.Structure):
    selector: int
    base: int
    limit: int
    access: int
    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("access", ctypes.c_uint32),
    )


class Layout(NamedTuple):
    """Offsets in a context."""

    hflags: int
    segments: int
    error_code: int
    is_software: int
    exception_under_way: int


class State:
    """A context, and what is in it beside registers."""

    def __init__(self, context: UcContext) -> None:
        layout = find_layout()
        self.context = context
        base = context.context.value

        def word(offset: int) -> ctypes.c_uint32:
            return ctypes.c_uint32.from_address(base + offset)

        self._hflags, self._hflags2 = word(layout.hflags), word(layout.hflags + 4)
        self._error_code, self._is_software = word(layout.error_code), word(layout.is_software)
        self._under_way = word(layout.exception_under_way)
        self._segments = (_Segment * 4).from_address(base + layout.segments)

    @property
    def cpl(self) -> int:
        return self._hflags.value & CPL

    @property
    def is_shadowed(self) -> bool:
        """STI, MOV SS or POP SS came just before."""
        return bool(self._hflags.value & INHIBIT_IRQ)

    @property
    def is_64bit(self) -> bool:
        return bool(self._hflags.value & CS64)

    @property
    def nmi_blocked(self) -> bool:
        """An NMI has been delivered, and no IRET executed since: 6.7.1."""
        return bool(self._hflags2.value & NMI_BLOCKED)

    def block_nmi(self) -> None:
        self._hflags2.value |= NMI_BLOCKED

    @property
    def cs(self) -> Segment:
        return self._segment(CS)

    @property
    def ss(self) -> Segment:
        return self._segment(SS)

    def _segment(self, number: int) -> Segment:
        segment = self._segments[number]
        return Segment(segment.selector, segment.base, segment.limit, segment.access)

    def load_cs(self, cs: Segment, cr0: int, flags: int) -> None:
        """As a far jump does, and ends the shadow of STI. QEMU: cpu.h cpu_x86_load_seg_cache."""
        segments = self._segments
        segments[CS] = _Segment(cs.selector, cs.base, cs.limit, cs.access)
        hflags = self._hflags.value & ~(CS32 | SS32 | ADDSEG | CS64 | INHIBIT_IRQ)
        if hflags & LMA and cs.access & LONG:
            hflags |= CS32 | SS32 | CS64
        else:
            hflags |= (CS32 if cs.access & BIG else 0) | (SS32 if segments[SS].access & BIG else 0)
            flat = not (segments[DS].base or segments[ES].base or segments[SS].base)
            if not (cr0 & CR0_PE and hflags & CS32 and flat) or flags & VM:
                hflags |= ADDSEG
        self._hflags.value = hflags

    def take_exception(self) -> int | None:
        """The error code of what has just occurred; None where it is INT n. No exception is under way any more."""
        self._under_way.value = 0xFFFF_FFFF
        return None if self._is_software.value else self._error_code.value


def real_mode(selector: int) -> UcContext:
    """The state of a processor in real mode, with CS as after a far jump, and the other registers as after INIT."""
    uc = Uc(UC_ARCH_X86, UC_MODE_16)
    uc.reg_write(x86_const.UC_X86_REG_CS, selector)
    uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, 0, 0xFFFF, 0))
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, 0xFFFF, 0))
    return _initial(uc)


def protected_mode() -> UcContext:
    """The state of a processor in 32-bit protected mode, flat, without paging; GDTR and IDTR are empty."""
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, pack("<3Q", 0, FLAT_CODE, FLAT_DATA))
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, 23, 0))
    uc.reg_write(x86_const.UC_X86_REG_CS, CODE_SELECTOR)
    for register in ("DS", "ES", "FS", "GS", "SS"):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{register}"), DATA_SELECTOR)
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, 0, 0))
    uc.reg_write(x86_const.UC_X86_REG_CR4, 0)
    return _initial(uc)


def _initial(uc: Uc) -> UcContext:
    uc.reg_write(x86_const.UC_X86_REG_EFLAGS, 2)
    uc.reg_write(x86_const.UC_X86_REG_MXCSR, MXCSR)
    uc.reg_write(x86_const.UC_X86_REG_FPCW, FPCW)
    return uc.context_save()


@cache
def find_layout() -> Layout:
    """Where things are in a context of this Unicorn."""
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, 0x1000)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])
    uc.hook_add(UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
    uc.hook_add(UC_HOOK_BLOCK, lambda uc, address, *_: uc.emu_stop() if address else None)
    initial = protected_mode()

    def execute(code: str) -> tuple[list[int], list[int]]:
        """The words of contexts before and after."""
        uc.context_restore(initial)
        uc.mem_write(0, bytes.fromhex(code))
        uc.ctl_flush_tb()
        before = _words(uc.context_save())
        uc.emu_start(0, 0)
        return before, _words(uc.context_save())

    # sti; nop
    hflags = _only(
        [at for at, (old, new) in enumerate(zip(*execute("fb90"), strict=True)) if old ^ new == INHIBIT_IRQ], "hflags"
    )
    # mov ax, 0xabcf; mov ds, ax: #GP, as there is no GDT, with the selector without its last two bits
    old, new = execute("66b8cfab8ed8")
    error_code = _only([at for at in range(len(old)) if old[at] == 0 and new[at] == 0xABCC], "error code")
    under_way = _only([at for at in range(len(old)) if old[at] == 0xFFFF_FFFF and new[at] == 13], "exception")
    # int 0x20
    old, new = execute("cd20")
    is_software = _only([at for at in range(len(old)) if old[at] == 0 and new[at] == 1], "INT n")
    # In real mode, whose bases are 16 times the selectors
    real = _words(real_mode(0x1234))
    cs = _only(
        [at for at in range(len(real)) if real[at] == 0x1234 and real[at + 2 : at + 5] == [0x12340, 0, 0xFFFF]], "CS"
    )
    return Layout(hflags * 4, cs * 4 - SEGMENT_BYTES, error_code * 4, is_software * 4, under_way * 4)


def _words(context: UcContext) -> list[int]:
    return [word for (word,) in iter_unpack("<I", bytes(context))]


def _only(found: list[int], what: str) -> int:
    if len(found) != 1:
        raise ImportError(f"irqchip_client.unicorn does not know this release of Unicorn: where it keeps {what}")
    return found[0]
