"""Debian's stock Linux boots on Unicorn, so on any machine, and reads a virtio disk of another process."""

from __future__ import annotations

import hashlib
import lzma
import platform
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client._daemon import Daemon
from tests.busybox import make_initrd
from tests.debian_kernel import fetch_kernel, kernel_image
from tests.this_machine import MissingError, find

pytestmark = [
    pytest.mark.long,
    pytest.mark.boots,
    pytest.mark.timeout(660),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the guest's busybox is this machine's"),
]

PATIENCE = 600.0  # seconds; on an idle processor of 2020 the guest needs 20
MODULES = ("virtio_mmio", "virtio_blk")
INIT = Path(__file__).with_name("linux_init.sh")
SECTORS = 512


def bzimage(debian: Path, _folder: Path) -> Path:
    """Debian's kernel, which decompresses itself."""
    return kernel_image(debian)


def vmlinux(debian: Path, folder: Path) -> Path:
    """The ELF file in a bzImage, which starts by PVH. linux/Documentation/arch/x86/boot.rst, payload_offset."""
    image = kernel_image(debian).read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(image[0x1F1] + 1) * 512 + offset :][: length - 4]  # its length when unpacked is behind it
    kernel = folder / "vmlinux"
    if payload.startswith(b"\xfd7zXZ"):
        kernel.write_bytes(lzma.decompress(payload))
    else:
        subprocess.run([find("zstd"), "--decompress", "--quiet", "-o", kernel], input=payload, check=True)
    return kernel


@pytest.mark.parametrize("make_kernel", [bzimage, vmlinux])
def test_linux_reads_a_disk_and_turns_the_machine_off(
    make_kernel: Callable[[Path, Path], Path],
    irqchip_server: Daemon,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    cache = request.config.cache
    assert cache is not None
    try:
        debian = fetch_kernel(cache.mkdir("nested"), "amd64")
        initrd = make_initrd(cache.mkdir("nested"), debian, INIT, MODULES, tmp_path)
        kernel = make_kernel(debian, tmp_path)
    except MissingError as missing:
        pytest.skip(f"this machine is {missing}")
    disk, name = tmp_path / "disk", make_kernel.__name__
    disk.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(SECTORS)))
    irqchipctl = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target]
    guest = ["run", "--vm", name, "--cpu", "unicorn", "--memory", "192", "--await", "virtio block", "--with", "rtc"]
    guest += ["--await-timeout", f"{PATIENCE}", "--kernel", str(kernel), "--initrd", str(initrd)]
    guest += ["--append", "console=ttyS0 panic=-1 quiet"]
    block = ["device", "VirtioBlock", "--vm", name, "--wait", f"{PATIENCE}", f"path={disk}"]
    with subprocess.Popen([*irqchipctl, *block]) as device:
        try:
            run = subprocess.run(
                [*irqchipctl, *guest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            device.kill()
    said = run.stdout.decode(errors="replace")
    assert run.returncode == 0, said
    assert f"linux: disk {hashlib.md5(disk.read_bytes()).hexdigest()}" in said, said
    counts = {line: int(count) for count, line in re.findall(r"^ *\w+: +(\d+) +(\w.*\w)\r?$", said, re.M)}
    assert counts["Local timer interrupts"] > 100, said
    for kind, device_name in (("4-edge", "ttyS0"), ("16-fasteoi", "virtio0")):
        assert [count for line, count in counts.items() if re.fullmatch(rf"IO-APIC +{kind} +{device_name}", line)], said
    assert "XT-PIC" not in said
