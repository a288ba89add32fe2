"""A vCPU's registers: after RESET, at a guest's start and after a SIPI."""

from __future__ import annotations

from irqchip_client.vmm.start import Start, StartMode

from .ioctls import (
    CR0_AT,
    CR3_AT,
    CR4_AT,
    DEBUGREGS,
    EFER_AT,
    GDT_AT,
    MSRS,
    QWORD,
    REGS,
    SEGMENT,
    SEGMENTS,
    SREGS_SIZE,
    TABLE,
    TR_AT,
    Request,
    ioctl,
)

RAX, RBX, RDX, RSI, RSP, RIP, RFLAGS = 0, 1, 3, 4, 6, 16, 17
CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
CODE, DATA, BUSY_TSS = 0xB, 0x3, 0xB  # types of segments: execute/read, read/write; both accessed
GDT_LIMIT = 31
DR6, DR7 = 0xFFFF_0FF0, 0x400
MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01  # Documentation/virt/kvm/x86/msr.rst


class Registers:
    """The registers of a new vCPU, which KVM has made as after RESET. SDM volume 3, 10.1.1."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._regs, self._sregs = self._get()

    def reset(self) -> None:
        """INIT: sets the state after RESET, at the reset vector. Model-specific registers and the FPU's state stay.

        But KVM stops writing its clock to the guest's memory, as at an INIT of its own (x86.c kvm_vcpu_reset).
        """
        self._set(list(REGS.unpack(self._regs)), self._sregs)
        ioctl(self._fd, Request.SET_DEBUGREGS, DEBUGREGS.pack(0, 0, 0, 0, DR6, DR7, 0))
        ioctl(self._fd, Request.SET_MSRS, bytearray(MSRS.pack(1, 0, MSR_KVM_SYSTEM_TIME_NEW, 0, 0)))

    def start(self, start: Start) -> None:
        """Sets the state of a guest's start; the rest is as after RESET."""
        regs, sregs = list(REGS.unpack(self._regs)), bytearray(self._sregs)
        regs[RAX], regs[RBX], regs[RDX] = start.eax, start.ebx, start.edx
        regs[RSI], regs[RSP] = start.esi, start.esp
        if start.mode is StartMode.REAL:
            base = start.entry & ~0xFFFF
            _real_code(sregs, base >> 4, base)
            regs[RIP] = start.entry & 0xFFFF
        else:
            long = start.mode is StartMode.LONG
            code_selector, data_selector = start.selectors
            for name, offset in SEGMENTS.items():
                code = name == "cs"
                selector, kind = (code_selector, CODE) if code else (data_selector, DATA)
                # Present, of 32 or 64 bits, in pages.
                of_64_bits = long and code
                flags = (kind, 1, 0, not of_64_bits, 1, of_64_bits, 1, 0)
                SEGMENT.pack_into(sregs, offset, 0, 0xFFFF_FFFF, selector, *flags)
            SEGMENT.pack_into(sregs, TR_AT, 0, 0x67, 0, BUSY_TSS, 1, 0, 0, 0, 0, 0, 0)
            QWORD.pack_into(sregs, CR0_AT, CR0_ET | CR0_PE | (CR0_PG if long else 0))
            if start.gdt:
                TABLE.pack_into(sregs, GDT_AT, start.gdt, GDT_LIMIT)
            if long:
                QWORD.pack_into(sregs, CR3_AT, start.cr3)
                QWORD.pack_into(sregs, CR4_AT, CR4_PAE)
                QWORD.pack_into(sregs, EFER_AT, EFER_LME | EFER_LMA)
            regs[RIP] = start.entry
        self._set(regs, sregs)

    def start_up(self, page: int) -> None:
        """Sets the state after INIT and a SIPI: real mode, at the first byte of a page. SDM volume 3, 10.4.3."""
        regs, sregs = list(REGS.unpack(self._regs)), bytearray(self._sregs)
        _real_code(sregs, page << 8, page << 12)
        regs[RIP] = 0
        self._set(regs, sregs)

    def where(self) -> str:
        """The place of the next instruction, for a message."""
        regs, sregs = self._get()
        rip, base, selector = _code(regs, sregs)
        cr0 = QWORD.unpack_from(sregs, CR0_AT)[0]
        return f"RIP {rip:#x}, CS {selector:#x} of base {base:#x}, CR0 {cr0:#x}"

    @property
    def as_reset(self) -> bool:
        """Whether the vCPU is at the reset vector."""
        return _code(*self._get())[:2] == _code(self._regs, self._sregs)[:2]

    def _get(self) -> tuple[bytearray, bytearray]:
        regs, sregs = bytearray(REGS.size), bytearray(SREGS_SIZE)
        ioctl(self._fd, Request.GET_REGS, regs)
        ioctl(self._fd, Request.GET_SREGS, sregs)
        return regs, sregs

    def _set(self, regs: list[int], sregs: bytearray) -> None:
        ioctl(self._fd, Request.SET_SREGS, sregs)
        ioctl(self._fd, Request.SET_REGS, REGS.pack(*regs))


def _code(regs: bytearray, sregs: bytearray) -> tuple[int, int, int]:
    """RIP, and the base and selector of CS."""
    base, _, selector, *_ = SEGMENT.unpack_from(sregs, SEGMENTS["cs"])
    return REGS.unpack(regs)[RIP], base, selector


def _real_code(sregs: bytearray, selector: int, base: int) -> None:
    """CS in real mode."""
    SEGMENT.pack_into(sregs, SEGMENTS["cs"], base, 0xFFFF, selector & 0xFFFF, CODE, 1, 0, 0, 1, 0, 0, 0)
