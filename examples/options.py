"""What the devices' command lines have in common."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from irqchip_client import IrqchipError


def parser(what: str | None) -> argparse.ArgumentParser:
    """A parser with the common options; the first line of a docstring says what it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = argparse.ArgumentParser(description=(what or "").splitlines()[0])
    options.add_argument("--vm", default="demo", metavar="NAME", help="the VM that it is a device of (demo)")
    options.add_argument("--target", metavar="ADDRESS", help="the daemon; by default as irqchipctl finds it")
    return options


@contextmanager
def short_errors() -> Iterator[None]:
    """What goes wrong is one line, and exit status 1."""
    try:
        yield
    except (IrqchipError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
