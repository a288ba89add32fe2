"""The part of a vCPU's state for which Unicorn has no registers.

A Unicorn context is a copy of the processor's state, and its layout is private. But the adapter needs some fields:

- after an exception its error code, and whether it was one or an INT n;
- the exception that is under way, which Unicorn sets and never clears: the second #GP or #PF of a guest's life would
  be a double fault, and the third would end it;
- the shadow of STI and MOV SS, during which no interrupt is taken;
- the base of CS: in 64-bit mode the emulator lets a caller write only the selector.

So find_layout() looks for their places, once a process, by experiment: it executes a few instructions that are known to
change each of them, and compares contexts. It raises ImportError unless it finds exactly one place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from struct import iter_unpack, pack
from typing import NamedTuple

from unicorn import x86_const
from unicorn.unicorn_const import UC_ARCH_X86, UC_HOOK_BLOCK, UC_HOOK_INTR, UC_MODE_16, UC_MODE_32
from unicorn.unicorn_py3.unicorn import Uc, UcContext

from irqchip_client.vmm.start import CODE_64, FLAT_CODE, FLAT_DATA, Start, StartMode

from .delivery import BIG, CR0_PE, LONG, VM, Segment, Table

# QEMU's hflags.
CPL, INHIBIT_IRQ, CS32, SS32, ADDSEG, LMA, CS64 = 3, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 14, 1 << 15
NMI_BLOCKED = 1 << 2  # of hflags2, which follows

ES, CS, SS, DS = range(4)

BASE = 8  # Its offset in a segment.

MARK = 0x1230  # A value that occurs nowhere else.

MXCSR, FPCW = 0x1F80, 0x37F  # After RESET, FNINIT
GDT_LIMIT = 31

# The change to 64-bit mode, in an emulator of its own: its code at CHANGE, up to LANDING.
CHANGE, LANDING, PAGE_TABLES = 0x800, 0xC00, 0x1000
ENTER_LONG_MODE = bytes.fromhex(
    "b820000000"  # mov eax, 0x20
    "0f22e0"  # mov cr4, eax: PAE
    "b800100000"  # mov eax, PAGE_TABLES
    "0f22d8"  # mov cr3, eax
    "b9800000c0"  # mov ecx, 0xc0000080: EFER
    "0f32"  # rdmsr
    "80cc01"  # or ah, 1: LME
    "0f30"  # wrmsr
    "0f20c0"  # mov eax, cr0
    "0d00000080"  # or eax, 0x80000000: PG
    "0f22c0"  # mov cr0, eax
)


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
    sp: int
    cr2: int
    idtr: int
    gdtr: int
    ldtr: int
    tr: int


class State:
    """A context, and the fields of it that delivery needs; reading a register through the binding takes long."""

    def __init__(self, context: UcContext) -> None:
        layout = find_layout()
        self.context = context
        base = context.context.value
        word, quad = ctypes.c_uint32.from_address, ctypes.c_uint64.from_address
        self._hflags, self._hflags2 = word(base + layout.hflags), word(base + layout.hflags + 4)
        self._error_code, self._is_software = word(base + layout.error_code), word(base + layout.is_software)
        self._under_way = word(base + layout.exception_under_way)
        self._segments = (_Segment * 4).from_address(base + layout.segments)
        self._sp = quad(base + layout.sp)
        self._cr = (ctypes.c_uint64 * 5).from_address(base + layout.cr2 - 16)
        self._idtr, self._gdtr, self._ldtr, self._tr = (
            _Segment.from_address(base + at) for at in (layout.idtr, layout.gdtr, layout.ldtr, layout.tr)
        )

    @property
    def cr0(self) -> int:
        return int(self._cr[0])

    @property
    def cr3(self) -> int:
        return int(self._cr[3])

    @property
    def cr4(self) -> int:
        return int(self._cr[4])

    @property
    def cpl(self) -> int:
        return self._hflags.value & CPL

    @property
    def long_mode(self) -> bool:
        """EFER.LMA"""
        return bool(self._hflags.value & LMA)

    @property
    def is_64bit(self) -> bool:
        """CS.L, in long mode."""
        return bool(self._hflags.value & CS64)

    @property
    def is_32bit(self) -> bool:
        """Whether operands have 32 bits by default."""
        return bool(self._hflags.value & (CS32 | CS64))

    @property
    def is_shadowed(self) -> bool:
        """STI, MOV SS or POP SS came just before."""
        return bool(self._hflags.value & INHIBIT_IRQ)

    @property
    def nmi_blocked(self) -> bool:
        """An NMI has been delivered, and no IRET executed since: 6.7.1."""
        return bool(self._hflags2.value & NMI_BLOCKED)

    def block_nmi(self) -> None:
        self._hflags2.value |= NMI_BLOCKED

    def unblock_nmi(self) -> None:
        self._hflags2.value &= ~NMI_BLOCKED

    @property
    def sp(self) -> int:
        return self._sp.value

    @sp.setter
    def sp(self, value: int) -> None:
        self._sp.value = value

    @property
    def cs(self) -> Segment:
        return _read_segment(self._segments[CS])

    @property
    def ss(self) -> Segment:
        return _read_segment(self._segments[SS])

    @property
    def idtr(self) -> Table:
        return Table(self._idtr.base, self._idtr.limit)

    @property
    def gdtr(self) -> Table:
        return Table(self._gdtr.base, self._gdtr.limit)

    @property
    def ldtr(self) -> Table:
        return Table(self._ldtr.base, self._ldtr.limit)

    @property
    def tr(self) -> Segment:
        return _read_segment(self._tr)

    def load_ss(self, ss: Segment) -> None:
        """Loads SS, and with it the ring. load_cs() comes next. QEMU: cpu.h cpu_x86_load_seg_cache."""
        self._segments[SS] = _Segment(ss.selector, ss.base, ss.limit, ss.access)
        self._hflags.value = self._hflags.value & ~CPL | ss.dpl

    def load_cs(self, cs: Segment, flags: int) -> None:
        """Loads CS as a far jump does, and ends the shadow of STI. QEMU: cpu.h cpu_x86_load_seg_cache."""
        segments = self._segments
        segments[CS] = _Segment(cs.selector, cs.base, cs.limit, cs.access)
        hflags = self._hflags.value & ~(CS32 | SS32 | ADDSEG | CS64 | INHIBIT_IRQ)
        if hflags & LMA and cs.access & LONG:
            hflags |= CS32 | SS32 | CS64
        else:
            hflags |= (CS32 if cs.access & BIG else 0) | (SS32 if segments[SS].access & BIG else 0)
            flat = not (segments[DS].base or segments[ES].base or segments[SS].base)
            if not (self.cr0 & CR0_PE and hflags & CS32 and flat) or flags & VM:
                hflags |= ADDSEG
        self._hflags.value = hflags

    def take_exception(self) -> int | None:
        """Takes the error code of the exception that has just occurred; None after INT n."""
        self._under_way.value = 0xFFFF_FFFF
        return None if self._is_software.value else self._error_code.value


def _read_segment(segment: _Segment) -> Segment:
    return Segment(segment.selector, segment.base, segment.limit, segment.access)


def real_mode(selector: int) -> UcContext:
    """The state of a processor in real mode, with CS as after a far jump, and the other registers as after INIT."""
    uc = Uc(UC_ARCH_X86, UC_MODE_16)
    uc.reg_write(x86_const.UC_X86_REG_CS, selector)
    uc.reg_write(x86_const.UC_X86_REG_IDTR, (0, 0, 0xFFFF, 0))
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, 0xFFFF, 0))
    return _initial(uc)


def protected_mode(start: Start) -> UcContext:
    """The state of a processor in 32-bit protected mode, flat, without paging; IDTR is empty."""
    uc = _flat(start)
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, start.gdt, GDT_LIMIT if start.gdt else 0, 0))
    return _initial(uc)


def long_mode(start: Start) -> UcContext:
    """The state of a processor in 64-bit mode, flat, with paging; IDTR is empty.

    Unicorn's registers can't be set to this state, so an emulator executes the change of modes.
    """
    uc = _flat(start)
    code, _ = start.selectors
    far_jump = b"\xea" + pack("<IH", LANDING, code)
    uc.mem_write(CHANGE, ENTER_LONG_MODE + far_jump)
    uc.mem_write(code, pack("<Q", CODE_64))
    uc.mem_write(PAGE_TABLES, pack("<Q", PAGE_TABLES + 0x1000 | 3))
    uc.mem_write(PAGE_TABLES + 0x1000, pack("<Q", PAGE_TABLES + 0x2000 | 3))
    uc.mem_write(PAGE_TABLES + 0x2000, pack("<Q", 0x83))
    uc.emu_start(CHANGE, LANDING)
    for name in ("EAX", "ECX", "EDX"):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), 0)
    uc.reg_write(x86_const.UC_X86_REG_CR3, start.cr3)
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, start.gdt, GDT_LIMIT, 0))
    return _initial(uc)


def _flat(start: Start) -> Uc:
    """An emulator in 32-bit protected mode."""
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, PAGE_TABLES + 0x3000)
    code, data = start.selectors
    uc.mem_write(code, pack("<2Q", FLAT_CODE, FLAT_DATA))
    uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, 0, GDT_LIMIT, 0))
    uc.reg_write(x86_const.UC_X86_REG_CS, code)
    for register in ("DS", "ES", "FS", "GS", "SS"):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{register}"), data)
    uc.reg_write(x86_const.UC_X86_REG_CR4, 0)
    return uc


def _initial(uc: Uc) -> UcContext:
    uc.reg_write(x86_const.UC_X86_REG_EFLAGS, 2)
    uc.reg_write(x86_const.UC_X86_REG_MXCSR, MXCSR)
    uc.reg_write(x86_const.UC_X86_REG_FPCW, FPCW)
    return uc.context_save()


@cache
def find_layout() -> Layout:
    """The offsets in a context of this Unicorn."""
    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, 0x1000)
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])
    uc.hook_add(UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
    uc.hook_add(UC_HOOK_BLOCK, lambda uc, address, *_: uc.emu_stop() if address else None)
    initial = protected_mode(Start(StartMode.PROTECTED, 0))

    def execute(code: str) -> list[tuple[int, int]]:
        """The words of contexts before and after."""
        uc.context_restore(initial)
        uc.mem_write(0, bytes.fromhex(code))
        uc.ctl_flush_tb()
        before = _words(uc)
        uc.emu_start(0, 0)
        return list(zip(before, _words(uc), strict=True))

    changes = execute("fb90")  # sti; nop
    hflags = _only("hflags", [old ^ new == INHIBIT_IRQ for old, new in changes])
    # mov ax, 0xabcf; mov ds, ax: #GP, as there is no GDT, with the selector without its last two bits
    changes = execute("66b8cfab8ed8")
    error_code = _only("the error code", [change == (0, 0xABCC) for change in changes])
    under_way = _only("the exception under way", [change == (0xFFFF_FFFF, 13) for change in changes])
    changes = execute("cd20")  # int 0x20
    is_software = _only("INT n", [change == (0, 1) for change in changes])

    real = Uc(UC_ARCH_X86, UC_MODE_16)
    real.reg_write(x86_const.UC_X86_REG_CS, MARK)
    words = _words(real)
    cs = _only("CS", [words[at : at + 5] == [MARK, 0, MARK << 4, 0, 0xFFFF] for at in range(len(words))])

    def find(register: str) -> int:
        """The offset of a register, or of a table's base."""
        number = getattr(x86_const, f"UC_X86_REG_{register}")
        uc.context_restore(initial)
        uc.reg_write(number, (0, MARK, 0, 0) if register.endswith("TR") else MARK)
        return 4 * _only(register, [word == MARK for word in _words(uc)])

    # A table's registers are kept like a segment's, which has its base 8 bytes from its beginning.
    tables = (find(register) - BASE for register in ("IDTR", "GDTR", "LDTR", "TR"))
    cr2 = find("CR2")
    if cr2 + 8 != find("CR3"):
        raise _unknown("CR3")
    return Layout(
        *(hflags * 4, cs * 4 - ctypes.sizeof(_Segment), error_code * 4, is_software * 4, under_way * 4),
        *(find("ESP"), cr2, *tables),
    )


def _words(uc: Uc) -> list[int]:
    return [word for (word,) in iter_unpack("<I", bytes(uc.context_save()))]


def _only(what: str, is_it: list[bool]) -> int:
    if sum(is_it) != 1:
        raise _unknown(what)
    return is_it.index(True)


def _unknown(what: str) -> ImportError:
    return ImportError(f"this release of Unicorn is not supported: the place of {what} is unknown")
