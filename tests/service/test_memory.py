"""The memory that a VM takes."""

from __future__ import annotations

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import LapicState, ops
from irqchip_client._daemon import start_daemon
from tests.service.test_sessions import resident

VMS = 1000


def test_a_thousand_vms_of_one_vcpu_take_64_kib_each_at_the_most() -> None:
    with start_daemon() as daemon, daemon.connect(timeout=60) as client:
        client.create_vm("first").create_irqchip()  # so that one-time allocations come before the measurement
        before = resident(daemon)
        for number in range(VMS):
            vm = client.create_vm(f"vm{number}")
            vm.create_irqchip()
            cpu = vm.create_vcpu(0)
            cpu.mmio_write(0xFEE0_00F0, 0x1FF)
            assert isinstance(cpu.lapic(), LapicState)
        each = (resident(daemon) - before) / VMS
        print(f"{each / 1024:.1f} KiB a VM")
        assert 0 < each <= 64 * 1024

        # The memory is freed: as many VMs again, after these are deleted, do not make the daemon grow.
        full = resident(daemon)
        for number in range(VMS):
            client.delete_vm(f"vm{number}")
        for number in range(VMS):
            again = client.create_vm(f"again{number}")
            again.create_irqchip()
            with again.session() as session:
                session.run([ops.create_vcpu(0)])
        assert resident(daemon) < full * 1.2


def test_messages_that_were_refused_are_not_kept() -> None:
    with start_daemon() as daemon, daemon.connect() as client, grpc.insecure_channel(daemon.target) as channel:
        client.create_vm("vm").create_irqchip()
        rpcs = IrqchipServiceStub(channel)
        # A megabyte, which protobuf decodes into eight.
        large = pb.IrqLinesRequest(vm="vm", changes=[3] * 1_000_000)
        for number in range(40):
            with pytest.raises(grpc.RpcError):
                rpcs.IrqLines(large, timeout=60)
            if number == 4:
                before = resident(daemon)
        assert resident(daemon) < before + 24 * 1024 * 1024
