"""trace: a VM's events, in the format of the kernel's ftrace."""

from __future__ import annotations

import click

import irqchip_client

from ._common import command, pass_vm
from .ftrace import TRACEPOINTS, Ftrace
from .watch import concerning, watching


@command(epilog=f"Tracepoints: {', '.join(TRACEPOINTS)}.", example="kvm_set_irq kvm_eoi")
@pass_vm
@click.argument("tracepoints", nargs=-1, metavar="[TRACEPOINT]...")
@concerning
def trace(vm: irqchip_client.Vm, tracepoints: tuple[str, ...], gsis: tuple[int, ...], vcpus: tuple[int, ...]) -> None:
    """Print a VM's events in the kernel's ftrace format, until Ctrl-C.

    The output is that of /sys/kernel/tracing/trace on a KVM host: `diff` compares the two, without the columns of task,
    CPU and time. The task and the CPU are the vCPU's; without a vCPU they are the daemon's, on CPU 0.

    --gsi selects events of the GSI, and of the chips' pins and MSIs to which the GSI leads at the time. --vcpu selects
    the vCPU's actions, and messages to its interrupt controller. With both, an event that matches either is printed.
    """
    with watching(vm, tracepoints, gsis, vcpus) as (info, events):
        ftrace = Ftrace(info.architecture)
        click.echo(ftrace.header(max(len(info.vcpus), 1)))
        for event in events:
            click.echo(ftrace.line(event))
