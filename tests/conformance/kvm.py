"""Linux KVM through its ioctls, to compare irqchipd with. <linux/kvm.h>, x86-64.

A refused ioctl raises OSError with its errno. Nothing is interpreted here: states are the kernel's own bytes.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

# System ioctls.
GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
CHECK_EXTENSION = 0xAE03
GET_VCPU_MMAP_SIZE = 0xAE04
GET_SUPPORTED_CPUID = 0xC008_AE05

# VM ioctls.
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020_AE46
CREATE_IRQCHIP = 0xAE60
GET_IRQCHIP = 0xC208_AE62
SET_IRQCHIP = 0x8208_AE63
IRQ_LINE = 0x4008_AE61
GET_PIT, SET_PIT = 0xC048_AE65, 0x8048_AE66
IRQ_LINE_STATUS = 0xC008_AE67
SET_GSI_ROUTING = 0x4008_AE6A
REINJECT_CONTROL = 0xAE71
IRQFD = 0x4020_AE76
SET_BOOT_CPU_ID = 0xAE78
CREATE_PIT2 = 0x4040_AE77
GET_PIT2 = 0x8070_AE9F
SET_PIT2 = 0x4070_AEA0
ENABLE_CAP = 0x4068_AEA3
SIGNAL_MSI = 0x4020_AEA5

# vCPU ioctls.
RUN = 0xAE80
GET_SREGS = 0x8138_AE83
SET_SREGS = 0x4138_AE84
INTERRUPT = 0x4004_AE86
GET_MSRS = 0xC008_AE88
SET_MSRS = 0x4008_AE89
GET_LAPIC = 0x8400_AE8E
SET_LAPIC = 0x4400_AE8F
SET_CPUID2 = 0x4008_AE90
GET_MP_STATE = 0x8004_AE98
SET_MP_STATE = 0x4004_AE99
NMI = 0xAE9A
GET_VCPU_EVENTS, SET_VCPU_EVENTS = 0x8040_AE9F, 0x4040_AEA0
GET_TSC_KHZ = 0xAEA3
SET_GUEST_DEBUG = 0x4048_AE9B

API_VERSION = 12
CAP_SYNC_REGS, CAP_SPLIT_IRQCHIP = 74, 121
MP_STATE_RUNNABLE = 0
GUESTDBG_ENABLE, GUESTDBG_SINGLESTEP, GUESTDBG_BLOCKIRQ = 1 << 0, 1 << 1, 1 << 20
ROUTE_IRQCHIP, ROUTE_MSI = 1, 2
SYNC_REGS = 1  # KVM_SYNC_X86_REGS

# struct kvm_irqchip: the chip's number, padding, and a union of the chips' states.
IRQCHIP_HEADER, IRQCHIP_UNION = struct.Struct("<II"), 512
CHIP_STATE_SIZES = {0: 16, 1: 16, 2: 216}
PIT_STATE_SIZE, OLD_PIT_STATE_SIZE = 112, 72  # struct kvm_pit_state2, kvm_pit_state
# struct kvm_vcpu_events: the injected interrupt's flag and number; the NMI's injected, pending, masked; SIPI, flags.
VCPU_EVENTS = struct.Struct("<8x BB2x BBBx II 40x")
EVENTS_NMI_PENDING, EVENTS_SIPI_VECTOR = 1 << 0, 1 << 1
IRQFD_DEASSIGN, IRQFD_RESAMPLE = 1 << 0, 1 << 1
LAPIC_STATE_SIZE = 1024
SREGS_CS_BASE = slice(0, 8)  # in struct kvm_sregs
MAX_CPUID_ENTRIES = 256
CPUID_HEADER, CPUID_ENTRY = struct.Struct("<II"), struct.Struct("<7I12x")
MSRS = struct.Struct("<II IIQ")  # struct kvm_msrs with one MSR
TSC_DEADLINE_TIMER = 1 << 24  # of leaf 1, ECX: KVM implements it but does not list it
X2APIC = 1 << 21  # of leaf 1, ECX
TSC_ADJUST = 1 << 1  # of leaf 7, EBX
ADDRESS_SIZES = 0x8000_0008


class Exit:
    """The values of kvm_run.exit_reason that this guest can see."""

    IO, DEBUG, MMIO, IOAPIC_EOI = 2, 4, 6, 26


class Kvm:
    """/dev/kvm."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.run_size = fcntl.ioctl(self.fd, GET_VCPU_MMAP_SIZE)
        self.cpuid = self._supported_cpuid()

    def close(self) -> None:
        """Close the descriptor; its VMs stay."""
        os.close(self.fd)

    def api_version(self) -> int:
        """KVM_GET_API_VERSION; 12 on every kernel since 2.6.22."""
        return fcntl.ioctl(self.fd, GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return fcntl.ioctl(self.fd, CHECK_EXTENSION, capability)

    def _supported_cpuid(self) -> bytearray:
        """struct kvm_cpuid2 with everything that KVM can offer, and the TSC deadline timer."""
        cpuid = bytearray(CPUID_HEADER.size + MAX_CPUID_ENTRIES * CPUID_ENTRY.size)
        CPUID_HEADER.pack_into(cpuid, 0, MAX_CPUID_ENTRIES, 0)
        fcntl.ioctl(self.fd, GET_SUPPORTED_CPUID, cpuid)
        for number in range(CPUID_HEADER.unpack_from(cpuid)[0]):
            offset = CPUID_HEADER.size + number * CPUID_ENTRY.size
            function, index, flags, eax, ebx, ecx, edx = CPUID_ENTRY.unpack_from(cpuid, offset)
            if function == 1:
                ecx |= TSC_DEADLINE_TIMER
            CPUID_ENTRY.pack_into(cpuid, offset, function, index, flags, eax, ebx, ecx, edx)
        return cpuid


class KvmVm:
    """A VM. Close it or use it in a with statement: each vCPU has a file descriptor."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.fd = fcntl.ioctl(kvm.fd, CREATE_VM, 0)
        self.vcpus: dict[int, KvmVcpu] = {}
        self._memory: list[mmap.mmap] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the VM with its vCPUs and memory."""
        for vcpu in self.vcpus.values():
            vcpu.close()
        os.close(self.fd)
        for memory in self._memory:
            memory.close()

    # Creation.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP."""
        fcntl.ioctl(self.fd, CREATE_IRQCHIP)

    def enable_cap(self, capability: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP."""
        padded = (*args, 0, 0, 0, 0)[:4]
        fcntl.ioctl(self.fd, ENABLE_CAP, struct.pack("<II4Q64x", capability, flags, *padded))

    def create_pit(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2."""
        fcntl.ioctl(self.fd, CREATE_PIT2, struct.pack("<I60x", flags))

    def set_boot_cpu_id(self, vcpu: int) -> None:
        """KVM_SET_BOOT_CPU_ID."""
        fcntl.ioctl(self.fd, SET_BOOT_CPU_ID, vcpu)

    def create_vcpu(self, vcpu: int) -> KvmVcpu:
        """KVM_CREATE_VCPU."""
        self.vcpus[vcpu] = created = KvmVcpu(self, fcntl.ioctl(self.fd, CREATE_VCPU, vcpu))
        return created

    def add_memory(self, address: int, image: bytes) -> mmap.mmap:
        """Give the guest memory with this content, and return it. Each address can be used once per VM."""
        memory = mmap.mmap(-1, len(image))
        memory[:] = image
        pointer = ctypes.c_char.from_buffer(memory)
        region = struct.pack("<IIQQQ", len(self._memory), 0, address, len(image), ctypes.addressof(pointer))
        del pointer  # a pointer would keep the mapping from being closed
        fcntl.ioctl(self.fd, SET_USER_MEMORY_REGION, region)
        self._memory.append(memory)
        return memory

    # Lines and messages.

    def irq_line(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS; returns the status."""
        event = bytearray(struct.pack("<II", gsi, level))
        fcntl.ioctl(self.fd, IRQ_LINE_STATUS, event)
        status: int = struct.unpack_from("<i", event)[0]
        return status

    def irq_line_without_status(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE, which differs for the RTC's pin."""
        fcntl.ioctl(self.fd, IRQ_LINE, struct.pack("<II", gsi, level))

    def irqfd(self, eventfd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None:
        """KVM_IRQFD."""
        fcntl.ioctl(self.fd, IRQFD, struct.pack("<IIII16x", eventfd, gsi, flags, resamplefd))

    def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI. A status of -1 is indistinguishable from EPERM, and raised as such."""
        # A bytearray: given bytes, fcntl.ioctl returns bytes and not the number.
        taken: int = fcntl.ioctl(self.fd, SIGNAL_MSI, bytearray(struct.pack("<QIII12x", address, data, flags, 0)))
        return taken

    def set_routing(self, entries: Iterable[bytes], flags: int = 0) -> None:
        """KVM_SET_GSI_ROUTING, from route_to_pin and route_to_msi."""
        entries = list(entries)
        # A bytearray: fcntl.ioctl accepts at most 1,024 bytes of a read-only buffer.
        fcntl.ioctl(self.fd, SET_GSI_ROUTING, bytearray(struct.pack("<II", len(entries), flags) + b"".join(entries)))

    # State.

    def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP: struct kvm_pic_state or kvm_ioapic_state."""
        irqchip = bytearray(IRQCHIP_HEADER.pack(chip, 0) + bytes(IRQCHIP_UNION))
        fcntl.ioctl(self.fd, GET_IRQCHIP, irqchip)
        return bytes(irqchip[IRQCHIP_HEADER.size :][: CHIP_STATE_SIZES.get(chip)])

    def set_irqchip(self, chip: int, state: bytes) -> None:
        """KVM_SET_IRQCHIP."""
        fcntl.ioctl(self.fd, SET_IRQCHIP, IRQCHIP_HEADER.pack(chip, 0) + state.ljust(IRQCHIP_UNION, b"\0"))

    def get_pit(self) -> bytes:
        """KVM_GET_PIT2: struct kvm_pit_state2."""
        state = bytearray(PIT_STATE_SIZE)
        fcntl.ioctl(self.fd, GET_PIT2, state)
        return bytes(state)

    def set_pit(self, state: bytes) -> None:
        """KVM_SET_PIT2."""
        fcntl.ioctl(self.fd, SET_PIT2, state)

    def get_old_pit(self) -> bytes:
        """KVM_GET_PIT: struct kvm_pit_state."""
        state = bytearray(OLD_PIT_STATE_SIZE)
        fcntl.ioctl(self.fd, GET_PIT, state)
        return bytes(state)

    def set_old_pit(self, state: bytes) -> None:
        """KVM_SET_PIT."""
        fcntl.ioctl(self.fd, SET_PIT, state)

    def set_pit_reinject(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL."""
        fcntl.ioctl(self.fd, REINJECT_CONTROL, struct.pack("<B31x", reinject))


def route_to_pin(gsi: int, chip: int, pin: int, flags: int = 0) -> bytes:
    """struct kvm_irq_routing_entry."""
    return struct.pack("<IIII II24x", gsi, ROUTE_IRQCHIP, flags, 0, chip, pin)


def route_to_msi(gsi: int, address: int, data: int, flags: int = 0) -> bytes:
    """struct kvm_irq_routing_entry."""
    return struct.pack("<IIII QI20x", gsi, ROUTE_MSI, flags, 0, address, data)


class KvmVcpu:
    """A vCPU."""

    # struct kvm_run.
    _REASON, _REASON_OFFSET = struct.Struct("<I"), 8
    _EOI_VECTOR_OFFSET = 32
    _MMIO_DATA, _MMIO_DATA_OFFSET = struct.Struct("<Q"), 40
    _SYNC, _SYNC_OFFSET = struct.Struct("<QQ"), 288  # the classes of registers to copy out, and those that are dirty
    _REGISTERS, _REGISTERS_OFFSET = struct.Struct("<18Q"), 304

    def __init__(self, vm: KvmVm, fd: int) -> None:
        self.vm = vm
        self.fd = fd
        self._run = mmap.mmap(fd, vm.kvm.run_size)

    def close(self) -> None:
        """Close the vCPU's descriptor. The VM keeps the vCPU."""
        self._run.close()
        os.close(self.fd)

    # Set-up.

    def set_cpuid(self) -> None:
        """KVM_SET_CPUID2 with everything that KVM can offer."""
        fcntl.ioctl(self.fd, SET_CPUID2, self.vm.kvm.cpuid)

    def set_other_cpuid(self, *, lacks: int, lacks_7: int, address_bits: int) -> None:
        """KVM_SET_CPUID2 without some bits of leaf 1's ECX and leaf 7's EBX, and with this physical address width."""
        cpuid = bytearray(self.vm.kvm.cpuid)
        for number in range(CPUID_HEADER.unpack_from(cpuid)[0]):
            offset = CPUID_HEADER.size + number * CPUID_ENTRY.size
            function, index, flags, eax, ebx, ecx, edx = CPUID_ENTRY.unpack_from(cpuid, offset)
            if function == 1:
                ecx &= ~lacks
            elif function == 7 and not index:
                ebx &= ~lacks_7
            elif function == ADDRESS_SIZES:
                eax = eax & ~0xFF | address_bits
            CPUID_ENTRY.pack_into(cpuid, offset, function, index, flags, eax, ebx, ecx, edx)
        fcntl.ioctl(self.fd, SET_CPUID2, cpuid)

    def set_runnable(self) -> None:
        """Make the vCPU runnable without INIT and start-up."""
        self.set_mp_state(MP_STATE_RUNNABLE)

    def get_sregs(self) -> bytearray:
        """KVM_GET_SREGS: struct kvm_sregs."""
        sregs = bytearray(312)
        fcntl.ioctl(self.fd, GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: bytes) -> None:
        """KVM_SET_SREGS."""
        fcntl.ioctl(self.fd, SET_SREGS, sregs)

    def step_singly(self, *, interrupts: bool = False, singly: bool = True) -> None:
        """KVM_SET_GUEST_DEBUG: KVM_RUN returns after every instruction.

        Without interrupts, KVM also emulates the whole local APIC itself, even where the processor could help.
        """
        control = GUESTDBG_ENABLE | singly * GUESTDBG_SINGLESTEP | (not interrupts) * GUESTDBG_BLOCKIRQ
        fcntl.ioctl(self.fd, SET_GUEST_DEBUG, struct.pack("<II64x", control, 0))

    # State.

    def get_lapic(self) -> bytes:
        """KVM_GET_LAPIC."""
        state = bytearray(LAPIC_STATE_SIZE)
        fcntl.ioctl(self.fd, GET_LAPIC, state)
        return bytes(state)

    def set_lapic(self, state: bytes) -> None:
        """KVM_SET_LAPIC."""
        fcntl.ioctl(self.fd, SET_LAPIC, state)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE; a pending INIT or start-up takes effect first."""
        state = bytearray(4)
        fcntl.ioctl(self.fd, GET_MP_STATE, state)
        return int.from_bytes(state, "little")

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        fcntl.ioctl(self.fd, SET_MP_STATE, struct.pack("<I", state))

    @property
    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""
        return fcntl.ioctl(self.fd, GET_TSC_KHZ)

    def get_msr(self, msr: int) -> int | None:
        """KVM_GET_MSRS for one MSR; None if the kernel refuses it."""
        registers = bytearray(MSRS.pack(1, 0, msr, 0, 0))
        done: int = fcntl.ioctl(self.fd, GET_MSRS, registers)
        value: int = MSRS.unpack(registers)[4]
        return value if done else None

    def set_msr(self, msr: int, value: int) -> bool:
        """KVM_SET_MSRS for one MSR; False if the kernel refuses it."""
        done: int = fcntl.ioctl(self.fd, SET_MSRS, bytearray(MSRS.pack(1, 0, msr, 0, value)))
        return done == 1

    # Interrupting.

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT."""
        fcntl.ioctl(self.fd, INTERRUPT, struct.pack("<I", vector))

    def nmi(self) -> None:
        """KVM_NMI."""
        fcntl.ioctl(self.fd, NMI)

    def get_events(self) -> list[int]:
        """KVM_GET_VCPU_EVENTS: the injected interrupt's flag and number; the NMI's injected, pending, masked."""
        events = bytearray(VCPU_EVENTS.size)
        fcntl.ioctl(self.fd, GET_VCPU_EVENTS, events)
        return list(VCPU_EVENTS.unpack(events)[:5])

    def set_events(
        self, interrupt: tuple[int, int], injected: int, pending: int | None, masked: int, sipi: int | None
    ) -> None:
        """KVM_SET_VCPU_EVENTS; a field that is None stays unchanged."""
        flags = (pending is not None) * EVENTS_NMI_PENDING | (sipi is not None) * EVENTS_SIPI_VECTOR
        events = VCPU_EVENTS.pack(*interrupt, injected, pending or 0, masked, sipi or 0, flags)
        fcntl.ioctl(self.fd, SET_VCPU_EVENTS, events)

    # Running.

    @property
    def registers(self) -> tuple[int, ...]:
        """The general registers as the last run left them: rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags."""
        return self._REGISTERS.unpack_from(self._run, self._REGISTERS_OFFSET)

    def run(self, registers: tuple[int, ...] | None = None) -> int:
        """KVM_RUN, with these general registers if given; returns the exit reason."""
        if registers is not None:
            self._REGISTERS.pack_into(self._run, self._REGISTERS_OFFSET, *registers)
        self._SYNC.pack_into(self._run, self._SYNC_OFFSET, SYNC_REGS, SYNC_REGS if registers is not None else 0)
        while True:
            with suppress(InterruptedError):
                fcntl.ioctl(self.fd, RUN)
                break
        reason: int = self._REASON.unpack_from(self._run, self._REASON_OFFSET)[0]
        return reason

    def answer_mmio(self, value: int) -> None:
        """After Exit.MMIO: the value that an unclaimed load returns when the vCPU runs on."""
        self._MMIO_DATA.pack_into(self._run, self._MMIO_DATA_OFFSET, value)

    @property
    def ended_vector(self) -> int:
        """After Exit.IOAPIC_EOI: the vector."""
        return self._run[self._EOI_VECTOR_OFFSET]
