"""raise, lower, pulse, msi, routes: interrupt lines and messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import click

import irqchip_client

from ._common import COUNT, LONG, WORD, command, pass_vm
from .line_names import LINE, NamedLine, check_line
from .output import echo_json, echo_table, json_option, plain

_CHIPS = ("pic0", "pic1", "ioapic0")  # by KVM's chip ids
_SHOWN = 8  # GSIs that have routes


@command("raise", example="4")
@pass_vm
@click.argument("gsi", type=LINE)
@json_option
def raise_(vm: irqchip_client.Vm, gsi: int, as_json: bool) -> None:
    """Drive a GSI high, or a line of an arm64 VM: spi:4, or ppi:0:27 of vCPU 0.

    Prints the status of KVM_IRQ_LINE_STATUS, and its meaning. The command drives line source 0, which all clients
    without a Session share. So the GSI stays high until `lower`.
    """
    line = _Line(vm, gsi)
    _echo_status(line.drive(irqchip_client.Line.raise_), line.raised, as_json)


@command(example="4")
@pass_vm
@click.argument("gsi", type=LINE)
@json_option
def lower(vm: irqchip_client.Vm, gsi: int, as_json: bool) -> None:
    """Stop driving a GSI high, or a line of an arm64 VM: spi:4, or ppi:0:27 of vCPU 0.

    Prints the status of KVM_IRQ_LINE_STATUS, and its meaning. The GSI stays high while a Session holds it high.
    """
    line = _Line(vm, gsi)
    _echo_status(line.drive(irqchip_client.Line.lower), _Meaning(line, "lowered", "lowered"), as_json)


@command(example="4")
@pass_vm
@click.argument("gsi", type=LINE)
@click.option("--count", type=COUNT, default=1, show_default=True, metavar="N", help="The number of edges.")
@json_option
def pulse(vm: irqchip_client.Vm, gsi: int, count: int, as_json: bool) -> None:
    """Raise and lower a GSI, or a line of an arm64 VM (spi:4): an edge, or --count of them.

    Prints the status of raising the GSI, and its meaning. With --count, prints how many edges had each status.
    """
    line = _Line(vm, gsi)
    meaning = line.raised
    if count == 1:
        _echo_status(line.drive(irqchip_client.Line.pulse), meaning, as_json)
        return
    statuses = Counter(line.drive(irqchip_client.Line.pulse) for _ in range(count))
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
    meaning = "addressed to no vCPU" if status < 0 else "accepted" if status else "not accepted"
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
    is_arm64 = vm.info().architecture is irqchip_client.Architecture.ARM64
    routes = vm.routing()
    if not as_json:
        echo_table(("GSI", "TO", "PIN OR MESSAGE"), [_row(route, is_arm64) for route in routes])
        return
    shown = plain(routes)
    if is_arm64:  # Its only chip has the number of x86's first PIC.
        shown = [route | {"chip": "gic"} if "chip" in route else route for route in shown]
    echo_json(shown)


class _Line:
    """A line that a command drives. It adds advice if KVM refuses the line."""

    def __init__(self, vm: irqchip_client.Vm, gsi: int) -> None:
        self.vm = vm
        self.gsi = gsi
        self.is_arm64 = check_line(vm.info(), gsi)
        self._line = vm.line(gsi)

    def drive(self, action: Callable[[irqchip_client.Line], int]) -> int:
        try:
            return action(self._line)
        except irqchip_client.IrqchipError as error:
            if not self.is_arm64 or isinstance(error, irqchip_client.NotFound):
                raise
            if isinstance(self.gsi, NamedLine):
                message = error.message.replace(f"interrupt {self.gsi:#x}", f"line {self.gsi.text}")
                raise click.ClickException(f"{message} ({error.reason})") from error
            advice = "write spi:N for an SPI, or ppi:VCPU:INTID; numbers are those of KVM_IRQ_LINE"
            raise click.ClickException(f"{error.message}; {advice} ({error.reason})") from error

    @property
    def raised(self) -> _Meaning:
        return _Meaning(self, "delivered", "coalesced with one still pending")


class _Meaning:
    """The meanings of KVM_IRQ_LINE_STATUS's statuses, for a line. On arm64 the status is always 0."""

    def __init__(self, line: _Line, many: str, none: str) -> None:
        self._vm = line.vm
        self._gsi = line.gsi
        self._many = many
        self._none = "done" if line.is_arm64 else none

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
        return f"masked, at {' and '.join(pins)}" if pins else "addressed to no vCPU, by the MSI that is its route"


def _echo_status(status: int, meaning: _Meaning, as_json: bool) -> None:
    if as_json:
        echo_json({"status": status, "meaning": meaning.of(status)})
    else:
        click.echo(f"{status} {meaning.of(status)}")


def _row(route: irqchip_client.Route, is_arm64: bool) -> tuple[int, str, str]:
    if isinstance(route, irqchip_client.PinRoute):
        if is_arm64:
            return route.gsi, "gic", f"SPI {route.pin}"
        return route.gsi, _CHIPS[route.chip], f"pin {route.pin}"
    if isinstance(route, irqchip_client.AdapterRoute):
        indicator, summary = (
            f"{route.ind_addr:#x}+{route.ind_offset}",
            f"{route.summary_addr:#x}+{route.summary_offset}",
        )
        return route.gsi, "adapter", f"{route.adapter_id} indicator {indicator} summary {summary}"
    return route.gsi, "msi", f"address {route.address:#x} data {route.data:#x}"
