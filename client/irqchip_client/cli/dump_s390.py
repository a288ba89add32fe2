"""s390's chips as text: the floating interrupt controller, adapters, and vCPUs with their masks and interrupts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from irqchip_client.s390 import IRQ_SIZE, S390Irq, S390IrqType

if TYPE_CHECKING:
    from irqchip.v1 import irqchip_pb2 as pb

MOST = 64  # lines of floating interrupts

_PSW = ((57, "I/O"), (56, "external"), (50, "machine check"), (49, "wait"))
_CR0 = ((14, "emergency"), (13, "external call"), (11, "clock comparator"), (10, "CPU timer"), (9, "service"))
_SERVICE, _SERVICE_EVENT, _CHECK = 1 << 15, 1 << 16, 1 << 24
# KVM's IRQ_PEND_*: those pending interrupts of a vCPU that have no contents.
_BARE = ((1, S390IrqType.RESTART), (18, S390IrqType.CPU_TIMER), (19, S390IrqType.CLOCK_COMPARATOR))


def floating_irqs(flic: pb.FlicSnapshot) -> list[S390Irq]:
    """The floating interrupts that are pending, in KVM's order."""
    floating = flic.floating
    irqs = [S390Irq(irq.ljust(IRQ_SIZE, b"\0")) for irq in floating.interrupts]
    if floating.pending & (_SERVICE | _SERVICE_EVENT):
        irqs.append(S390Irq.make(S390IrqType.SERVICE, ext_params=floating.service))
    if floating.pending & _CHECK:
        irqs.append(S390Irq.make(S390IrqType.MACHINE_CHECK, cr14=floating.cr14, mcic=floating.mcic))
    return irqs


def local_irqs(local: pb.LocalSnapshot) -> list[S390Irq]:
    """A vCPU's own interrupts that are pending, in KVM's order but for emergency signals."""
    emergencies = int.from_bytes(local.emergencies, "little")
    kinds = S390IrqType
    irqs = [
        *(S390Irq.make(kind) for bit, kind in _BARE if local.pending >> bit & 1),
        *([S390Irq.make(kinds.SET_PREFIX, address=local.prefix)] if local.pending & 1 else []),
        *([S390Irq.make(kinds.SIGP_STOP, flags=local.stop_flags)] if local.pending >> 2 & 1 else []),
        *([S390Irq(local.pfault)] if local.pending >> 13 & 1 else []),
        *([S390Irq.make(kinds.EXTERNAL_CALL, code=local.caller)] if local.pending >> 20 & 1 else []),
        *([S390Irq(local.program)] if local.pending >> 25 & 1 else []),
        *([S390Irq(local.machine_check)] if local.pending & (1 << 24 | 1 << 27) else []),
    ]
    senders = (cpu for cpu in range(emergencies.bit_length()) if emergencies >> cpu & 1)
    return irqs + [S390Irq.make(kinds.EMERGENCY, code=cpu) for cpu in senders]


def dump_s390(state: pb.S390Snapshot) -> str:
    """Lines for the FLIC, its adapters and the vCPUs."""
    return "\n".join([*_flic(state), *_adapters(state.flic), *_vcpus(state)])


def _flic(state: pb.S390Snapshot) -> Iterable[str]:
    flic = state.flic
    irqs = floating_irqs(flic)
    modes = f"ais simm={flic.simm:02x} nimm={flic.nimm:02x}" if flic.ais else "no ais"
    device = "" if state.device else ", no device"
    yield f"flic: {len(irqs)} floating interrupts, {modes}{', async page faults' if flic.pfault else ''}{device}"
    for irq in irqs[:MOST]:
        yield f"  {irq}"
    if len(irqs) > MOST:
        yield f"  ... and {len(irqs) - MOST} more"


def _adapters(flic: pb.FlicSnapshot) -> Iterable[str]:
    for adapter in flic.adapters:
        flags = [name for name in ("maskable", "swap", "suppressible", "masked") if getattr(adapter, name)]
        yield ", ".join([f"adapter{adapter.id}: ISC {adapter.isc}", *flags])


def _vcpus(state: pb.S390Snapshot) -> Iterable[str]:
    for vcpu in state.vcpus:
        isc = [number for number in range(8) if vcpu.cr6 >> 31 - number & 1]
        run = "stopped" if vcpu.local.stopped else "operating"
        yield f"vcpu{vcpu.vcpu}: {run}"
        yield f"  psw={vcpu.psw_mask:016x} {_named(vcpu.psw_mask, _PSW)}"
        yield f"  cr0={vcpu.cr0:016x} {_named(vcpu.cr0, _CR0)}"
        yield f"  cr6={vcpu.cr6:016x} ISC {' '.join(map(str, isc)) or '-'}"
        yield f"  cr14={vcpu.cr14:016x}"
        for irq in vcpu.accepted:
            yield f"  accepted: {S390Irq(irq)}"
        for one in local_irqs(vcpu.local):
            yield f"  pending: {one}"


def _named(value: int, bits: Iterable[tuple[int, str]]) -> str:
    return ", ".join(name for bit, name in bits if value >> bit & 1) or "-"


def plain_s390(state: pb.S390Snapshot) -> dict[str, Any]:
    """The same data as JSON."""
    flic = state.flic
    return {
        "flic": {
            "interrupts": [_plain(irq) for irq in floating_irqs(flic)],
            "ais": flic.ais,
            "simm": flic.simm,
            "nimm": flic.nimm,
            "pfault": flic.pfault,
            "device": state.device,
        },
        "adapters": [
            {name: getattr(adapter, name) for name in ("id", "isc", "maskable", "swap", "suppressible", "masked")}
            for adapter in flic.adapters
        ],
        **{f"vcpu{vcpu.vcpu}": _plain_vcpu(vcpu) for vcpu in state.vcpus},
    }


def _plain_vcpu(vcpu: pb.S390VcpuSnapshot) -> dict[str, Any]:
    return {
        "stopped": vcpu.local.stopped,
        **{name: getattr(vcpu, name) for name in ("psw_mask", "cr0", "cr6", "cr14")},
        "accepted": [_plain(S390Irq(irq)) for irq in vcpu.accepted],
        "pending": [_plain(irq) for irq in local_irqs(vcpu.local)],
    }


def _plain(irq: S390Irq) -> dict[str, Any]:
    return {"type": int(irq.type), "text": str(irq), **irq.fields}
