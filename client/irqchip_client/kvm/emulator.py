"""INT3, INTO, INT n and IRET at ring 0, for a KVM that emulates a guest: KVM's emulator has them in real mode only.

A processor that virtualises all of a guest does not need this module. For instructions beyond this module, such as
those that change rings or tasks, KVM's error stands.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from irqchip_client._errors import IrqchipError
from irqchip_client.vmm.memory import PAGE, GuestMemory

from .ioctls import (
    CR0_AT,
    EFER_AT,
    GDT_AT,
    IDT_AT,
    NMI_MASKED_AT,
    NMI_PENDING_AT,
    QWORD,
    REGS,
    SEGMENT,
    SEGMENTS,
    SREGS_SIZE,
    TABLE,
    TRANSLATION,
    VCPU_EVENTS_SIZE,
    Request,
    ioctl,
)
from .registers import CR0_PE, RFLAGS, RIP, RSP

HLT = 0xF4
INT3, INT, INTO, IRET = 0xCC, 0xCD, 0xCE, 0xCF
IRETQ = bytes((0x48, IRET))  # with REX.W
EFER_LMA = 1 << 10
TF, IF, OF, NT, RF, VM = 1 << 8, 1 << 9, 1 << 11, 1 << 14, 1 << 16, 1 << 17
WRITABLE_FLAGS = 0x003F_7FD5
INTERRUPT_GATE, TRAP_GATE = 0xE, 0xF
PRESENT, IS_SEGMENT, IS_CODE = 1 << 47, 1 << 44, 1 << 43  # of a descriptor
NOT_PRESENT, IDT_ERROR = 11, 2  # a vector, and the error code's bit for a gate of the IDT
EXCEPTION = struct.Struct("<4BI")  # kvm_vcpu_events: injected, its vector, has an error code, pending, the error code


class Instruction(Enum):
    """The kinds of the next instruction that matter here."""

    OTHER, HLT, IRET = range(3)


class BeyondError(Exception):
    """An instruction that this module can't execute."""


class NotPresentError(Exception):
    """#NP, with its error code."""


@dataclass(slots=True)
class State:
    """A vCPU at such an instruction."""

    fd: int
    memory: GuestMemory
    regs: list[int]
    sregs: bytearray
    long: bool
    narrow: bool  # real mode, or a segment of 16 bits

    def code(self) -> bytes:
        """The next instruction's first two bytes."""
        return self.read(self.base("cs") + self.regs[RIP], 2).to_bytes(2, "little")

    # Memory, by linear addresses.

    def read(self, address: int, length: int) -> int:
        return int.from_bytes(
            b"".join(self.memory.read(start, size) for start, size in self._parts(address, length)), "little"
        )

    def write(self, address: int, values: list[int]) -> None:
        """Words of the stack, the lowest first."""
        data = struct.pack(f"<{len(values)}{'Q' if self.long else 'I'}", *values)
        for start, size in self._parts(address, len(data)):
            self.memory.write(start, data[:size])
            data = data[size:]

    def _parts(self, address: int, length: int) -> list[tuple[int, int]]:
        parts = []
        while length:
            size = min(length, PAGE - address % PAGE)
            translation = bytearray(TRANSLATION.pack(address, 0, 0, 0, 0))
            ioctl(self.fd, Request.TRANSLATE, translation)
            _, physical, valid, _, _ = TRANSLATION.unpack(translation)
            if not valid:
                raise BeyondError
            parts.append((physical, size))
            address, length = address + size, length - size
        return parts

    # Segments.

    def base(self, name: str) -> int:
        """A segment's base; 0 in 64-bit mode."""
        base: int = SEGMENT.unpack_from(self.sregs, SEGMENTS[name])[0]
        return 0 if self.long else base

    def selector(self, name: str) -> int:
        selector: int = SEGMENT.unpack_from(self.sregs, SEGMENTS[name])[2]
        return selector

    def check_present(self, selector: int) -> None:
        """NotPresentError if a gate's code segment is not present."""
        if selector != self.selector("cs"):
            entry = self._descriptor(selector)
            if entry & IS_SEGMENT and entry & IS_CODE and not entry & PRESENT:
                raise NotPresentError(selector)

    def _descriptor(self, selector: int) -> int:
        base, limit = TABLE.unpack_from(self.sregs, GDT_AT)
        if selector & 7 or not selector or selector + 7 > limit:
            raise BeyondError
        return self.read(base + selector, 8)

    def load(self, name: str, selector: int) -> None:
        """Loads a segment register, from the GDT. SDM volume 3, 3.4.5."""
        if selector == self.selector(name):
            return
        entry = self._descriptor(selector)
        if (
            not entry & PRESENT
            or not entry & IS_SEGMENT
            or bool(entry & IS_CODE) is not (name == "cs")
            or entry >> 45 & 3
        ):
            raise BeyondError
        granular = entry >> 55 & 1
        segment_limit = entry & 0xFFFF | entry >> 32 & 0xF_0000
        SEGMENT.pack_into(
            self.sregs,
            SEGMENTS[name],
            entry >> 16 & 0xFF_FFFF | entry >> 32 & 0xFF00_0000,
            segment_limit << 12 | 0xFFF if granular else segment_limit,
            selector,
            *(entry >> 40 & 0xF, 1, 0, entry >> 54 & 1, 1, entry >> 53 & 1, granular, entry >> 52 & 1),
        )


def next_instruction(state: State) -> Instruction:
    """The kind of the vCPU's next instruction."""
    with suppress(BeyondError, IrqchipError):
        code = state.code()
        if code[0] == HLT:
            return Instruction.HLT
        if not state.narrow and _is_iret(state, code):
            return Instruction.IRET
    return Instruction.OTHER


def execute(fd: int, memory: GuestMemory) -> int | None:
    """Executes the vCPU's next instruction, and returns the flags after it. None if this module can't execute it."""
    state = state_of(fd, memory)
    if state.narrow:
        return None
    sregs = bytes(state.sregs)
    try:
        if state.selector("cs") & 3 or state.regs[RFLAGS] & (VM | NT):
            return None
        _execute(state)
    except NotPresentError as error:
        _inject(fd, NOT_PRESENT, error.args[0])
        return state.regs[RFLAGS]
    except (BeyondError, IrqchipError):
        return None
    if state.sregs != sregs:
        ioctl(fd, Request.SET_SREGS, state.sregs)
    ioctl(fd, Request.SET_REGS, REGS.pack(*state.regs))
    return state.regs[RFLAGS]


def state_of(fd: int, memory: GuestMemory) -> State:
    """The vCPU's current state, without the effect of an access that KVM has yet to complete."""
    regs, sregs = bytearray(REGS.size), bytearray(SREGS_SIZE)
    ioctl(fd, Request.GET_REGS, regs)
    ioctl(fd, Request.GET_SREGS, sregs)
    code = SEGMENT.unpack_from(sregs, SEGMENTS["cs"])
    big, is_long = code[6], bool(code[8]) and bool(QWORD.unpack_from(sregs, EFER_AT)[0] & EFER_LMA)
    narrow = not QWORD.unpack_from(sregs, CR0_AT)[0] & CR0_PE or not (big or is_long)
    return State(fd, memory, list(REGS.unpack(regs)), sregs, is_long, narrow)


def _is_iret(state: State, code: bytes) -> bool:
    return code == IRETQ if state.long else code[0] == IRET


def _execute(state: State) -> None:
    instruction = state.code()
    if _is_iret(state, instruction):
        _iret(state)
    elif instruction[0] == INT3:
        _interrupt(state, 3, 1)
    elif instruction[0] == INT:
        _interrupt(state, instruction[1], 2)
    elif instruction[0] == INTO and not state.long:
        if state.regs[RFLAGS] & OF:
            _interrupt(state, 4, 1)
        else:
            state.regs[RIP] += 1
    else:
        raise BeyondError


def _interrupt(state: State, vector: int, length: int) -> None:
    """INT n, through an interrupt or trap gate. SDM volume 3, 6.12 and 6.14."""
    regs = state.regs
    base, limit = TABLE.unpack_from(state.sregs, IDT_AT)
    size = 16 if state.long else 8
    if size * vector + size - 1 > limit:
        raise BeyondError
    gate = state.read(base + size * vector, size)
    kind, selector, stack_table = gate >> 40 & 0xF, gate >> 16 & 0xFFFF, gate >> 32 & 7
    if kind not in (INTERRUPT_GATE, TRAP_GATE) or (state.long and stack_table):
        raise BeyondError
    if not gate & PRESENT:
        raise NotPresentError(vector * 8 | IDT_ERROR)
    state.check_present(selector)
    flags, back = regs[RFLAGS], (regs[RIP] + length, state.selector("cs"), regs[RFLAGS])
    if state.long:
        _push(state, regs[RSP] & ~0xF, [*back, regs[RSP], state.selector("ss")])
        regs[RIP] = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000 | gate >> 32 & 0xFFFF_FFFF_0000_0000
    else:
        _push(state, regs[RSP], [*back])
        regs[RIP] = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000
    state.load("cs", selector)
    regs[RFLAGS] = flags & ~(TF | NT | RF | VM | (IF if kind == INTERRUPT_GATE else 0))


def _push(state: State, top: int, words: list[int]) -> None:
    state.regs[RSP] = top - len(words) * (8 if state.long else 4)
    state.write(state.base("ss") + state.regs[RSP], words)


def _iret(state: State) -> None:
    """IRET to the same ring. SDM volume 2, IRET."""
    regs, size = state.regs, 8 if state.long else 4
    top = state.base("ss") + regs[RSP]
    rip, code, flags, rsp, stack = (state.read(top + size * n, size) if n < 3 or state.long else 0 for n in range(5))
    if flags & VM:
        raise BeyondError
    state.load("cs", code & 0xFFFF)
    if state.long:
        state.load("ss", stack & 0xFFFF)
    regs[RIP], regs[RSP] = rip, rsp if state.long else regs[RSP] + 3 * size
    regs[RFLAGS] = flags & WRITABLE_FLAGS | 1 << 1
    _unmask_nmi(state.fd)


def nmi_must_wait(fd: int) -> bool:
    """Whether a further NMI is to wait for an IRET: the vCPU is in an NMI's handler, or about to enter it."""
    events = _events(fd)
    return bool(events[NMI_MASKED_AT] or events[NMI_PENDING_AT])


def _events(fd: int) -> bytearray:
    events = bytearray(VCPU_EVENTS_SIZE)
    ioctl(fd, Request.GET_VCPU_EVENTS, events)
    return events


def _inject(fd: int, exception: int, error_code: int) -> None:
    """Have KVM deliver an exception when the vCPU next enters its guest."""
    events = _events(fd)
    EXCEPTION.pack_into(events, 0, 1, exception, 1, 0, error_code)
    ioctl(fd, Request.SET_VCPU_EVENTS, events)


def _unmask_nmi(fd: int) -> None:
    events = _events(fd)
    if events[NMI_MASKED_AT]:
        events[NMI_MASKED_AT] = 0
        ioctl(fd, Request.SET_VCPU_EVENTS, events)
