"""create, list, show, reset, delete: the VMs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import click

import irqchip_client

from ._common import command, connect, number, pass_client, pass_vm, vms_there_are
from .clock import next_timer
from .durations import show_duration
from .line_names import asserted
from .output import echo_json, echo_table, json_option

ARCHITECTURES = ("x86", "arm64", "s390")  # irqchip_client.Architecture, whose import loads gRPC


@command(example="vm1 --vcpus 2")
@click.argument("vm", required=False)
@click.option(
    "--vcpus", type=number(0, 255), default=1, show_default=True, help="The number of vCPUs, with ids from 0."
)
@click.option(
    "--arch",
    type=click.Choice(ARCHITECTURES),
    default="x86",
    show_default=True,
    help="The VM's architecture.",
)
@click.option("--gic", type=click.Choice(["2", "3"]), help="arm64: the version of the GIC.  [default: 3]")
@click.option(
    "--list-registers",
    type=number(2, 16),
    metavar="N",
    help="arm64: how many list registers the host has.  [default: 4]",
)
@click.option(
    "--priority-bits",
    type=number(5, 7),
    metavar="N",
    help="arm64: how many priority bits the host's GICv3 has.  [default: 5]",
)
@click.option("--no-irqchip", is_flag=True, help="Create no irqchip; x86's vCPUs then have no local APIC.")
@click.option(
    "--split",
    type=number(0, 4096),
    metavar="N",
    help="Create a split irqchip: only the local APICs. GSIs 0 to N - 1 are the pins of the VMM's IOAPIC.",
)
@click.option("--pit", is_flag=True, help="Add a PIT, and port 61h. Not with --split or --no-irqchip.")
@click.option("--virtual-clock", is_flag=True, help="Give the VM a clock that only `advance` moves.")
@click.option(
    "--tsc-khz",
    type=number(0, 100_000_000),
    default=0,
    metavar="KHZ",
    help="The frequency of the TSCs.  [default: 1000000]",
)
@click.option("--ephemeral", is_flag=True, help="Wait for Ctrl-C or SIGTERM, and then delete the VM.")
@pass_client
def create(
    client: irqchip_client.Client,
    vm: str | None,
    vcpus: int,
    arch: str,
    gic: str | None,
    list_registers: int | None,
    priority_bits: int | None,
    no_irqchip: bool,
    split: int | None,
    pit: bool,
    virtual_clock: bool,
    tsc_khz: int,
    ephemeral: bool,
) -> None:
    """Create a VM with an irqchip and vCPUs, and print its name.

    Without a name, the daemon chooses one. If a part of the VM cannot be created, the command deletes the rest. With
    --ephemeral, the daemon deletes the VM when this command ends, even if the command is killed.
    """
    if vm == "":
        raise click.BadParameter("the name is empty: give the VM a name, or leave VM out", param_hint="VM")
    if pit and (no_irqchip or split is not None):
        raise click.UsageError("--pit needs the whole irqchip: leave --split and --no-irqchip out")
    if no_irqchip and split is not None:
        raise click.UsageError("--split makes an irqchip, and --no-irqchip makes none: leave one out")
    architecture = irqchip_client.Architecture[arch.upper()]
    if architecture is not irqchip_client.Architecture.X86 and (split is not None or pit or tsc_khz):
        raise click.UsageError("--split, --pit and --tsc-khz are for x86: leave them out, or leave --arch out")
    is_arm64 = architecture is irqchip_client.Architecture.ARM64
    of_arm64 = {"--gic": gic, "--list-registers": list_registers, "--priority-bits": priority_bits}
    if not is_arm64 and (given := [option for option, value in of_arm64.items() if value is not None]):
        raise click.UsageError(f"{given[0]} is for arm64: add --arch arm64, or leave {given[0]} out")
    with _until_a_signal() if ephemeral else _at_once() as wait:
        version = int(gic or 3)
        made = client.create_vm(
            vm or "",
            architecture=architecture,
            gic=irqchip_client.GicHost(version if is_arm64 else 0, list_registers or 0, priority_bits or 0),
            virtual_clock=virtual_clock,
            tsc_khz=tsc_khz,
            ephemeral=ephemeral,
        )
        try:
            _FURNISH[arch](made, vcpus, Choices(not no_irqchip, split, pit, version))
            click.echo(made.name)
            wait(made)
        except BaseException:  # Ctrl-C as well
            with suppress(irqchip_client.IrqchipError):
                made.delete()
            raise


class Choices(NamedTuple):
    """The user's choices for a new VM."""

    irqchip: bool
    split: int | None
    pit: bool
    gic: int


def _furnish_x86(vm: irqchip_client.Vm, vcpus: int, choices: Choices) -> None:
    if choices.split is not None:
        vm.enable_split_irqchip(choices.split)
    elif choices.irqchip:
        vm.create_irqchip()
    if choices.pit:
        vm.create_pit()
    for vcpu in range(vcpus):
        vm.create_vcpu(vcpu)


def _furnish_arm64(vm: irqchip_client.Vm, vcpus: int, choices: Choices) -> None:
    for vcpu in range(vcpus):
        vm.create_vcpu(vcpu).init()
    if choices.irqchip:
        vm.create_gic(choices.gic)


def _furnish_s390(vm: irqchip_client.Vm, vcpus: int, choices: Choices) -> None:
    if choices.irqchip:
        vm.enable_cap(irqchip_client.s390.KVM_CAP_S390_IRQCHIP)
        vm.create_irqchip()
        vm.create_device(irqchip_client.DeviceType.FLIC)
    for vcpu in range(vcpus):
        vm.create_vcpu(vcpu)


_FURNISH = {
    "x86": _furnish_x86,
    "arm64": _furnish_arm64,
    "s390": _furnish_s390,
}


@contextmanager
def _at_once() -> Iterator[Any]:
    yield lambda _: None


@contextmanager
def _until_a_signal() -> Iterator[Any]:
    """A function that waits for a signal or for the VM's end, and then deletes the VM."""
    signalled = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: signalled.set()) for number in numbers}

    def wait(vm: irqchip_client.Vm) -> None:
        with vm, suppress(irqchip_client.NotFound):  # Another client has deleted it.
            while not signalled.wait(0.5):
                vm.info()

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@command("list")
@json_option
@pass_client
def list_(client: irqchip_client.Client, as_json: bool) -> None:
    """List the VMs.

    The columns are: name, irqchip (full, split or none; GICv2 or GICv3), number of vCPUs, number of Sessions, clock
    (real or virtual), architecture. In a pipe, the output has no headings, and tabs separate the columns.
    """
    vms = client.vms()
    if as_json:
        echo_json(vms)
        return
    rows = [
        (vm.name, _irqchip(vm), len(vm.vcpus), len(vm.sessions), _clock(vm), vm.architecture.name.lower()) for vm in vms
    ]
    echo_table(("VM", "IRQCHIP", "VCPUS", "SESSIONS", "CLOCK", "ARCH"), rows)


@command()
@pass_vm
@json_option
def show(vm: irqchip_client.Vm, as_json: bool) -> None:
    """Show a VM: its architecture, irqchip, clock, vCPUs and Sessions.

    The line "clock" has the time at which the next timer is due. If the VM's timers need more than the VM's share of
    the daemon's time, the line also has their delay. The line "source 0" has the GSIs that `raise` holds high.

    Each Session has a line: its line source, its client's name, the GSIs that it holds high, the GSIs that it
    resamples, and the number of dropped events. "detached" means that the line source was restored and that its client
    has not resumed it. The lines below a Session are the ports and addresses that it has claimed.
    """
    info = vm.info()
    if as_json:
        echo_json(info)
        return
    click.echo(f"VM        {info.name}")
    click.echo(f"arch      {info.architecture.name.lower()}")
    click.echo(f"irqchip   {_irqchip(info)}{', and a PIT' if info.pit else ''}{_gic(info)}")
    late = f"; {show_duration(info.lateness_ns)} late" if info.lateness_ns else ""
    click.echo(f"clock     {_clock(info)}, at {show_duration(info.now_ns)}; {next_timer(info.next_timer_ns)}{late}")
    if info.architecture is irqchip_client.Architecture.X86:
        click.echo(f"TSC       {info.tsc_khz} kHz")
    click.echo(f"vCPU ids  {_numbers(info.vcpus)}")
    if info.devices:
        click.echo(f"devices   {', '.join(f'{number} {_device(kind)}' for number, kind in enumerate(info.devices))}")
    click.echo(f"source 0  {asserted(info, info.asserted_gsis)}")
    click.echo(f"sessions  {len(info.sessions) or '(none)'}")
    for session in info.sessions:
        click.echo(
            f"  source {session.source}: {session.client or '(no name)'}; "
            f"{asserted(info, session.asserted_gsis)}; resampled GSIs {_numbers(session.resampled_gsis)}; "
            f"dropped events {session.dropped_events}{'; detached' if session.detached else ''}"
        )
        for region in session.regions:
            click.echo(f"    {_region(region)}")


@command()
@pass_vm
def reset(vm: irqchip_client.Vm) -> None:
    """Reset a VM's chips and vCPUs.

    The chips and vCPUs get the state that they had when they were created. The time, the routing, the Sessions and the
    lines that Sessions hold do not change.
    """
    vm.reset()


@command(example="vm1 vm2")
@click.argument("vms", nargs=-1, metavar="[VM]...")
@click.option("--all", "every", is_flag=True, help="Delete all VMs of the daemon, including those of other clients.")
def delete(vms: tuple[str, ...], every: bool) -> None:
    """Delete VMs. Their Sessions and Watches end.

    If one VM cannot be deleted, the command still deletes the others.
    """
    if bool(vms) == every:
        raise click.UsageError("name the VMs to delete, or give --all, but not both")
    client = connect()
    failures = []
    for vm in [client.vm(name) for name in (_names(client) if every else dict.fromkeys(vms))]:
        try:
            vm.delete()
        except irqchip_client.NotFound as error:
            if not every:  # Else another client has deleted it just now.
                others = [name for name in _names(client) if name not in vms]
                failures.append(f"{error.message}; {vms_there_are(vm.name, others)} ({error.reason})")
        except irqchip_client.Unavailable:
            raise
        except irqchip_client.IrqchipError as error:
            failures.append(str(error))
    if failures:
        raise click.ClickException("; ".join(failures))


def _names(client: irqchip_client.Client) -> list[str]:
    return [vm.name for vm in client.vms()]


def _region(region: irqchip_client.RegionInfo) -> str:
    where = f"{region.space.name:4} {region.address:#x}-{region.address + region.length - 1:#x}"
    value = "" if region.datamatch is None else f" of {region.datamatch:#x}"
    return f"{where}, a doorbell{value}" if region.doorbell else where


def _irqchip(vm: irqchip_client.VmInfo) -> str:
    return f"GICv{vm.gic.version}" if vm.gic is not None and vm.gic.version else vm.irqchip_mode


def _gic(vm: irqchip_client.VmInfo) -> str:
    """The rest of the line about an arm64 VM's GIC, and its host's."""
    if vm.gic is None:
        return ""
    host = vm.gic.host
    numbers = f"{host.list_registers} list registers"
    if vm.gic.version != 2:
        numbers += f", {host.priority_bits} priority bits"
    if not vm.gic.version:
        return f"; the host has a GICv{host.version or '3 that can be a GICv2'}, {numbers}"
    state = f"{vm.gic.interrupts} INTIDs" if vm.gic.initialised else "not initialised"
    return f", {state}; {numbers}"


def _device(kind: int) -> str:
    known = irqchip_client.DeviceType
    return known(kind).name if kind in list(known) else f"type {kind}"


def _clock(vm: irqchip_client.VmInfo) -> str:
    return "virtual" if vm.virtual else "real"


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) or "(none)"
