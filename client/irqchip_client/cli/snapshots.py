"""save, restore: whole VMs, in files."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

import irqchip_client

from ._common import command, pass_client, pass_vm
from .files import write_file


@command(example="vm1.state")
@pass_vm
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
def save(vm: irqchip_client.Vm, file: str) -> None:
    """Save a VM's whole state to a file.

    FILE may be -, for standard output, if that is not a terminal. An existing file is replaced only after the whole
    state is written. The VM continues. `restore` makes another VM from the file, in this daemon or another.
    """
    if file == "-" and sys.stdout.isatty():
        raise click.UsageError("a snapshot is binary, and not for a terminal: name a file, or redirect the output")
    saved = vm.snapshot().to_bytes()
    if file == "-":
        try:
            sys.stdout.buffer.write(saved)
            sys.stdout.buffer.flush()
        except OSError as error:
            error.filename = "standard output"
            raise
    else:
        write_file(file, saved)


@command(example="vm1.state vm2")
@click.argument("file", type=click.File("rb"))
@click.argument("vm", default="")
@pass_client
def restore(client: irqchip_client.Client, file: BinaryIO, vm: str) -> None:
    """Make a VM from a file that `save` wrote.

    Prints the VM's name. Without a name, the daemon chooses one. FILE may be -, for standard input. The VM's clock
    continues from the saved time. Lines that Sessions held stay high until their clients resume the Sessions.
    """
    try:
        data = file.read()
    except OSError as error:
        error.filename = file.name
        raise
    try:
        snapshot = irqchip_client.VmSnapshot.from_bytes(data)
    except irqchip_client.InvalidArgument as error:
        raise click.ClickException(f"{file.name}: {error}") from error
    click.echo(client.restore_vm(snapshot, vm).name)
