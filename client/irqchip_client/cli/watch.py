"""watch: trace events in short lines, or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import click

import irqchip_client

from ._common import VCPU, command, pass_vm
from .ftrace import TRACEPOINTS, Ftrace, full_name, seconds
from .line_names import WATCHED, check_line
from .output import echo_json, json_option

T = TypeVar("T")

if TYPE_CHECKING:  # it loads gRPC
    Event = irqchip_client.TraceEvent | irqchip_client.EventsDropped


def concerning(function: Callable[..., T]) -> Callable[..., T]:
    """The options that select events."""
    for one in (
        click.option(
            "--vcpu",
            "vcpus",
            type=VCPU,
            multiple=True,
            metavar="ID",
            help="Print only events of this vCPU. May be repeated.",
        ),
        click.option(
            "--gsi",
            "gsis",
            type=WATCHED,
            multiple=True,
            metavar="N",
            help="Print only events of this GSI, or of this line of an arm64 VM: spi:4, ppi:0:27. May be repeated.",
        ),
    ):
        function = one(function)
    return function


@contextmanager
def watching(
    vm: irqchip_client.Vm, tracepoints: tuple[str, ...], gsis: tuple[int, ...], vcpus: tuple[int, ...]
) -> Iterator[tuple[irqchip_client.VmInfo, Iterator[Event]]]:
    """A VM, and its events until Ctrl-C, which ends the `with` without an error."""
    info = vm.info()
    for gsi in gsis:
        check_line(info, gsi)
    _warn_of_missing(info, vcpus)
    with suppress(KeyboardInterrupt), vm.watch(map(full_name, tracepoints), gsis=gsis, vcpus=vcpus) as events:
        yield info, (event for event in events if not isinstance(event, irqchip_client.ProbesChanged))


def _warn_of_missing(info: irqchip_client.VmInfo, vcpus: tuple[int, ...]) -> None:
    """Warn of a vCPU that does not exist yet."""
    if missing := [vcpu for vcpu in vcpus if vcpu not in info.vcpus]:
        have = ", ".join(map(str, info.vcpus)) or "none"
        click.echo(
            f"VM {info.name!r} has no vCPU {missing[0]} yet; it has {have}:"
            f" create vCPU {missing[0]}, or press Ctrl-C and name another",
            err=True,
        )


def trace_line(event: Event, ftrace: Ftrace) -> str:
    """One line of the kernel's trace, without its columns of task and CPU."""
    if isinstance(event, irqchip_client.EventsDropped):
        return f"[LOST {event.count} EVENTS]"
    return f"{seconds(event.time_ns)}: {event.tracepoint}: {ftrace.body(event)}".rstrip()


@command(epilog=f"Tracepoints: {', '.join(TRACEPOINTS)}.", example="kvm_set_irq")
@pass_vm
@click.argument("tracepoints", nargs=-1, metavar="[TRACEPOINT]...")
@concerning
@json_option
def watch(
    vm: irqchip_client.Vm, tracepoints: tuple[str, ...], gsis: tuple[int, ...], vcpus: tuple[int, ...], as_json: bool
) -> None:
    """Print a VM's events, until Ctrl-C.

    Each trace event is a line, as in `irqchipctl trace` but without the columns of task and CPU. Tracepoints have the
    kernel's names, with or without "kvm_". Without TRACEPOINT, all are printed. The time is the daemon's monotonic
    clock, in seconds.

    --gsi selects events of the GSI, and of the chips' pins and MSIs to which the GSI leads at the time. --vcpu selects
    the vCPU's actions, and messages to its interrupt controller. With both, an event that matches either is printed.
    """
    with watching(vm, tracepoints, gsis, vcpus) as (info, events):
        ftrace = Ftrace(info.architecture)
        for event in events:
            if not as_json:
                click.echo(trace_line(event, ftrace))
            elif isinstance(event, irqchip_client.EventsDropped):
                echo_json({"dropped": event.count})
            else:
                echo_json(event)
