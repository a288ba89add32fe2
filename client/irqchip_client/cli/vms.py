"""create, list, show, delete: the VMs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click

import irqchip_client

from ._common import echo_table, pass_client, pass_vm


@click.command()
@click.argument("vm", default="")
@click.option("--vcpus", type=click.IntRange(0, 255), default=1, show_default=True, help="vCPUs, with ids from 0.")
@click.option("--no-irqchip", is_flag=True, help="Leave the irqchip out; vCPUs then have no local APIC.")
@pass_client
def create(client: irqchip_client.Client, vm: str, vcpus: int, no_irqchip: bool) -> None:
    """Create a VM with an irqchip and vCPUs, and print its name.

    Without a name the daemon picks one. Where a part of it can't be made, nothing is left behind.
    """
    made = client.create_vm(vm)
    try:
        if not no_irqchip:
            made.create_irqchip()
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
    """List the VMs: name, irqchip, number of vCPUs and of Sessions.

    Into a pipe: without the headings, and with tabs between.
    """
    rows = [(vm.name, _yes_or_no(vm.irqchip), len(vm.vcpus), len(vm.sessions)) for vm in client.vms()]
    echo_table(("VM", "IRQCHIP", "VCPUS", "SESSIONS"), rows)


@click.command()
@pass_vm
def show(vm: irqchip_client.Vm) -> None:
    """Show a VM: its irqchip, vCPUs and Sessions.

    Of source 0, which `raise` drives: the GSIs it holds high. Of each Session: its line source, its client's name, the
    GSIs it holds high and the events it lost.
    """
    info = vm.info()
    click.echo(f"VM        {info.name}")
    click.echo(f"irqchip   {_yes_or_no(info.irqchip)}")
    click.echo(f"vCPUs     {_numbers(info.vcpus)}")
    click.echo(f"source 0  asserted GSIs {_numbers(info.asserted_gsis)}")
    click.echo(f"sessions  {len(info.sessions) or '(none)'}")
    for session in info.sessions:
        click.echo(
            f"  source {session.source}: {session.client or '(no name)'}; "
            f"asserted GSIs {_numbers(session.asserted_gsis)}; dropped events {session.dropped_events}"
        )


@click.command()
@pass_vm
def delete(vm: irqchip_client.Vm) -> None:
    """Delete a VM. Its Sessions and Watches end."""
    vm.delete()


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) or "(none)"
