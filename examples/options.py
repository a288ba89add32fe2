"""The common options of the devices' command lines."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from irqchip_client import IrqchipError


def parser(what: str | None) -> argparse.ArgumentParser:
    """A parser with the common options, described by the first line of a docstring."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = argparse.ArgumentParser(description=(what or "").splitlines()[0])
    options.add_argument("--vm", default="demo", metavar="NAME", help="the VM the device belongs to (demo)")
    options.add_argument("--target", metavar="ADDRESS", help="the daemon's address [default: the same as irqchipctl's]")
    return options


@contextmanager
def short_errors() -> Iterator[None]:
    """Print an error as one line, and exit with status 1."""
    try:
        yield
    except (IrqchipError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
