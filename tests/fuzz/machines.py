"""The fuzzed VMs: one of each kind, replaced again and again, and deleted at the end."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from tests.fuzz.messages import IOAPIC, LAPIC

PATIENCE = 120.0  # seconds; the fuzzer's own calls queue behind its messages
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]

KINDS = ("full", "virtual", "split", "bare", "empty", "made")  # the last kind is for VMs that messages create


class Machines:
    """The VMs of one worker, whose names begin with the worker's prefix."""

    def __init__(self, target: str, prefix: str) -> None:
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._rpcs = IrqchipServiceStub(self._channel)
        self._prefix = prefix
        self.names: list[str] = []

    def make(self, episode: str) -> pb.VmSnapshot:
        """Create the VMs; returns the state of the VM that has everything.

        Each episode has names of its own, because messages of the last one may still arrive.
        """
        self.names = [f"{self._prefix}-{episode.replace('/', '.')}-{kind}" for kind in KINDS]
        full, virtual, split, bare, empty, _ = self.names
        rpcs = self._rpcs
        for name in (full, virtual, split, bare, empty):
            clock = pb.CLOCK_KIND_VIRTUAL if name == virtual else pb.CLOCK_KIND_REAL
            rpcs.CreateVm(pb.CreateVmRequest(vm=name, clock=clock), timeout=PATIENCE)
        for name in (full, virtual):
            rpcs.CreateIrqchip(pb.CreateIrqchipRequest(vm=name), timeout=PATIENCE)
            rpcs.CreatePit(pb.CreatePitRequest(vm=name, flags=1), timeout=PATIENCE)
        rpcs.EnableCap(pb.EnableCapRequest(vm=split, capability=121, args=[24]), timeout=PATIENCE)
        for name in (full, virtual, split, bare):
            for vcpu in range(4):
                rpcs.CreateVcpu(pb.CreateVcpuRequest(vm=name, vcpu=vcpu), timeout=PATIENCE)
        for address, data in ((LAPIC + 0xF0, 0x1FF), (IOAPIC, 0x2C), (IOAPIC + 0x10, 0x51)):
            for name in (full, virtual):
                write = pb.MmioWriteRequest(vm=name, address=address, size=4, data=data)
                rpcs.MmioWrite(write, timeout=PATIENCE)
        return rpcs.SaveVm(pb.SaveVmRequest(vm=virtual), timeout=PATIENCE).snapshot

    def delete(self) -> None:
        """Delete the remaining VMs."""
        remove(self._rpcs, self.names)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def remove(rpcs: IrqchipServiceStub, names: Iterable[str]) -> None:
    """Delete VMs that others may delete at the same time."""
    for name in names:
        try:
            rpcs.DeleteVm(pb.DeleteVmRequest(vm=name), timeout=PATIENCE)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise


def clear(target: str, spared: Iterable[str]) -> None:
    """Delete all VMs but some, including those whose names the daemon picked."""
    spared = set(spared)
    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        rpcs = IrqchipServiceStub(channel)
        request = pb.ListVmsRequest()
        names: list[str] = []
        while True:
            page = rpcs.ListVms(request, timeout=PATIENCE)
            names += (vm.name for vm in page.vms)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        remove(rpcs, [name for name in names if name not in spared])
