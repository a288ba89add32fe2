"""What this machine has: programs and ports; and copies of its files in another root folder, Python's among them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path

# Parts of the standard library not to copy: other packages' folders, build files, and large unneeded modules.
LEFT_OUT = re.compile(r"(site|dist)-packages|config-.*|ensurepip|idlelib|lib2to3|test|tests|tkinter|turtledemo")


class MissingError(Exception):
    """This machine lacks something; the message says what."""


def interpreter() -> Path:
    """The Python that runs this process, outside any virtual environment."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()


def find(program: str) -> str:
    """The path of a program."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise MissingError(f"without {program}")
    return path


def output(*command: str) -> str:
    """A command's output."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listened just now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def copy(root: Path, path: Path) -> None:
    """Copy a file or link, with the links that lead to it."""
    for here in (*reversed(path.parents), path):
        there = root / here.relative_to("/")
        if here.is_symlink():
            if not there.is_symlink():
                there.symlink_to(os.readlink(here))
            # The link's target may itself lead over links.
            copy(root, Path(os.path.normpath(here.parent / os.readlink(here))) / path.relative_to(here))
            return
        if here.is_dir():
            there.mkdir(exist_ok=True)
        elif not there.exists():
            shutil.copy2(here, there)


def copy_program(root: Path, path: Path) -> None:
    """Copy a program or a shared library, and the libraries it needs."""
    copy(root, path)
    for library in re.findall(r"(/\S+) \(0x", output("ldd", str(path))):
        copy(root, Path(library))


def copy_package(root: Path, folder: Path) -> None:
    """Copy a folder of Python, with the libraries its extensions need."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not LEFT_OUT.fullmatch(name)]
        for path in (Path(where, name) for name in files):
            if ".so" in path.suffixes:
                copy_program(root, path)
            elif path.suffix != ".pyc" or path.name.endswith(f".{sys.implementation.cache_tag}.pyc"):
                copy(root, path)


def copy_python(root: Path) -> Path:
    """Copy the interpreter and its standard library to the same places; returns the interpreter's path."""
    python = interpreter()
    copy_program(root, python)
    (root / python.relative_to("/")).with_name("python3").symlink_to(python.name)
    for scheme_path in ("stdlib", "platstdlib"):
        at = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        copy_package(root, Path(sysconfig.get_path(scheme_path, "posix_prefix", at)))
    return python


def copy_distribution(root: Path, distribution: Distribution) -> None:
    """Copy an installed distribution to the same place, without its programs."""
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if file.parts[0] == ".." or not path.exists():
            continue
        if ".so" in path.suffixes:
            copy_program(root, path)
        else:
            copy(root, path)
