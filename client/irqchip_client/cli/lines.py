"""raise, lower, pulse, msi, routes: what comes in."""

from __future__ import annotations

import click

import irqchip_client

from ._common import NUMBER, command, echo_table, pass_vm

_CHIPS = ("pic0", "pic1", "ioapic0")  # by KVM's chip ids


@command("raise")
@pass_vm
@click.argument("gsi", type=NUMBER)
def raise_(vm: irqchip_client.Vm, gsi: int) -> None:
    """Drive a GSI high.

    Prints KVM_IRQ_LINE_STATUS's status and what it means. The line source is 0, that of all who have no Session: the
    GSI stays high until it is lowered.
    """
    click.echo(_raised(vm.line(gsi).raise_()))


@command()
@pass_vm
@click.argument("gsi", type=NUMBER)
def lower(vm: irqchip_client.Vm, gsi: int) -> None:
    """Cease to drive a GSI high.

    Prints KVM_IRQ_LINE_STATUS's status and what it means. The GSI stays high while a Session holds it.
    """
    status = vm.line(gsi).lower()
    click.echo("-1 masked, or without a route" if status < 0 else f"{status} lowered")


@command()
@pass_vm
@click.argument("gsi", type=NUMBER)
def pulse(vm: irqchip_client.Vm, gsi: int) -> None:
    """Raise and lower a GSI: an edge.

    Prints the status of raising it, and what it means.
    """
    click.echo(_raised(vm.line(gsi).pulse()))


@command()
@pass_vm
@click.argument("address", type=NUMBER)
@click.argument("data", type=NUMBER)
def msi(vm: irqchip_client.Vm, address: int, data: int) -> None:
    """Send an MSI, for example 0xfee00000 0x31.

    Prints KVM_SIGNAL_MSI's status, how many local APICs accepted it, and what it means.
    """
    status = vm.signal_msi(address, data)
    if status < 0:
        click.echo(f"{status} addressed to nobody")
    else:
        click.echo(f"{status} {'accepted' if status else 'not accepted'}")


@command()
@pass_vm
def routes(vm: irqchip_client.Vm) -> None:
    """Show the GSI routing table.

    In the order in which it was set. Into a pipe: without the headings, and with tabs between.
    """
    echo_table(("GSI", "TO", "PIN OR MESSAGE"), [_row(route) for route in vm.routing()])


def _raised(status: int) -> str:
    if status < 0:
        return f"{status} masked, or without a route"
    return f"{status} delivered" if status else "0 coalesced with one still pending"


def _row(route: irqchip_client.Route) -> tuple[int, str, str]:
    if isinstance(route, irqchip_client.PinRoute):
        return route.gsi, _CHIPS[route.chip], f"pin {route.pin}"
    return route.gsi, "msi", f"address {route.address:#x} data {route.data:#x}"
