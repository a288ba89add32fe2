"""SYSCALL and SYSENTER, which Unicorn skips: the SDM vol. 2. SYSRET and SYSEXIT are Unicorn's own."""

from __future__ import annotations

from typing import Protocol

from .delivery import BIG, CR0_PE, IF, LONG, RF, VM, Processor, Segment
from .exceptions import Fault, Vector

IA32_EFER, IA32_STAR, IA32_LSTAR, IA32_FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084
IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP = 0x174, 0x175, 0x176
EFER_SCE = 1
RCX, R11 = 1, 11
# The second doubleword of the descriptors that both load: flat code and data of ring 0, present and accessed.
CODE, DATA = 0x00CF_9B00 & ~BIG, 0x00CF_9300
FLAT = 0xFFFF_FFFF


class Caller(Processor, Protocol):
    """A processor, with the registers that these instructions need."""

    def msr(self, number: int) -> int:
        """A model-specific register."""

    def set_register(self, number: int, value: int) -> None:
        """Sets a general register."""


def enter_by_syscall(cpu: Caller, length: int, *, is_64bit: bool) -> None:
    """SYSCALL of `length` bytes. Fault: #UD outside of 64-bit mode, as on Intel's processors, or without EFER.SCE."""
    if not is_64bit or not cpu.msr(IA32_EFER) & EFER_SCE:
        raise Fault(Vector.UD, 0)
    flags = cpu.flags
    cpu.set_register(RCX, cpu.ip + length)
    cpu.set_register(R11, flags & ~RF)
    selector = cpu.msr(IA32_STAR) >> 32 & 0xFFFC
    _enter(cpu, selector, cpu.msr(IA32_LSTAR), cpu.state.sp, flags & ~cpu.msr(IA32_FMASK) & ~RF | 2)


def enter_by_sysenter(cpu: Caller) -> None:
    """SYSENTER. Fault: #GP in real mode, or without a code segment."""
    selector = cpu.msr(IA32_SYSENTER_CS) & 0xFFFC
    if not cpu.state.cr0 & CR0_PE or not selector:
        raise Fault(Vector.GP, 0)
    mask = (1 << 64) - 1 if cpu.state.long_mode else FLAT
    ip, sp = cpu.msr(IA32_SYSENTER_EIP) & mask, cpu.msr(IA32_SYSENTER_ESP) & mask
    _enter(cpu, selector, ip, sp, cpu.flags & ~(IF | VM | RF))


def _enter(cpu: Processor, selector: int, ip: int, sp: int, flags: int) -> None:
    """Both load the caches of CS and SS with fixed values, and read no descriptor."""
    code = Segment(selector, 0, FLAT, CODE | (LONG if cpu.state.long_mode else BIG))
    cpu.enter(code, ip, sp, flags, Segment(selector + 8, 0, FLAT, DATA))
