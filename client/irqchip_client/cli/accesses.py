"""in, out, read, write, msr-read, msr-write, ack: what a vCPU does.

An address that nothing claims is a result and not an error, as everywhere in irqchipd: it prints "unclaimed", and the
exit status is 0. So is a fault, which is the guest's.
"""

from __future__ import annotations

import click

import irqchip_client

from ._common import NUMBER, pass_vm, size_option, vcpu_option


@click.command("in")
@pass_vm
@click.argument("port", type=NUMBER)
@size_option(1, 1, 2, 4)
@vcpu_option
def in_(vm: irqchip_client.Vm, port: int, size: str, vcpu: int) -> None:
    """Read an I/O port, as a vCPU's IN does. Prints "unclaimed" where no device claims it, with exit status 0.

    And "unanswered" where it is a region's whose device died, or did not answer in time.
    """
    click.echo(_read(vm.vcpu(vcpu).pio_read(port, int(size)), int(size)))


@click.command()
@pass_vm
@click.argument("port", type=NUMBER)
@click.argument("value", type=NUMBER)
@size_option(1, 1, 2, 4)
@vcpu_option
def out(vm: irqchip_client.Vm, port: int, value: int, size: str, vcpu: int) -> None:
    """Write an I/O port, as a vCPU's OUT does. Prints "unclaimed" where no device claims it, with exit status 0.

    And "unanswered" where it is a region's whose device died, or did not answer in time.
    """
    _written(vm.vcpu(vcpu).pio_write(port, value, int(size)))


@click.command()
@pass_vm
@click.argument("address", type=NUMBER)
@size_option(4, 1, 2, 4, 8)
@vcpu_option
def read(vm: irqchip_client.Vm, address: int, size: str, vcpu: int) -> None:
    """Load from a physical address of the guest. Prints "unclaimed" where no device claims it, with exit status 0.

    And "unanswered" where it is a region's whose device died, or did not answer in time.
    """
    click.echo(_read(vm.vcpu(vcpu).mmio_read(address, int(size)), int(size)))


@click.command()
@pass_vm
@click.argument("address", type=NUMBER)
@click.argument("value", type=NUMBER)
@size_option(4, 1, 2, 4, 8)
@vcpu_option
def write(vm: irqchip_client.Vm, address: int, value: int, size: str, vcpu: int) -> None:
    """Store to a physical address of the guest. Prints "unclaimed" where no device claims it, with exit status 0.

    And "unanswered" where it is a region's whose device died, or did not answer in time.
    """
    _written(vm.vcpu(vcpu).mmio_write(address, value, int(size)))


@click.command("msr-read")
@pass_vm
@click.argument("msr", type=NUMBER)
@vcpu_option
@click.option("--host", is_flag=True, help="As a VMM does by KVM_GET_MSRS, and not the guest.")
def msr_read(vm: irqchip_client.Vm, msr: int, vcpu: int, host: bool) -> None:
    """Read a model-specific register, as a vCPU's RDMSR does.

    Prints "#GP" where the guest would get a general protection fault, and "unclaimed" where the register is not
    irqchipd's, with exit status 0.
    """
    cpu = vm.vcpu(vcpu)
    access = cpu.host_msr_read(msr) if host else cpu.msr_read(msr)
    click.echo(_refused(access) or f"0x{access.data:016x}")


@click.command("msr-write")
@pass_vm
@click.argument("msr", type=NUMBER)
@click.argument("value", type=NUMBER)
@vcpu_option
@click.option("--host", is_flag=True, help="As a VMM does by KVM_SET_MSRS, and not the guest.")
def msr_write(vm: irqchip_client.Vm, msr: int, value: int, vcpu: int, host: bool) -> None:
    """Write a model-specific register, as a vCPU's WRMSR does.

    Prints "#GP" where the guest would get a general protection fault, and "unclaimed" where the register is not
    irqchipd's, with exit status 0.
    """
    cpu = vm.vcpu(vcpu)
    if refused := _refused(cpu.host_msr_write(msr, value) if host else cpu.msr_write(msr, value)):
        click.echo(refused)


@click.command()
@pass_vm
@vcpu_option
@click.option(
    "--source",
    type=click.Choice(["any", "pic", "lapic"]),
    default="any",
    show_default=True,
    help="Whose interrupt: any takes the PIC's first, where the local APIC lets it through.",
)
def ack(vm: irqchip_client.Vm, vcpu: int, source: str) -> None:
    """Accept the interrupt that a vCPU would take now. Prints its vector and where it is from, or "none"."""
    taken = vm.vcpu(vcpu).acknowledge(irqchip_client.InterruptSource[source.upper()])
    click.echo(f"{taken.vector:#04x} {taken.source.name.lower()}" if taken else "none")


def _read(access: irqchip_client.Access, size: int) -> str:
    if not access.claimed:
        return "unclaimed"
    return f"0x{access.data:0{2 * size}x}{', unanswered' if access.unanswered else ''}"


def _refused(access: irqchip_client.MsrAccess) -> str:
    if not access.claimed:
        return "unclaimed"
    return "#GP" if access.fault else ""


def _written(claim: irqchip_client.Claim) -> None:
    if claim is not irqchip_client.Claim.DEVICE:
        click.echo("unanswered" if claim else "unclaimed")
