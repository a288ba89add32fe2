"""create, list, show, reset, delete: the VMs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click

import irqchip_client

from ._common import NUMBER, echo_table, pass_client, pass_vm
from .clock import next_timer
from .durations import show_duration


@click.command()
@click.argument("vm", default="")
@click.option("--vcpus", type=click.IntRange(0, 255), default=1, show_default=True, help="vCPUs, with ids from 0.")
@click.option("--no-irqchip", is_flag=True, help="Leave the irqchip out; vCPUs then have no local APIC.")
@click.option("--split", type=NUMBER, metavar="N", help="Only local APICs; the first N GSIs are another IOAPIC's pins.")
@click.option("--pit", is_flag=True, help="With a PIT, and port 61h; it needs the whole irqchip.")
@click.option("--virtual-clock", is_flag=True, help="Its time moves by `advance` alone.")
@click.option("--tsc-khz", type=NUMBER, default=0, metavar="KHZ", help="Its TSCs' frequency.  [default: 1000000]")
@pass_client
def create(
    client: irqchip_client.Client,
    vm: str,
    vcpus: int,
    no_irqchip: bool,
    split: int | None,
    pit: bool,
    virtual_clock: bool,
    tsc_khz: int,
) -> None:
    """Create a VM with an irqchip and vCPUs, and print its name.

    Without a name the daemon picks one. Where a part of it can't be made, nothing is left behind.
    """
    if pit and (no_irqchip or split is not None):
        raise click.UsageError("--pit needs the whole irqchip: it does not go with --split or --no-irqchip")
    if no_irqchip and split is not None:
        raise click.UsageError("--split is of an irqchip, which --no-irqchip leaves out")
    made = client.create_vm(vm, virtual_clock=virtual_clock, tsc_khz=tsc_khz)
    try:
        if split is not None:
            made.enable_split_irqchip(split)
        elif not no_irqchip:
            made.create_irqchip()
        if pit:
            made.create_pit()
        for vcpu in range(vcpus):
            made.create_vcpu(vcpu)
    except BaseException:  # Ctrl-C as well
        with suppress(irqchip_client.IrqchipError):
            made.delete()
        raise
    click.echo(made.name)


@click.command("list")
@pass_client
def list_(client: irqchip_client.Client) -> None:
    """List the VMs.

    Name, irqchip (full, split or none), number of vCPUs and of Sessions, clock (real or virtual). Into a pipe: without
    the headings, and with tabs between.
    """
    rows = [(vm.name, vm.irqchip_mode, len(vm.vcpus), len(vm.sessions), _clock(vm)) for vm in client.vms()]
    echo_table(("VM", "IRQCHIP", "VCPUS", "SESSIONS", "CLOCK"), rows)


@click.command()
@pass_vm
def show(vm: irqchip_client.Vm) -> None:
    """Show a VM: its irqchip, clock, vCPUs and Sessions.

    Of the clock: when the next timer is due, and how late timers are, where the VM needs more of the daemon than its
    share. Of source 0, which `raise` drives: the GSIs it holds high. Of each Session: its line source, its client's
    name, the GSIs it holds high, those it resamples, and the events it lost; "detached" where it was restored, and its
    client has not come back. Below it the ports and addresses that it answers for.
    """
    info = vm.info()
    click.echo(f"VM        {info.name}")
    click.echo(f"irqchip   {info.irqchip_mode}{', and a PIT' if info.pit else ''}")
    late = f"; {show_duration(info.lateness_ns)} late" if info.lateness_ns else ""
    click.echo(f"clock     {_clock(info)}, at {show_duration(info.now_ns)}; {next_timer(info.next_timer_ns)}{late}")
    click.echo(f"TSC       {info.tsc_khz} kHz")
    click.echo(f"vCPU ids  {_numbers(info.vcpus)}")
    click.echo(f"source 0  asserted GSIs {_numbers(info.asserted_gsis)}")
    click.echo(f"sessions  {len(info.sessions) or '(none)'}")
    for session in info.sessions:
        click.echo(
            f"  source {session.source}: {session.client or '(no name)'}; "
            f"asserted GSIs {_numbers(session.asserted_gsis)}; resampled GSIs {_numbers(session.resampled_gsis)}; "
            f"dropped events {session.dropped_events}{'; detached' if session.detached else ''}"
        )
        for region in session.regions:
            click.echo(f"    {_region(region)}")


@click.command()
@pass_vm
def reset(vm: irqchip_client.Vm) -> None:
    """Reset a VM's chips and vCPUs.

    They are then as when they were made. Time, routing, Sessions and the lines that are held stay.
    """
    vm.reset()


@click.command()
@pass_vm
def delete(vm: irqchip_client.Vm) -> None:
    """Delete a VM. Its Sessions and Watches end."""
    vm.delete()


def _region(region: irqchip_client.RegionInfo) -> str:
    where = f"{region.space.name:4} {region.address:#x}-{region.address + region.length - 1:#x}"
    value = "" if region.datamatch is None else f" of {region.datamatch:#x}"
    return f"{where}, a doorbell{value}" if region.doorbell else where


def _clock(vm: irqchip_client.VmInfo) -> str:
    return "virtual" if vm.virtual else "real"


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) or "(none)"
