"""The root of the commands, and their common options and errors: --target, --vm, and one line per error.

The SDK is imported through the package, which loads it at its first use, so that --help does not wait for gRPC.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

import click

import irqchip_client

from ._advice import advice, refuse_extra

_NEGATIVE = re.compile(r"-\d.*")
VM = "vm_name"  # The parameter that is a command's VM.
# The key of a shell's Client, for the commands in the shell.
SHARED_CLIENT = "irqchip_client.cli.client"


class Command(click.Command):
    """A command of irqchipctl.

    example  arguments that work, without the VM: for --help, and for errors
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_extra_args = True  # Refused below, with advice.
        self._example = example
        if self._takes_vm:
            self.params.append(click.Option(["--vm", "named_vm"], metavar="NAME", expose_value=False, help=_VM_HELP))
        self.params.append(_target_option())

    @property
    def _takes_vm(self) -> bool:
        return any(parameter.name == VM for parameter in self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at_a_prompt = SHARED_CLIENT in ctx.find_root().meta
        example = self.example(ctx, prompt=at_a_prompt, with_vm=not (at_a_prompt and "--vm" in args))
        if self._takes_vm:
            args = _vm_first(args)
        with advice(ctx, example):
            try:
                rest = super().parse_args(ctx, args)
            except click.MissingParameter as error:
                if error.param is None or error.param.name != VM:
                    raise
                raise click.UsageError(
                    "name the VM, as the first argument; `irqchipctl list` shows the VMs", ctx
                ) from None
            except click.NoSuchOption as error:
                if not _NEGATIVE.fullmatch(error.option_name) and not any(map(_NEGATIVE.fullmatch, args)):
                    raise
                number = next(filter(_NEGATIVE.fullmatch, args), error.option_name)
                raise click.UsageError(
                    f"{number:.100} is negative; numbers are 0 or more: write 16 or 0x10", ctx
                ) from None
        refuse_extra(ctx, example)
        return rest

    def example(self, ctx: click.Context, *, prompt: bool = False, with_vm: bool = True) -> str:
        """A command line that works; `prompt`: one for the shell's prompt."""
        program = "" if prompt else ctx.find_root().info_name
        vm = "vm1" if self._takes_vm and with_vm else ""
        return " ".join(filter(None, (program, self.name, vm, self._example)))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Example"):
            formatter.write_text(self.example(ctx))


_VM_HELP = "The VM, if it is not the first argument."

command = partial(click.command, cls=Command)


def _vm_first(args: list[str]) -> list[str]:
    """Puts the VM of --vm in the place of the argument."""
    for at, arg in enumerate(args):
        if arg == "--":
            break
        if arg == "--vm" and at + 1 < len(args):
            return [args[at + 1], *args[:at], *args[at + 2 :]]
        if arg.startswith("--vm="):
            return [arg.removeprefix("--vm="), *args[:at], *args[at + 1 :]]
    return args


def _target_option() -> click.Option:
    """--target again, so that it may stand behind the command's name."""

    def name(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.obj = value

    return click.Option(["--target"], metavar="ADDRESS", expose_value=False, callback=name, help="The daemon.")


class Group(click.Group):
    """The root command: loads the commands when they are used, and prints an error as one line."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with advice(ctx, f"{ctx.info_name} --target unix:///run/irqchipd.sock list"):
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the name is click's
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._modules:
            return None
        module = import_module(f".{self._modules[cmd_name]}", __package__)
        found: click.Command = next(
            value for value in vars(module).values() if isinstance(value, click.Command) and value.name == cmd_name
        )
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._modules and not name.startswith("-"):
            close = get_close_matches(name, self._modules, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(self._modules)}"
            ctx.fail(f"there is no command {name!r:.100}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        return self._with_one_line(ctx, super())

    def run_command(self, ctx: click.Context, found: click.Command) -> Any:
        """Runs one of the commands, in its context; for a shell."""
        return self._with_one_line(ctx, found)

    @staticmethod
    def _with_one_line(ctx: click.Context, invoked: Any) -> Any:
        try:
            return invoked.invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            _forget_output()
            if error.errno == errno.EPIPE:  # The reader has left; click ends quietly.
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise click.ClickException(what) from error
        except irqchip_client.IrqchipError as error:  # Last, because naming it loads gRPC.
            raise click.ClickException(" ".join(str(error).split())) from error


def _forget_output() -> None:
    """Drops output that could not be written: Python would else try again when it exits, and fail."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
