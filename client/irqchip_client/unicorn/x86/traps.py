"""Instructions that concern the irqchip, and for which Unicorn has no hooks: HLT, RDMSR, WRMSR, RDTSC, MOV CR8,
SYSCALL and SYSENTER.

And INT n, INT3 and INTO with prefixes, as Unicorn does not report where they begin. And IN, OUT, INS and OUTS of a
program that may not use all ports, as Unicorn does not check them.

Each block of guest code is searched for these instructions once: after its translation, and before its execution. If
one may begin there, the block is discarded, a code hook is set on the instruction's address, and the block is
translated again with the hook. So only these instructions cost time. Bytes that look like one but are part of another
instruction get a hook that is never called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from unicorn.unicorn_const import UC_HOOK_CODE, UC_HOOK_EDGE_GENERATED
from unicorn.unicorn_py3.unicorn import Uc

_PREFIXES = b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65"
_REX = b"[\x40-\x4f]"
_OPCODES = re.compile(
    b"(?=[%(prefixes)b]{0,14}%(rex)b?(?:\xf4|\x0f[\x05\x30-\x32\x34])"
    b"|(?:[%(prefixes)b]{1,14}%(rex)b?|%(rex)b)[\xcc-\xce]"
    b"|[%(prefixes)b]{0,14}[\x44-\x47\x4c-\x4f]\x0f[\x20\x22][\xc0-\xc7])" % {b"prefixes": _PREFIXES, b"rex": _REX}
)
_PORT_OPCODES = re.compile(
    b"(?=[%(prefixes)b]{0,14}%(rex)b?[\xe4-\xe7\xec-\xef\x6c-\x6f])" % {b"prefixes": _PREFIXES, b"rex": _REX}
)
_MOV_CR8_BYTES = 4

if TYPE_CHECKING:
    from irqchip_client.unicorn.breaker import Breaker


class Trap(Enum):
    """An instruction."""

    HLT = auto()
    RDMSR = auto()
    WRMSR = auto()
    RDTSC = auto()
    READ_CR8 = auto()
    WRITE_CR8 = auto()
    SYSCALL = auto()
    SYSENTER = auto()
    INT = auto()  # with prefixes; also INT3 and INTO


_TRAPS = {
    b"\xf4": Trap.HLT,
    b"\x0f\x05": Trap.SYSCALL,
    b"\x0f\x34": Trap.SYSENTER,
    b"\x0f\x30": Trap.WRMSR,
    b"\x0f\x31": Trap.RDTSC,
    b"\x0f\x32": Trap.RDMSR,
    b"\xcc": Trap.INT,
    b"\xce": Trap.INT,
}


def decode(code: bytes, is_64bit: bool) -> tuple[Trap, int] | None:
    """The trap that an instruction is, and for MOV CR8 the number of the other register. None for no trap."""
    code = code.lstrip(_PREFIXES)
    if is_64bit and len(code) == _MOV_CR8_BYTES and code[0] & 0xF4 == 0x44 and code[1] == 0x0F:
        register = code[3] & 7 | (code[0] & 1) << 3
        if code[2] in (0x20, 0x22) and code[3] & 0xF8 == 0xC0:
            return (Trap.READ_CR8 if code[2] == 0x20 else Trap.WRITE_CR8), register
    code = _opcode(code, is_64bit)
    trap = _TRAPS.get(code) or (Trap.INT if code[:1] == b"\xcd" else None)
    return None if trap is None else (trap, 0)


def behind_prefixes(code: bytes, is_64bit: bool) -> tuple[bytes, bytes]:
    """An instruction's prefixes without REX, and the rest behind REX."""
    rest = code.lstrip(_PREFIXES)
    return code[: len(code) - len(rest)], _opcode(rest, is_64bit)


def is_iret(code: bytes, is_64bit: bool) -> bool:
    """Whether code begins with IRET."""
    return _opcode(code.lstrip(_PREFIXES), is_64bit).startswith(b"\xcf")


def _opcode(code: bytes, is_64bit: bool) -> bytes:
    """Code without a REX prefix."""
    return code[1:] if is_64bit and code[:1] and code[0] & 0xF0 == 0x40 else code


class Traps:
    """The traps of one emulator.

    read    reads guest code at a linear address, up to the first byte that can't be read
    ports   whether programs of this ring may not use all ports
    reached is called before an instruction that may be a trap, with its address and its length
    """

    def __init__(
        self,
        uc: Uc,
        read: Callable[[int, int], bytes],
        ports: Callable[[], bool],
        reached: Callable[[int, int], None],
        breaker: Breaker,
    ) -> None:
        self._uc = uc
        self._read = read
        self._ports = ports
        self._reached = reached
        self._breaker = breaker
        self._hooked: set[int] = set()
        self._new: list[tuple[int, int]] = []  # Blocks, and the addresses in them that are to get hooks.
        uc.hook_add(UC_HOOK_EDGE_GENERATED, self._at_new_block)

    @property
    def pending(self) -> bool:
        """Whether hook() has something to do."""
        return bool(self._new)

    def hook(self) -> None:
        """Sets the hooks that new blocks need. While the emulator does not run."""
        uc = self._uc
        for block, address in self._new:
            if address not in self._hooked:
                self._hooked.add(address)
                uc.hook_add(UC_HOOK_CODE, self._at_trap, begin=address, end=address)
            uc.ctl_remove_cache(block, block + 1)
        self._new.clear()

    def search(self, block: int, length: int) -> None:
        """Looks for traps in a block. Call hook() before the block executes."""
        code = self._read(block, length)
        found = [block + match.start() for match in _OPCODES.finditer(code)]
        if self._ports():
            found += [block + match.start() for match in _PORT_OPCODES.finditer(code)]
        self._new += [(block, address) for address in found if address not in self._hooked]

    def _at_new_block(self, uc: Uc, block: Any, _previous: Any, _data: object) -> None:
        self._breaker.spent()
        self.search(block.pc, block.size)
        if self._new:
            uc.emu_stop()  # The block is not entered yet, so this is sound.

    def _at_trap(self, _uc: Uc, address: int, length: int, _data: object) -> None:
        self._reached(address, length)
