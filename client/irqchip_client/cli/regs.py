"""regs: the chips' registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

import irqchip_client

from ._common import command, pass_vm
from .dump import dump_ioapic, dump_lapic, dump_pic, dump_pit
from .output import echo_json, json_option, plain

if TYPE_CHECKING:
    from irqchip.v1 import irqchip_pb2 as pb

_CHIPS = ("pic", "ioapic", "lapic", "pit")
_ARM64 = ("gicd", "gicr", "gicc", "timer")  # an arm64 VM's


@command(example="--chip lapic")
@pass_vm
@click.option(
    "--chip",
    type=click.Choice([*_CHIPS, *_ARM64]),
    multiple=True,
    help="Show only chips of this kind. May be repeated.",
)
@click.option("--raw", is_flag=True, help="Print the bytes of the kernel's structs; of a GIC: its attributes.")
@json_option
def regs(vm: irqchip_client.Vm, chip: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Show the registers of PICs, IOAPIC, local APICs and PIT; or of a GIC and generic timers; or of a FLIC.

    The output is like that of QEMU's monitor (info pic, info lapic), and also has the vCPUs' run states. All registers
    are read in one batch, and so belong to one moment. Other values, such as the times at which timers expire, are read
    right afterwards.

    An arm64 VM has the distributor with the SPIs (gicd), the SGIs and PPIs of each vCPU (gicr0 and so on; gicd0 with a
    GICv2), CPU interfaces (gicc0) and generic timers (timer0), all of one moment. Interrupts in a row that differ in
    nothing share a line. With --raw: the attributes that a VMM saves.
    """
    info = vm.info()
    if info.architecture is irqchip_client.Architecture.S390:
        _s390(vm, chip, raw, as_json)
        return
    if info.architecture is irqchip_client.Architecture.ARM64:
        # Not above: this import loads gRPC, for which --help does not wait.
        from . import regs_arm64

        regs_arm64.show(vm, info, chip, raw, as_json)
        return
    if other := [kind for kind in chip if kind not in _CHIPS]:
        raise click.ClickException(f"an x86 VM has no {other[0]}: use --chip with one of {', '.join(_CHIPS)}")
    wanted = list(chip) or _chips(info)
    if "pit" in wanted and info.irqchip_mode == "full" and not info.pit:
        raise click.ClickException(f"VM {info.name!r} has no PIT: `irqchipctl create --pit` makes a VM that has one")
    states = list(_states(vm, info.vcpus, [kind for kind in _CHIPS if kind in wanted]))
    if "lapic" in wanted and not info.vcpus:
        click.echo(f"VM {info.name!r} has no vCPUs, and so no local APICs", err=True)
    if raw and as_json:
        echo_json({name: state.kvm_struct for name, state in states})
        return
    if raw:
        for name, state in states:
            click.echo(f"{name}: struct {_STRUCTS[name.rstrip('0123456789')]}")
            click.echo(_hex_dump(state.kvm_struct))
        return
    from irqchip.v1 import irqchip_pb2 as pb

    # A snapshot has a local APIC's mode. An RDMSR would be an entry into the guest, which changes state.
    rest = pb.VmSnapshot.FromString(vm.snapshot().to_bytes())
    vcpus = {vcpu.vcpu: vcpu for vcpu in rest.vcpus}
    if as_json:
        echo_json({name: _with_the_rest(name, state, vcpus, rest.pit) for name, state in states})
        return
    for name, state in states:
        if isinstance(state, irqchip_client.LapicState):
            vcpu = int(name.removeprefix("lapic"))
            click.echo(dump_lapic(vcpu, state, vcpus.get(vcpu), rest.now_ns))
        elif isinstance(state, irqchip_client.IoapicState):
            click.echo(dump_ioapic(state))
        elif isinstance(state, irqchip_client.PitState):
            click.echo(dump_pit(state, rest.pit, rest.now_ns))
        else:
            click.echo(dump_pic(name, state))


def _s390(vm: irqchip_client.Vm, chip: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Shows an s390 VM, from its snapshot."""
    from irqchip.v1 import irqchip_pb2 as pb

    from .dump_s390 import dump_s390, plain_s390

    if chip or raw:
        raise click.ClickException("an s390 VM has none of these chips: leave the option out")
    state = pb.VmSnapshot.FromString(vm.snapshot().to_bytes()).s390
    if as_json:
        echo_json(plain_s390(state))
    else:
        click.echo(dump_s390(state))


def _with_the_rest(name: str, state: Any, vcpus: Mapping[int, pb.VcpuSnapshot], pit: pb.PitSnapshot) -> Any:
    """A chip's state, with its vCPU's or the PIT timer's part of a snapshot."""
    shown = plain(state)
    if isinstance(state, irqchip_client.LapicState) and (vcpu := vcpus.get(int(name.removeprefix("lapic")))):
        shown["mp_state"] = irqchip_client.MpState.from_proto(vcpu.mp_state).name.lower()
        shown["apic_base"] = vcpu.apic_base
        shown["timer_expires_ns"] = vcpu.timer_expires_ns if vcpu.HasField("timer_expires_ns") else None
    elif isinstance(state, irqchip_client.PitState):
        shown["expires_ns"] = pit.expires_ns if pit.running else None
        shown["pending"] = pit.pending
        shown["reinject"] = pit.reinject
    return shown


_STRUCTS = {
    "pic": "kvm_pic_state",
    "ioapic": "kvm_ioapic_state",
    "lapic": "kvm_lapic_state",
    "pit": "kvm_pit_state2",
}


def _chips(info: irqchip_client.VmInfo) -> list[str]:
    """The kinds of chips that a VM has. Without an irqchip, the daemon's error follows."""
    chips = ["lapic"] if info.irqchip_mode == "split" else ["pic", "ioapic", "lapic"]
    return [*chips, "pit"] if info.pit else chips


def _states(vm: irqchip_client.Vm, vcpus: Iterable[int], wanted: list[str]) -> Iterator[tuple[str, Any]]:
    """The chips' states by name: pic0, pic1, ioapic0, a lapic for each vCPU, and pit0."""
    from irqchip_client import Chip, ops

    calls: dict[str, ops.Call[Any]] = {}
    if "pic" in wanted:
        calls |= {"pic0": ops.get_irqchip(Chip.PIC_PRIMARY), "pic1": ops.get_irqchip(Chip.PIC_SECONDARY)}
    if "ioapic" in wanted:
        calls["ioapic0"] = ops.get_irqchip(Chip.IOAPIC)
    if "lapic" in wanted:
        calls |= {f"lapic{vcpu}": ops.get_lapic(vcpu) for vcpu in sorted(vcpus)}
    if "pit" in wanted:
        calls["pit0"] = ops.get_pit()
    names = list(calls)
    with vm.session("irqchipctl regs") as session:
        for start in range(0, len(names), session.max_operations):
            some = names[start : start + session.max_operations]
            yield from zip(some, session.run([calls[name] for name in some]), strict=True)


def _hex_dump(data: bytes) -> str:
    """16 bytes per line: a register of a local APIC per line."""
    return "\n".join(f"  {at:03x}  {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16))
