"""Guests in 64-bit mode, with 4-level paging and addresses in the upper half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irqchip_client.vmm.start import Start, StartMode
from tests.waiting import eventually

if TYPE_CHECKING:
    from .machine import Machine

HANDLER, HANDLER_WITH_ERROR, NEXT = 0x1800, 0x1880, 0x1900
LIST, RECORDS = 0x600, 0xA000
TSS, PML4 = 0x900, 0x10000
UPPER = 0xFFFF_FFFF_FFE0_0000

# From 32-bit protected mode to 64-bit mode, at 1100h
ENTER = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "0f20e0"  # 100e: mov eax,cr4
    "0c20"  # 1011: or al,0x20
    "0f22e0"  # 1013: mov cr4,eax
    "b800000100"  # 1016: mov eax,0x10000
    "0f22d8"  # 101b: mov cr3,eax
    "b9800000c0"  # 101e: mov ecx,0xc0000080
    "0f32"  # 1023: rdmsr
    "80cc01"  # 1025: or ah,0x1
    "0f30"  # 1028: wrmsr
    "0f20c0"  # 102a: mov eax,cr0
    "0d00000180"  # 102d: or eax,0x80010000
    "0f22c0"  # 1032: mov cr0,eax
    "ea001100001800"  # 1035: jmp 0x18:0x1100
)
FAULTS = bytes.fromhex(
    "48c7c40890e0ff"  # 1100: mov rsp,0xffffffffffe09008
    "66b83000"  # 1107: mov ax,0x30
    "0f00d8"  # 110b: ltr ax
    "48c7c02011e0ff"  # 110e: mov rax,0xffffffffffe01120
    "ffe0"  # 1115: jmp rax
    "90"  # 1117: nop
    "90"  # 1118: nop
    "90"  # 1119: nop
    "90"  # 111a: nop
    "90"  # 111b: nop
    "90"  # 111c: nop
    "90"  # 111d: nop
    "90"  # 111e: nop
    "90"  # 111f: nop
    "cd30"  # 1120: int 0x30
    "cc"  # 1122: int3
    "31d2"  # 1123: xor edx,edx
    "31c9"  # 1125: xor ecx,ecx
    "f7f1"  # 1127: div ecx
    "0f0b"  # 1129: ud2
    "66b8ccab"  # 112b: mov ax,0xabcc
    "8ed8"  # 112f: mov ds,eax
    "66b8f3de"  # 1131: mov ax,0xdef3
    "8ed8"  # 1135: mov ds,eax
    "8b8200000040"  # 1137: mov eax,DWORD [rdx+0x40000000]
    "898200000040"  # 113d: mov DWORD [rdx+0x40000000],eax
    "cd31"  # 1143: int 0x31
    "e6f4"  # 1145: out 0xf4,al
    "ebfe"  # 1147: jmp 1147
)
# Appends RSP and the frame's five words to a list, and skips two bytes.
RECORD = bytes.fromhex(
    "57"  # 1800: push rdi
    "488b3c2500060000"  # 1801: mov rdi,QWORD 0x600
    "488d742408"  # 1809: lea rsi,[rsp+0x8]
    "b905000000"  # 180e: mov ecx,0x5
    "488937"  # 1813: mov QWORD [rdi],rsi
    "4883c708"  # 1816: add rdi,0x8
    "fc"  # 181a: cld
    "f348a5"  # 181b: rep movs QWORD es:[rdi],QWORD ds:[rsi]
    "48893c2500060000"  # 181e: mov QWORD 0x600,rdi
    "488344240802"  # 1826: add QWORD [rsp+0x8],0x2
    "5f"  # 182c: pop rdi
    "48cf"  # 182d: iretq
)
# Appends error code, CR2 and RIP to a list, and skips two bytes.
RECORD_ERROR = bytes.fromhex(
    "58"  # 1880: pop rax
    "57"  # 1881: push rdi
    "488b3c2500060000"  # 1882: mov rdi,QWORD 0x600
    "488907"  # 188a: mov QWORD [rdi],rax
    "0f20d0"  # 188d: mov rax,cr2
    "48894708"  # 1890: mov QWORD [rdi+0x8],rax
    "488b442408"  # 1894: mov rax,QWORD [rsp+0x8]
    "48894710"  # 1899: mov QWORD [rdi+0x10],rax
    "488304250006000018"  # 189d: add QWORD 0x600,0x18
    "488344240802"  # 18a6: add QWORD [rsp+0x8],0x2
    "5f"  # 18ac: pop rdi
    "48cf"  # 18ad: iretq
)
CR8 = bytes.fromhex(
    "48c7c005000000"  # 1100: mov rax,0x5
    "440f22c0"  # 1107: mov cr8,rax
    "450f20c1"  # 110b: mov r9,cr8
    "4c890c2500060000"  # 110f: mov QWORD 0x600,r9
    "b98000e0fe"  # 1117: mov ecx,0xfee00080
    "8b01"  # 111c: mov eax,DWORD [rcx]
    "4889042508060000"  # 111e: mov QWORD 0x608,rax
    "e6f4"  # 1126: out 0xf4,al
    "ebfe"  # 1128: jmp 1128
)
COUNT = bytes.fromhex(
    "ff042500060000"  # 1800: inc DWORD 0x600
    "50"  # 1807: push rax
    "b020"  # 1808: mov al,0x20
    "e620"  # 180a: out 0x20,al
    "58"  # 180c: pop rax
    "48cf"  # 180d: iretq
)
SPIN = bytes.fromhex(
    "48c7c40890e0ff"  # 1100: mov rsp,0xffffffffffe09008
    "fb"  # 1107: sti
    "ebfe"  # 1108: jmp 1108
)
HALT = bytes.fromhex(
    "48c7c40890e0ff"  # 1100: mov rsp,0xffffffffffe09008
    "fb"  # 1107: sti
    "f4"  # 1108: hlt
    "ebfd"  # 1109: jmp 1108
)


def skipping(handler: bytes, length: int) -> bytes:
    """A handler that skips the instruction at fault."""
    at = handler.index(bytes.fromhex("4883442408")) + 5
    return handler[:at] + bytes([length]) + handler[at + 1 :]


def start(machine: Machine, code: bytes) -> None:
    machine.start(ENTER)
    machine.memory.write(0x1100, code)


def test_frames_have_ss_and_rsp_on_an_aligned_stack(machine: Machine) -> None:
    start(machine, FAULTS)
    for vector, length, ist in ((0x30, 0, 0), (3, 0, 0), (0, 2, 0), (6, 2, 0), (0x31, 0, 1)):
        at = NEXT + 0x40 * vector
        machine.gate64(vector, at, ist=ist)
        machine.memory.write(at, skipping(RECORD, length))
    for vector, length in ((13, 2), (14, 6)):
        at = HANDLER_WITH_ERROR + 0x1000 * (vector - 13)
        machine.gate64(vector, at)
        machine.memory.write(at, skipping(RECORD_ERROR, length))
    machine.memory.write(TSS + 0x24, (0x7FFB).to_bytes(8, "little"))  # IST1
    machine.memory.write(LIST, RECORDS.to_bytes(8, "little"))
    machine.cpu.run()

    sp = UPPER + 0x9008
    frames = machine.quads(RECORDS, 24)
    assert frames[0::6] == [UPPER + 0x9000 - 5 * 8] * 4
    assert frames[1::6] == [UPPER + at for at in (0x1122, 0x1123, 0x1127, 0x1129)]
    assert frames[2::6] == [0x18] * 4
    assert frames[4::6] == [sp] * 4
    faults = machine.quads(RECORDS + 24 * 8, 12)
    assert faults == [
        *(0xABCC, 0, UPPER + 0x112F),
        *(0xDEF0, 0, UPPER + 0x1135),
        *(0, 0x4000_0000, UPPER + 0x1137),
        *(2, 0x4000_0000, UPPER + 0x113D),
    ]
    on_its_own_stack = machine.quads(RECORDS + 36 * 8, 6)
    assert on_its_own_stack[0] == 0x7FF0 - 5 * 8
    assert on_its_own_stack[1] == UPPER + 0x1145
    assert on_its_own_stack[4] == sp


def test_mov_cr8_is_the_task_priority_register(machine: Machine) -> None:
    start(machine, CR8)
    machine.cpu.run()
    assert machine.quads(0x600, 2) == [5, 0x50]


@pytest.mark.parametrize("guest", [SPIN, HALT], ids=["spinning", "halted"])
def test_the_pic_interrupts_it(machine: Machine, guest: bytes) -> None:
    start(machine, guest)
    machine.gate64(0x21, HANDLER)
    machine.memory.write(HANDLER, COUNT)
    machine.initialise_pic()
    with machine.running(), machine.vm.session("keyboard") as keyboard:
        for count in range(1, 101):
            keyboard.line(1).pulse()
            eventually(lambda count=count: machine.word(LIST) == count)  # type: ignore[misc]


CR8_DISABLED = bytes.fromhex(
    "b91b000000"  # 1100: mov ecx,0x1b
    "b80000e0fe"  # 1105: mov eax,0xfee00000
    "31d2"  # 110a: xor edx,edx
    "0f30"  # 110c: wrmsr
    "48c7c005000000"  # 110e: mov rax,0x5
    "440f22c0"  # 1115: mov cr8,rax
    "450f20c1"  # 1119: mov r9,cr8
    "4c890c2500060000"  # 111d: mov QWORD 0x600,r9
    "e6f4"  # 1125: out 0xf4,al
    "ebfe"  # 1127: jmp 1127
)


def test_mov_cr8_sets_the_task_priority_of_an_apic_that_is_disabled(machine: Machine) -> None:
    start(machine, CR8_DISABLED)
    machine.cpu.run()
    assert machine.quads(0x600, 1) == [5]
    assert machine.daemon.lapic().tpr == 0x50


def test_a_start_in_64_bit_mode_leaves_no_trace_of_the_change_of_modes() -> None:
    from unicorn import x86_const
    from unicorn.unicorn_const import UC_ARCH_X86, UC_MODE_64
    from unicorn.unicorn_py3.unicorn import Uc

    from irqchip_client.unicorn.x86.state import long_mode

    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.context_restore(long_mode(Start(StartMode.LONG, 0x1000, gdt=0x2000, cr3=0x5000)))
    registers = [getattr(x86_const, f"UC_X86_REG_{name}") for name in ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP")]
    assert [uc.reg_read(register) for register in registers] == [0] * len(registers)
