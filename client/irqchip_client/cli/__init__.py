"""The command irqchipctl: an irqchipd seen, driven and checked from a shell."""

from importlib.metadata import version

import click

from ._common import Group, target_option
from .accesses import ack, in_, msr_read, msr_write, out, read, write
from .clock import advance
from .device import device
from .lines import lower, msi, pulse, raise_, routes
from .regs import regs
from .replay import replay
from .run import run
from .snapshots import restore, save
from .vms import create, delete, list_, reset, show
from .watch import watch

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("irqchipd"), prog_name="irqchipctl")
@click.option(
    "--target",
    metavar="ADDRESS",
    envvar="IRQCHIP_TARGET",
    help="The daemon: unix:///PATH or tcp://HOST:PORT. [env IRQCHIP_TARGET; default: the socket"
    " $XDG_RUNTIME_DIR/irqchipd/irqchipd.sock, or /tmp/irqchipd-UID/irqchipd.sock without XDG_RUNTIME_DIR]",
)
@click.pass_context
def main(context: click.Context, target: str | None) -> None:
    """See, drive and check the interrupt controllers that an irqchipd holds.

    Numbers are decimal, or hexadecimal with 0x. Exit status: 0 done, 1 refused or failed, 2 the command line is
    wrong.
    """
    context.obj = target


# In the order in which --help shows them.
for _command in (
    *(create, list_, show, delete),
    *(advance, reset, save, restore),
    *(raise_, lower, pulse, msi, routes),
    *(in_, out, read, write, msr_read, msr_write, ack),
    *(regs, watch, replay),
    *(run, device),
):
    _command.params.append(target_option())
    main.add_command(_command)
