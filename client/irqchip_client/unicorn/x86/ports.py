"""Whether a program may use a port: the SDM vol. 1 chapter 19.5. Unicorn itself lets every program use every port."""

from __future__ import annotations

from typing import NamedTuple

from .delivery import TSS_32, VM, Processor

IOPL_SHIFT = 12
BITMAP_AT, SMALLEST_TSS = 0x66, 0x67  # the word with the bitmap's offset, and the limit of a TSS that has one
OPERAND_SIZE = 0x66  # the prefix
IMMEDIATE, STRINGS = range(0xE4, 0xE8), range(0x6C, 0x70)
THROUGH_DX = range(0xEC, 0xF0)


class PortAccess(NamedTuple):
    """The port that IN, OUT, INS or OUTS accesses, or None if it is in DX; and the size."""

    port: int | None
    size: int


def decode_port_access(code: bytes, prefixes: bytes, *, wide: bool) -> PortAccess | None:
    """An instruction that accesses ports, behind its prefixes; None for any other. wide: operands have 32 bits."""
    if not code or code[0] not in (*IMMEDIATE, *STRINGS, *THROUGH_DX):
        return None
    has_word = code[0] & 1
    size = (4 if wide is not (OPERAND_SIZE in prefixes) else 2) if has_word else 1
    if code[0] in IMMEDIATE:
        return PortAccess(code[1], size) if len(code) > 1 else None
    return PortAccess(None, size)


def is_restricted(cpu: Processor) -> bool:
    """Whether a program may use only the ports that the TSS allows: by IOPL, or in virtual-8086 mode."""
    flags = cpu.flags
    return bool(flags & VM) or cpu.state.cpl > flags >> IOPL_SHIFT & 3


def may_access(cpu: Processor, port: int, size: int) -> bool:
    """Whether IOPL or the TSS's bitmap allows an access. Fault if the TSS is not in memory."""
    if not is_restricted(cpu):
        return True
    tr = cpu.state.tr
    if not tr.access & TSS_32 or tr.limit < SMALLEST_TSS:
        return False
    at = int.from_bytes(cpu.read(tr.base + BITMAP_AT, 2), "little") + (port >> 3)
    if at + 1 > tr.limit:  # Processors always read two bytes.
        return False
    bits = int.from_bytes(cpu.read(tr.base + at, 2), "little") >> (port & 7)
    return not bits & (1 << size) - 1
