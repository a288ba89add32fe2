"""regs: the chips' registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

import irqchip_client

from ._common import pass_vm
from .dump import dump_ioapic, dump_lapic, dump_pic

_CHIPS = ("pic", "ioapic", "lapic")


@click.command()
@pass_vm
@click.option("--chip", type=click.Choice(_CHIPS), multiple=True, help="Only this kind; may be repeated.")
@click.option("--raw", is_flag=True, help="The bytes of the kernel's structs instead.")
def regs(vm: irqchip_client.Vm, chip: tuple[str, ...], raw: bool) -> None:
    """Show the registers of PICs, IOAPIC and local APICs.

    As QEMU's monitor does (info pic, info lapic). All are read in one batch, so that they belong together.
    """
    wanted = [kind for kind in _CHIPS if not chip or kind in chip]
    for name, state in _states(vm, wanted):
        if raw:
            click.echo(f"{name}: struct {_STRUCTS[name.rstrip('0123456789')]}")
            click.echo(_hex_dump(state.kvm_struct))
        elif isinstance(state, irqchip_client.LapicState):
            click.echo(dump_lapic(int(name.removeprefix("lapic")), state))
        elif isinstance(state, irqchip_client.IoapicState):
            click.echo(dump_ioapic(state))
        else:
            click.echo(dump_pic(name, state))


_STRUCTS = {"pic": "kvm_pic_state", "ioapic": "kvm_ioapic_state", "lapic": "kvm_lapic_state"}


def _states(vm: irqchip_client.Vm, wanted: list[str]) -> Iterator[tuple[str, Any]]:
    """The chips' states by name: pic0, pic1, ioapic0, and a lapic for each vCPU."""
    from irqchip_client import Chip, ops

    calls: dict[str, ops.Call[Any]] = {}
    if "pic" in wanted:
        calls |= {"pic0": ops.get_irqchip(Chip.PIC_PRIMARY), "pic1": ops.get_irqchip(Chip.PIC_SECONDARY)}
    if "ioapic" in wanted:
        calls["ioapic0"] = ops.get_irqchip(Chip.IOAPIC)
    if "lapic" in wanted:
        calls |= {f"lapic{vcpu}": ops.get_lapic(vcpu) for vcpu in sorted(vm.info().vcpus)}
    names = list(calls)
    with vm.session("irqchipctl regs") as session:
        for start in range(0, len(names), session.max_operations):
            some = names[start : start + session.max_operations]
            yield from zip(some, session.run([calls[name] for name in some]), strict=True)


def _hex_dump(data: bytes) -> str:
    """16 bytes a line, which is a local APIC's register a line."""
    return "\n".join(f"  {at:03x}  {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16))
