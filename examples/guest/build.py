"""Builds guest.elf and guest-arm64.elf: `python -m examples.guest.build [x86 | arm64]`.

The same compiler produces the same bytes. Needs a gcc that produces 32-bit x86 code or arm64 code, and GNU ld for it.
$CC and $CC_ARM64 may name other compilers. The C library is not needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = [
    *["-mgeneral-regs-only", "-std=gnu17", "-O2", "-Wall", "-Wextra"],
    # Without the host's libraries, unwinder, stack guards and loader.
    *["-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"],
    *["-fno-tree-loop-distribute-patterns", "-fno-pie"],
    *["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"],
]


@dataclass(frozen=True)
class Guest:
    """A guest, and its compiler."""

    architecture: str  # the folder of the sources that the guests do not share
    file: str
    variable: str  # the environment variable for the compiler
    usual_compiler: str
    flags: tuple[str, ...]

    @property
    def binary(self) -> Path:
        """The guest in the repository."""
        return HERE / self.file

    @property
    def compiler(self) -> str:
        """The compiler's name."""
        return os.environ.get(self.variable, self.usual_compiler)

    @property
    def objcopy(self) -> str:
        """The objcopy that comes with the usual compiler."""
        return self.usual_compiler.removesuffix("gcc") + "objcopy"


X86 = Guest("x86", "guest.elf", "CC", "gcc", ("-m32", "-march=i686", "-fcf-protection=none"))
ARM64 = Guest(
    "arm64",
    "guest-arm64.elf",
    "CC_ARM64",
    "aarch64-linux-gnu-gcc",
    ("-march=armv8-a", "-mstrict-align", "-Wl,-z,max-page-size=4096"),
)
GUESTS = (X86, ARM64)
BINARY = X86.binary


def build(guest: Guest, binary: Path, folder: Path = HERE) -> None:
    """Compiles and links the sources in a folder. CalledProcessError if that fails, FileNotFoundError without gcc."""
    own = guest.architecture
    sources = [f"{own}/boot.S", *sorted(str(path.relative_to(folder)) for path in folder.glob(f"{own}/*.c"))]
    sources += sorted(path.name for path in folder.glob("*.c"))
    # Run in the sources' folder, so that the binary contains no paths.
    places = [f"-ffile-prefix-map={folder}=.", "-I.", f"-I{own}", f"-Wl,-T,{own}/kernel.ld"]
    command = [guest.compiler, *guest.flags, *FLAGS, *places, "-o", str(binary.resolve()), *sources]
    subprocess.run(command, cwd=folder, check=True)


def recorded_compiler(guest: Guest, binary: Path) -> bytes:
    """The compiler recorded in a binary's .comment section."""
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "comment"
        subprocess.run([guest.objcopy, "-O", "binary", "-j", ".comment", str(binary), str(section)], check=True)
        return section.read_bytes()


if __name__ == "__main__":
    for each in GUESTS:
        if each.architecture in (sys.argv[1:] or [each.architecture]):
            build(each, each.binary)
