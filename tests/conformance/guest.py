"""A guest that does one thing per run: it accesses a port or memory, or opens its interrupt window.

It has no program. Every run points RIP at one instruction, loads the instruction's registers, and steps over it:
KVM_RUN enters the guest once, and the access happens. The number of entries matters and has to be known, because KVM
rescans the IOAPIC's EOIs at an entry.
"""

from __future__ import annotations

import struct

from tests.conformance.kvm import Exit, KvmVcpu, KvmVm

# Memory.
IDT = 0x0000  # 256 gates of 16 bytes
GDT = 0x1000
CODE = 0x2000  # one instruction every 16 bytes
HANDLERS = 0x3000  # the handler of vector n is 16n bytes further
STACK_TOP = 0x5000
PAGE_TABLES = 0x5000  # PML4, PDPT, and page directories that map some GiB onto themselves
GIBIBYTES = (0, 1, 2, 3, 4, 11, 511)  # mapped
SIZE = PAGE_TABLES + 0x1000 * (2 + len(GIBIBYTES))

CODE_SELECTOR, DATA_SELECTOR, TASK_SELECTOR = 0x08, 0x10, 0x18
HANDLER_PORT = 0xF4  # unclaimed

SLOT = 16
LONGEST_ACCESS = 8
NO_REGISTER = 0xFEC0_0020
GENERAL_PROTECTION = 13

# Instructions with a port in DX, an address in RBX and a value in RAX.
_NOP = b"\x90"
_IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
_OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
_LOAD = {1: b"\x8a\x03", 2: b"\x66\x8b\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}
_STORE = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}
_OUT_HANDLER_PORT = bytes((0xE6, HANDLER_PORT))
_READ_CR8, _WRITE_CR8 = b"\x44\x0f\x20\xc0", b"\x44\x0f\x22\xc0"  # from and to RAX
_RDMSR, _WRMSR = b"\x0f\x32", b"\x0f\x30"  # ECX the register, EDX:EAX the value
# CPUID, which always exits, and 1: dec r8d, jnz 1; some KVMs emulate 1,024 instructions in a row.
_VISIT_KERNEL = b"\x0f\xa2\x41\xff\xc8\x75\xfb" + _OUT_HANDLER_PORT
VISIT_LOOPS = 1500
_INSTRUCTIONS = [
    _NOP,
    _RDMSR,
    _WRMSR,
    _READ_CR8,
    _WRITE_CR8,
    _VISIT_KERNEL,
    *_IN.values(),
    *_OUT.values(),
    *_LOAD.values(),
    *_STORE.values(),
]
_ADDRESS_OF = {instruction: CODE + SLOT * number for number, instruction in enumerate(_INSTRUCTIONS)}

RFLAGS = 1 << 1
# KVM: x86.c __kvm_set_rflags, which single-steps only from the RIP at which stepping was requested.
RFLAGS_STEP = RFLAGS | 1 << 8
RFLAGS_INTERRUPTS = 1 << 9

_PRESENT, _WRITABLE, _UNCACHED, _LARGE = 1 << 0, 1 << 1, 1 << 4, 1 << 7
CR0 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 0  # paging, numeric errors, extension type, protection
CR4 = 1 << 5  # physical address extension
EFER = 1 << 10 | 1 << 8  # long mode


def _segment(selector: int, kind: int, *, code: bool = False, system: bool = False) -> bytes:
    """struct kvm_segment, flat."""
    limit = 0x67 if system else 0xFFFF_FFFF
    present, dpl, big, user, long, granular = 1, 0, not (code or system), not system, code, not system
    return struct.pack("<QIHBBBBBBBBBB", 0, limit, selector, kind, present, dpl, big, user, long, granular, 0, 0, 0)


def _image() -> bytes:
    """The guest's memory."""
    image = bytearray(SIZE)
    gate = 0x8E << 40 | CODE_SELECTOR << 16  # present, interrupt gate
    for vector in range(256):
        handler = HANDLERS + SLOT * vector
        struct.pack_into("<QQ", image, IDT + 16 * vector, gate | handler, 0)
        image[handler : handler + SLOT] = _OUT_HANDLER_PORT.ljust(SLOT, _NOP)
    struct.pack_into("<3Q", image, GDT, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    for instruction, address in _ADDRESS_OF.items():
        image[address : address + SLOT] = instruction.ljust(SLOT, _NOP)
    pdpt, directories = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    table = _PRESENT | _WRITABLE
    struct.pack_into("<Q", image, PAGE_TABLES, pdpt | table)
    for place, gibibyte in enumerate(GIBIBYTES):
        struct.pack_into("<Q", image, pdpt + 8 * gibibyte, directories + 0x1000 * place | table)
        for entry in range(512):
            number = 512 * gibibyte + entry
            address = directories + 0x1000 * place + 8 * entry
            uncached = _UNCACHED if number else 0
            struct.pack_into("<Q", image, address, number << 21 | table | uncached | _LARGE)
    return bytes(image)


IMAGE = _image()


def add_memory(vm: KvmVm) -> None:
    """Give a VM the memory that all its guests share: they take turns, and keep nothing in it."""
    vm.add_memory(0, IMAGE)


class Guest:
    """The guest of one vCPU."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self.vcpu = vcpu
        self._ended: list[int] = []
        vcpu.set_cpuid()
        vcpu.set_runnable()
        sregs = vcpu.get_sregs()
        # struct kvm_sregs: cs ds es fs gs ss, tr ldt, gdt idt, cr0 cr2 cr3 cr4 cr8, efer; the rest stays.
        data = _segment(DATA_SELECTOR, 0x3)
        sregs[:168] = _segment(CODE_SELECTOR, 0xB, code=True) + 5 * data + _segment(TASK_SELECTOR, 0xB, system=True)
        struct.pack_into("<QH6xQH6x", sregs, 192, GDT, 0x1F, IDT, 0xFFF)
        struct.pack_into("<6Q", sregs, 224, CR0, 0, PAGE_TABLES, CR4, 0, EFER)
        vcpu.set_sregs(bytes(sregs))
        vcpu.step_singly(interrupts=False)

    # Accesses. A result of None, or False, is an address that the kernel does not claim.

    def pio_read(self, port: int, size: int) -> int | None:
        """An IN of 1, 2 or 4 bytes."""
        return self.vcpu.registers[0] if self._step(_IN[size], port=port) else None

    def pio_write(self, port: int, size: int, value: int) -> bool:
        """An OUT of 1, 2 or 4 bytes."""
        return self._step(_OUT[size], value, port=port)

    def mmio_read(self, address: int, size: int) -> int | None:
        """A load of 1, 2, 4 or 8 bytes."""
        # KVM: lapic.c kvm_lapic_reg_read; where there is no register it gives nothing, and the load returns the rest of
        # the emulator's previous buffer. The buffer is set to 0 here: the IOAPIC reads 0 where it has no register.
        self._step(_LOAD[LONGEST_ACCESS], address=NO_REGISTER)
        return self.vcpu.registers[0] if self._step(_LOAD[size], address=address) else None

    def mmio_write(self, address: int, size: int, value: int) -> bool:
        """A store of 1, 2, 4 or 8 bytes."""
        return self._step(_STORE[size], value, address=address)

    def msr_read(self, msr: int) -> int | None:
        """RDMSR; None is a general protection fault."""
        self._run(_RDMSR, rcx=msr)
        low, _, _, high, *_ = self.vcpu.registers
        return None if self._handler == GENERAL_PROTECTION else high << 32 | low

    def msr_write(self, msr: int, value: int) -> bool:
        """WRMSR; False is a general protection fault."""
        self._run(_WRMSR, rax=value & 0xFFFF_FFFF, rcx=msr, rdx=value >> 32)
        return self._handler != GENERAL_PROTECTION

    def cr8_read(self) -> int:
        """MOV from CR8."""
        self._run(_READ_CR8)
        return self.vcpu.registers[0]

    def cr8_write(self, value: int) -> None:
        """MOV to CR8."""
        self._run(_WRITE_CR8, rax=value)

    def take_interrupt(self) -> int | None:
        """Open the interrupt window once; returns the delivered vector, or None."""
        self.vcpu.step_singly(interrupts=True)
        reason = self._run(_NOP, flags=RFLAGS_STEP | RFLAGS_INTERRUPTS)
        self.vcpu.step_singly(interrupts=False)
        if self._handler is None:
            assert reason == Exit.DEBUG, f"KVM_RUN returned with reason {reason}"
        return self._handler

    def visit_kernel(self) -> None:
        """Enter the guest more than once: in between, KVM delivers the local APIC timer's expiry.

        KVM: x86.c vcpu_run, which does so only if it need not return to user space.
        """
        self.vcpu.step_singly(singly=False)
        reason = self._run(_VISIT_KERNEL, r8=VISIT_LOOPS, flags=RFLAGS)
        self.vcpu.step_singly()
        assert reason == Exit.IO, f"KVM_RUN returned with reason {reason}"

    def ended_vectors(self) -> list[int]:
        """The vectors of EOIs reported to the IOAPIC of a VMM with a split irqchip, since the last call."""
        self._run(_NOP)
        ended, self._ended = self._ended, []
        return ended

    @property
    def _handler(self) -> int | None:
        """The vector whose handler the guest has reached."""
        handler = self.vcpu.registers[16] - HANDLERS
        # At the handler's instruction or behind it: KVM need not step into a handler.
        return handler // SLOT if 0 <= handler < 256 * SLOT else None

    def _step(self, instruction: bytes, value: int = 0, *, port: int = 0, address: int = 0) -> bool:
        """Execute an instruction; False if the kernel left it to user space."""
        reason = self._run(instruction, rax=value, rbx=address, rdx=port)
        claimed = True
        while reason in (Exit.IO, Exit.MMIO):
            claimed = False
            self.vcpu.answer_mmio(0)
            # Step on: after a store KVM has forgotten the request (x86.c x86_emulate_instruction).
            reason = self.vcpu.run((*self.vcpu.registers[:-1], RFLAGS_STEP))
        assert reason == Exit.DEBUG, f"KVM_RUN returned with reason {reason}"
        return claimed

    def _run(
        self,
        code: bytes,
        *,
        rax: int = 0,
        rbx: int = 0,
        rcx: int = 0,
        rdx: int = 0,
        r8: int = 0,
        flags: int = RFLAGS_STEP,
    ) -> int:
        # rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags
        rest = (0,) * 7
        reason = self.vcpu.run((rax, rbx, rcx, rdx, 0, 0, STACK_TOP, 0, r8, *rest, _ADDRESS_OF[code], flags))
        while reason == Exit.IOAPIC_EOI:  # for an earlier EOI; nothing has been executed yet
            self._ended.append(self.vcpu.ended_vector)
            reason = self.vcpu.run()
        return reason
