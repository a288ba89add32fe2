"""The parts of an s390 VM: floating interrupts and adapters, and each vCPU's masks and own interrupts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

from irqchipd.chips.s390.adapters import Adapter
from irqchipd.chips.s390.flic import SavedFlic
from irqchipd.chips.s390.floating import FloatingInterrupts
from irqchipd.chips.s390.irq import IRQ_SIZE, Io, Irq, name_of, padded, unpack, unpack_all
from irqchipd.chips.s390.local import LocalInterrupts
from irqchipd.chips.s390.pending import iscs_of, of_isc
from irqchipd.page.part import Part, high_lines, line_list, number, source_list
from irqchipd.vm.s390.cpu import SavedS390Vcpu
from irqchipd.vm.snapshot import VmState

_MOST: Final = 64  # the most floating interrupts that are shown
_MOST_LOCAL: Final = 1024 * IRQ_SIZE  # bytes of a vCPU's own interrupts
_PSW: Final = ((57, "I/O"), (56, "external"), (50, "machine check"), (49, "wait"))
_CR0: Final = (
    (14, "emergency signal"),
    (13, "external call"),
    (11, "clock comparator"),
    (10, "CPU timer"),
    (9, "service"),
)


def parts(state: VmState) -> Iterator[Part]:
    """Lines, the FLIC, adapters and vCPUs."""
    saved = state.s390
    assert saved is not None
    yield "lines", (state.asserted_gsis, state.sources, state.routing), lambda _: _lines(state)
    yield "flic", (saved.flic, saved.device), _flic
    yield "adapters", saved.flic.adapters, _adapters
    yield "vcpus", tuple(vcpu.vcpu for vcpu in saved.vcpus), list
    for vcpu in saved.vcpus:
        yield f"cpu{vcpu.vcpu}", vcpu, _cpu


def _lines(state: VmState) -> Any:
    idle = (route.gsi for route in state.routing)
    lines = line_list(high_lines(state), idle, lambda gsi: f"GSI {gsi}")
    return {"lines": lines, "sources": source_list(state.sources)}


def _flic(raw: tuple[SavedFlic, bool]) -> Any:
    flic, device = raw
    floating = FloatingInterrupts()
    floating.resume(flic.floating)
    return {
        "device": device,
        "count": len(floating),
        "interrupts": [_irq(irq) for irq in unpack_all(floating.all()[: _MOST * IRQ_SIZE])],
        "ais": flic.ais,
        "simm": flic.simm,
        "nimm": flic.nimm,
        "pfault": flic.pfault,
    }


def _adapters(adapters: tuple[Adapter, ...]) -> Any:
    return [
        {"id": adapter.id, "isc": adapter.isc, "maskable": adapter.maskable, "masked": adapter.masked}
        for adapter in adapters
    ]


def _cpu(vcpu: SavedS390Vcpu) -> Any:
    local = LocalInterrupts(())
    local.resume(vcpu.local)
    return {
        "stopped": vcpu.local.stopped,
        "psw": f"{vcpu.psw_mask:016x}",
        "pswOpen": _named(vcpu.psw_mask, _PSW),
        "cr0": f"{vcpu.cr0:016x}",
        "cr0Open": _named(vcpu.cr0, _CR0),
        "cr6": f"{vcpu.cr6:016x}",
        "iscs": [isc for isc in range(8) if iscs_of(vcpu.cr6) >> of_isc(isc) & 1],
        "cr14": f"{vcpu.cr14:016x}",
        "pending": [_irq(irq) for irq in unpack_all(local.state(_MOST_LOCAL))],
        "accepted": [_irq(unpack(padded(packed))) for packed in vcpu.accepted],
    }


def _named(value: int, bits: Iterable[tuple[int, str]]) -> list[str]:
    return [name for bit, name in bits if value >> bit & 1]


def _irq(irq: Irq) -> Any:
    info = irq.info
    fields: dict[str, Any] = {}
    if isinstance(info, int):
        fields = {"code": number(info)}
    elif info is not None:
        values = asdict(info)
        fields = {name: number(value) for name, value in values.items() if isinstance(value, int) and value}
    if isinstance(info, Io):
        fields["isc"] = info.isc
    return {"type": name_of(irq.kind), "kind": irq.kind, "fields": fields}
