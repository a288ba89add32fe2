"""A standard KVM on any x86-64 machine: Debian's kernel with kvm_amd, in QEMU, which emulates SVM.

It does not depend on the machine's own KVM. QEMU's instruction counter can be the clock, so that the emulated
processor has the same speed on every machine and a guest's ticks do not overload it.
"""

from __future__ import annotations

import base64
import compileall
import json
import os
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

from tests.debian_kernel import fetch_kernel, kernel_image, modules
from tests.nested.first_process import BEGINS, ENDS
from tests.ram_disk import write_cpio
from tests.this_machine import MissingError, copy, copy_distribution, copy_python, find

ROOT = Path(__file__).parents[2]
# The project's folders that are needed there, and where its packages are.
SOURCES = ("proto", "server", "client", "examples", "tests", "pyproject.toml")
IMPORTED_FROM = ("proto", "server", "client", ".")
LARGE = re.compile(r"golden|\..*")  # folders that are not needed there
DISTRIBUTIONS = ("irqchipd", "pytest", "pytest-timeout")
MODULE = "kvm-amd"
QEMU = "qemu-system-x86_64"
OPTIONS = "-M q35 -accel tcg -cpu max,+svm -m 1536 -display none -nodefaults -no-reboot -serial stdio"
OWN_CLOCK, INSTRUCTION_NS = "-icount shift={},sleep=off", 4
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 loglevel=3"


@dataclass(frozen=True)
class Done:
    """A command that has run."""

    status: int
    output: str


class StandardKvm:
    """Builds a new machine for each command, in one folder."""

    def __init__(self, folder: Path, kernel: Path) -> None:
        self.kernel = kernel
        self.initrd = folder / "initrd"
        root = folder / "root"
        root.mkdir()
        self._python = copy_python(root)
        for name in SOURCES:
            _copy_sources(root, ROOT / name)
        # Each of its processes would compile all that it imports, which takes seconds there.
        compileall.compile_dir(
            root / ROOT.relative_to("/"),
            stripdir=root,
            quiet=1,
            force=True,
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        self._packages = {str(where) for one in _needed(DISTRIBUTIONS) if (where := _copy(root, one)) is not None}
        loaded = root / "modules"
        loaded.mkdir()
        for number, image in enumerate(modules(kernel, MODULE)):
            (loaded / f"{number:02}.ko").write_bytes(image)
        init = root / "init"
        init.write_text(f"#!{self._python} -IS\n" + Path(__file__).with_name("first_process.py").read_text())
        init.chmod(0o755)
        with self.initrd.open("wb") as file:
            write_cpio(file, root)

    def run(
        self,
        *arguments: str,
        seconds: float,
        files: Iterable[Path] = (),
        own_clock: bool = True,
        instruction_ns: int = INSTRUCTION_NS,
        heard: Callable[[str], None] = lambda _: None,
    ) -> Done:
        """Run Python with some arguments in the project's folder. TimeoutError if it does not end in time.

        Without the instruction clock the machine is faster, but its time is not meaningful.

        files           further files of this machine, which are there at the same places
        instruction_ns  the duration of an instruction by the instruction clock: a power of two
        """
        clock = OWN_CLOCK.format(instruction_ns.bit_length() - 1) if own_clock else ""
        with TemporaryDirectory(dir=self.initrd.parent) as folder:
            return self._boot(arguments, self._with_files(Path(folder), files), seconds, clock, heard)

    def _with_files(self, folder: Path, files: Iterable[Path]) -> Path:
        """The RAM disk, and behind it one with more files: the kernel unpacks both."""
        root = folder / "root"
        root.mkdir()
        for path in files:
            copy(root, path)
        both = folder / "initrd"
        shutil.copy(self.initrd, both)
        with both.open("ab") as file:
            write_cpio(file, root)
        return both

    def _boot(
        self,
        arguments: tuple[str, ...],
        initrd: Path,
        seconds: float,
        clock: str,
        heard: Callable[[str], None],
    ) -> Done:
        folders = [*(str(ROOT / name) for name in IMPORTED_FROM), *sorted(self._packages)]
        environment = {"PATH": f"{self._python.parent}", "HOME": "/tmp", "PYTHONPATH": ":".join(folders)}
        what = {
            "command": [str(self._python), *arguments],
            "folder": str(ROOT),
            "environment": environment | {"PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb", "COLUMNS": "120"},
        }
        argument = base64.b64encode(json.dumps(what).encode()).decode()
        command = [
            find(QEMU),
            *OPTIONS.split(),
            *clock.split(),
            "-kernel",
            str(kernel_image(self.kernel)),
        ]
        command += ["-initrd", str(initrd), "-append", f"{KERNEL_OPTIONS} -- {argument}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as qemu:
            assert qemu.stdout is not None
            late = threading.Timer(seconds, qemu.kill)
            late.start()
            said = []
            for line in qemu.stdout:
                said.append(line.rstrip("\r\n"))
                heard(said[-1])
            late.cancel()
        ends = [line for line in said if line.startswith(f"{ENDS} ")]
        if not ends or BEGINS not in said:
            raise TimeoutError(f"it did not come to the command's end in {seconds:g} s:\n" + "\n".join(said))
        output = said[said.index(BEGINS) + 1 : said.index(ends[0])]
        return Done(int(ends[0].split()[1]), "\n".join(output))


def standard_kernel(cache: Path) -> Path:
    """Debian's kernel, unpacked into the cache folder. MissingError if it cannot be downloaded."""
    if platform.machine() != "x86_64":
        raise MissingError(f"on {platform.machine()}: what is booted is this machine's Python")
    return fetch_kernel(cache, "amd64")


def _needed(names: Iterable[str]) -> Iterator[Distribution]:
    """Installed distributions, with those that they require."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        with suppress(PackageNotFoundError):
            found = distribution(name)
            yield found
            for line in found.requires or ():
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(requirement.name)


def _copy(root: Path, one: Distribution) -> Path | None:
    """Copy a distribution; returns the folder that it is imported from."""
    copy_distribution(root, one)
    return Path(str(one.locate_file("")))


def _copy_sources(root: Path, path: Path) -> None:
    if path.is_file():
        copy(root, path)
        return
    for where, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not LARGE.fullmatch(name)]
        for name in files:
            copy(root, Path(where, name))
