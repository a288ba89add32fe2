"""shell: the commands at a prompt, in one process."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

import irqchip_client

from ._common import vms_there_are
from ._group import SHARED_CLIENT, VM, Group, command

_HISTORY = 1000  # lines of history
_LEAVING = ("exit", "quit")


@command(example="vm1")
@click.argument("vm", required=False)
@click.pass_context
def shell(context: click.Context, vm: str | None) -> None:
    """Run commands at a prompt, in one process.

    The commands are those of irqchipctl, without that word: `pulse 1`. If VM is given, commands for one VM apply to VM,
    and do not take its name; --vm NAME chooses another. Tab completes commands, options and VMs. The history is in
    $XDG_STATE_HOME/irqchipctl, by default ~/.local/state/irqchipctl. `exit` or Ctrl-D ends the shell.

    In a pipe, the shell runs lines until one fails, and ends with the exit status of that line.
    """
    root = context.find_root()
    group = root.command
    assert isinstance(group, Group)
    client = context.with_resource(irqchip_client.connect(context.obj))
    names = [info.name for info in client.vms()]  # Fails now if there is no daemon.
    if vm is not None and vm not in names:
        raise click.ClickException(f"there is no VM {vm!r}; {vms_there_are(vm, names)}")
    root.meta[SHARED_CLIENT] = client
    at_a_terminal = sys.stdin.isatty()
    for words in _lines(_Completer(group, client), f"{vm or 'irqchipctl'}> ", at_a_terminal):
        status = _run(context, group, vm, words)
        if status and not at_a_terminal:
            sys.exit(status)


def _run(context: click.Context, group: Group, vm: str | None, words: list[str]) -> int:
    """Runs one command, and returns its exit status. An error is printed, and does not end the shell."""
    try:
        name, found, arguments = group.resolve_command(context.find_root(), words)
        assert found is not None
        if name == "shell":
            raise click.UsageError("this is a shell already; `exit` ends it", context)
        if vm is not None and is_about_a_vm(found) and not any(word.split("=")[0] == "--vm" for word in arguments):
            arguments = ["--vm", vm, *arguments]
        with found.make_context(name, list(arguments), parent=context) as made:
            group.run_command(made, found)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo()
        return 130
    return 0


def is_about_a_vm(found: click.Command) -> bool:
    """Whether a command takes the name of one existing VM."""
    return any(one.name == VM or ("--vm" in one.opts and one.required) for one in found.params)


def _lines(completer: _Completer, prompt: str, at_a_terminal: bool) -> Iterator[list[str]]:
    """The words of each line, until the end."""
    if not at_a_terminal:
        for line in sys.stdin:
            yield from _words(line)
        return
    with _history(completer):
        while True:
            try:
                line = input(prompt)
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo()
                continue
            if line.strip() in _LEAVING:
                return
            yield from _words(line)


def _words(line: str) -> Iterator[list[str]]:
    """The words of a line; none for an empty line or a comment."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        click.echo(f"Error: {error}: {line.strip():.100}", err=True)
        return
    if words:
        yield words


class _history:  # noqa: N801 - it is used as a function
    """Line editing, with Tab and history, if Python has readline."""

    def __init__(self, completer: _Completer) -> None:
        self._completer = completer
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self._file = Path(state) / "irqchipctl" / "history"

    def __enter__(self) -> None:
        with suppress(ImportError):
            import readline

            readline.set_completer(self._completer.complete)
            readline.set_completer_delims(" \t\n=")
            readline.parse_and_bind("tab: complete")
            readline.set_history_length(_HISTORY)
            with suppress(OSError):
                readline.read_history_file(self._file)

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError, OSError):  # Works without a history, too.
            import readline

            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(self._file)
            self._file.chmod(0o600)


class _Completer:
    """Completion by Tab: of a command, then of its options, and of VMs' names after --vm."""

    def __init__(self, group: Group, client: irqchip_client.Client) -> None:
        self._group = group
        self._client = client
        self._found: list[str] = []

    def complete(self, text: str, state: int) -> str | None:
        """As readline calls it: the candidates one by one, then None."""
        if state == 0:
            import readline

            self._found = self.candidates(readline.get_line_buffer()[: readline.get_begidx()], text)
        return self._found[state] if state < len(self._found) else None

    def candidates(self, before: str, text: str) -> list[str]:
        """The candidates for a word, by the words before it."""
        words = before.split()
        if not words:
            names = [*self._group.list_commands(click.Context(self._group)), "exit"]
            return [f"{name} " for name in names if name.startswith(text)]
        if words[-1] == "--vm" or words == ["delete"]:
            with suppress(irqchip_client.IrqchipError):
                return [info.name for info in self._client.vms() if info.name.startswith(text)]
            return []
        found = self._group.get_command(click.Context(self._group), words[0])
        flags = [flag for parameter in found.params for flag in parameter.opts] if found else []
        return [f"{flag} " for flag in flags if flag.startswith("-") and flag.startswith(text)]
