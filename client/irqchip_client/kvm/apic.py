"""Keeps KVM up to date about the daemon's local APIC: the TPR, which is also CR8, and IA32_APIC_BASE."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from irqchip_client._errors import GuestError
from irqchip_client.vmm.local_apic import LocalApic

from .ioctls import MSRS, Request, Run, ioctl
from .tsc import Deadline
from .vm import IA32_APIC_BASE, IA32_TSC_DEADLINE

if TYPE_CHECKING:
    from irqchip_client import Vcpu

# SDM volume 3, 11.4.4 and 11.12.1.
BASE_BOOT_CPU, BASE_X2APIC, BASE_ENABLED, BASE_ADDRESS = 1 << 8, 1 << 10, 1 << 11, 0xF_FFFF_FFFF_F000
TPR, ICR = 0x80, 0x300  # registers' offsets in the page
IRR = range(0x200, 0x280, 0x10)
PAGE = 0x1000
X2APIC = range(0x800, 0x900)  # MSRs
X2APIC_TPR, X2APIC_ICR = 0x808, 0x830
X2APIC_IRR = range(0x820, 0x828)


class Apic:
    """The local APIC of a vCPU. For the thread that runs the vCPU.

    cr8  the daemon's TPR; if kvm_run.cr8 differs, the guest has written CR8
    """

    def __init__(self, fd: int, run: mmap.mmap, vcpu: Vcpu, local: LocalApic, deadline: Deadline) -> None:
        self.cr8 = 0
        self._fd = fd
        self._run = run
        self._vcpu = vcpu
        self._local = local
        self._deadline = deadline
        self._base = 0

    def learn(self) -> None:
        """Copies the daemon's values to KVM."""
        self._deadline.begin()
        self._set_base(self._vcpu.msr_read(IA32_APIC_BASE).data)
        self.cr8 = self._run[Run.CR8] = self._vcpu.cr8_read()

    def report_cr8(self) -> None:
        """Copies the guest's CR8 to the daemon: TPR's upper half, with 0 in its lower. SDM volume 3, 11.8.6.1."""
        cr8 = self._run[Run.CR8]
        if self._page is not None:  # The port has a short form for this.
            self._vcpu.mmio_write(self._page + TPR, cr8 << 4)
        else:
            self._vcpu.cr8_write(cr8)
        self.cr8 = cr8

    def mmio_written(self, address: int, value: int, size: int) -> bool:
        """Whether a store of the guest may have sent the vCPU a signal, by ICR."""
        if self._page is None or not 0 <= address - self._page < PAGE:
            return False
        if address == self._page + TPR and size == 4:
            self._learn_tpr(value)
        return address == self._page + ICR

    def has_requests(self) -> bool:
        """Whether IRR has an interrupt."""
        if self._x2apic:
            return any(self._vcpu.msr_read(msr).data for msr in X2APIC_IRR)
        page = self._page
        return page is not None and any(self._vcpu.mmio_read(page + offset).data for offset in IRR)

    def read_msr(self, msr: int) -> int | None:
        """RDMSR; None: a general protection fault."""
        if msr not in X2APIC and msr != IA32_TSC_DEADLINE:
            return None
        if (value := self._local.read_msr(msr)) is not None:
            return value
        access = self._vcpu.msr_read(msr)
        return None if access.fault or not access.claimed else access.data

    def write_msr(self, msr: int, value: int) -> bool:
        """WRMSR; False: a general protection fault."""
        if msr == IA32_TSC_DEADLINE:
            self._deadline.set(value)
            return True
        if msr != IA32_APIC_BASE and msr not in X2APIC:
            return False
        access = self._vcpu.msr_write(msr, value)
        if access.fault or not access.claimed:
            return False
        if msr == IA32_APIC_BASE:
            self._set_base(value)
        elif msr == X2APIC_TPR:
            self._learn_tpr(value)
        return True

    @property
    def is_boot_cpu(self) -> bool:
        """Whether the vCPU starts at INIT, and does not wait for SIPI."""
        return bool(self._base & BASE_BOOT_CPU)

    @property
    def _x2apic(self) -> bool:
        return bool(self._base & BASE_X2APIC)

    @property
    def _page(self) -> int | None:
        """The address of the register page; None if the registers are not in memory."""
        mode = self._base & (BASE_ENABLED | BASE_X2APIC)
        return self._base & BASE_ADDRESS if mode == BASE_ENABLED else None

    def _set_base(self, base: int) -> None:
        # KVM_SET_MSRS bypasses the MSR filter. CPUID's bit for the APIC follows the MSR.
        if not ioctl(self._fd, Request.SET_MSRS, bytearray(MSRS.pack(1, 0, IA32_APIC_BASE, 0, base))):
            raise GuestError(f"KVM refuses {base:#x} in IA32_APIC_BASE, and irqchipd accepts it")
        self._base = base

    def _learn_tpr(self, tpr: int) -> None:
        self.cr8 = self._run[Run.CR8] = tpr >> 4 & 0xF
