"""Guests in 32-bit protected mode: software interrupts and exceptions through the IDT, and trapped instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irqchip_client import GuestError, MpState
from tests.waiting import eventually

if TYPE_CHECKING:
    from .machine import Machine

GDT = 0x400

HANDLER, HANDLER_WITH_ERROR, NEXT = 0x1800, 0x1880, 0x1900
LIST, RECORDS = 0x600, 0xA000

FAULTS = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "ea1a1000000800"  # 1013: jmp 0x8:0x101a
    "cd30"  # 101a: int 0x30
    "cc"  # 101c: int3
    "31d2"  # 101d: xor edx,edx
    "31c9"  # 101f: xor ecx,ecx
    "f7f1"  # 1021: div ecx
    "0f0b"  # 1023: ud2
    "66b8ccab"  # 1025: mov ax,0xabcc
    "8ed8"  # 1029: mov ds,eax
    "66b8f3de"  # 102b: mov ax,0xdef3
    "8ed8"  # 102f: mov ds,eax
    "e6f4"  # 1031: out 0xf4,al
    "ebfe"  # 1033: jmp 1033
)
PAGING = bytes.fromhex(
    "0f011500080000"  # 1000: lgdtd 0x800
    "0f011d0a080000"  # 1007: lidtd 0x80a
    "bc00900000"  # 100e: mov esp,0x9000
    "c7050000020083000000"  # 1013: mov DWORD 0x20000,0x83
    "c7050400020083000000"  # 101d: mov DWORD 0x20004,0x83
    "b800000200"  # 1027: mov eax,0x20000
    "0f22d8"  # 102c: mov cr3,eax
    "0f20e0"  # 102f: mov eax,cr4
    "0c10"  # 1032: or al,0x10
    "0f22e0"  # 1034: mov cr4,eax
    "0f20c0"  # 1037: mov eax,cr0
    "0d00000180"  # 103a: or eax,0x80010000
    "0f22c0"  # 103f: mov cr0,eax
    "bc00904000"  # 1042: mov esp,0x409000
    "a110008000"  # 1047: mov eax,ds:0x800010
    "a320008000"  # 104c: mov 0x800020,eax
    "0f20d1"  # 1051: mov ecx,cr2
    "e6f4"  # 1054: out 0xf4,al
    "ebfe"  # 1056: jmp 1056
)
# Appends the frame's EIP, CS and EFLAGS to a list, and skips two bytes.
RECORD = bytes.fromhex(
    "57"  # 1840: push edi
    "8b3d00060000"  # 1841: mov edi,DWORD 0x600
    "8b442404"  # 1847: mov eax,DWORD [esp+0x4]
    "8907"  # 184b: mov DWORD [edi],eax
    "8b442408"  # 184d: mov eax,DWORD [esp+0x8]
    "894704"  # 1851: mov DWORD [edi+0x4],eax
    "8b44240c"  # 1854: mov eax,DWORD [esp+0xc]
    "894708"  # 1858: mov DWORD [edi+0x8],eax
    "8305000600000c"  # 185b: add DWORD 0x600,0xc
    "8344240402"  # 1862: add DWORD [esp+0x4],0x2
    "5f"  # 1867: pop edi
    "cf"  # 1868: iret
)
# Appends error code, CR2 and EIP to a list, and skips two bytes.
RECORD_ERROR = bytes.fromhex(
    "58"  # 1880: pop eax
    "57"  # 1881: push edi
    "8b3d00060000"  # 1882: mov edi,DWORD 0x600
    "8907"  # 1888: mov DWORD [edi],eax
    "0f20d0"  # 188a: mov eax,cr2
    "894704"  # 188d: mov DWORD [edi+0x4],eax
    "8b442404"  # 1890: mov eax,DWORD [esp+0x4]
    "894708"  # 1894: mov DWORD [edi+0x8],eax
    "8305000600000c"  # 1897: add DWORD 0x600,0xc
    "8344240402"  # 189e: add DWORD [esp+0x4],0x2
    "5f"  # 18a3: pop edi
    "cf"  # 18a4: iret
)
MSRS = bytes.fromhex(
    "b91b000000"  # 1000: mov ecx,0x1b
    "0f32"  # 1005: rdmsr
    "a300060000"  # 1007: mov 0x600,eax
    "891504060000"  # 100c: mov DWORD 0x604,edx
    "b9800000c0"  # 1012: mov ecx,0xc0000080
    "0f32"  # 1017: rdmsr
    "a308060000"  # 1019: mov 0x608,eax
    "b91b000000"  # 101e: mov ecx,0x1b
    "b8000de0fe"  # 1023: mov eax,0xfee00d00
    "31d2"  # 1028: xor edx,edx
    "0f30"  # 102a: wrmsr
    "b902080000"  # 102c: mov ecx,0x802
    "b8ffffffff"  # 1031: mov eax,0xffffffff
    "0f32"  # 1036: rdmsr
    "a30c060000"  # 1038: mov 0x60c,eax
    "0f31"  # 103d: rdtsc
    "89c6"  # 103f: mov esi,eax
    "0f31"  # 1041: rdtsc
    "29f0"  # 1043: sub eax,esi
    "a310060000"  # 1045: mov 0x610,eax
    "b801000000"  # 104a: mov eax,0x1
    "0fa2"  # 104f: cpuid
    "891514060000"  # 1051: mov DWORD 0x614,edx
    "e6f4"  # 1057: out 0xf4,al
    "ebfe"  # 1059: jmp 1059
)
MMIO = bytes.fromhex(
    "a1000000d0"  # 1000: mov eax,ds:0xd0000000
    "a300060000"  # 1005: mov 0x600,eax
    "66c705100000d03412"  # 100a: mov WORD 0xd0000010,0x1234
    "fe05200000d0"  # 1013: inc BYTE 0xd0000020
    "a13000e0fe"  # 1019: mov eax,ds:0xfee00030
    "a304060000"  # 101e: mov 0x604,eax
    "a1000000e0"  # 1023: mov eax,ds:0xe0000000
    "a308060000"  # 1028: mov 0x608,eax
    "c705000000e005000000"  # 102d: mov DWORD 0xe0000000,0x5
    "e6f4"  # 1037: out 0xf4,al
    "ebfe"  # 1039: jmp 1039
)

RF, IF = 1 << 16, 1 << 9


def skipping(handler: bytes, length: int) -> bytes:
    """A handler that skips the instruction at fault."""
    at = handler.index(bytes.fromhex("83442404")) + 4
    return handler[:at] + bytes([length]) + handler[at + 1 :]


def test_software_interrupts_and_exceptions_have_the_right_return_addresses(machine: Machine) -> None:
    machine.start(FAULTS)
    for vector, length in ((0x30, 0), (3, 0), (0, 2), (6, 2)):
        at = NEXT + 0x40 * vector
        machine.gate(vector, at)
        machine.memory.write(at, skipping(RECORD, length))
    machine.gate(13, HANDLER_WITH_ERROR)
    machine.memory.write(HANDLER_WITH_ERROR, RECORD_ERROR)
    machine.memory.write(LIST, RECORDS.to_bytes(4, "little"))
    machine.cpu.run()
    records = machine.words(RECORDS, 18)
    assert [(ip, cs) for ip, cs in zip(records[:12:3], records[1:12:3], strict=True)] == [
        (0x101C, 8),  # behind int 0x30
        (0x101D, 8),  # behind int3
        (0x1021, 8),  # at div
        (0x1023, 8),  # at ud2
    ]
    assert [flags & RF for flags in records[2:12:3]] == [0, 0, RF, RF]
    # The second fault is separate, not a double fault.
    assert records[12:] == [0xABCC, 0, 0x1029, 0xDEF0, 0, 0x102F]


def test_page_faults_have_error_code_and_cr2_and_their_frame_goes_through_the_page_tables(machine: Machine) -> None:
    machine.start(PAGING)
    machine.gate(14, HANDLER_WITH_ERROR)
    machine.memory.write(HANDLER_WITH_ERROR, skipping(RECORD_ERROR, 5))
    machine.memory.write(LIST, RECORDS.to_bytes(4, "little"))
    machine.cpu.run()
    assert machine.words(RECORDS, 6) == [0, 0x80_0010, 0x1047, 2, 0x80_0020, 0x104C]
    # The stack is at 409000h, which is 9000h.
    assert machine.word(0x9000 - 12) == 0x1051


def test_the_irqchips_msrs_are_the_daemons_and_cpuid_announces_an_apic(machine: Machine) -> None:
    machine.start(MSRS)
    machine.cpu.run()
    base, high, efer, x2apic_id, ticks, features = machine.words(0x600, 6)
    assert (base, high) == (0xFEE0_0900, 0)
    assert efer == 0
    assert x2apic_id == 0
    assert ticks > 1000  # nanoseconds, of the VM's clock
    assert features & 1 << 9


def test_cpuid_has_no_bmi2_whose_shlx_unicorn_refuses_without_sse(machine: Machine) -> None:
    machine.start(
        bytes.fromhex(
            "b807000000"  # 1000: mov eax,0x7
            "31c9"  # 1005: xor ecx,ecx
            "0fa2"  # 1007: cpuid
            "891d00060000"  # 1009: mov DWORD 0x600,ebx
            "e6f4"  # 100f: out 0xf4,al
            "ebfe"  # 1011: jmp 1011
        )
    )
    machine.cpu.run()
    features = machine.word(0x600)
    assert not features & 1 << 8
    assert features & 1 << 3  # BMI1, whose instructions work


def test_an_unknown_msr_is_a_general_protection_fault(machine: Machine) -> None:
    machine.start(
        FAULTS[:0x1A]
        + bytes.fromhex(
            "b934120000"  # 101a: mov ecx,0x1234
            "0f32"  # 101f: rdmsr
            "0f30"  # 1021: wrmsr
            "e6f4"  # 1023: out 0xf4,al
            "ebfe"  # 1025: jmp 1025
        )
    )
    machine.gate(13, HANDLER_WITH_ERROR)
    machine.memory.write(HANDLER_WITH_ERROR, RECORD_ERROR)
    machine.memory.write(LIST, RECORDS.to_bytes(4, "little"))
    machine.cpu.run()
    assert machine.words(RECORDS, 6) == [0, 0, 0x101F, 0, 0, 0x1021]


def test_loads_and_stores_beyond_ram_reach_devices_and_daemon(machine: Machine) -> None:
    machine.start(MMIO)
    machine.cpu.run()
    assert machine.word(0x600) == 0x0101_0101
    assert machine.devices.written == [(0xD000_0010, 0x1234, 2), (0xD000_0020, 3, 1)]
    assert machine.word(0x604) == 0x0005_0014  # The local APIC's version
    assert machine.word(0x608) == 0xFFFF_FFFF  # Unclaimed


def test_a_triple_fault_reports_its_cause_and_place(machine: Machine) -> None:
    machine.start(bytes.fromhex("90 cc"))  # nop; int3, without an IDT
    with pytest.raises(GuestError, match=r"double fault.*0x8:0x1001"):
        machine.cpu.run()


def test_executing_outside_ram_reports_the_place(machine: Machine) -> None:
    machine.start(bytes.fromhex("b8000000d0 ffe0"))  # mov eax,0xd0000000; jmp eax
    with pytest.raises(GuestError, match=r"Unicorn can't execute.*0xd0000000"):
        machine.cpu.run()


def test_a_devices_exception_ends_the_run_and_the_guest_can_go_on(machine: Machine) -> None:
    def fail() -> None:
        machine.devices.stop = machine.cpu.stop
        raise ZeroDivisionError

    machine.start(
        bytes.fromhex(
            "e6f4"  # 1000: out 0xf4,al
            "eb00"  # 1002: jmp 1004
            "a300060000"  # 1004: mov 0x600,eax
            "e6f4"  # 1009: out 0xf4,al
            "ebfe"  # 100b: jmp 100b
        )
    )
    machine.devices.stop = fail
    with pytest.raises(ZeroDivisionError):
        machine.cpu.run()
    machine.memory.write(0x600, b"\xff")
    machine.cpu.run()
    assert machine.word(0x600) == 0


def test_a_fault_of_an_int_without_a_present_handler_returns_to_the_int(machine: Machine) -> None:
    machine.start(
        FAULTS[:0x1A]
        + bytes.fromhex(
            "cd31"  # 101a: int 0x31
            "90"  # 101c: nop
            "cc"  # 101d: int3
            "9090"  # 101e: nop; nop
            "e6f4"  # 1020: out 0xf4,al
            "ebfe"  # 1022: jmp 1022
        )
    )
    absent = 0x38  # the second half of the TSS's descriptor, which is 0 here
    machine.memory.write(GDT + absent, (0x00CF_1B00_0000_FFFF).to_bytes(8, "little"))
    for vector in (0x31, 3):
        machine.gate(vector, HANDLER, selector=absent)
    machine.gate(11, HANDLER_WITH_ERROR)
    machine.memory.write(HANDLER_WITH_ERROR, RECORD_ERROR)
    machine.memory.write(LIST, RECORDS.to_bytes(4, "little"))
    machine.cpu.run()
    assert machine.words(RECORDS, 6) == [absent, 0, 0x101A, absent, 0, 0x101D]


@pytest.mark.parametrize(
    ("before", "instruction"),
    [
        *(("", code) for code in ("66cd31", "f3cd31", "2e66cd31", "3ecc", "66f2cc")),
        ("b066", "cd31"),  # mov al,0x66, 66h is data here, not a prefix
    ],
)
def test_prefixes_are_part_of_an_int(machine: Machine, before: str, instruction: str) -> None:
    code, end = bytes.fromhex(before + instruction), bytes.fromhex("e6f4 ebfe")  # out 0xf4,al; jmp $
    length = len(bytes.fromhex(instruction))
    machine.start(FAULTS[:0x1A] + code + end)
    absent = 0x38  # the second half of the TSS's descriptor, which is 0 here
    machine.memory.write(GDT + absent, (0x00CF_1B00_0000_FFFF).to_bytes(8, "little"))
    for vector in (0x31, 3):
        machine.gate(vector, HANDLER, selector=absent)
    machine.gate(11, HANDLER_WITH_ERROR)
    machine.memory.write(HANDLER_WITH_ERROR, skipping(RECORD_ERROR, length))
    machine.memory.write(LIST, RECORDS.to_bytes(4, "little"))
    machine.cpu.run()
    assert machine.words(RECORDS, 3) == [absent, 0, 0x101A + len(code) - length]


@pytest.mark.parametrize("prefix", ["f3", "66", "2e", "f2f3"])
def test_prefixes_do_not_keep_an_instruction_from_being_trapped(machine: Machine, prefix: str) -> None:
    machine.start(
        bytes.fromhex(
            "b91b000000"  # 1000: mov ecx,0x1b
            f"{prefix}0f32"  # rdmsr
            "a300060000"  # mov 0x600,eax
            f"{prefix}f4"  # hlt
        )
    )
    with machine.running():
        eventually(lambda: machine.daemon.mp_state() is MpState.HALTED)
    assert machine.word(0x600) == 0xFEE0_0900
