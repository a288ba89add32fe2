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
GRANULARITY, EXPAND_DOWN = 1 << 23, 1 << 10
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
    length      of INT n, INT3 and INTO, behind which IP is: to a fault on the way this is the instruction
    """

    vector: int
    origin: Origin
    error_code: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register, with what the processor keeps of its descriptor. access is its second doubleword."""

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
    """GDTR, IDTR, and LDTR and TR without their selectors."""

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
    def tr(self) -> Table: ...


class Processor(Protocol):
    """The processor that delivery works on. read and write take linear addresses, as ring 0, and raise Fault."""

    @property
    def state(self) -> State: ...
    @property
    def ip(self) -> int: ...
    @property
    def flags(self) -> int: ...

    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def set_cr2(self, address: int) -> None: ...

    def skip(self, length: int) -> None:
        """Moves IP forwards or backwards."""

    def enter(self, cs: Segment, ip: int, sp: int, flags: int) -> None:
        """Sets CS and IP to the handler's first instruction."""


def deliver(cpu: Processor, event: Event) -> None:
    """Enters the guest's handler of an event. A fault on the way is delivered instead: 6.15, "Interrupt 8".

    TripleFault where that leads nowhere; Unsupported for task gates, virtual-8086 mode and changes of ring.
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
    sp = _push(cpu, pack("<HHH", cpu.ip & 0xFFFF, cpu.state.cs.selector, cpu.flags & 0xFFFF), EXTERNAL, wide=False)
    cs = Segment(selector, selector << 4, 0xFFFF, REAL_MODE_SEGMENT)
    cpu.enter(cs, ip, sp, cpu.flags & ~(IF | TF | RF | AC))


def _deliver_in_protected_mode(cpu: Processor, event: Event) -> None:
    """6.12.1, without a change of ring."""
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
    frame = pack(f"<{len(words)}I", *words) if wide else pack(f"<{len(words)}H", *(word & 0xFFFF for word in words))
    ip = low & 0xFFFF | (high & 0xFFFF_0000 if wide else 0)
    if ip > cs.limit:
        raise Fault(Vector.GP, external)
    sp = _push(cpu, frame, external, wide=bool(cpu.state.ss.access & BIG))
    cpu.enter(cs, ip, sp, _flags_inside(cpu, kind in (INTERRUPT_16, INTERRUPT_32)))


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
    sp = cpu.state.sp
    if stack := high & 7:
        sp = _interrupt_stack(cpu, stack)
    sp &= ~0xF
    words = [cpu.ip, cpu.state.cs.selector, _flags_image(cpu, event), cpu.state.sp, cpu.state.ss.selector]
    if _pushes_error_code(event):
        words.insert(0, event.error_code)
    sp -= 8 * len(words)
    cpu.write(sp, pack(f"<{len(words)}Q", *words))
    ip = top << 32 | high & 0xFFFF_0000 | low & 0xFFFF
    cpu.enter(cs, ip, sp, _flags_inside(cpu, kind == INTERRUPT_32))


def _gate(cpu: Processor, event: Event, size: int) -> bytes:
    """The vector's gate in the IDT."""
    at = event.vector * size
    if at + size - 1 > cpu.state.idtr.limit:
        raise Fault(Vector.GP, _idt_error(event))
    return cpu.read(cpu.state.idtr.base + at, size)


def _check_gate(cpu: Processor, event: Event, high: int) -> None:
    """6.12.1.2: software may use gates of its own ring and outer ones. Then: is it present?"""
    if event.origin is Origin.SOFTWARE and high >> DPL_SHIFT & 3 < cpu.state.cpl:
        raise Fault(Vector.GP, _idt_error(event))
    if not high & PRESENT:
        raise Fault(Vector.NP, _idt_error(event))


def _handler_segment(cpu: Processor, selector: int, external: int) -> Segment:
    """The code segment that a gate names, which must be of this ring, or conform."""
    if not selector & ~3:
        raise Fault(Vector.GP, external)
    table = cpu.state.ldtr if selector & 4 else cpu.state.gdtr
    error = selector & ~3 | external
    at = selector & ~7
    if at + 7 > table.limit:
        raise Fault(Vector.GP, error)
    low, high = unpack("<II", cpu.read(table.base + at, 8))
    if ~high & (NOT_SYSTEM | CODE) or high >> DPL_SHIFT & 3 > cpu.state.cpl:
        raise Fault(Vector.GP, error)
    if not high & PRESENT:
        raise Fault(Vector.NP, error)
    if not high & CONFORMING and high >> DPL_SHIFT & 3 < cpu.state.cpl:
        raise Unsupported(f"an interrupt in ring {cpu.state.cpl}, whose handler is in ring {high >> DPL_SHIFT & 3}")
    return Segment.of_descriptor(selector & ~3 | cpu.state.cpl, low, high)


def _interrupt_stack(cpu: Processor, number: int) -> int:
    """6.14.5: the stack pointer IST1 to IST7 of the 64-bit TSS (figure 8-11)."""
    at = 0x24 + 8 * (number - 1)
    if at + 7 > cpu.state.tr.limit:
        raise Fault(Vector.TS, 0)
    return int(unpack("<Q", cpu.read(cpu.state.tr.base + at, 8))[0])


def _push(cpu: Processor, frame: bytes, external: int, *, wide: bool) -> int:
    """Pushes a frame on the stack of a 16- or 32-bit segment, and returns SP or ESP after it."""
    mask = 0xFFFF_FFFF if wide else 0xFFFF
    ss = cpu.state.ss
    offset = (cpu.state.sp & mask or mask + 1) - len(frame)  # Below 0 the stack goes on at the segment's end.
    # The limit of a segment that expands down is its lower end.
    if offset < 0 or (not ss.access & EXPAND_DOWN and offset + len(frame) - 1 > ss.limit):
        raise Fault(Vector.SS, external)
    cpu.write(ss.base + offset & 0xFFFF_FFFF, frame)
    return cpu.state.sp & ~mask | offset


def _flags_image(cpu: Processor, event: Event) -> int:
    """The values pushed. A fault's handler returns to the instruction; RF keeps its breakpoint from another hit."""
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
    """6.13: bit EXT says that the program did not ask for it."""
    return 0 if event.origin is Origin.SOFTWARE else EXTERNAL


def _idt_error(event: Event) -> int:
    return event.vector * 8 | IDT_ERROR | _ext(event)
