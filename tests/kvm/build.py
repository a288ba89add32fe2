"""Builds the test kernels of kernels/, as multiboot images."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent / "kernels"
FLAGS = "-O2 -Wall -Werror -Wno-unused-function -ffreestanding -nostdlib -static -no-pie -fno-pie -mgeneral-regs-only"
LINK = f"-Wl,-T,{KERNELS / 'kernel.ld'} -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments"


def build(name: str, bits: str, where: Path) -> Path:
    """Build the image; skip if no compiler can."""
    if (gcc := shutil.which("gcc")) is None:
        pytest.skip("gcc is not installed")
    options = [
        *FLAGS.split(),
        f"-m{bits}",
        "-mno-red-zone",
        "-fno-stack-protector",
        "-fcf-protection=none",
        *LINK.split(),
    ]
    sources = [str(KERNELS / "boot.S"), str(KERNELS / f"{name}.c")]
    image = where / f"{name}.elf"
    done = subprocess.run([gcc, *options, "-o", str(image), *sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return image
