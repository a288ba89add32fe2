"""A local APIC shared with this process by a X86Vm in the same process, without a daemon."""

from __future__ import annotations

from typing import Any

from irqchip_client.vmm.local_apic import LocalApic, share_local_apic
from irqchipd.edge.lapic_page import LapicPage
from irqchipd.vm.x86.machine import X86Vm


class _Session:
    """The part of a Session that sharing needs."""

    def __init__(self, vm: X86Vm) -> None:
        self._vm = vm

    def share_lapic(self, vcpu: int, memfd: int) -> None:
        self._vm.share_lapic(vcpu, LapicPage(memfd))


def shared(vm: X86Vm, vcpu: int) -> LocalApic:
    """A vCPU's local APIC, as an adapter sees it."""
    session: Any = _Session(vm)
    return share_local_apic(session, vcpu)
