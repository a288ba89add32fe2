"""The choice between compiled modules and their sources: a wheel that mypyc built has both."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_):
        """Set an option of mypyc for a class; without an effect in Python."""
        return lambda kind: kind


PURE = os.environ.get("IRQCHIPD_PURE", "") not in ("", "0")


def choose(folders: Iterable[str]) -> None:
    """Import a package's modules from their sources if IRQCHIPD_PURE=1. A package calls this with its __path__."""
    if PURE:
        for folder in folders:
            for path, _, _ in os.walk(folder):
                sys.path_importer_cache[path] = FileFinder(path, (SourceFileLoader, SOURCE_SUFFIXES))


def is_compiled(module: str) -> bool:
    """Whether a module's compiled form is imported."""
    from importlib.util import find_spec  # imports much

    spec = find_spec(module)
    return spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))
