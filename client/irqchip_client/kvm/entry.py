"""KVM_RUN, again and again while the guest only reads registers of its local APIC that are shared with this process.

xv6 reads its APIC ID a dozen times for each spinlock. In Python, such a read costs more than the exit and the entry
into the guest together, and the threads of several vCPUs take turns at it. So a few instructions of machine code answer
the read as LocalApic.read() does, and enter the guest anew. Every other exit returns to Python.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from fcntl import ioctl as run_ioctl
from typing import Final

from irqchip.lapic_page import BASE_AT, COPIED, SEQUENCE_AT
from irqchip_client.vmm.local_apic import LocalApic
from irqchip_client.vmm.machine_code import executable

from .ioctls import Request, Run

# In the System V ABI: rdi points to a _State. The result is KVM_RUN's: 0, or an errno's negative.
_CODE: Final = bytes.fromhex(
    "4989f8"  # mov r8, rdi
    "4d8b08"  # mov r9, [r8]                run
    "458a5110"  # mov r10b, [r9 + 16]       cr8
    "418b7830"  # again: mov edi, [r8 + 48] fd
    "be80ae0000"  # mov esi, 0xae80         KVM_RUN
    "31d2"  # xor edx, edx
    "b810000000"  # mov eax, 16             ioctl
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "7569"  # jnz out
    "4183790806"  # cmp dword [r9 + 8], 6   exit_reason: KVM_EXIT_MMIO
    "7562"  # jne out
    "418a09"  # mov cl, [r9]                request_interrupt_window
    "41844820"  # test [r8 + 32], cl        looks
    "7559"  # jnz out
    "45385110"  # cmp [r9 + 16], r10b       cr8: the guest has written it
    "7553"  # jne out
    "4183793004"  # cmp dword [r9 + 48], 4  mmio.len
    "754c"  # jne out
    "41384134"  # cmp [r9 + 52], al         mmio.is_write
    "7546"  # jne out
    "498b5120"  # mov rdx, [r9 + 32]        mmio.phys_addr
    "492b5018"  # sub rdx, [r8 + 24]        address
    "48f7c20ff0ffff"  # test rdx, ~0xff0    a register's offset in the page?
    "7535"  # jnz out
    "89d1"  # mov ecx, edx
    "c1e904"  # shr ecx, 4
    "490fa34838"  # bt [r8 + 56], rcx       copied
    "7329"  # jnc out
    "498b4808"  # mov rcx, [r8 + 8]         page
    "4c8b19"  # mov r11, [rcx]              its sequence number
    "41f6c301"  # test r11b, 1
    "751c"  # jnz out
    "498b7010"  # mov rsi, [r8 + 16]        base
    "483b7108"  # cmp rsi, [rcx + 8]
    "7512"  # jne out
    "8b1411"  # mov edx, [rcx + rdx]        the register
    "4c3b19"  # cmp r11, [rcx]
    "750a"  # jne out
    "49895128"  # mov [r9 + 40], rdx        mmio.data
    "49ff4028"  # inc qword [r8 + 40]       answered
    "eb80"  # jmp again
    "c3"  # out: ret
)


class _State(ctypes.Structure):
    base: int
    address: int
    answered: int
    _fields_ = (
        ("run", ctypes.c_uint64),
        ("page", ctypes.c_uint64),
        ("base", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("looks", ctypes.c_uint64),  # all ones if KVM does not exit at the window that was requested
        ("answered", ctypes.c_uint64),
        ("fd", ctypes.c_uint64),
        ("copied", ctypes.c_uint8 * 32),  # a bit for each of the page's 256 registers
    )


class Entry:
    """A vCPU's entries into its guest. Close it before the objects that it uses.

    exact  whether KVM exits at the very window that was requested; if not, every exit returns to Python while a window
           is requested
    """

    def __init__(self, fd: int, run: mmap.mmap, apic: LocalApic, *, exact: bool) -> None:
        self._fd = fd
        self._apic = apic
        self._base = -1
        self._state: _State | None = None
        self._code = executable(_CODE)
        if self._code is None:
            return
        copied = sum(1 << (offset >> 4) for offset in COPIED if not offset & 0xF)
        address = ctypes.addressof
        # The buffers keep their memory mapped.
        self._buffers = [ctypes.c_char.from_buffer(run), ctypes.c_char.from_buffer(apic.page)]
        run_at, page_at = map(address, self._buffers)
        looks = 0 if exact else (1 << 64) - 1
        self._state = _State(run_at, page_at, 0, 0, looks, 0, fd, (ctypes.c_uint8 * 32)(*copied.to_bytes(32, "little")))
        self._function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(address(self._code))
        self._argument = address(self._state)

    @property
    def answered(self) -> int:
        """The number of reads that the machine code has answered."""
        return 0 if self._state is None else self._state.answered

    def enter(self) -> None:
        """KVM_RUN. InterruptedError, OSError."""
        if self._state is None:
            run_ioctl(self._fd, Request.RUN)
            return
        apic = self._apic
        if apic.base != self._base:  # The shared page has a new IA32_APIC_BASE.
            self._state.base = self._base = apic.base
            self._state.address = apic.address & (1 << 64) - 1
        if result := self._function(self._argument):
            raise OSError(-result, os.strerror(-result))

    def close(self) -> None:
        """Releases the memory."""
        self._state = None
        self._buffers = []


assert (SEQUENCE_AT, BASE_AT, Run.MMIO_DATA, Run.CR8, Run.EXIT_REASON) == (0, 8, 40, 16, 8)  # as in the code
