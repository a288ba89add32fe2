"""raise, lower, pulse, msi, routes: interrupt lines and messages."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import click

import irqchip_client

from ._common import COUNT, GSI, LONG, WORD, command, pass_vm
from .output import echo_json, echo_table, json_option

_CHIPS = ("pic0", "pic1", "ioapic0")  # by KVM's chip ids
_SHOWN = 8  # GSIs that have routes


@command("raise", example="4")
@pass_vm
@click.argument("gsi", type=GSI)
@json_option
def raise_(vm: irqchip_client.Vm, gsi: int, as_json: bool) -> None:
    """Drive a GSI high.

    Prints the status of KVM_IRQ_LINE_STATUS, and its meaning. The command drives line source 0, which all clients
    without a Session share. So the GSI stays high until `lower`.
    """
    _echo_status(vm.line(gsi).raise_(), _raised(vm, gsi), as_json)


@command(example="4")
@pass_vm
@click.argument("gsi", type=GSI)
@json_option
def lower(vm: irqchip_client.Vm, gsi: int, as_json: bool) -> None:
    """Stop driving a GSI high.

    Prints the status of KVM_IRQ_LINE_STATUS, and its meaning. The GSI stays high while a Session holds it high.
    """
    _echo_status(vm.line(gsi).lower(), _Meaning(vm, gsi, "lowered", "lowered"), as_json)


@command(example="4")
@pass_vm
@click.argument("gsi", type=GSI)
@click.option("--count", type=COUNT, default=1, show_default=True, metavar="N", help="The number of edges.")
@json_option
def pulse(vm: irqchip_client.Vm, gsi: int, count: int, as_json: bool) -> None:
    """Raise and lower a GSI: an edge, or --count of them.

    Prints the status of raising the GSI, and its meaning. With --count, prints how many edges had each status.
    """
    line, meaning = vm.line(gsi), _raised(vm, gsi)
    if count == 1:
        _echo_status(line.pulse(), meaning, as_json)
        return
    statuses = Counter(line.pulse() for _ in range(count))
    if as_json:
        echo_json([{"status": status, "meaning": meaning.of(status), "count": n} for status, n in statuses.items()])
        return
    for status, times in statuses.items():
        click.echo(f"{times} of {count}: {status} {meaning.of(status)}")


@command(example="0xfee00000 0x31")
@pass_vm
@click.argument("address", type=LONG)
@click.argument("data", type=WORD)
@json_option
def msi(vm: irqchip_client.Vm, address: int, data: int, as_json: bool) -> None:
    """Send an MSI, for example 0xfee00000 0x31.

    Prints the status of KVM_SIGNAL_MSI, which is the number of local APICs that accepted the MSI, and its meaning.
    """
    status = vm.signal_msi(address, data)
    meaning = "addressed to nobody" if status < 0 else "accepted" if status else "not accepted"
    if as_json:
        echo_json({"status": status, "meaning": meaning})
    else:
        click.echo(f"{status} {meaning}")


@command()
@pass_vm
@json_option
def routes(vm: irqchip_client.Vm, as_json: bool) -> None:
    """Show the GSI routing table.

    The routes are in the order in which they were set. In a pipe, the output has no headings, and tabs separate the
    columns.
    """
    if as_json:
        echo_json(vm.routing())
    else:
        echo_table(("GSI", "TO", "PIN OR MESSAGE"), [_row(route) for route in vm.routing()])


class _Meaning:
    """The meanings of KVM_IRQ_LINE_STATUS's statuses, for a GSI."""

    def __init__(self, vm: irqchip_client.Vm, gsi: int, many: str, none: str) -> None:
        self._vm = vm
        self._gsi = gsi
        self._many = many
        self._none = none

    def of(self, status: int) -> str:
        """A status, in words."""
        return self._lost() if status < 0 else self._many if status else self._none

    def _lost(self) -> str:
        """The meaning of -1: the GSI has no route, or its pin is masked, as the routing table shows."""
        routes: list[irqchip_client.Route] = []
        with suppress(irqchip_client.IrqchipError):  # The VM may have been deleted just now.
            routes = self._vm.routing()
        mine = [route for route in routes if route.gsi == self._gsi]
        if not mine:
            others = list(dict.fromkeys(route.gsi for route in routes))
            some = f"{', '.join(map(str, others[:_SHOWN]))}{', ...' if len(others) > _SHOWN else ''}"
            return f"without a route; routes are of GSIs {some}" if others else "without a route; no GSI has one"
        pins = [
            f"{_CHIPS[route.chip]}'s pin {route.pin}" for route in mine if isinstance(route, irqchip_client.PinRoute)
        ]
        if isinstance(mine[0], irqchip_client.AdapterRoute):
            return f"lost: adapter {mine[0].adapter_id} is not registered, or its indicators are in no memory"
        return f"masked, at {' and '.join(pins)}" if pins else "addressed to nobody, by the MSI that is its route"


def _raised(vm: irqchip_client.Vm, gsi: int) -> _Meaning:
    return _Meaning(vm, gsi, "delivered", "coalesced with one still pending")


def _echo_status(status: int, meaning: _Meaning, as_json: bool) -> None:
    if as_json:
        echo_json({"status": status, "meaning": meaning.of(status)})
    else:
        click.echo(f"{status} {meaning.of(status)}")


def _row(route: irqchip_client.Route) -> tuple[int, str, str]:
    if isinstance(route, irqchip_client.PinRoute):
        return route.gsi, _CHIPS[route.chip], f"pin {route.pin}"
    if isinstance(route, irqchip_client.AdapterRoute):
        indicator, summary = (
            f"{route.ind_addr:#x}+{route.ind_offset}",
            f"{route.summary_addr:#x}+{route.summary_offset}",
        )
        return route.gsi, "adapter", f"{route.adapter_id} indicator {indicator} summary {summary}"
    return route.gsi, "msi", f"address {route.address:#x} data {route.data:#x}"
