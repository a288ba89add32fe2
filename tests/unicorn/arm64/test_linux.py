"""A standard Linux kernel for arm64 boots on Unicorn with the daemon's GIC and timers, and runs a program."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client._daemon import Daemon
from tests.debian_kernel import kernel_image
from tests.ram_disk import write_cpio

PATIENCE = 600  # seconds

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(PATIENCE + 60)]

# Mounts /proc, copies /proc/interrupts to the console, and turns the machine off, by system calls alone.
INIT = (
    bytes.fromhex(
        "60040010"  # adr x0, 8c
        "61040030"  # adr x1, 91
        "22040010"  # adr x2, 8c
        "030080d2"  # mov x3, #0x0
        "040080d2"  # mov x4, #0x0
        "080580d2"  # mov x8, #0x28
        "010000d4"  # svc #0x0
        "600c8092"  # mov x0, #0xffffffffffffff9c
        "a1030070"  # adr x1, 97
        "020080d2"  # mov x2, #0x0
        "080780d2"  # mov x8, #0x38
        "010000d4"  # svc #0x0
        "f30300aa"  # mov x19, x0
        "e00313aa"  # mov x0, x19
        "e10310d1"  # sub x1, sp, #0x400
        "024080d2"  # mov x2, #0x200
        "e80780d2"  # mov x8, #0x3f
        "010000d4"  # svc #0x0
        "1f0000f1"  # cmp x0, #0x0
        "ed000054"  # b.le 68
        "e20300aa"  # mov x2, x0
        "200080d2"  # mov x0, #0x1
        "e10310d1"  # sub x1, sp, #0x400
        "080880d2"  # mov x8, #0x40
        "010000d4"  # svc #0x0
        "f4ffff17"  # b 34
        "a0d59bd2"  # mov x0, #0xdead
        "20dcbff2"  # movk x0, #0xfee1, lsl #16
        "212d83d2"  # mov x1, #0x1969
        "4102a5f2"  # movk x1, #0x2812, lsl #16
        "82db9fd2"  # mov x2, #0xfedc
        "2264a8f2"  # movk x2, #0x4321, lsl #16
        "c81180d2"  # mov x8, #0x8e
        "010000d4"  # svc #0x0
        "00000014"  # b 88
    )
    + b"proc\0/proc\0/proc/interrupts\0"
)


def program(code: bytes) -> bytes:
    """A static ELF file."""
    base = 0x40_0000
    header = struct.pack("<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 2, 183, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(code)
    return header + struct.pack("<2I6Q", 1, 5, 0, base, base, size, size, 0x1000) + code


@pytest.mark.parametrize("gic", ["3", "2"])
def test_linux_boots_to_its_first_process_and_turns_the_machine_off(
    debian: Path, gic: str, tmp_path: Path, irqchip_server: Daemon
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "init").write_bytes(program(INIT))
    (root / "init").chmod(0o755)
    (root / "proc").mkdir()
    initrd = tmp_path / "initrd"
    with open(initrd, "wb") as file:
        write_cpio(file, root)
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run"]
    command += ["--kernel", str(kernel_image(debian)), "--initrd", str(initrd), "--gic", gic, "--memory", "256"]
    command += ["--append", "console=ttyS0 panic=-1", "--timeout", str(PATIENCE)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    chip = "GICv3" if gic == "3" else "GIC-0"
    (ticks,) = re.findall(rf"^ *\d+: +(\d+) +{chip} +27 Level +arch_timer", done.stdout, re.M)
    assert int(ticks) > 100
    assert re.search(rf"^ *\d+: +\d+ +{chip} +33 Level +ttyS0", done.stdout, re.M)
