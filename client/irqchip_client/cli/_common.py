"""What the commands share: numbers, the connection, errors, tables.

The SDK is only reached through the package, which loads it when it is first used: --help need not wait for gRPC.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

import irqchip_client

P = ParamSpec("P")
T = TypeVar("T")


class Group(click.Group):
    """The command's root: lists its commands as they were added, and makes one line of whatever goes wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the name is click's
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            _forget_output()
            if error.errno == errno.EPIPE:  # The reader has left; click ends quietly.
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise click.ClickException(what) from error
        except irqchip_client.IrqchipError as error:  # Last: naming it loads gRPC, which all but the above have anyway.
            raise click.ClickException(" ".join(str(error).split())) from error


def _forget_output() -> None:
    """Output that could not be written is written nowhere: Python would else try again at its end, and fail."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def target_option() -> click.Option:
    """--target once more, for those who say it behind the command's name."""

    def name(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.obj = value

    return click.Option(["--target"], metavar="ADDRESS", expose_value=False, callback=name, help="The daemon.")


class _Number(click.ParamType):  # type: ignore[type-arg]  # No generic in click 8.1.
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(value, 0)
        except ValueError:
            self.fail(f"{value!r:.100} is no number: write 16, 0x10 or 0b10000", param, ctx)


NUMBER = _Number()

vcpu_option = click.option(
    "--vcpu", type=NUMBER, default=0, show_default=True, metavar="ID", help="The vCPU that does it."
)


def size_option(default: int, *sizes: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The width of a guest's access."""
    return click.option(
        "--size",
        type=click.Choice([str(size) for size in sizes]),
        default=str(default),
        show_default=True,
        help="Bytes.",
    )


def pass_client(function: Callable[Concatenate[irqchip_client.Client, P], T]) -> Callable[P, T]:
    """Gives a command a Client of the target, for as long as it runs."""

    @wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(_connect(), *args, **kwargs)

    return command


def pass_vm(function: Callable[Concatenate[irqchip_client.Vm, ...], T]) -> Callable[..., T]:
    """Gives a command an argument VM, and the SDK's handle on it."""

    @click.argument("vm_name", metavar="VM")
    @wraps(function)
    def command(*args: Any, vm_name: str, **kwargs: Any) -> T:
        return function(_connect().vm(vm_name), *args, **kwargs)

    return command


def _connect() -> irqchip_client.Client:
    context = click.get_current_context()
    return context.with_resource(irqchip_client.connect(context.obj))


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows for people where there is a terminal; else a line a row with tabs between, for cut and read."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        for row in rows:
            click.echo("\t".join(map(str, row)))
        return
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
