"""in, out, read, write, msr-read, msr-write, ack: the actions of a vCPU.

An address that nothing claims is a result and not an error: the command prints "unclaimed", and its exit status is 0.
A fault of the guest is a result, too.
"""

from __future__ import annotations

import click

import irqchip_client

from ._common import LONG, PORT, WORD, command, pass_vm, size_option, vcpu_option
from .output import echo_json, json_option


@command("in", example="0x3f8")
@pass_vm
@click.argument("port", type=PORT)
@size_option(1, 1, 2, 4)
@vcpu_option
@json_option
def in_(vm: irqchip_client.Vm, port: int, size: str, vcpu: int, as_json: bool) -> None:
    """Read an I/O port, as a vCPU's IN does.

    Prints "unclaimed" if no chip and no device claims the port, and "unanswered" if the device died or did not answer
    in time. Both have exit status 0.
    """
    _echo(vm.vcpu(vcpu).pio_read(port, int(size)), int(size), as_json)


@command(example="0x3f8 0x41")
@pass_vm
@click.argument("port", type=PORT)
@click.argument("value", type=LONG)
@size_option(1, 1, 2, 4)
@vcpu_option
@json_option
def out(vm: irqchip_client.Vm, port: int, value: int, size: str, vcpu: int, as_json: bool) -> None:
    """Write an I/O port, as a vCPU's OUT does.

    Prints "unclaimed" if no chip and no device claims the port, and "unanswered" if the device died or did not answer
    in time. Both have exit status 0.
    """
    _check_width(value, int(size), (1, 2, 4))
    _written(vm.vcpu(vcpu).pio_write(port, value, int(size)), as_json)


@command(example="0xfee00030")
@pass_vm
@click.argument("address", type=LONG)
@size_option(4, 1, 2, 4, 8)
@vcpu_option
@json_option
def read(vm: irqchip_client.Vm, address: int, size: str, vcpu: int, as_json: bool) -> None:
    """Load from a physical address of the guest.

    Prints "unclaimed" if no chip and no device claims the address, and "unanswered" if the device died or did not
    answer in time. Both have exit status 0.
    """
    _echo(vm.vcpu(vcpu).mmio_read(address, int(size)), int(size), as_json)


@command(example="0xfee000b0 0")
@pass_vm
@click.argument("address", type=LONG)
@click.argument("value", type=LONG)
@size_option(4, 1, 2, 4, 8)
@vcpu_option
@json_option
def write(vm: irqchip_client.Vm, address: int, value: int, size: str, vcpu: int, as_json: bool) -> None:
    """Store to a physical address of the guest.

    Prints "unclaimed" if no chip and no device claims the address, and "unanswered" if the device died or did not
    answer in time. Both have exit status 0.
    """
    _check_width(value, int(size), (1, 2, 4, 8))
    _written(vm.vcpu(vcpu).mmio_write(address, value, int(size)), as_json)


@command("msr-read", example="0x1b")
@pass_vm
@click.argument("msr", type=WORD)
@vcpu_option
@click.option("--host", is_flag=True, help="Read as the host does, with KVM_GET_MSRS.")
@json_option
def msr_read(vm: irqchip_client.Vm, msr: int, vcpu: int, host: bool, as_json: bool) -> None:
    """Read a model-specific register, as a vCPU's RDMSR does.

    Prints "#GP" if the guest would get a general protection fault, and "unclaimed" if irqchipd does not have the
    register. Both have exit status 0.
    """
    cpu = vm.vcpu(vcpu)
    access = cpu.host_msr_read(msr) if host else cpu.msr_read(msr)
    if as_json:
        echo_json(access)
    else:
        click.echo(_refused(access) or f"0x{access.data:016x}")


@command("msr-write", example="0x1b 0xfee00900")
@pass_vm
@click.argument("msr", type=WORD)
@click.argument("value", type=LONG)
@vcpu_option
@click.option("--host", is_flag=True, help="Write as the host does, with KVM_SET_MSRS.")
@json_option
def msr_write(vm: irqchip_client.Vm, msr: int, value: int, vcpu: int, host: bool, as_json: bool) -> None:
    """Write a model-specific register, as a vCPU's WRMSR does.

    Prints "#GP" if the guest would get a general protection fault, and "unclaimed" if irqchipd does not have the
    register. Both have exit status 0.
    """
    cpu = vm.vcpu(vcpu)
    access = cpu.host_msr_write(msr, value) if host else cpu.msr_write(msr, value)
    if as_json:
        echo_json({"claimed": access.claimed, "fault": access.fault})
    elif refused := _refused(access):
        click.echo(refused)


@command()
@pass_vm
@vcpu_option
@click.option(
    "--source",
    type=click.Choice(["any", "pic", "lapic"]),
    default="any",
    show_default=True,
    help="The chip to ask. `any` asks the PIC if the local APIC accepts its interrupts, and then the local APIC.",
)
@json_option
def ack(vm: irqchip_client.Vm, vcpu: int, source: str, as_json: bool) -> None:
    """Accept the interrupt that a vCPU would take now.

    Prints the vector and the source of the interrupt, or "none".
    """
    taken = vm.vcpu(vcpu).acknowledge(irqchip_client.InterruptSource[source.upper()])
    if as_json:
        echo_json(taken)
    else:
        click.echo(f"{taken.vector:#04x} {taken.source.name.lower()}" if taken else "none")


def _check_width(value: int, size: int, sizes: tuple[int, ...]) -> None:
    if value >> 8 * size:
        wider = next((f"; --size {one} is wide enough" for one in sizes if not value >> 8 * one), "")
        what = "1 byte" if size == 1 else f"{size} bytes"
        raise click.BadParameter(
            f"{value:#x} does not fit into {what}, 0 to {(1 << 8 * size) - 1:#x}{wider}", param_hint="VALUE"
        )


def _echo(access: irqchip_client.Access, size: int, as_json: bool) -> None:
    if as_json:
        echo_json(access)
    elif access.claimed:
        click.echo(f"0x{access.data:0{2 * size}x}{', unanswered' if access.unanswered else ''}")
    else:
        click.echo("unclaimed")


def _refused(access: irqchip_client.MsrAccess) -> str:
    if not access.claimed:
        return "unclaimed"
    return "#GP" if access.fault else ""


def _written(claim: irqchip_client.Claim, as_json: bool) -> None:
    if as_json:
        echo_json({"claimed": bool(claim), "unanswered": claim is irqchip_client.Claim.UNANSWERED})
    elif claim is not irqchip_client.Claim.DEVICE:
        click.echo("unanswered" if claim else "unclaimed")
