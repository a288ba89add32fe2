"""The command irqchipctl: shows, drives and checks an irqchipd from a shell."""

import click

from ._group import Group

__all__ = ["main"]

# Each command's module, in the order of --help. A module is loaded with its command, so that no command waits for
# the imports of another.
_COMMANDS = {
    **dict.fromkeys(("create", "list", "show", "delete"), "vms"),
    "advance": "clock",
    "reset": "vms",
    **dict.fromkeys(("save", "restore"), "snapshots"),
    **dict.fromkeys(("raise", "lower", "pulse", "msi", "routes"), "lines"),
    **dict.fromkeys(("in", "out", "read", "write", "msr-read", "msr-write", "ack"), "accesses"),
    **dict.fromkeys(("sysreg-read", "sysreg-write"), "sysregs"),
    "regs": "regs",
    **dict.fromkeys(("attr-get", "attr-set", "attr-has"), "attributes"),
    "watch": "watch",
    "interrupts": "interrupts",
    "top": "top",
    "trace": "trace",
    "record": "record",
    "replay": "replay",
    "run": "run",
    "device": "device",
    "shell": "shell",
}


@click.group(
    cls=Group,
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="irqchipd", prog_name="irqchipctl")
@click.option(
    "--target",
    metavar="ADDRESS",
    envvar="IRQCHIP_TARGET",
    help="The daemon: unix:///PATH or tcp://HOST:PORT. [env IRQCHIP_TARGET; default: the socket"
    " $XDG_RUNTIME_DIR/irqchipd/irqchipd.sock, or /tmp/irqchipd-UID/irqchipd.sock without XDG_RUNTIME_DIR]",
)
@click.pass_context
def main(context: click.Context, target: str | None) -> None:
    """Show, drive and check the interrupt controllers of an irqchipd.

    Numbers are decimal, or hexadecimal with 0x. A command for one VM takes the VM's name as its first argument, or as
    --vm NAME. Exit status: 0 done, 1 refused or failed, 2 the command line is wrong.
    """
    context.obj = target
