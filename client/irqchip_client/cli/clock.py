"""advance: a virtual clock."""

from __future__ import annotations

import click

import irqchip_client

from ._common import command, pass_vm
from .durations import DURATION, show_duration
from .output import echo_json, json_option


@command(example="10ms")
@pass_vm
@click.argument("duration", type=DURATION)
@json_option
def advance(vm: irqchip_client.Vm, duration: int, as_json: bool) -> None:
    """Move a virtual clock.

    DURATION is 1.5s, 10ms, 500us or 20ns, for example. A number without a unit is nanoseconds. Timers expire in the
    order of their times. Prints the VM's time, and the time at which the next timer is due.
    """
    try:
        moved = vm.advance(duration)
    except irqchip_client.InvalidArgument as error:
        if vm.info().virtual:
            raise
        raise click.ClickException(
            f"{error.message}: `irqchipctl create --virtual-clock` makes a VM that has one ({error.reason})"
        ) from error
    if as_json:
        echo_json(moved)
    else:
        click.echo(f"{show_duration(moved.now_ns)}; {next_timer(moved.next_timer_ns)}")


def next_timer(at_ns: int | None) -> str:
    """The time at which a VM's next timer is due, in words."""
    return "no timer runs" if at_ns is None else f"next timer at {show_duration(at_ns)}"
