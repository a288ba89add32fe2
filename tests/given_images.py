"""Images of guests that are not part of the project: folders of them, which environment variables name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def given_folder(variable: str) -> Path:
    """The folder that the variable names; skips the test without it."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder with images")
    return Path(folder).resolve()


def given_images(variable: str, *names: str) -> list[Path]:
    """The images of these names in the variable's folder; skips the test if one is missing."""
    folder = given_folder(variable)
    paths = [folder / name for name in names]
    if missing := [str(path) for path in paths if not path.is_file()]:
        pytest.skip(f"there is no {', '.join(missing)}")
    return paths
