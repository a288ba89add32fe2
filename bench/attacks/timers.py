"""Row 1: timers that expire faster than the daemon can handle them."""

from __future__ import annotations

import struct
import threading
from contextlib import suppress

import grpc

from bench.attacks.common import (
    DIVIDE,
    INITIAL_COUNT,
    LVT_LINT0,
    LVT_TIMER,
    PATIENCE,
    SVR,
    VM,
    Act,
    Attack,
    Foe,
    once,
    out,
    store,
)
from irqchip.v1 import irqchip_pb2 as pb

PERIOD = 200_000  # nanoseconds, the shortest period the daemon accepts
PIT_COUNT = 240  # the same period, in PIT ticks
BY_ONE, PERIODIC, NMI = 0xB, 0x20000, 0x400


def pits(count: int) -> list[pb.Operation]:
    """The operations that start a PIT with this count."""
    return [out(0x43, 0x34), out(0x40, count & 0xFF), out(0x40, count >> 8)]


def timers(vcpus: int, lvt: int) -> list[pb.Operation]:
    """The operations that start the vCPUs' APIC timers."""
    writes = ((SVR, 0x1FF), (DIVIDE, BY_ONE), (LVT_TIMER, lvt), (INITIAL_COUNT, PERIOD))
    return [store(vcpu, address, data) for vcpu in range(vcpus) for address, data in writes]


def _many_pits(foe: Foe, count: int, nmi: bool) -> Act:
    """PITs whose ticks are NMIs, or interrupts that stay pending because no vCPU acknowledges them."""
    names = [foe.make(f"pit-{number}", pit=True) for number in range(count)]
    for name in names if nmi else ():
        foe.rpcs.SetPitReinject(pb.SetPitReinjectRequest(vm=name, reinject=False), timeout=PATIENCE)
        foe.run(name, (store(0, SVR, 0x1FF), store(0, LVT_LINT0, NMI)))

    def start() -> None:
        for name in names:
            foe.run(name, pits(PIT_COUNT))

    return once(start)


def _guest_timers(foe: Foe, vcpus: int, watches: int) -> Act:
    foe.make(VM, vcpus)

    def watch() -> None:
        with suppress(grpc.RpcError):
            for _ in foe.rpcs.Watch(pb.WatchRequest(vm=VM, tracepoints=["kvm_apic_accept_irq", "kvm_eoi"])):
                pass

    for _ in range(watches):
        threading.Thread(target=watch, daemon=True).start()
    return once(lambda: foe.run(VM, timers(vcpus, PERIODIC | 0x30)))


def _restored(foe: Foe, vms: int, vcpus: int) -> Act:
    """Restored states whose timers send NMIs, which no guest could have programmed."""
    template = foe.make("template", vcpus, virtual=True)
    for vcpu in range(vcpus):
        state = bytearray(foe.rpcs.GetLapic(pb.GetLapicRequest(vm=template, vcpu=vcpu), timeout=PATIENCE).kvm_struct)
        for offset, value in ((0xF0, 0x1FF), (0x3E0, BY_ONE), (0x320, PERIODIC | NMI), (0x380, PERIOD)):
            struct.pack_into("<I", state, offset, value)
        foe.rpcs.SetLapic(pb.SetLapicRequest(vm=template, vcpu=vcpu, kvm_struct=bytes(state)), timeout=PATIENCE)
    snapshot = foe.rpcs.SaveVm(pb.SaveVmRequest(vm=template), timeout=PATIENCE).snapshot
    snapshot.clock = pb.CLOCK_KIND_REAL

    def start() -> None:
        for number in range(vms):
            request = pb.RestoreVmRequest(vm=f"restored-{number}", snapshot=snapshot)
            foe.rpcs.RestoreVm(request, timeout=PATIENCE)

    return once(start)


ATTACKS = (
    Attack(1, "40 VMs, a PIT of 200 us each", lambda foe: _many_pits(foe, 40, nmi=False)),
    Attack(1, "80 VMs, a PIT of 200 us each, ticks are NMIs", lambda foe: _many_pits(foe, 80, nmi=True)),
    Attack(1, "APIC timers of 200 us on 64 vCPUs, and a Watch", lambda foe: _guest_timers(foe, 64, 1)),
    Attack(1, "APIC timers of 200 us on 255 vCPUs, and 8 Watches", lambda foe: _guest_timers(foe, 255, 8)),
    Attack(1, "a restored VM of 32 vCPUs, an NMI every 200 us", lambda foe: _restored(foe, 1, 32)),
    Attack(1, "8 restored VMs of 255 vCPUs, an NMI every 200 us", lambda foe: _restored(foe, 8, 255)),
)
