"""The kernel of this machine beside irqchipd, or the reason why not."""

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

# The first whose KVM finds out anew which EOIs concern its IOAPIC after one that concerned a former routing.
OLDEST_KERNEL = (6, 16)
VECTOR_HASHING = Path("/sys/module/kvm/parameters/vector_hashing")


def why_not() -> str | None:
    """Why this machine's KVM can't be compared with, if it can't."""
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
    """Compares a VM of the kernel's and one of irqchipd's."""
    host = this_host()
    return Comparison(lambda: KernelMachine(kvm), lambda: DaemonMachine(host), host)


@pytest.fixture
def timed(kvm: Kvm) -> TimedComparison:
    """Compares them where time matters; irqchipd with both kinds of clock."""
    return TimedComparison(lambda: KernelMachine(kvm), DaemonMachine, partial(DaemonMachine, real_clock=True))
