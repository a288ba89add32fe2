"""KVM's ioctls and structs, as far as a VM without an in-kernel irqchip needs them. <linux/kvm.h>, x86-64."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from enum import IntEnum

from irqchip_client._errors import make_error

API_VERSION = 12


class Request(IntEnum):
    """KVM_*."""

    # Of /dev/kvm.
    GET_API_VERSION = 0xAE00
    CREATE_VM = 0xAE01
    CHECK_EXTENSION = 0xAE03
    GET_VCPU_MMAP_SIZE = 0xAE04
    GET_SUPPORTED_CPUID = 0xC008_AE05
    # Of a VM.
    CREATE_VCPU = 0xAE41
    SET_USER_MEMORY_REGION = 0x4020_AE46
    SET_TSS_ADDR = 0xAE47
    SET_IDENTITY_MAP_ADDR = 0x4008_AE48
    ENABLE_CAP = 0x4068_AEA3
    X86_SET_MSR_FILTER = 0x4188_AEC6
    # Of a vCPU.
    RUN = 0xAE80
    GET_REGS = 0x8090_AE81
    SET_REGS = 0x4090_AE82
    GET_SREGS = 0x8138_AE83
    SET_SREGS = 0x4138_AE84
    INTERRUPT = 0x4004_AE86
    TRANSLATE = 0xC018_AE85
    GET_MSRS = 0xC008_AE88
    SET_MSRS = 0x4008_AE89
    SET_SIGNAL_MASK = 0x4004_AE8B
    SET_CPUID2 = 0x4008_AE90
    SET_GUEST_DEBUG = 0x4048_AE9B
    NMI = 0xAE9A
    SET_DEBUGREGS = 0x4080_AEA2
    GET_TSC_KHZ = 0xAEA3
    GET_VCPU_EVENTS = 0x8040_AE9F
    SET_VCPU_EVENTS = 0x4040_AEA0
    SMI = 0xAEB7


class Cap(IntEnum):
    """KVM_CAP_*: the capabilities that a kernel must have."""

    IMMEDIATE_EXIT = 136
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190


class Exit(IntEnum):
    """KVM_EXIT_*: why KVM_RUN returned."""

    UNKNOWN = 0
    IO = 2
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    INTERNAL_ERROR = 17
    X86_RDMSR = 29
    X86_WRMSR = 30


class Run:
    """Offsets of struct kvm_run, and structs of its union."""

    REQUEST_INTERRUPT_WINDOW = 0
    IMMEDIATE_EXIT = 1
    EXIT_REASON = 8  # The first of its four bytes: no reason needs more.
    READY_FOR_INTERRUPT_INJECTION = 12
    IF_FLAG = 13
    CR8 = 16  # The first of its eight bytes: CR8 is 0 to 15.
    UNION = 32
    IO = struct.Struct("<BBHIQ")  # direction, size, port, count, offset of the data in kvm_run
    MMIO = struct.Struct("<Q8sIB")  # address, data, length, whether it is a write
    MMIO_DATA = 40
    DEBUG_DR6 = 48
    MSR_ERROR = 32
    MSR, MSR_AT = struct.Struct("<IQ"), 44  # index, data
    MSR_DATA = 48
    FAIL_ENTRY = struct.Struct("<QI")  # hardware's reason, processor
    INTERNAL = struct.Struct(
        "<IIQB15s"
    )  # suberror, number of data; of an emulation: flags, instruction's length, bytes


REGS = struct.Struct("<18Q")  # rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags
SREGS_SIZE = 312
SEGMENT = struct.Struct("<QIH8Bxx")  # base, limit, selector, type, present, dpl, db, s, l, g, avl
SEGMENTS = {name: 24 * position for position, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss"))}
TR_AT, GDT_AT, IDT_AT, CR0_AT, CR3_AT, CR4_AT, EFER_AT = 0x90, 0xC0, 0xD0, 0xE0, 0xF0, 0xF8, 0x108
TABLE = struct.Struct("<QH")  # base, limit
TRANSLATION = struct.Struct("<QQBBB5x")  # linear and physical address, whether valid, writable, the user's
QWORD = struct.Struct("<Q")
DWORD = struct.Struct("<I")
MSRS = struct.Struct("<II IIQ")  # struct kvm_msrs of one
ENABLE_CAP = struct.Struct("<II4Q64x")  # capability, flags, arguments
MEMORY_REGION = struct.Struct("<IIQQQ")  # slot, flags, guest physical address, size, address
MEMORY_REGION_READONLY = 1 << 1  # a guest's store is an exit for MMIO
SIGNAL_MASK = struct.Struct("<IQ")  # length of the kernel's sigset_t, and the sigset_t
DEBUGREGS = struct.Struct("<7Q72x")  # DR0 to DR3, DR6, DR7, flags
GUEST_DEBUG = struct.Struct("<I4x8Q")  # control, the debug registers
GUEST_DEBUG_ENABLE, GUEST_DEBUG_STEP, GUEST_DEBUG_BREAK = 1 << 0, 1 << 1, 1 << 17
CPUID_HEADER, CPUID_ENTRY = struct.Struct("<II"), struct.Struct("<7I12x")
MAX_CPUID_ENTRIES = 256

# struct kvm_msr_filter: flags, padding, and 16 ranges: flags, number of registers, the first, bitmap of those allowed.
MSR_FILTER_SIZE, MSR_FILTER_HEADER, MSR_FILTER_RANGE = 0x188, struct.Struct("<II"), struct.Struct("<IIIxxxxQ")
MSR_FILTER_READ, MSR_FILTER_WRITE = 1 << 0, 1 << 1
MSR_EXIT_INVALID, MSR_EXIT_FILTERED = 1 << 0, 1 << 2  # KVM_MSR_EXIT_REASON_*

VCPU_EVENTS_SIZE, NMI_MASKED_AT = 64, 14
NMI_PENDING_AT, INJECTED_AT = 13, (0, 3, 8, 12)  # of exception, exception.pending, interrupt, nmi
# struct kvm_vcpu_events in which nothing waits, with KVM_VCPUEVENT_VALID_NMI_PENDING and _SHADOW.
NO_EVENTS = struct.pack("<16x I I 40x", 0, 1 | 4)


def ioctl(fd: int, request: Request, argument: int | bytes | bytearray = 0) -> int:
    """Makes an ioctl, and returns its result. A refusal raises the error of the kernel's errno."""
    try:
        result = fcntl.ioctl(fd, request, argument)
    except OSError as error:
        number = error.errno or 0
        raise make_error(number, f"KVM_{request.name}: {os.strerror(number)}") from None
    return result if isinstance(result, int) else 0  # For a bytes argument, fcntl.ioctl returns bytes.


def set_tss_addr(vm: int, address: int) -> None:
    """KVM_SET_TSS_ADDR, whose argument is an address itself: fcntl.ioctl refuses addresses from 2 GiB on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ioctl(vm, ctypes.c_ulong(Request.SET_TSS_ADDR), ctypes.c_ulong(address)):
        number = ctypes.get_errno()
        raise make_error(number, f"KVM_SET_TSS_ADDR: {os.strerror(number)}")


def delivers(vcpu: int) -> bool:
    """Whether KVM has an exception, interrupt or NMI to deliver when the vCPU enters its guest."""
    events = bytearray(VCPU_EVENTS_SIZE)
    ioctl(vcpu, Request.GET_VCPU_EVENTS, events)
    return any(events[at] for at in INJECTED_AT) or (events[NMI_PENDING_AT] > 0 and not events[NMI_MASKED_AT])
