"""The output of commands: tables for people, and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names that the SDK uses.")


def echo_json(value: object) -> None:
    """One document, in one line."""
    click.echo(json.dumps(plain(value)))


def plain(value: Any) -> Any:
    """A result of the SDK for JSON: enums by their names in lower case, bytes in hexadecimal."""
    match value:
        case IntEnum():
            return value.name.lower()
        case bytes():
            return value.hex()
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())
        case list() | tuple():
            return [plain(item) for item in value]
    return value


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, err: bool = False) -> None:
    """A table on a terminal; else one line per row, with tabs between, for cut and read. On stdout, or on stderr."""
    if not (sys.stderr if err else sys.stdout).isatty():
        for row in rows:
            click.echo("\t".join(map(str, row)), err=err)
        return
    # Pipes do not need this import, which is slow.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    Console(stderr=err).print(table)
