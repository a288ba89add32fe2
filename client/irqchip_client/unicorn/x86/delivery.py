"""Interrupt and exception delivery: the SDM vol. 3 chapter 6, and section 20.1.4 for real mode. No emulator in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from struct import pack, unpack
from typing import NamedTuple, Protocol

from irqchip_client.unicorn.emulator import Unsupported

from .exceptions import CONTRIBUTORY, TRAPS_AND_ABORTS, WITH_ERROR_CODE, Fault, TripleFault, Vector

CR0_PE = 1

TF, IF, NT, RF, VM, AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18

# The second doubleword of a descriptor: figures 3-8 and 6-2.
CODE, CONFORMING, NOT_SYSTEM, PRESENT, LONG, BIG = 1 << 11, 1 << 10, 1 << 12, 1 << 15, 1 << 21, 1 << 22
GRANULARITY, EXPAND_DOWN, WRITABLE = 1 << 23, 1 << 10, 1 << 9
TSS_32 = 1 << 11  # of TR's type: the TSS has 32 bits, and not 16
# Offsets in a TSS: figures 8-2, 8-10 and 8-11.
SS0_ESP0_AT, SS0_SP0_AT, RSP0_AT, IST1_AT = 4, 2, 4, 0x24
USER = 3
DPL_SHIFT = 13
REAL_MODE_SEGMENT = 0x9300  # present, data, writable, accessed

# Types of gates: table 3-2.
TASK_GATE, INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32 = 0x5, 0x6, 0x7, 0xE, 0xF

IDT_ERROR, EXTERNAL = 2, 1  # Figure 6-7


class Origin(Enum):
    """The origin of an interrupt."""

    EXTERNAL = auto()  # a chip, or NMI
    EXCEPTION = auto()
    SOFTWARE = auto()  # INT n, INT3, INTO


class Event(NamedTuple):
    """An event to deliver.

    error_code  of exceptions that have one; other events ignore it
    length      of INT n, INT3 and INTO, which end at IP; a fault during the delivery returns to their beginning
    """

    vector: int
    origin: Origin
    error_code: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register, with the cached part of its descriptor. access is the descriptor's second doubleword."""

    selector: int
    base: int
    limit: int
    access: int

    @property
    def dpl(self) -> int:
        return self.access >> DPL_SHIFT & 3

    @classmethod
    def of_descriptor(cls, selector: int, low: int, high: int) -> Segment:
        limit = low & 0xFFFF | high & 0xF_0000
        if high & GRANULARITY:
            limit = limit << 12 | 0xFFF
        return cls(selector, low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000, limit, high)


class Table(NamedTuple):
    """GDTR, IDTR, and LDTR without its selector."""

    base: int
    limit: int


class State(Protocol):
    """Registers."""

    @property
    def cr0(self) -> int: ...
    @property
    def long_mode(self) -> bool: ...
    @property
    def cpl(self) -> int: ...
    @property
    def cs(self) -> Segment: ...
    @property
    def ss(self) -> Segment: ...
    @property
    def sp(self) -> int: ...
    @property
    def idtr(self) -> Table: ...
    @property
    def gdtr(self) -> Table: ...
    @property
    def ldtr(self) -> Table: ...
    @property
    def tr(self) -> Segment: ...


class Processor(Protocol):
    """The processor that delivery works on.

    read and write take linear addresses, and raise Fault. They have the rights of the processor's implicit accesses; a
    write with `user` has those of a program in ring 3.
    """

    @property
    def state(self) -> State: ...
    @property
    def ip(self) -> int: ...
    @property
    def flags(self) -> int: ...

    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes, *, user: bool = False) -> None: ...
    def set_cr2(self, address: int) -> None: ...

    def skip(self, length: int) -> None:
        """Moves IP forwards or backwards."""

    def enter(self, cs: Segment, ip: int, sp: int, flags: int, ss: Segment | None = None) -> None:
        """Sets CS and IP to the handler's first instruction, and SP. `ss` is given for the stack of another ring."""


def deliver(cpu: Processor, event: Event) -> None:
    """Enters the guest's handler of an event. A fault on the way is delivered instead: 6.15, "Interrupt 8".

    TripleFault after a fault that can't be delivered; Unsupported for task gates and virtual-8086 mode.
    """
    while True:
        try:
            _deliver(cpu, event)
        except Fault as fault:
            cpu.skip(-event.length)
            event = _after(event, fault)
            if fault.address is not None and event.vector == Vector.PF:
                cpu.set_cr2(fault.address)
        else:
            return


def _after(first: Event, second: Fault) -> Event:
    """Table 6-5. A benign first exception, or an interrupt, is lost; the second is handled."""
    if first.origin is Origin.EXCEPTION:
        if first.vector == Vector.DF:
            raise TripleFault(f"a triple fault: {second} on delivering a double fault")
        if (first.vector in CONTRIBUTORY and second.vector in CONTRIBUTORY) or (
            first.vector == Vector.PF and (second.vector == Vector.PF or second.vector in CONTRIBUTORY)
        ):
            return Event(Vector.DF, Origin.EXCEPTION)
    return Event(second.vector, Origin.EXCEPTION, second.error_code)


def _deliver(cpu: Processor, event: Event) -> None:
    if not cpu.state.cr0 & CR0_PE:
        _deliver_in_real_mode(cpu, event)
    elif cpu.flags & VM:
        raise Unsupported("an interrupt in virtual-8086 mode")
    elif cpu.state.long_mode:
        _deliver_in_long_mode(cpu, event)
    else:
        _deliver_in_protected_mode(cpu, event)


def _deliver_in_real_mode(cpu: Processor, event: Event) -> None:
    """20.1.4: FLAGS, CS and IP are pushed, and CS:IP is loaded from the vector table."""
    table = cpu.state.idtr
    at = event.vector * 4
    if at + 3 > table.limit:
        raise Fault(Vector.GP, 0)
    ip, selector = unpack("<HH", cpu.read(table.base + at, 4))
    frame = pack("<HHH", cpu.ip & 0xFFFF, cpu.state.cs.selector, cpu.flags & 0xFFFF)
    ss, sp = cpu.state.ss, cpu.state.sp
    mask = 0xFFFF
    at = _room(ss, sp, len(frame), Fault(Vector.SS, EXTERNAL), mask)
    cpu.write(ss.base + at & 0xFFFF_FFFF, frame)
    cs = Segment(selector, selector << 4, 0xFFFF, REAL_MODE_SEGMENT)
    cpu.enter(cs, ip, sp & ~mask | at, cpu.flags & ~(IF | TF | RF | AC))


def _deliver_in_protected_mode(cpu: Processor, event: Event) -> None:
    """6.12.1."""
    external = _ext(event)
    low, high = unpack("<II", _gate(cpu, event, 8))
    kind = high >> 8 & 0x1F
    if kind == TASK_GATE:
        raise Unsupported(f"a task gate, of vector {event.vector}")
    if kind not in (INTERRUPT_16, TRAP_16, INTERRUPT_32, TRAP_32):
        raise Fault(Vector.GP, _idt_error(event))
    _check_gate(cpu, event, high)
    cs = _handler_segment(cpu, low >> 16, external)
    wide = kind in (INTERRUPT_32, TRAP_32)
    words = [cpu.ip, cpu.state.cs.selector, _flags_image(cpu, event)]
    if _pushes_error_code(event):
        words.insert(0, event.error_code)
    ring, inner = cs.selector & 3, None
    ss, sp = cpu.state.ss, cpu.state.sp
    no_room = Fault(Vector.SS, external)
    if ring < cpu.state.cpl:
        words += sp, ss.selector
        inner, sp = _inner_stack(cpu, ring, external)
        ss = inner
        no_room = Fault(Vector.SS, ss.selector & ~3 | external)
    frame = pack(f"<{len(words)}I", *words) if wide else pack(f"<{len(words)}H", *(word & 0xFFFF for word in words))
    ip = low & 0xFFFF | (high & 0xFFFF_0000 if wide else 0)
    mask = 0xFFFF_FFFF if ss.access & BIG else 0xFFFF
    at = _room(ss, sp, len(frame), no_room, mask)
    if ip > cs.limit:
        raise Fault(Vector.GP, external)
    cpu.write(ss.base + at & 0xFFFF_FFFF, frame, user=ring == USER)
    cpu.enter(cs, ip, sp & ~mask | at, _flags_inside(cpu, kind in (INTERRUPT_16, INTERRUPT_32)), inner)


def _deliver_in_long_mode(cpu: Processor, event: Event) -> None:
    """6.14: gates of 16 bytes, a stack that is aligned to 16 bytes, and always SS:RSP in the frame."""
    external = _ext(event)
    low, high, top, _ = unpack("<IIII", _gate(cpu, event, 16))
    kind = high >> 8 & 0x1F
    if kind not in (INTERRUPT_32, TRAP_32):
        raise Fault(Vector.GP, _idt_error(event))
    _check_gate(cpu, event, high)
    cs = _handler_segment(cpu, low >> 16, external)
    if not cs.access & LONG or cs.access & BIG:
        raise Fault(Vector.GP, cs.selector & ~3 | external)
    ring, ss = cs.selector & 3, None
    sp = cpu.state.sp
    if ring < cpu.state.cpl:
        sp = _stack_pointer(cpu, RSP0_AT + 8 * ring, external)
        ss = Segment(ring, 0, 0, ring << DPL_SHIFT)  # the null selector, with the ring: 6.14.2
    if number := high & 7:
        sp = _stack_pointer(cpu, IST1_AT + 8 * (number - 1), external)
    if not _is_canonical(sp):
        raise Fault(Vector.SS, external)
    sp &= ~0xF
    words = [cpu.ip, cpu.state.cs.selector, _flags_image(cpu, event), cpu.state.sp, cpu.state.ss.selector]
    if _pushes_error_code(event):
        words.insert(0, event.error_code)
    sp -= 8 * len(words)
    ip = top << 32 | high & 0xFFFF_0000 | low & 0xFFFF
    if not _is_canonical(ip):
        raise Fault(Vector.GP, external)
    cpu.write(sp, pack(f"<{len(words)}Q", *words), user=ring == USER)
    cpu.enter(cs, ip, sp, _flags_inside(cpu, kind == INTERRUPT_32), ss)


def _gate(cpu: Processor, event: Event, size: int) -> bytes:
    """The vector's gate in the IDT."""
    at = event.vector * size
    if at + size - 1 > cpu.state.idtr.limit:
        raise Fault(Vector.GP, _idt_error(event))
    return cpu.read(cpu.state.idtr.base + at, size)


def _check_gate(cpu: Processor, event: Event, high: int) -> None:
    """6.12.1.2: checks that software may use the gate (of its own ring or an outer one), and that it is present."""
    if event.origin is Origin.SOFTWARE and high >> DPL_SHIFT & 3 < cpu.state.cpl:
        raise Fault(Vector.GP, _idt_error(event))
    if not high & PRESENT:
        raise Fault(Vector.NP, _idt_error(event))


def _handler_segment(cpu: Processor, selector: int, external: int) -> Segment:
    """The code segment that a gate names. Its RPL is the handler's ring: an inner one, or this one if it conforms."""
    if not selector & ~3:
        raise Fault(Vector.GP, external)
    error = selector & ~3 | external
    low, high = _descriptor(cpu, selector, Fault(Vector.GP, error))
    ring = high >> DPL_SHIFT & 3
    if ~high & (NOT_SYSTEM | CODE) or ring > cpu.state.cpl:
        raise Fault(Vector.GP, error)
    if not high & PRESENT:
        raise Fault(Vector.NP, error)
    if high & CONFORMING:
        ring = cpu.state.cpl
    return Segment.of_descriptor(selector & ~3 | ring, low, high)


def _descriptor(cpu: Processor, selector: int, beyond: Fault) -> tuple[int, int]:
    """A segment's descriptor in the GDT or LDT. Raises `beyond` if the table ends before it."""
    table = cpu.state.ldtr if selector & 4 else cpu.state.gdtr
    at = selector & ~7
    if at + 7 > table.limit:
        raise beyond
    low, high = unpack("<II", cpu.read(table.base + at, 8))
    return low, high


def _inner_stack(cpu: Processor, ring: int, external: int) -> tuple[Segment, int]:
    """6.12.1 and 7.2.1: SS and ESP of an inner ring, from the TSS of 32 or 16 bits."""
    tr = cpu.state.tr
    wide = bool(tr.access & TSS_32)
    at, size = (SS0_ESP0_AT + 8 * ring, 6) if wide else (SS0_SP0_AT + 4 * ring, 4)
    if at + size - 1 > tr.limit:
        raise Fault(Vector.TS, tr.selector & ~3 | external)
    sp, selector = unpack("<IH" if wide else "<HH", cpu.read(tr.base + at, size))
    if not selector & ~3:
        raise Fault(Vector.TS, external)
    error = selector & ~3 | external
    invalid = Fault(Vector.TS, error)
    low, high = _descriptor(cpu, selector, invalid)
    is_stack = high & (NOT_SYSTEM | CODE | WRITABLE) == NOT_SYSTEM | WRITABLE
    if not is_stack or selector & 3 != ring or high >> DPL_SHIFT & 3 != ring:
        raise invalid
    if not high & PRESENT:
        raise Fault(Vector.SS, error)
    return Segment.of_descriptor(selector, low, high), sp


def _stack_pointer(cpu: Processor, at: int, external: int) -> int:
    """RSP0 to RSP2 or IST1 to IST7 of the 64-bit TSS: figure 8-11."""
    tr = cpu.state.tr
    if at + 7 > tr.limit:
        raise Fault(Vector.TS, tr.selector & ~3 | external)
    return int(unpack("<Q", cpu.read(tr.base + at, 8))[0])


def _room(ss: Segment, sp: int, size: int, fault: Fault, mask: int) -> int:
    """The offset of a frame on a stack whose pointer has the bits of `mask`. Raises the fault if it has no room."""
    offset = (sp & mask or mask + 1) - size  # Below 0 the stack goes on at the segment's end.
    # The limit of a segment that expands down is its lower end.
    if offset < 0 or (not ss.access & EXPAND_DOWN and offset + size - 1 > ss.limit):
        raise fault
    return offset


def _is_canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1_FFFF)


def _flags_image(cpu: Processor, event: Event) -> int:
    """The flags to push. A fault's handler returns to the instruction; RF keeps its breakpoint from another hit."""
    if event.origin is Origin.EXCEPTION and event.vector not in TRAPS_AND_ABORTS:
        return cpu.flags | RF
    return cpu.flags


def _flags_inside(cpu: Processor, is_interrupt_gate: bool) -> int:
    """6.12.1.3: the handler runs without TF, NT, RF and VM; through an interrupt gate without IF."""
    flags = cpu.flags & ~(TF | NT | RF | VM)
    return flags & ~IF if is_interrupt_gate else flags


def _pushes_error_code(event: Event) -> bool:
    return event.origin is Origin.EXCEPTION and event.vector in WITH_ERROR_CODE


def _ext(event: Event) -> int:
    """6.13: bit EXT is set if the program did not ask for the event."""
    return 0 if event.origin is Origin.SOFTWARE else EXTERNAL


def _idt_error(event: Event) -> int:
    return event.vector * 8 | IDT_ERROR | _ext(event)
