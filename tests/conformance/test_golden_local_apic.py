"""The golden traces with reads that a vCPU's process answers itself: these answers are the kernel's, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irqchip_client.replay import in_process
from irqchip_client.replay.traces import load_traces
from irqchip_client.vmm.local_apic import LocalApic
from irqchipd.vm.x86.machine import X86Vm
from tests.builds import needs_sources
from tests.conformance.test_golden_traces import GOLDEN
from tests.vmm.sharing import shared

pytestmark = needs_sources  # it derives from X86Vm


class SharingVm(X86Vm):
    """A VM whose vCPUs first try the shared local APIC, as an adapter's do."""

    answered = 0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._shared: dict[int, LocalApic] = {}

    def create_vcpu(self, vcpu: int) -> None:
        super().create_vcpu(vcpu)
        self._shared[vcpu] = shared(self, vcpu)

    def mmio_read(self, vcpu: int, address: int, size: int, by: Any = None) -> Any:
        here = self._shared[vcpu].read(address, size) if vcpu in self._shared else None
        self.count(here)
        return super().mmio_read(vcpu, address, size, by) if here is None else here

    def msr_read(self, vcpu: int, msr: int, *, host: bool = False) -> int | None:
        here = self._shared[vcpu].read_msr(msr) if vcpu in self._shared else None
        self.count(here)
        return super().msr_read(vcpu, msr, host=host) if here is None else here

    @classmethod
    def count(cls, here: int | None) -> None:
        cls.answered += here is not None


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_every_answer_is_the_kernel_s(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "X86Vm", SharingVm)
    SharingVm.answered = 0
    mismatches = [str(found) for trace in load_traces(path) for found in in_process.replay(trace)]
    assert mismatches == []
    assert SharingVm.answered > 2000
