"""SeaBIOS, from the reset vector to GRUB's shell and iPXE's, under irqchipctl run. Debian's packages have all three."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon
from tests.cli.console import PATIENCE, Console

BIOS, GRUB = Path("/usr/share/seabios/bios.bin"), Path("/usr/lib/grub-rescue")
IPXE = Path("/boot/ipxe.lkrn")
MICROVM = BIOS.with_name("bios-microvm.bin")
FLOPPY = 1_474_560  # bytes: SeaBIOS knows a floppy by its size
pytestmark = [
    pytest.mark.long,
    pytest.mark.boots,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="Unicorn is not installed"),
    pytest.mark.skipif(not BIOS.exists(), reason=f"there is no {BIOS}: the package seabios has it"),
    pytest.mark.skipif(not GRUB.exists(), reason=f"there is no {GRUB}: the package grub-rescue-pc has it"),
]


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


def boot(consoles: ExitStack, *arguments: str, firmware: Path = BIOS) -> Console:
    console = Console(*arguments, "--cpu", "unicorn", "--firmware", str(firmware))
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
    console.enter("ls (hd0)/")
    assert "boot/" in console.expect("grub> ")
    console.enter("halt")
    assert console.process.wait(PATIENCE) == 0


@pytest.mark.skipif(not IPXE.exists(), reason=f"there is no {IPXE}: the package ipxe has it")
def test_grub_starts_ipxe_from_a_second_disk(consoles: ExitStack, disk: Path, tmp_path: Path) -> None:
    """iPXE leaves and enters real mode for every key, and counts time by the BIOS's ticks."""
    second = tmp_path / "second.img"
    with tarfile.open(second, "w") as archive:  # GRUB reads an archive like a file system
        archive.add(IPXE, IPXE.name)
    console = boot(consoles, "run", "--memory", "64", "--disk", str(disk), "--disk", str(second))
    console.expect("Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    console.enter(f"linux16 (hd1)/{IPXE.name}")
    console.expect("grub> ")
    console.enter("boot")
    console.expect("iPXE initialising devices...ok.*Press Ctrl-B")
    console.type("\x02")
    console.expect("iPXE> ")
    console.enter("show version")
    assert "builtin/version:string = 1." in console.expect("iPXE> ")
    console.enter("reboot")
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


def disk_is_there(server: Daemon) -> bool:
    with server.connect() as client:
        sessions = client.vm("bios").info().sessions
    return any(session.client == "virtio block" and session.regions for session in sessions)


@pytest.mark.skipif(not MICROVM.exists(), reason=f"there is no {MICROVM}: the package seabios has it")
def test_grub_boots_from_a_virtio_disk_whose_process_is_killed(
    consoles: ExitStack, disk: Path, irqchip_server: Daemon
) -> None:
    """SeaBIOS finds the disk in ACPI's tables, and reads it by a driver of its own."""
    os.truncate(disk, (disk.stat().st_size + 511) // 512 * 512)
    target = ("--target", irqchip_server.target)
    device = (*target, "device", "VirtioBlock", "--vm", "bios", f"path={disk}")
    console = boot(consoles, *target, "run", "--vm", "bios", "--await", "virtio block", firmware=MICROVM)
    first = Console(*device)
    consoles.callback(first.close)
    console.expect("SeaBIOS .*Booting from Hard Disk.*GNU GRUB.*Use the .* keys to select")
    console.type("c")
    console.expect("grub> ")
    first.close()
    end = time.monotonic() + PATIENCE
    while disk_is_there(irqchip_server):
        assert time.monotonic() < end
        time.sleep(0.05)
    consoles.callback(Console(*device).close)
    while not disk_is_there(irqchip_server):
        assert time.monotonic() < end
        time.sleep(0.05)
    console.enter("ls (hd0)/")
    assert "boot/" in console.expect("grub> ")
    console.enter("halt")
    assert console.process.wait(PATIENCE) == 0
