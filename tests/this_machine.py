"""Files of this machine, copied to another root folder: programs, the libraries that they need, and Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path

# Of the standard library: what has another's packages, what is for building Python, and what is large and not needed.
LEFT_OUT = re.compile(r"(site|dist)-packages|config-.*|ensurepip|idlelib|lib2to3|test|tests|tkinter|turtledemo")


class MissingError(Exception):
    """This machine lacks something; the message says what."""


def interpreter() -> Path:
    """The Python that runs this, outside of any virtual environment."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()


def find(program: str) -> str:
    """Where a program is."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise MissingError(f"without {program}")
    return path


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def copy(root: Path, path: Path) -> None:
    """A file or link of this machine's, with the links that lead to it."""
    for here in (*reversed(path.parents), path):
        there = root / here.relative_to("/")
        if here.is_symlink():
            if not there.is_symlink():
                there.symlink_to(os.readlink(here))
            # What the link says may lead over links, too.
            copy(root, Path(os.path.normpath(here.parent / os.readlink(here))) / path.relative_to(here))
            return
        if here.is_dir():
            there.mkdir(exist_ok=True)
        elif not there.exists():
            shutil.copy2(here, there)


def copy_program(root: Path, path: Path) -> None:
    """A program or a shared library, and the libraries that it needs."""
    copy(root, path)
    for library in re.findall(r"(/\S+) \(0x", output("ldd", str(path))):
        copy(root, Path(library))


def copy_package(root: Path, folder: Path) -> None:
    """A folder of Python, with the libraries that its extensions need."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not LEFT_OUT.fullmatch(name)]
        for path in (Path(where, name) for name in files):
            if ".so" in path.suffixes:
                copy_program(root, path)
            elif path.suffix != ".pyc" or path.name.endswith(f".{sys.implementation.cache_tag}.pyc"):
                copy(root, path)


def copy_python(root: Path) -> Path:
    """The interpreter and its standard library, at the same places as here; its path."""
    python = interpreter()
    copy_program(root, python)
    (root / python.relative_to("/")).with_name("python3").symlink_to(python.name)
    for scheme_path in ("stdlib", "platstdlib"):
        at = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        copy_package(root, Path(sysconfig.get_path(scheme_path, "posix_prefix", at)))
    return python


def copy_distribution(root: Path, distribution: Distribution) -> None:
    """An installed distribution, at the same place as here, without its programs."""
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if file.parts[0] == ".." or not path.exists():
            continue
        if ".so" in path.suffixes:
            copy_program(root, path)
        else:
            copy(root, path)
