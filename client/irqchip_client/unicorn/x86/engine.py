"""The emulator: guest code, memory and registers. It knows nothing of the irqchip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from unicorn import x86_const as x86
from unicorn.unicorn_const import (
    UC_ARCH_X86,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_MODE_64,
)
from unicorn.unicorn_py3.arch.intel import UcIntel
from unicorn.unicorn_py3.unicorn import Uc, UcContext, UcError

from irqchip_client.unicorn.breaker import IF, Breaker
from irqchip_client.unicorn.emulator import MemoryBus, Register, Unsupported, map_guest
from irqchip_client.vmm.memory import PAGE, GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .delivery import REAL_MODE_SEGMENT, Event, Origin, Segment
from .exceptions import Fault, Vector
from .features import PHYSICAL_BITS, Cpuid, is_emulated_msr
from .paging import Paging
from .ports import decode_port_access, is_restricted, may_access
from .state import State, long_mode, protected_mode, real_mode
from .traps import Trap, Traps, behind_prefixes, decode, is_iret

RESET_SELECTOR, RESET_BASE, RESET_IP = 0xF000, 0xFFFF_0000, 0xFFF0
MODEL = x86.UC_CPU_X86_HASWELL

_GENERAL = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
CPUID_RESULTS = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX)
CR4_TSD = 1 << 2
CR4_OSXSAVE, OSXSAVE = 1 << 18, 1 << 27  # OSXSAVE in leaf 1's ECX

LONGEST_INSTRUCTION = 15
RAX, RCX, RDX = range(3)
SHORT_INTS = {int(Vector.BP): b"\xcc", int(Vector.OF): b"\xce"}  # INT3 and INTO, of one byte

GENERAL = tuple(int(getattr(x86, f"UC_X86_REG_{name}")) for name in _GENERAL)

FOR_ALL_RINGS = frozenset((Trap.RDTSC, Trap.SYSCALL, Trap.SYSENTER))


class Bus(MemoryBus, Protocol):
    """Takes the accesses outside of RAM, and CPUID. Its methods must not raise."""

    def pio_read(self, port: int, size: int) -> int: ...
    def pio_write(self, port: int, value: int, size: int) -> None: ...
    def cpuid_1(self, leaf: Cpuid) -> Cpuid: ...


@dataclass(frozen=True, slots=True)
class Trapped:
    """The emulator stopped before an instruction of `length` bytes. register: the other register of MOV CR8."""

    trap: Trap
    length: int
    register: int


class Engine:
    """A vCPU's Unicorn. It is a delivery.Processor and a paging.Tables, between two calls of run()."""

    def __init__(self, memory: GuestMemory, bus: Bus, *, native: bool = True) -> None:
        self._memory = memory
        self._bus = bus
        self._uc = uc = UcIntel(UC_ARCH_X86, UC_MODE_64, MODEL)
        map_guest(uc, memory, 1 << PHYSICAL_BITS, bus)
        uc.hook_add(UC_HOOK_INSN, lambda _, port, size, __: bus.pio_read(port, size), aux1=x86.UC_X86_INS_IN)
        uc.hook_add(
            UC_HOOK_INSN, lambda _, port, size, value, __: bus.pio_write(port, value, size), aux1=x86.UC_X86_INS_OUT
        )
        uc.hook_add(UC_HOOK_INSN, self._at_cpuid, aux1=x86.UC_X86_INS_CPUID)
        uc.hook_add(UC_HOOK_INTR, self._at_exception)
        uc.hook_add(UC_HOOK_INSN_INVALID, self._at_invalid_opcode)
        self.breaker = Breaker(uc, native=native)
        self._traps = Traps(uc, self._read_code, partial(is_restricted, self), self._at_trap, self.breaker)
        self._exit: Trapped | Event | int | None = None  # int: the vector of Unicorn's exception
        self._prefixed_int = 0, 0  # An address and a length: INT n with prefixes is about to be executed.
        self._ip = 0
        self._ip_register, self._flags = Register(uc, x86.UC_X86_REG_RIP), Register(uc, x86.UC_X86_REG_RFLAGS)
        self._kept = State(uc.context_save())
        self._state: State | None = None  # The same state, if it is the processor's current state.
        self._executes = False
        self._fresh = True
        self._stale = False  # Translated code may have changed.
        memory.watch(self._written)

    # Starting and ending.

    def start(self, start: Start) -> None:
        """Before a guest's first instruction."""
        if start.mode is StartMode.REAL:
            self.start_in_real_mode(start.entry >> 4 & 0xF000, start.entry & 0xFFFF)
        else:
            make = long_mode if start.mode is StartMode.LONG else protected_mode
            self._restore(lambda: make(start))
            self._ip = start.entry
        for register, value in (
            *((x86.UC_X86_REG_RAX, start.eax), (x86.UC_X86_REG_RBX, start.ebx)),
            *((x86.UC_X86_REG_RDX, start.edx), (x86.UC_X86_REG_RSI, start.esi), (x86.UC_X86_REG_RSP, start.esp)),
        ):
            self._uc.reg_write(register, value)

    def reset(self) -> None:
        """Sets the state after RESET and INIT: at f000:fff0, whose base is ffff0000h."""
        self.start_in_real_mode(RESET_SELECTOR, RESET_IP)
        self.enter(Segment(RESET_SELECTOR, RESET_BASE, 0xFFFF, REAL_MODE_SEGMENT), RESET_IP, 0, 2)

    def start_in_real_mode(self, selector: int, ip: int) -> None:
        """Sets the state after a SIPI."""
        self._restore(lambda: real_mode(selector))
        self._ip = ip

    def close(self) -> None:
        """Unmaps the memory."""
        self._memory.unwatch(self._written)
        self._uc.mem_unmap(self._memory.start, self._memory.size)

    def run(self) -> Trapped | Event | None:
        """Executes until a trap, an exception or INT n. None if the breaker stopped the emulator.

        Unsupported for code that the emulator can't execute.
        """
        uc, traps = self._uc, self._traps
        if self._fresh:  # Unicorn calls no hook for the very first block.
            self._fresh = False
            traps.search(self.state.cs.base + self._ip, PAGE)
        self._exit = None
        while True:
            if self._stale:
                self._stale = False
                uc.ctl_flush_tb()
                traps.search(self.state.cs.base + self._ip, PAGE)
            traps.hook()
            self._state = None
            self._executes = True
            try:
                uc.emu_start(self._ip, 0)
            except UcError as error:
                raise Unsupported(f"Unicorn can't execute its code: {error}") from None
            finally:
                self._executes = False
                self._ip = self._ip_register.read()
            if not traps.pending:
                break
        match self._exit:
            case int(vector):
                return self._exception(vector)
            case exit_:
                return exit_

    def _exception(self, vector: int) -> Event:
        code = self.state.take_exception()
        if code is not None and self.state.nmi_blocked and self._at_iret():
            self.state.unblock_nmi()
        self._uc.context_restore(self.state.context)
        if code is not None:
            return Event(vector, Origin.EXCEPTION, code)
        return Event(vector, Origin.SOFTWARE, length=self._length_of_int(vector))

    def _length_of_int(self, vector: int) -> int:
        """The length of the software interrupt that ends at IP: Unicorn does not report where it begins."""
        end = self.state.cs.base + self._ip
        at, length = self._prefixed_int
        self._prefixed_int = 0, 0
        if length and at + length == end:
            return length
        if vector not in SHORT_INTS:
            return 2
        return 1 if self._read_code(end - 1, 1) == SHORT_INTS[vector] else 2

    def _at_iret(self) -> bool:
        """Whether IP is at an IRET. One that faults unblocks NMI, too (6.7.1)."""
        return is_iret(self._read_code(self.state.cs.base + self._ip, LONGEST_INSTRUCTION), self.state.is_64bit)

    def _at_cpuid(self, uc: Uc, _data: object) -> int:
        """Returns whether CPUID has been executed here."""
        leaf, subleaf = uc.reg_read(x86.UC_X86_REG_EAX), uc.reg_read(x86.UC_X86_REG_ECX)
        if leaf == 1:
            results = cpuid(MODEL, leaf)
            if self.state.cr4 & CR4_OSXSAVE:
                results = results._replace(ecx=results.ecx | OSXSAVE)
            results = self._bus.cpuid_1(results)
        elif (leaf, subleaf) == (7, 0):
            results = cpuid(MODEL, leaf).without_bmi2()
        else:
            return 0
        for register, value in zip(CPUID_RESULTS, results, strict=True):
            uc.reg_write(register, value)
        return 1

    def _at_exception(self, uc: Uc, number: int, _data: object) -> None:
        self._exit = number
        uc.emu_stop()

    def _at_invalid_opcode(self, uc: Uc, _data: object) -> bool:
        self._exit = int(Vector.UD)
        uc.emu_stop()
        return True

    def _port_fault(self, code: bytes) -> Event | None:
        """The exception of an instruction that may not access its port."""
        prefixes, code = behind_prefixes(code, self.state.is_64bit)
        access = decode_port_access(code, prefixes, wide=self.state.is_32bit)
        if access is None:
            return None
        try:
            port = self.register(RDX) & 0xFFFF if access.port is None else access.port
            if may_access(self, port, access.size):
                return None
        except Fault as fault:
            if fault.address is not None:
                self.set_cr2(fault.address)
            return Event(fault.vector, Origin.EXCEPTION, fault.error_code)
        return Event(Vector.GP, Origin.EXCEPTION)

    def _at_trap(self, address: int, length: int) -> None:
        state = self.state
        code = self._read_code(address, length)
        decoded = decode(code, state.is_64bit)
        if decoded is None:
            if (event := self._port_fault(code)) is not None:
                self._exit = event
                self._uc.emu_stop()
            return
        trap, register = decoded
        if trap is Trap.INT:
            self._prefixed_int = address, length
            return
        if state.cpl and (trap not in FOR_ALL_RINGS or (trap is Trap.RDTSC and state.cr4 & CR4_TSD)):
            return  # The instruction faults.
        if trap in (Trap.RDMSR, Trap.WRMSR) and is_emulated_msr(self.register(RCX) & 0xFFFF_FFFF):
            return
        self._exit = Trapped(trap, length, register)
        self._uc.emu_stop()

    # Registers. Only the guest uses the others.

    def register(self, number: int) -> int:
        """A general register, by its number in instructions."""
        return int(self._uc.reg_read(GENERAL[number]))

    def set_register(self, number: int, value: int) -> None:
        self._uc.reg_write(GENERAL[number], value)
        self._state = None

    def msr(self, number: int) -> int:
        """A model-specific register that Unicorn has."""
        return int(self._uc.msr_read(number))

    def skip(self, length: int) -> None:
        """Moves IP behind the trapped instruction."""
        self._ip += length

    @property
    def interrupts_enabled(self) -> bool:
        return bool(self._flags.read() & IF)

    @property
    def state(self) -> State:
        """The current state."""
        if self._state is None:
            self._uc.context_update(self._kept.context)
            if not self._executes:
                self._state = self._kept
        return self._kept

    def block_nmi(self) -> None:
        """Blocks NMIs until the next IRET."""
        self.state.block_nmi()
        self._uc.context_restore(self.state.context)

    def where(self) -> str:
        """CS and IP, for a message."""
        return f"{self.state.cs.selector:#x}:{self._ip:#x}"

    # delivery.Processor

    @property
    def ip(self) -> int:
        return self._ip

    @property
    def flags(self) -> int:
        return self._flags.read()

    def set_cr2(self, address: int) -> None:
        self._uc.reg_write(x86.UC_X86_REG_CR2, address)
        self._state = None

    def enter(self, cs: Segment, ip: int, sp: int, flags: int, ss: Segment | None = None) -> None:
        """Sets CS and IP: the next instruction. With an SS, its ring is that of CS."""
        state = self.state
        if ss is not None:
            state.load_ss(ss)
        state.load_cs(cs, flags)
        state.sp = sp
        self._uc.context_restore(state.context)
        self._flags.write(flags)
        self._state = None
        self._ip = ip

    def read(self, address: int, length: int) -> bytes:
        """Reads a linear address. Fault if a page is not present."""
        return b"".join(self._memory.read(at, size) for at, size in self._pieces(address, length, write=False))

    def write(self, address: int, data: bytes, *, user: bool = False) -> None:
        """Writes to a linear address: all bytes, or Fault."""
        done = 0
        for at, size in self._pieces(address, len(data), write=True, user=user):
            self._uc.mem_write(at, data[done : done + size])
            done += size

    # Memory.

    def _written(self, _address: int, _length: int) -> None:
        """The host has written to RAM; from any thread. Unicorn can't discard translated code by physical address."""
        self._stale = True
        self.breaker.stop()

    def _pieces(self, address: int, length: int, *, write: bool, user: bool = False) -> list[tuple[int, int]]:
        """The physical addresses and lengths of a linear range."""
        state = self.state
        paging = Paging(state.cr0, state.cr3, state.cr4, state.long_mode)
        pieces = []
        while length:
            size = min(length, PAGE - address % PAGE)
            physical = paging.translate(self, address, write, user)
            if physical + size > self._memory.size and (write or self._memory.rom_at(physical, size) is None):
                raise Unsupported(f"an interrupt whose tables or stack are at {physical:#x}, outside of RAM")
            pieces.append((physical, size))
            address += size
            length -= size
        return pieces

    def read_entry(self, address: int, size: int) -> int:
        """For paging.Tables. Outside of RAM, nothing is present."""
        if address + size > self._memory.size and self._memory.rom_at(address, size) is None:
            return 0
        return int.from_bytes(self._memory.read(address, size), "little")

    def write_entry(self, address: int, value: int, size: int) -> None:
        if address + size <= self._memory.size:
            self._uc.mem_write(address, value.to_bytes(size, "little"))

    def _read_code(self, address: int, length: int) -> bytes:
        """The bytes of code, up to the first that is not in RAM."""
        code = b""
        while length:
            size = min(length, PAGE - address % PAGE)
            try:
                code += self.read(address, size)
            except (Fault, Unsupported):
                break
            address += size
            length -= size
        return code

    def _restore(self, make: Callable[[], UcContext]) -> None:
        self._uc.context_restore(make())
        self._uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)
        self._state = None
        self._fresh = True


@cache
def cpuid(model: int, leaf: int) -> Cpuid:
    """A leaf of CPUID of a model of Unicorn's. The subleaf is 0."""
    uc = UcIntel(UC_ARCH_X86, UC_MODE_64, model)
    uc.mem_map(0, PAGE)
    uc.mem_write(0, bytes.fromhex("0fa2"))  # cpuid
    uc.reg_write(x86.UC_X86_REG_RAX, leaf)
    uc.reg_write(x86.UC_X86_REG_RCX, 0)
    uc.reg_write(x86.UC_X86_REG_CR4, 0)
    uc.emu_start(0, 2)
    return Cpuid(*(uc.reg_read(register) for register in CPUID_RESULTS))
