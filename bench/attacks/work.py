"""Row 2: few messages that cause much work: operations times vCPUs times listeners."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

from bench.attacks.common import (
    BROADCAST,
    BROADCAST_GSI,
    ICR,
    LAPIC,
    LVT_LINT0,
    NMI,
    PATIENCE,
    SVR,
    VM,
    Act,
    Attack,
    Foe,
    batch,
    in_threads,
    out,
    pump,
    records,
    store,
)
from bench.attacks.timers import PIT_COUNT, pits
from irqchip.v1 import irqchip_pb2 as pb

VCPUS = 255
LINES = pb.IrqLinesRequest(vm=VM, changes=[BROADCAST_GSI << 1 | 1] * 4096)
FOLLOW = pb.SessionRequest(descriptors=pb.DescriptorsFollow()).SerializeToString()


def _advance(foe: Foe, sessions: int, batches: bool) -> Act:
    """A PIT whose ticks send an NMI to every vCPU."""
    foe.make(VM, VCPUS, virtual=True, pit=True)
    foe.rpcs.SetPitReinject(pb.SetPitReinjectRequest(vm=VM, reinject=False), timeout=PATIENCE)
    foe.run(VM, (store(vcpu, *write) for vcpu in range(VCPUS) for write in ((SVR, 0x1FF), (LVT_LINT0, NMI))))
    foe.run(VM, pits(PIT_COUNT))
    foe.ports(sessions, vcpus=range(VCPUS))
    second = 1_000_000_000
    if batches:
        senders = foe.ports(4)
        advance = pb.Operation(advance_clock=pb.AdvanceClockRequest(nanoseconds=second))
        return lambda: pump(senders, batch(*[advance] * 64))
    request = pb.AdvanceClockRequest(vm=VM, nanoseconds=1000 * second)
    return in_threads(2, lambda: foe.rpcs.AdvanceClock(request, timeout=PATIENCE))


def _broadcasting(foe: Foe, sessions: int) -> None:
    foe.make(VM, VCPUS, broadcast=True)
    foe.ports(sessions, vcpus=range(VCPUS))


def _lines(foe: Foe, sessions: int, batches: bool = False) -> Act:
    _broadcasting(foe, sessions)
    if batches:
        senders = foe.ports(4)
        return lambda: pump(senders, batch(pb.Operation(irq_lines=pb.IrqLinesRequest(changes=LINES.changes))))
    return in_threads(2, lambda: foe.rpcs.IrqLines(LINES, timeout=PATIENCE))


def _watched_lines(foe: Foe, watches: int) -> Act:
    foe.make()
    stubs = [foe.stub() for _ in range(4)]
    for number in range(watches):  # no Watch is read
        foe.kept.append(stubs[number % 4].Watch(pb.WatchRequest(vm=VM)))
    for watch in foe.kept:
        watch.initial_metadata()
    request = pb.IrqLinesRequest(vm=VM, changes=[11, 10] * 2048)
    return in_threads(2, lambda: foe.rpcs.IrqLines(request, timeout=PATIENCE))


def _messages(foe: Foe, sessions: int, as_records: bool) -> Act:
    _broadcasting(foe, sessions)
    if as_records:
        senders = foe.ports(4)
        return lambda: pump(senders, records("signal_msi", 2700, address=BROADCAST, value=NMI))
    request = pb.SignalMsiRequest(vm=VM, address=BROADCAST, data=NMI)
    return in_threads(8, lambda: foe.rpcs.SignalMsi(request, timeout=PATIENCE))


def _ipis(foe: Foe) -> Act:
    """A guest that sends NMIs to all other vCPUs through its local APIC."""
    _broadcasting(foe, 16)
    foe.run(VM, (store(vcpu, SVR, 0x1FF) for vcpu in range(VCPUS)))
    senders = foe.ports(4)
    return lambda: pump(senders, batch(*[store(0, ICR, 0xC0000 | NMI)] * 1500))


def _irqfds(foe: Foe) -> Act:
    """16 eventfds, each write to which is a broadcast."""
    _broadcasting(foe, 16)
    session = foe.port()
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]
    assign = pb.Operation(irqfd=pb.IrqfdRequest(gsi=BROADCAST_GSI))
    session.send(FOLLOW)
    socket.send_fds(session, [batch(*[assign] * len(eventfds))], eventfds)
    foe.kept.append(session)

    def act() -> None:
        for eventfd in eventfds:
            os.eventfd_write(eventfd, 1)

    return act


def _acknowledged(foe: Foe) -> Act:
    """A guest that ends interrupts, with 300 listening Sessions. KVM: an EOI is reported for an idle line, too."""
    foe.make()
    foe.ports(300, gsis=[4])
    senders = foe.ports(4)
    return lambda: pump(senders, batch(*[out(0x20, 0x64)] * 1500))


def _resampled(foe: Foe) -> Act:
    """A guest that ends interrupts. Each end signals 500 resamplefds."""
    foe.make()
    for _ in range(4):
        session = foe.port()
        eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(250)]
        assign = pb.Operation(irqfd=pb.IrqfdRequest(gsi=4, flags=2))
        session.send(FOLLOW)
        socket.send_fds(session, [batch(*[assign] * (len(eventfds) // 2))], eventfds)
        foe.kept.append(session)
        foe.kept.append(eventfds)
    raised = foe.kept[1][0]
    senders = foe.ports(2)

    def act() -> None:
        os.eventfd_write(raised, 1)
        pump(senders, batch(*[out(0x20, 0x64)] * 200))

    return act


def _big_states(foe: Foe) -> Act:
    """Restore, list and copy a VM whose state is a megabyte, again and again."""
    foe.make(VM, VCPUS)
    snapshot = foe.rpcs.SaveVm(pb.SaveVmRequest(vm=VM), timeout=PATIENCE).snapshot
    for number in range(60):
        snapshot.sources.add(source=100 + number, client="x", asserted_gsis=range(4096))
    foe.rpcs.RestoreVm(pb.RestoreVmRequest(vm="big", snapshot=snapshot), timeout=PATIENCE)
    calls: list[tuple[Any, Any]] = [
        (foe.rpcs.RestoreVm, pb.RestoreVmRequest(vm="big-2", snapshot=snapshot)),
        (foe.rpcs.SaveVm, pb.SaveVmRequest(vm="big")),
        (foe.rpcs.GetVm, pb.GetVmRequest(vm="big")),
        (foe.rpcs.ListVms, pb.ListVmsRequest()),
        (foe.rpcs.DeleteVm, pb.DeleteVmRequest(vm="big-2")),
    ]
    turns = itertools.cycle(calls)

    def work() -> None:
        call, request = next(turns)
        call(request, timeout=PATIENCE)

    return in_threads(2, work)


def _listed(foe: Foe) -> Act:
    """List many VMs."""
    made = [foe.rpcs.CreateVm.future(pb.CreateVmRequest(vm=f"{number:05}" + "x" * 59)) for number in range(4000)]
    for call in made:
        call.result()
    return in_threads(4, lambda: foe.rpcs.ListVms(pb.ListVmsRequest(), timeout=PATIENCE))


def _routing(foe: Foe, batches: bool) -> Act:
    foe.make(VM, 4)
    entries = [pb.RoutingEntry(gsi=gsi, msi=pb.Msi(address=LAPIC, data=0x31)) for gsi in range(4096)]
    if batches:
        senders = foe.ports(8)
        some = pb.Operation(set_gsi_routing=pb.SetGsiRoutingRequest(entries=entries[:3000]))
        return lambda: pump(senders, batch(some))
    request = pb.SetGsiRoutingRequest(vm=VM, entries=entries)
    return in_threads(4, lambda: foe.rpcs.SetGsiRouting(request, timeout=PATIENCE))


def _resets(foe: Foe) -> Act:
    _broadcasting(foe, 8)
    return in_threads(4, lambda: foe.rpcs.ResetVm(pb.ResetVmRequest(vm=VM), timeout=PATIENCE))


def _opened(foe: Foe) -> Act:
    """Open and close Sessions that subscribe to everything, while NMIs arrive."""
    _broadcasting(foe, 8)

    def work() -> None:
        session = foe.port(vcpus=range(VCPUS), gsis=range(4096))
        session.send(records("signal_msi", 50, address=BROADCAST, value=NMI))
        session.close()

    return in_threads(4, work)


ATTACKS = (
    Attack(2, "AdvanceClock, PIT ticks are NMIs of 255 vCPUs, 8 Sessions", lambda foe: _advance(foe, 8, False)),
    Attack(2, "the same in batches of 64, 4 clients of the port", lambda foe: _advance(foe, 8, True)),
    Attack(2, "IrqLines of 4,096, each an NMI of 255 vCPUs, 16 Sessions", lambda foe: _lines(foe, 16)),
    Attack(2, "the same in batches, 4 clients of the port", lambda foe: _lines(foe, 16, batches=True)),
    Attack(2, "IrqLines of 4,096, 500 Watches that are not read", lambda foe: _watched_lines(foe, 500)),
    Attack(2, "MSI broadcasts to 255 vCPUs, 200 Sessions", lambda foe: _messages(foe, 200, False)),
    Attack(2, "the same in records, 4 clients", lambda foe: _messages(foe, 200, True)),
    Attack(2, "a guest's NMIs to 255 vCPUs, 16 Sessions", _ipis),
    Attack(2, "16 irqfds of an MSI broadcast, 16 Sessions", _irqfds),
    Attack(2, "a guest's EOIs, reported to 300 Sessions", _acknowledged),
    Attack(2, "a guest's EOIs, 500 resamplefds", _resampled),
    Attack(2, "RestoreVm, SaveVm, GetVm, ListVms of a large VM", _big_states),
    Attack(2, "ListVms of 4,000 VMs", _listed),
    Attack(2, "SetGsiRouting of 4,096 entries", lambda foe: _routing(foe, False)),
    Attack(2, "SetGsiRouting of 3,000 entries in batches, 8 clients", lambda foe: _routing(foe, True)),
    Attack(2, "ResetVm of 255 vCPUs, 8 Sessions", _resets),
    Attack(2, "Sessions on 255 vCPUs opened and closed in a storm of NMIs", _opened),
)
