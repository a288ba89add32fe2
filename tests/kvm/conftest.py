"""A machine, if KVM can be used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_client import Client
from irqchip_client.kvm import GuestMemory, KvmVm, why_not
from tests.kvm.machine import Machine


@pytest.fixture
def machine(irqchip_client: Client) -> Iterator[Machine]:
    """A PC on this machine's KVM."""
    if reason := why_not():
        pytest.skip(reason)
    with GuestMemory(1 << 20) as memory, KvmVm(memory) as kvm:
        machine = Machine(irqchip_client, kvm, memory)
        with machine.cpu:
            yield machine
