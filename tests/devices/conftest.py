"""Fixtures of device models' tests."""

from __future__ import annotations

import pytest

from irqchip_client import Client, Vm


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with an irqchip and vCPU 0, deleted after the test."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm
