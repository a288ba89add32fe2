"""SeaBIOS, from the reset vector to GRUB's shell, under irqchipctl run. Debian's packages have both."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon

BIOS, GRUB = Path("/usr/share/seabios/bios.bin"), Path("/usr/lib/grub-rescue")
FLOPPY = 1_474_560  # bytes: SeaBIOS knows a floppy by its size
PATIENCE = 120.0  # seconds. GRUB's menu comes after 5 where nothing else runs.
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

    def enter(self, line: str, keyboard: Console | None = None) -> None:
        """Types a line into GRUB's shell, not faster than it is echoed: SeaBIOS keeps 15 keys."""
        for character in line:
            (keyboard or self).type(character)
            self.expect(re.escape(character))
        (keyboard or self).type("\r")

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
    image.write_bytes((GRUB / "grub-rescue-floppy.img").read_bytes().ljust(FLOPPY, b"\0"))
    return image


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """GRUB's rescue disk, which is an image for CDs and for hard disks."""
    return Path(shutil.copy(GRUB / "grub-rescue-cdrom.iso", tmp_path / "grub.img"))


@pytest.fixture
def consoles() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def boot(consoles: ExitStack, *arguments: str) -> Console:
    console = Console(*arguments, "--cpu", "unicorn", "--firmware", str(BIOS))
    consoles.callback(console.close)
    return console


def test_grub_takes_commands_from_the_serial_port(consoles: ExitStack, floppy: Path) -> None:
    console = boot(consoles, "run", "--memory", "64", "--fw-cfg", f"floppyimg/grub={floppy}")
    console.expect("SeaBIOS .*Booting from Floppy.*GNU GRUB.*Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    console.enter("lsmmap")
    ram = console.expect("grub> ")
    assert "base_addr = 0x0, length = 0x9fc00, available RAM" in ram
    assert "base_addr = 0xfffc0000, length = 0x40000, reserved RAM" in ram
    console.enter("halt")
    assert console.process.wait(PATIENCE) == 0


def test_grub_is_loaded_from_an_ide_disk(consoles: ExitStack, disk: Path) -> None:
    console = boot(consoles, "run", "--disk", str(disk))
    console.expect("SeaBIOS .*Booting from Hard Disk.*Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    console.enter("search --file /boot/grub/grub.cfg")
    assert "hd0" in console.expect("grub> ")
    console.enter("halt")
    assert console.process.wait(PATIENCE) == 0


def test_grub_takes_commands_from_the_keyboard_s_process(
    consoles: ExitStack, floppy: Path, irqchip_server: Daemon
) -> None:
    target = ("--target", irqchip_server.target)
    given = ("--fw-cfg", f"floppyimg/grub={floppy}", "--await", "i8042", "--await", "MC146818")
    console = boot(consoles, *target, "run", "--vm", "bios", *given)
    rtc, keyboard = (
        Console(*target, "device", "Rtc", "--vm", "bios"),
        Console(*target, "device", "I8042", "--vm", "bios"),
    )
    consoles.callback(rtc.close)
    consoles.callback(keyboard.close)
    console.expect("Use the .* keys to select")
    keyboard.type("c")
    console.expect("grub> ")
    console.enter("date", keyboard)
    assert re.search(r"20\d\d-\d\d?-\d\d? \d\d?:\d\d?:\d\d? ", console.expect("grub> "))
    console.enter("reboot", keyboard)
    assert console.process.wait(PATIENCE) == 0
