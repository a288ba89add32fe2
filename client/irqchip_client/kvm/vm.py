"""/dev/kvm, and a VM of it without an in-kernel irqchip."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from errno import EINVAL, ENOSYS
from typing import Self

from irqchip_client._errors import InvalidArgument, IrqchipError
from irqchip_client.vmm.memory import GuestMemory

from .cpuid import supported_cpuid
from .ioctls import (
    API_VERSION,
    ENABLE_CAP,
    MEMORY_REGION,
    MEMORY_REGION_READONLY,
    MSR_EXIT_FILTERED,
    MSR_EXIT_INVALID,
    MSR_FILTER_HEADER,
    MSR_FILTER_RANGE,
    MSR_FILTER_READ,
    MSR_FILTER_SIZE,
    MSR_FILTER_WRITE,
    QWORD,
    Cap,
    Request,
    ioctl,
    set_tss_addr,
)

DEVICE = "/dev/kvm"
IA32_APIC_BASE, IA32_TSC_DEADLINE = 0x1B, 0x6E0
# Accesses that KVM would answer itself, and must not answer.
REPORTED = ((MSR_FILTER_WRITE, IA32_APIC_BASE), (MSR_FILTER_READ | MSR_FILTER_WRITE, IA32_TSC_DEADLINE))

# From here to 4 GiB a PC has its IOAPIC, local APICs and firmware, and no RAM.
HOLE, HOLE_END = 0xFEC0_0000, 1 << 32
# Four pages in that hole, for KVM's own use on processors that can't execute real mode natively. QEMU: target/i386/kvm,
# below firmware of up to 16 MiB.
IDENTITY_MAP, TSS = 0xFEFF_C000, 0xFEFF_D000


def why_not() -> str | None:
    """The reason why this machine can't have a KvmVm; None if it can."""
    try:
        kvm = _open()
        try:
            os.close(ioctl(kvm, Request.CREATE_VM))
        finally:
            os.close(kvm)
    except IrqchipError as error:
        return error.message
    return None


class KvmVm:
    """A VM of this machine's KVM, with a guest's RAM and ROM. IrqchipError if KVM is missing or too old.

    Needs access to /dev/kvm, and Linux 5.10, whose KVM reports a guest's accesses to the APIC's MSRs.

    The guest does not see RAM at fec00000h to ffffffffh.
    """

    def __init__(self, memory: GuestMemory) -> None:
        if memory.start:
            raise InvalidArgument(EINVAL, f"a PC's RAM begins at 0, not at {memory.start:#x}")
        self.memory = memory
        self._kvm = _open()
        self.fd = -1
        try:
            self.run_size = ioctl(self._kvm, Request.GET_VCPU_MMAP_SIZE)
            self.fd = ioctl(self._kvm, Request.CREATE_VM)
            ioctl(self.fd, Request.SET_IDENTITY_MAP_ADDR, QWORD.pack(IDENTITY_MAP))
            set_tss_addr(self.fd, TSS)
            self._map_memory()
            self._ask_for_msrs()
            self.cpuid = supported_cpuid(self._kvm)
        except BaseException:
            self.close()
            raise

    def _map_memory(self) -> None:
        size, host = self.memory.size, self.memory.host_address
        regions = [(0, start, end - start, host + start) for start, end in ((0, min(size, HOLE)), (HOLE_END, size))]
        regions += [(MEMORY_REGION_READONLY, rom.address, rom.size, rom.host_address) for rom in self.memory.roms]
        for slot, (flags, start, length, at) in enumerate(regions):
            if length > 0:
                ioctl(self.fd, Request.SET_USER_MEMORY_REGION, MEMORY_REGION.pack(slot, flags, start, length, at))

    def _ask_for_msrs(self) -> None:
        """Makes vCPUs exit for accesses to REPORTED, and for those that KVM would answer with #GP.

        Among the latter are the x2APIC's registers, which no filter can name: KVM has none without an APIC of its own.
        """
        wanted = MSR_EXIT_INVALID | MSR_EXIT_FILTERED
        ioctl(self.fd, Request.ENABLE_CAP, ENABLE_CAP.pack(Cap.X86_USER_SPACE_MSR, 0, wanted, 0, 0, 0))
        none_allowed = ctypes.create_string_buffer(8)
        filters = bytearray(MSR_FILTER_SIZE)
        for number, (accesses, msr) in enumerate(REPORTED):
            at = MSR_FILTER_HEADER.size + number * MSR_FILTER_RANGE.size
            MSR_FILTER_RANGE.pack_into(filters, at, accesses, 1, msr, ctypes.addressof(none_allowed))
        ioctl(self.fd, Request.X86_SET_MSR_FILTER, filters)

    def close(self) -> None:
        """Ends the VM. Close its vCPUs before it, and the memory after it."""
        for fd in (self.fd, self._kvm):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self.fd = self._kvm = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open() -> int:
    """A descriptor of /dev/kvm. IrqchipError if /dev/kvm is missing, not accessible or too old."""
    if platform.machine() != "x86_64":
        raise IrqchipError(ENOSYS, f"KVM guests are x86, and this machine is {platform.machine()}")
    try:
        kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise IrqchipError(error.errno or 0, f"{DEVICE} can't be used: {error.strerror}") from None
    lacks = [cap.name for cap in Cap if not ioctl(kvm, Request.CHECK_EXTENSION, cap)]
    if lacks or ioctl(kvm, Request.GET_API_VERSION) != API_VERSION:
        os.close(kvm)
        raise IrqchipError(ENOSYS, f"this KVM is older than Linux 5.10's: it lacks {', '.join(lacks) or 'all'}")
    return kvm
