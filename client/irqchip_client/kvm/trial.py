"""Executes a few instructions on this machine's KVM, to learn what KVM does with them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import ioctl as run_ioctl

from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .ioctls import Request, Run, ioctl
from .registers import Registers
from .vm import KvmVm

ENTRY = 0x1000
TRIES = 10  # signals for this process may end a trial too early


@contextmanager
def trial(code: bytes) -> Iterator[tuple[int, mmap.mmap]]:
    """A vCPU of a VM of its own, before the first instruction in protected mode; its descriptor and its kvm_run.

    IrqchipError if KVM can't be used.
    """
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory(2 * ENTRY))
        kvm = stack.enter_context(KvmVm(memory))
        fd = ioctl(kvm.fd, Request.CREATE_VCPU, 0)
        stack.callback(os.close, fd)
        run = stack.enter_context(mmap.mmap(fd, kvm.run_size))
        memory.write(ENTRY, code)
        Registers(fd).start(Start(StartMode.PROTECTED, ENTRY))
        yield fd, run


def first_exit(fd: int, run: mmap.mmap) -> int | None:
    """The reason of the first exit; None if signals ended every try. OSError if KVM refuses to run."""
    for _ in range(TRIES):
        try:
            run_ioctl(fd, Request.RUN)
        except InterruptedError:
            continue
        return run[Run.EXIT_REASON]
    return None
