"""Debian's stock Linux boots on two vCPUs of a standard KVM, and all its interrupts are irqchipd's."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import pytest

from tests.busybox import make_initrd
from tests.debian_kernel import kernel_image
from tests.nested.standard_kvm import StandardKvm
from tests.this_machine import MissingError

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(960)]

PATIENCE = 900.0  # seconds; most of it is for a machine that is busy otherwise
MODULES = ("virtio_mmio", "virtio_blk")
INIT = Path(__file__).with_name("linux_init.sh")
SECTORS = 2048


@pytest.fixture
def initrd(standard_kvm: StandardKvm, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The guest's RAM disk: busybox, which runs INIT, and the drivers of a virtio disk."""
    try:
        return make_initrd(request.config.cache.mkdir("nested"), standard_kvm.kernel, INIT, MODULES, tmp_path)
    except MissingError as missing:
        pytest.skip(f"this machine is {missing}")


def interrupts(printed: str, begin: str, end: str) -> dict[str, list[int]]:
    """The lines of /proc/interrupts: their counts by name or number."""
    (text,) = re.findall(rf"^linux: {begin}$(.*?)^linux: {end}", printed, re.M | re.S)
    return {name: [int(count) for count in counts.split()] for name, counts in re.findall(LINE, text, re.M)}


LINE = r"^ *(\w+): +(\d+ +\d+)\b"


def test_debians_linux_runs_on_two_vcpus_and_survives_its_disks_process(
    standard_kvm: StandardKvm, initrd: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(SECTORS)))
    kernel = kernel_image(standard_kvm.kernel)
    done = standard_kvm.run(
        "-m", "tests.nested.linux", *map(str, (kernel, initrd, disk)), seconds=PATIENCE, files=(kernel, initrd, disk)
    )
    said = done.output
    assert done.status == 0, said
    assert "linux: clocksource tsc" in said, said
    before, after = interrupts(said, "before", "reading"), interrupts(said, "after", "end")
    for counts in (before, after):
        assert all(counts["LOC"]), said
    ticks = [late - early for early, late in zip(before["LOC"], after["LOC"], strict=True)]
    assert all(count > 100 for count in ticks), said
    for cpu in range(2):
        kinds = ("RES", "CAL", "TLB")
        assert sum(after[kind][cpu] - before[kind][cpu] for kind in kinds) > 0, said
    for line in (r"IO-APIC +4-edge +ttyS0", r"IO-APIC +8-edge +rtc0", r"IO-APIC +16-fasteoi +virtio0"):
        assert re.search(line, said), said
    assert "XT-PIC" not in said
    assert len(re.findall(r"^linux: worker [01] [1-9]", said, re.M)) == 2, said
    digests = set(re.findall(r"^linux: disk (\w+)", said, re.M))
    assert digests == {hashlib.md5(disk.read_bytes()).hexdigest()}, said
    assert "the disk's process is killed" in said
