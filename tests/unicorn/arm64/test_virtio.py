"""A standard Linux kernel for arm64 uses a virtio disk and a virtio console of other processes, which may be killed."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client._daemon import Daemon
from tests.debian_kernel import kernel_image, modules
from tests.ram_disk import write_cpio
from tests.this_machine import MissingError, find

PATIENCE = 600  # seconds; on two processors of 2020 the test takes one minute
SECTORS = 2048
MODULES = ("virtio_mmio", "virtio_blk")
INIT = Path(__file__).with_name("virtio_init.c")
COMPILER = "aarch64-linux-gnu-gcc"

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(PATIENCE + 60)]


def make_initrd(debian: Path, folder: Path) -> Path:
    """A RAM disk with the program and its drivers. MissingError without a compiler."""
    root = folder / "root"
    for name in ("proc", "dev"):
        (root / name).mkdir(parents=True)
    options = ["-O1", "-Wall", "-Werror", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"]
    subprocess.run([find(COMPILER), *options, "-o", str(root / "init"), str(INIT)], check=True)
    for module in MODULES:
        (image,) = modules(debian, module)  # which needs no other
        (root / f"{module}.ko").write_bytes(image)
    with open(folder / "initrd", "wb") as file:
        write_cpio(file, root)
    return folder / "initrd"


@contextmanager
def command(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`irqchipctl` with some arguments; it is killed in the end."""
    line = [sys.executable, "-m", "irqchip_client.cli", "--target", daemon.target, *arguments]
    with subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(path: Path, text: bytes) -> bytes:
    """Waits for a line on a console's socket, answers it, and returns it."""
    with socket.socket(socket.AF_UNIX) as terminal:
        while terminal.connect_ex(str(path)):  # the device's process is not there yet
            time.sleep(0.1)
        terminal.settimeout(PATIENCE)
        line = b""
        while not line.endswith(b"\n"):
            line += terminal.recv(100)
        terminal.send(text)
        return line


def test_linux_reads_a_disk_whose_process_is_killed(debian: Path, tmp_path: Path, irqchip_server: Daemon) -> None:
    try:
        initrd = make_initrd(debian, tmp_path)
    except MissingError as missing:
        pytest.skip(f"this machine is {missing}")
    disk = tmp_path / "disk"
    disk.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(SECTORS)))
    arguments = ["--vm", "virtio", "--kernel", str(kernel_image(debian)), "--initrd", str(initrd), "--memory", "256"]
    arguments += ["--append", "console=ttyS0 panic=-1", "--await", "virtio block", "--await", "virtio console"]
    arguments += ["--timeout", str(PATIENCE)]
    device = ("device", "VirtioBlock", "--vm", "virtio", f"path={disk}")
    console = ("device", "VirtioConsole", "--vm", "virtio", "--listen", str(tmp_path / "console"))
    output: list[str] = []
    a_third = threading.Event()

    def read(run: subprocess.Popen[str]) -> None:
        assert run.stdout is not None
        for text in run.stdout:
            output.append(text)
            if "a third is read" in text:
                a_third.set()
        a_third.set()

    with (
        command(irqchip_server, "run", *arguments) as run,
        command(irqchip_server, *console),
        command(irqchip_server, *device) as first,
    ):
        reader = threading.Thread(target=read, args=(run,))
        reader.start()
        assert answer(tmp_path / "console", b"nobody\r") == b"who is there?\r\n"
        a_third.wait()
        first.send_signal(signal.SIGKILL)
        first.wait()
        with command(irqchip_server, *device):
            reader.join()
            run.wait()
    printed = "".join(output)
    assert run.returncode == 0, printed[-2000:]
    said = dict(re.findall(r"^init: ([a-z ]+): (-?\d+)\r?$", printed, re.M))
    assert said == {"wrong sectors": "0", "written": "4096", "flushed": "0"}, printed[-2000:]
    assert disk.read_bytes()[4096:8192] == b"w" * 4096
    assert "init: heard nobody" in printed
    (interrupts,) = re.findall(r"^ *\d+: +(\d+) +GICv3 +48 Level +virtio0", printed, re.M)
    assert int(interrupts) > 200
