"""SYSCALL and SYSENTER as in the SDM, volume 2. The kernel rings.c executes SYSCALL and SYSRET."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn.x86.delivery import BIG, IF, LONG, RF, TF
from irqchip_client.unicorn.x86.exceptions import Fault, Vector
from irqchip_client.unicorn.x86.system_calls import (
    EFER_SCE,
    IA32_EFER,
    IA32_FMASK,
    IA32_LSTAR,
    IA32_STAR,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_EIP,
    IA32_SYSENTER_ESP,
    R11,
    RCX,
    enter_by_syscall,
    enter_by_sysenter,
)
from tests.unicorn.test_delivery import Cpu

KERNEL, STACK = 0xFFFF_8000_0000_1000, 0xFFFF_8000_0000_9000


@dataclass
class Program(Cpu):
    """A program in ring 3 of 64-bit mode."""

    registers: dict[int, int] = field(default_factory=dict)
    msrs: dict[int, int] = field(
        default_factory=lambda: {
            IA32_EFER: EFER_SCE,
            IA32_STAR: 0x001B_000B << 32,
            IA32_LSTAR: KERNEL,
            IA32_FMASK: IF | TF,
            IA32_SYSENTER_CS: 0x0B,
            IA32_SYSENTER_ESP: STACK,
            IA32_SYSENTER_EIP: KERNEL,
        }
    )

    def msr(self, number: int) -> int:
        return self.msrs[number]

    def set_register(self, number: int, value: int) -> None:
        self.registers[number] = value


@pytest.fixture
def program() -> Program:
    program = Program()
    program.state.cpl, program.state.long_mode = 3, True
    program.flags = 2 | IF | TF | RF
    return program


def test_syscall_saves_the_next_instruction_and_the_flags(program: Program) -> None:
    enter_by_syscall(program, 2, is_64bit=True)
    assert program.registers == {RCX: 0x1236, R11: 2 | IF | TF}
    assert (program.ip, program.flags, program.state.sp) == (KERNEL, 2, 0x8000)
    assert (program.state.cs.selector, program.state.cs.access & (LONG | BIG)) == (0x08, LONG)
    assert (program.state.ss.selector, program.state.ss.dpl) == (0x10, 0)


@pytest.mark.parametrize(("is_64bit", "efer"), [(False, EFER_SCE), (True, 0)])
def test_syscall_is_undefined_outside_of_64_bit_mode_and_unless_it_is_enabled(
    program: Program, is_64bit: bool, efer: int
) -> None:
    program.msrs[IA32_EFER] = efer
    with pytest.raises(Fault) as fault:
        enter_by_syscall(program, 2, is_64bit=is_64bit)
    assert fault.value.vector == Vector.UD
    assert not program.registers


def test_sysenter_has_a_stack_of_its_own(program: Program) -> None:
    enter_by_sysenter(program)
    assert (program.ip, program.state.sp, program.flags) == (KERNEL, STACK, 2 | TF)
    assert (program.state.cs.selector, program.state.cs.access & (LONG | BIG)) == (0x08, LONG)
    assert (program.state.ss.selector, program.state.ss.dpl) == (0x10, 0)


def test_sysenter_in_32_bits_has_the_lower_halves(program: Program) -> None:
    program.state.long_mode = False
    enter_by_sysenter(program)
    assert (program.ip, program.state.sp) == (KERNEL & 0xFFFF_FFFF, STACK & 0xFFFF_FFFF)
    assert program.state.cs.access & (LONG | BIG) == BIG


@pytest.mark.parametrize(("selector", "cr0"), [(3, 1), (0x08, 0)])
def test_sysenter_faults_without_a_segment_and_in_real_mode(program: Program, selector: int, cr0: int) -> None:
    program.msrs[IA32_SYSENTER_CS], program.state.cr0 = selector, cr0
    with pytest.raises(Fault) as fault:
        enter_by_sysenter(program)
    assert (fault.value.vector, fault.value.error_code) == (Vector.GP, 0)
