"""Ends click's error messages with a correct command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def advice(context: click.Context, example: str) -> Iterator[None]:
    """Adds advice to click's errors: `example` is a command line that works."""
    wrong: click.Parameter | None = None
    try:
        yield
        return
    except click.NoSuchOption as error:
        if error.possibilities:  # It asks "Did you mean ...?"
            raise
        flags = ", ".join(one.opts[-1] for one in context.command.params if isinstance(one, click.Option))
        raise click.UsageError(f"No such option {error.option_name!r}: leave it out, or use {flags}", context) from None
    except click.MissingParameter as error:
        message = _missing(error.param, context) if error.param else error.format_message()
    except click.BadOptionUsage as error:
        message = error.format_message()
        wrong = next((one for one in context.command.params if error.option_name in one.opts), None)
    except click.BadParameter as error:
        message, wrong = error.format_message(), error.param
    raise click.UsageError(f"{message}\nWrite, for example: {example}{_right(wrong, example)}", context)


def refuse_extra(context: click.Context, example: str) -> None:
    """Refuses arguments beyond those that a command takes."""
    if context.args and not context.resilient_parsing:
        raise click.UsageError(
            f"{context.args[0]!r:.100} is one argument too many: leave it out, or run the command once for each"
            f"\nWrite, for example: {example}",
            context,
        )


def _missing(missing: click.Parameter, context: click.Context) -> str:
    if isinstance(missing, click.Option):
        return f"{missing.opts[0]} is missing: {missing.help}"
    takes = " ".join(context.command.collect_usage_pieces(context)[1:])
    return f"{missing.human_readable_name} is missing: `{context.info_name}` takes {takes}"


def _right(wrong: click.Parameter | None, example: str) -> str:
    """The wrong option with a value that it can have, if the example lacks the option."""
    if not isinstance(wrong, click.Option) or wrong.opts[0] in example.split():
        return ""
    if wrong.is_flag:
        return f" {wrong.opts[0]}"
    kind, value = wrong.type, wrong.default
    if not isinstance(value, str | int | float) or not value:
        value = kind.choices[0] if isinstance(kind, click.Choice) else getattr(kind, "example", wrong.metavar)
    return f" {wrong.opts[0]} {value:g}" if isinstance(value, float) else f" {wrong.opts[0]} {value}"
