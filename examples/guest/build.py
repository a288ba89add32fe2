"""Makes guest.elf, the same bytes wherever the compiler is the same: `python -m examples.guest.build [FILE]`.

Needs a gcc that makes 32-bit code, and GNU ld; $CC may name another gcc. The C library is not needed.
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
    # No host's libraries, unwinder, stack guards or loader.
    *["-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"],
    *["-fno-tree-loop-distribute-patterns", "-fno-pie"],
    *["-nostdlib", "-static", "-no-pie", "-Wl,-T,kernel.ld", "-Wl,--build-id=none", "-Wl,-z,noexecstack"],
]


def compiler() -> str:
    """The compiler's name."""
    return os.environ.get("CC", "gcc")


def build(binary: Path, folder: Path = HERE) -> None:
    """Compiles and links a folder's sources. CalledProcessError where that fails, FileNotFoundError without gcc."""
    sources = ["boot.S", *sorted(path.name for path in folder.glob("*.c"))]
    # Among the sources, so that no path gets into the file.
    command = [compiler(), *FLAGS, f"-ffile-prefix-map={folder}=.", "-o", str(binary.resolve()), *sources]
    subprocess.run(command, cwd=folder, check=True)


def recorded_compiler(binary: Path) -> bytes:
    """The compiler that a binary says it was made by: its section .comment."""
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "comment"
        subprocess.run(["objcopy", "-O", "binary", "-j", ".comment", str(binary), str(section)], check=True)
        return section.read_bytes()


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else BINARY)
