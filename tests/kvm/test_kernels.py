"""Test kernels in C, as multiboot images, run to their end without a failed check."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon
from irqchip_client.kvm import why_not

KERNELS = Path(__file__).parent / "kernels"
FLAGS = "-O2 -Wall -Werror -Wno-unused-function -ffreestanding -nostdlib -static -no-pie -fno-pie -mgeneral-regs-only"
LINK = f"-Wl,-T,{KERNELS / 'kernel.ld'} -Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments"


@pytest.fixture(params=["32", "64"])
def bits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


@pytest.mark.parametrize("embedded", [False, True], ids=["daemon", "embedded"])
@pytest.mark.parametrize("name", ["apic", "ioapic"])
def test_a_kernel_passes(irqchip_server: Daemon, tmp_path: Path, name: str, bits: str, embedded: bool) -> None:
    if reason := why_not():
        pytest.skip(reason)
    image = build(name, bits, tmp_path)
    command = [
        sys.executable,
        "-m",
        "irqchip_client.cli",
        "--target",
        "embedded:" if embedded else irqchip_server.target,
    ]
    command += ["run", "--cpu", "kvm", "--kernel", str(image), "--timeout", "30"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("PASS: ")] == ["END"], done
    assert len(lines) > 10
    assert done.returncode == 1
