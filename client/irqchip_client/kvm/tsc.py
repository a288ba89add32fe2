"""The guest's time stamp counter, which is KVM's, and IA32_TSC_DEADLINE, which irqchipd's timer serves.

A deadline is a value of the guest's TSC. irqchipd's timer counts by irqchipd's TSC of the vCPU. So before a deadline is
set, irqchipd's TSC is set to the guest's, if the two may differ: the guest may have written its own, by IA32_TSC or
IA32_TSC_ADJUST, which is no exit. Both count at the same frequency, or CPUID hides the timer. The register then has
the guest's value, or 0 once the timer has expired. Snapshots and other clients see the same.

irqchipd's TSC is set a little after the guest's is read, so it is behind the guest's by that time. A timer is late by
that time, and never early.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from irqchip_client import ops
from irqchip_client._errors import IrqchipError

from .ioctls import MSRS, Exit, Request, ioctl
from .trial import first_exit, trial
from .vm import IA32_TSC_DEADLINE

if TYPE_CHECKING:
    from irqchip_client import Session

IA32_TSC = 0x10
WRITE_DEADLINE = bytes.fromhex("b9 e0 06 00 00 31 d2 31 c0 0f 30 f4")  # mov ecx, 6e0h; xor; xor; wrmsr; hlt
NEAR = 2_000  # nanoseconds that irqchipd's TSC may differ from the guest's before it is set again


@functools.cache
def guest_tsc_khz() -> int:
    """The frequency of guests' TSCs on this machine's KVM: pass it to Client.create_vm() as tsc_khz.

    0 if a guest on KVM can't have a TSC-deadline timer of irqchipd's: KVM does not know the frequency, or it does
    not report the guest's deadlines. Linux's KVM on Intel processors takes some of them itself (vmx.c, its fast path).
    """
    try:
        with trial(WRITE_DEADLINE) as (fd, run):
            khz = ioctl(fd, Request.GET_TSC_KHZ)
            return khz if first_exit(fd, run) == Exit.X86_WRMSR else 0
    except (IrqchipError, OSError):
        return 0


class Deadline:
    """The TSC-deadline timer of a vCPU. For the thread that runs the vCPU."""

    def __init__(self, fd: int, session: Session, vcpu: int, khz: int) -> None:
        self._fd = fd
        self._session = session
        self._id = vcpu
        self._khz = khz
        self._ahead: int | None = None  # irqchipd's TSC less the host's clock, at the last setting; in ticks

    def set(self, deadline: int) -> None:
        """WRMSR of IA32_TSC_DEADLINE; 0 stops the timer."""
        calls = [ops.msr_write(self._id, IA32_TSC_DEADLINE, deadline)]
        if deadline:
            tsc = self._guests_tsc()
            ahead = tsc - time.monotonic_ns() * self._khz // 1_000_000
            if self._ahead is None or abs(ahead - self._ahead) > NEAR * self._khz // 1_000_000:
                self._ahead = ahead
                calls.insert(0, ops.msr_write(self._id, IA32_TSC, tsc))
        self._session.run(calls)

    def begin(self) -> None:
        """Before the vCPU runs: another client may have set irqchipd's TSC."""
        self._ahead = None

    def _guests_tsc(self) -> int:
        registers = bytearray(MSRS.pack(1, 0, IA32_TSC, 0, 0))
        ioctl(self._fd, Request.GET_MSRS, registers)
        tsc: int = MSRS.unpack(registers)[4]
        return tsc
