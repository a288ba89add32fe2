"""The emulator of an arm64 processor: guest code, memory and registers. It knows nothing of the irqchip."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from unicorn import arm64_const as arm64
from unicorn.unicorn_const import (
    UC_ARCH_ARM64,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_MODE_ARM,
)
from unicorn.unicorn_py3.arch.arm64 import CpReg, UcAArch64
from unicorn.unicorn_py3.unicorn import UcError

from irqchip_client.arm64 import affinity, sysreg
from irqchip_client.unicorn.breaker import Breaker, Window
from irqchip_client.unicorn.emulator import MemoryBus, Register, Unsupported, map_guest
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Arm64Start

from .registers import (
    AARCH32,
    ELR_EL1,
    ESR_EL1,
    EXCEPTION_LEVEL,
    FAR_EL1,
    FIQ,
    FLAGS,
    HCR_EL2,
    ID_AA64PFR0_EL1,
    IRQ,
    LEVELS_OF_EL2_AND_EL3,
    MASKED_EL1,
    MPIDR_EL1,
    MPIDR_RES1,
    REPLACED,
    SCR_EL3,
    SP_EL0,
    SP_EL1,
    SPSEL,
    SPSR_EL1,
    VBAR_EL1,
    is_icc,
)
from .syndrome import Syndrome

PHYSICAL_BITS = 40
# So that EL1 is AArch64, not secure, and may execute HVC. A guest does not see EL2 and EL3.
EL1_IS_AARCH64, EL1_IS_NOT_SECURE = 1 << 31, 1 << 10 | 1 << 8 | 1 << 0 | 0x30

GENERAL = tuple(int(getattr(arm64, f"UC_ARM64_REG_X{number}")) for number in range(31))
XZR = int(arm64.UC_ARM64_REG_XZR)

# The numbers with which Unicorn calls UC_HOOK_INTR: QEMU's EXCP_*.
EXCP_UDEF, EXCP_HVC, EXCP_SMC = 1, 11, 13
UNDEFINED = 0x0200_0000  # ESR_EL1 for an instruction that is undefined: an unknown reason


class Vector(Enum):
    """The exceptions' offsets from VBAR_EL1, within the group of the level that is left: D1.3.1."""

    SYNCHRONOUS = 0x000
    IRQ = 0x080
    FIQ = 0x100


class Exit(Enum):
    """The reason for a stop that the guest has asked for."""

    WFI = auto()
    HVC = auto()
    SMC = auto()


@dataclass(frozen=True, slots=True)
class RegisterAccess:
    """The emulator stopped before an access to a system register that Unicorn lacks.

    register  the general register's number for Unicorn
    value     the general register's value
    """

    sysreg: int
    write: bool
    register: int
    value: int


@dataclass(frozen=True, slots=True)
class GuestException:
    """The guest's own exception, which its vector handles."""

    syndrome: int
    address: int | None


class Bus(MemoryBus, Protocol):
    """Takes the accesses outside of RAM, and those to system registers that Unicorn lacks. It must not raise."""

    def sysreg_read(self, register: int) -> int: ...
    def sysreg_write(self, register: int, value: int) -> None: ...
    def has_system_register_gic(self) -> bool: ...


class Engine:
    """A vCPU's Unicorn."""

    def __init__(self, memory: GuestMemory, bus: Bus, vcpu: int, *, native: bool = True) -> None:
        self._memory = memory
        self._mpidr = MPIDR_RES1 | affinity(vcpu)
        self._bus = bus
        self._uc = uc = UcAArch64(UC_ARCH_ARM64, UC_MODE_ARM, arm64.UC_CPU_ARM64_A72)
        self._pstate, self._sp = Register(uc, arm64.UC_ARM64_REG_PSTATE), Register(uc, arm64.UC_ARM64_REG_SP)
        self._pc = Register(uc, arm64.UC_ARM64_REG_PC)
        self._set(SCR_EL3, EL1_IS_NOT_SECURE)
        self._set(HCR_EL2, EL1_IS_AARCH64)
        map_guest(uc, memory, 1 << PHYSICAL_BITS, bus)
        uc.hook_add(UC_HOOK_INSN, self._at_mrs, aux1=arm64.UC_ARM64_INS_MRS)
        uc.hook_add(UC_HOOK_INSN, self._at_msr, aux1=arm64.UC_ARM64_INS_MSR)
        uc.hook_add(UC_HOOK_INTR, self._at_exception)
        window = Window(arm64.UC_ARM64_REG_PSTATE, IRQ | FIQ, IRQ | FIQ)
        self.breaker = Breaker(uc, window, native=native)
        self._initial = uc.context_save()
        self._syndrome = Syndrome(uc.context_save())
        self._exit: int | None = None  # an exception's number
        self._access: RegisterAccess | None = None  # The last access to a register that Unicorn may not have.
        self.ip = 0
        self._stale = False  # Translated code may have changed.
        memory.watch(self._written)

    def start(self, start: Arm64Start) -> None:
        """Before a guest's first instruction: at EL1, with the MMU off and interrupts masked."""
        uc = self._uc
        uc.context_restore(self._initial)
        uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)
        self._stale = True
        self._pstate.write(MASKED_EL1)
        self._set(HCR_EL2, EL1_IS_AARCH64)
        for number, value in enumerate((start.x0, start.x1, start.x2, start.x3)):
            uc.reg_write(GENERAL[number], value)
        self.ip = start.entry

    def close(self) -> None:
        """Unmaps the memory."""
        self._memory.unwatch(self._written)
        self._uc.mem_unmap(self._memory.start, self._memory.size)

    def run(self) -> Exit | RegisterAccess | GuestException | None:
        """Executes until the guest needs the adapter. None if the breaker stopped the emulator.

        Unsupported for code that the emulator can't execute.
        """
        uc = self._uc
        if self._stale:
            self._stale = False
            uc.ctl_flush_tb()
        self._exit = self._access = None
        try:
            uc.emu_start(self.ip, 0)
        except UcError as error:
            raise Unsupported(f"Unicorn can't execute its code: {error}") from None
        finally:
            self.ip = self._pc.read()
        if self._exit is None:
            return None if self.breaker.stopped else Exit.WFI
        if self._exit == EXCP_HVC:
            return Exit.HVC
        if self._exit == EXCP_SMC:
            return Exit.SMC
        if self._exit == EXCP_UDEF and self._access is not None:
            return self._access
        uc.context_update(self._syndrome.context)
        return GuestException(self._syndrome.value, self._syndrome.address)

    # Hooks.

    def _at_exception(self, uc: UcAArch64, number: int, _data: object) -> None:
        self._exit = number
        uc.emu_stop()

    def _at_mrs(self, uc: UcAArch64, register: int, access: CpReg, _data: object) -> int:
        """Returns whether the instruction has been executed here."""
        number = sysreg(access.op0, access.op1, access.crn, access.crm, access.op2)
        if number in REPLACED:
            value = self._bus.sysreg_read(number)
        elif number == MPIDR_EL1:
            value = self._mpidr
        elif number == ID_AA64PFR0_EL1:
            value = self._get(number) & ~LEVELS_OF_EL2_AND_EL3 | self._bus.has_system_register_gic() << 24
        else:
            # Unicorn has no registers of a GIC: what follows is an undefined instruction.
            self._access = RegisterAccess(number, False, register, 0) if self._is_ours(number) else None
            return 0
        if register != XZR:
            uc.reg_write(register, value)
        return 1

    def _at_msr(self, _uc: UcAArch64, register: int, access: CpReg, _data: object) -> int:
        number = sysreg(access.op0, access.op1, access.crn, access.crm, access.op2)
        if number in REPLACED:
            self._bus.sysreg_write(number, access.val)
            return 1
        self._access = RegisterAccess(number, True, register, access.val) if self._is_ours(number) else None
        return 0

    def _is_ours(self, number: int) -> bool:
        """Whether an access is to the GIC's CPU interface, which EL0 can't access."""
        return is_icc(number) and bool(self._pstate.read() & EXCEPTION_LEVEL)

    # Registers.

    def register(self, number: int) -> int:
        """A general register, by its number in instructions."""
        return int(self._uc.reg_read(GENERAL[number]))

    def set_register(self, number: int, value: int) -> None:
        self._uc.reg_write(GENERAL[number], value)

    def finish(self, access: RegisterAccess, value: int = 0) -> None:
        """Ends an access, with the value that was read."""
        if not access.write and access.register != XZR:
            self._uc.reg_write(access.register, value)
        self.ip += 4

    @property
    def masked(self) -> int:
        """IRQ and FIQ, as far as PSTATE masks them."""
        return self._pstate.read() & (IRQ | FIQ)

    def where(self) -> str:
        """PC and exception level, for a message."""
        return f"{self.ip:#x} at EL{(self._pstate.read() & EXCEPTION_LEVEL) >> 2}"

    def undefined(self) -> None:
        """The instruction at PC is undefined."""
        self.enter(Vector.SYNCHRONOUS, UNDEFINED)

    def enter(self, vector: Vector, syndrome: int | None = None, address: int | None = None) -> None:
        """Takes an exception to EL1: D1.3.2. The guest goes on at PC after it."""
        pstate = self._pstate.read()
        if pstate & AARCH32:
            raise Unsupported("an exception from AArch32")
        if pstate & SPSEL:
            group = 0x200
        elif pstate & EXCEPTION_LEVEL:
            group = 0x000
        else:
            group = 0x400
        if not pstate & SPSEL:  # EL0, or EL1 with EL0's stack pointer
            self._set(SP_EL0, self._sp.read())
            self._sp.write(self._get(SP_EL1))
        if syndrome is not None:
            self._set(ESR_EL1, syndrome)
        if address is not None:
            self._set(FAR_EL1, address)
        self._set(SPSR_EL1, pstate)
        self._pstate.write(pstate & FLAGS | MASKED_EL1)
        # After PSTATE: with this, Unicorn computes what depends on the level.
        self._set(ELR_EL1, self.ip)
        self.ip = self._get(VBAR_EL1) + group + vector.value

    def _get(self, register: int) -> int:
        return int(self._uc.cpr_read(*_parts(register)))

    def _set(self, register: int, value: int) -> None:
        self._uc.cpr_write(*_parts(register), value)

    def _written(self, _address: int, _length: int) -> None:
        """The host has written to RAM; from any thread. Unicorn can't discard translated code by physical address."""
        self._stale = True
        self.breaker.stop()


def _parts(register: int) -> tuple[int, int, int, int, int]:
    return register >> 14, register >> 11 & 7, register >> 7 & 15, register >> 3 & 15, register & 7
