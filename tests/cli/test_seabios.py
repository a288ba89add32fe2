"""SeaBIOS, from the reset vector to GRUB's shell, under irqchipctl run. Debian's packages have both."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon

BIOS, GRUB = Path("/usr/share/seabios/bios.bin"), Path("/usr/lib/grub-rescue/grub-rescue-floppy.img")
MICROVM, USB = Path("/usr/share/seabios/bios-microvm.bin"), GRUB.with_name("grub-rescue-usb.img")
FLOPPY = 1_474_560  # bytes: SeaBIOS knows a floppy by its size
PATIENCE = 60.0  # seconds. GRUB's menu comes after 5 where nothing else runs.
# What moves the cursor. A lone return is a slip of SeaBIOS's: a tick flushes its output in the middle of a character's.
CURSOR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="Unicorn is not installed"),
    pytest.mark.skipif(not BIOS.exists(), reason=f"there is no {BIOS}: the package seabios has it"),
    pytest.mark.skipif(not GRUB.exists(), reason=f"there is no {GRUB}: the package grub-rescue-pc has it"),
]


class Console:
    """A process of irqchipctl, with its output and the keys that are typed for it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "irqchip_client.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._said = b""

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def expect(self, pattern: str) -> str:
        """Waits for some output, and returns what has come before its end and after the last one expected."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        while True:
            said = CURSOR.sub(b"", self._said).decode(errors="replace")
            if found := re.search(pattern, said, re.DOTALL):
                self._said = b""
                return said[: found.end()]
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            assert data, f"{pattern} has not come; the last output was {said[-1000:]}"
            self._said += data

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def floppy(tmp_path: Path) -> Path:
    """GRUB's rescue floppy."""
    image = tmp_path / "grub.img"
    image.write_bytes(GRUB.read_bytes().ljust(FLOPPY, b"\0"))
    return image


@pytest.fixture
def consoles() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def boot(consoles: ExitStack, floppy: Path, *arguments: str) -> Console:
    console = Console(*arguments, "--cpu", "unicorn", "--firmware", str(BIOS), "--fw-cfg", f"floppyimg/grub={floppy}")
    consoles.callback(console.close)
    return console


def test_grub_takes_commands_from_the_serial_port(consoles: ExitStack, floppy: Path) -> None:
    console = boot(consoles, floppy, "run", "--memory", "64")
    console.expect("SeaBIOS .*Booting from Floppy.*GNU GRUB.*Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    console.type("lsmmap\r")
    ram = console.expect(r"lsmmap\r\n.*grub> ")
    assert "base_addr = 0x0, length = 0x9fc00, available RAM" in ram
    assert "base_addr = 0xfffc0000, length = 0x40000, reserved RAM" in ram
    console.type("halt\r")
    assert console.process.wait(PATIENCE) == 0


def test_grub_takes_commands_from_the_keyboard_s_process(
    consoles: ExitStack, floppy: Path, irqchip_server: Daemon
) -> None:
    target = ("--target", irqchip_server.target)
    console = boot(consoles, floppy, *target, "run", "--vm", "bios", "--await", "i8042", "--await", "MC146818")
    rtc, keyboard = (
        Console(*target, "device", "Rtc", "--vm", "bios"),
        Console(*target, "device", "I8042", "--vm", "bios"),
    )
    consoles.callback(rtc.close)
    consoles.callback(keyboard.close)
    console.expect("Use the .* keys to select")
    keyboard.type("c")
    console.expect("grub> ")
    keyboard.type("date\n")
    assert re.search(r"date\r\n20\d\d-\d\d?-\d\d? \d\d?:\d\d?:\d\d? ", console.expect(r"date\r\n.*grub> "))
    keyboard.type("reboot\n")
    assert console.process.wait(PATIENCE) == 0


def disk_is_there(server: Daemon) -> bool:
    with server.connect() as client:
        sessions = client.vm("bios").info().sessions
    return any(session.client == "virtio block" and session.regions for session in sessions)


@pytest.mark.skipif(not MICROVM.exists(), reason=f"there is no {MICROVM}: the package seabios has it")
def test_grub_boots_from_a_virtio_disk_whose_process_is_killed(
    consoles: ExitStack, tmp_path: Path, irqchip_server: Daemon
) -> None:
    """SeaBIOS finds the disk in ACPI's tables, and reads it by a driver of its own."""
    image = tmp_path / "disk"
    image.write_bytes(USB.read_bytes())
    os.truncate(image, (image.stat().st_size + 511) // 512 * 512)
    target = ("--target", irqchip_server.target)
    disk = (*target, "device", "VirtioBlock", "--vm", "bios", f"path={image}")
    firmware = ("--cpu", "unicorn", "--firmware", str(MICROVM))
    console = Console(*target, "run", "--vm", "bios", "--await", "virtio block", *firmware)
    consoles.callback(console.close)
    first = Console(*disk)
    consoles.callback(first.close)
    console.expect("SeaBIOS .*Booting from Hard Disk.*GNU GRUB.*Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    first.close()
    end = time.monotonic() + PATIENCE
    while disk_is_there(irqchip_server):
        assert time.monotonic() < end
        time.sleep(0.05)
    consoles.callback(Console(*disk).close)
    while not disk_is_there(irqchip_server):
        assert time.monotonic() < end
        time.sleep(0.05)
    console.type("ls (hd0)/\r")  # a BIOS keeps 15 keys
    assert "boot/" in console.expect(r"ls \(hd0\)/\r\n.*grub> ")
    console.type("halt\r")
    assert console.process.wait(PATIENCE) == 0
