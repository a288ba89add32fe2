"""Builds guest.elf: `python -m examples.guest.build [FILE]`. The same compiler produces the same bytes.

Needs a gcc that produces 32-bit code, and GNU ld. $CC may name another gcc. The C library is not needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BINARY = HERE / "guest.elf"
FLAGS = [
    *["-m32", "-march=i686", "-mgeneral-regs-only", "-std=gnu17", "-O2", "-Wall", "-Wextra"],
    # Without the host's libraries, unwinder, stack guards and loader.
    *["-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"],
    *["-fno-tree-loop-distribute-patterns", "-fno-pie"],
    *["-nostdlib", "-static", "-no-pie", "-Wl,-T,kernel.ld", "-Wl,--build-id=none", "-Wl,-z,noexecstack"],
]


def compiler() -> str:
    """The compiler's name."""
    return os.environ.get("CC", "gcc")


def build(binary: Path, folder: Path = HERE) -> None:
    """Compiles and links the sources in a folder. CalledProcessError if that fails, FileNotFoundError without gcc."""
    sources = ["boot.S", *sorted(path.name for path in folder.glob("*.c"))]
    # Run in the sources' folder, so that the binary contains no paths.
    command = [compiler(), *FLAGS, f"-ffile-prefix-map={folder}=.", "-o", str(binary.resolve()), *sources]
    subprocess.run(command, cwd=folder, check=True)


def recorded_compiler(binary: Path) -> bytes:
    """The compiler recorded in a binary's .comment section."""
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "comment"
        subprocess.run(["objcopy", "-O", "binary", "-j", ".comment", str(binary), str(section)], check=True)
        return section.read_bytes()


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else BINARY)
