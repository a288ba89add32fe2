"""A local APIC that is shared with this process, without a daemon: of a Vm that is here, too."""

from __future__ import annotations

from typing import Any

from irqchip_client.vmm.local_apic import LocalApic, share_local_apic
from irqchipd.edge.lapic_page import LapicPage
from irqchipd.vm.machine import Vm


class _Session:
    """Of a real one, what the sharing takes."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def share_lapic(self, vcpu: int, memfd: int) -> None:
        self._vm.share_lapic(vcpu, LapicPage(memfd))


def shared(vm: Vm, vcpu: int) -> LocalApic:
    """The local APIC of a vCPU, as an adapter has it."""
    session: Any = _Session(vm)
    return share_local_apic(session, vcpu)
