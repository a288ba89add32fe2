"""This machine's kernel beside irqchipd, or a skip with the reason."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conformance import kvm as api
from tests.conformance.compare import Comparison
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.guest import Guest, add_memory
from tests.conformance.hosts import this_host
from tests.conformance.kernel_machine import KernelMachine
from tests.conformance.kvm import Kvm, KvmVm
from tests.conformance.timed import TimedComparison

# The first release whose KVM rescans the IOAPIC's EOIs after an EOI that concerned an earlier routing.
OLDEST_KERNEL = (6, 16)
VECTOR_HASHING = Path("/sys/module/kvm/parameters/vector_hashing")


def why_not() -> str | None:
    """Why this machine's KVM cannot be compared with irqchipd, or None."""
    if platform.machine() != "x86_64":
        return f"KVM's irqchip is another one on {platform.machine()}"
    release = platform.release()
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < OLDEST_KERNEL:
        return f"Linux {release} is too old: irqchipd does as KVM has since {'.'.join(map(str, OLDEST_KERNEL))}"
    if VECTOR_HASHING.exists() and VECTOR_HASHING.read_text().strip() == "N":
        return "KVM's parameter vector_hashing is off: lowest priority is another one"
    try:
        kvm = Kvm()
    except OSError as error:
        return f"/dev/kvm can't be used: {error.strerror}"
    try:
        if kvm.api_version() != api.API_VERSION or not kvm.check_extension(api.CAP_SYNC_REGS):
            return "this KVM is too old"
        with KvmVm(kvm) as vm:
            vm.create_irqchip()
            add_memory(vm)
            Guest(vm.create_vcpu(0)).pio_read(0x21, 1)
    except OSError as error:
        return f"/dev/kvm makes no VM with an irqchip and a vCPU that runs: {error.strerror}"
    finally:
        kvm.close()
    return None


@pytest.fixture(scope="session")
def kvm() -> Iterator[Kvm]:
    """This machine's /dev/kvm."""
    if reason := why_not():
        pytest.skip(reason)
    kvm = Kvm()
    yield kvm
    kvm.close()


@pytest.fixture
def live(kvm: Kvm) -> Comparison:
    """Compares a VM of the kernel with one of irqchipd."""
    host = this_host()
    return Comparison(lambda: KernelMachine(kvm), lambda: DaemonMachine(host), host)


@pytest.fixture
def timed(kvm: Kvm) -> TimedComparison:
    """Compares them where time matters, with irqchipd on both kinds of clock."""
    return TimedComparison(lambda: KernelMachine(kvm), DaemonMachine, partial(DaemonMachine, real_clock=True))
