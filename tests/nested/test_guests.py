"""Guests on a standard KVM: kernels with paging and programs in ring 3, and of two CPUs; firmware."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_seabios import BIOS, FLOPPY, GRUB
from tests.guest.xv6 import images
from tests.kvm.build import build
from tests.kvm.lines import KERNELS, LINES
from tests.kvm.pattern import make_disk
from tests.nested.standard_kvm import StandardKvm

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(1200)]

PATIENCE = 1100.0  # seconds; most of it is for a machine that is busy otherwise
# QEMU's own processor executes the INT, and its error code is 16 * vector + 2 in 64-bit mode.
INT = "so does INT of a gate of ring 0, with its vector"
QEMUS_OWN = {f"PASS: {INT}": f"FAIL: {INT}"}
OF_TWO_PROCESSORS = 5  # further lines of processes.c


def test_kernels_pass(standard_kvm: StandardKvm, tmp_path: Path) -> None:
    """Those of tests/unicorn/test_kernels.py, of which one uses its second processor here, and one of two CPUs."""
    kernels = [build(name, bits, tmp_path) for name, bits in (*KERNELS, ("smp", "64"))]
    disk = tmp_path / "disk.img"
    make_disk(disk)
    program = ("-m", "tests.nested.kernels", str(disk), *map(str, kernels))
    done = standard_kvm.run(*program, seconds=PATIENCE, files=[disk, *kernels])
    said: list[list[str]] = [[]]
    for line in filter(None, done.output.splitlines()):
        if line == "END":
            said.append([])
        else:
            said[-1].append(line)
    assert len(said) == len(kernels) + 1, done.output
    rings, processes, smp, rest = said
    assert rings == [QEMUS_OWN.get(line, line) for line in LINES["rings"]], done.output
    assert processes[: len(LINES["processes"])] == LINES["processes"], done.output
    further = processes[len(LINES["processes"]) :]
    assert all(line.startswith("PASS: ") for line in further), done.output
    assert len(further) == OF_TWO_PROCESSORS
    assert (smp, rest, done.status) == (LINES["smp"], [], 0), done.output


@pytest.mark.parametrize("names", [("kernelmemfs",), ("kernel", "xv6.img", "fs.img")], ids=["memory", "disks"])
def test_xv6_runs_on_two_processors(standard_kvm: StandardKvm, names: tuple[str, ...]) -> None:
    """Its file system is in memory or on the second IDE disk."""
    files = images(*names)
    kernel, *disks = map(str, files)
    options = ["--cpu", "kvm", "--cpus", "2", "--kernel", kernel]
    for disk in disks:
        options += ["--disk", disk]
    commands = ("ls", "forktest")
    program = ("-m", "tests.guest.xv6", *commands, "--", *options)
    # At 4 ns for an instruction, the ticks of two vCPUs are all that the processor has time for.
    done = standard_kvm.run(*program, seconds=PATIENCE, files=files, instruction_ns=1)
    assert done.status == 0, done.output
    assert "cpu1: starting 1" in done.output
    assert "README " in done.output
    assert "fork test OK" in done.output


@pytest.mark.skipif(not BIOS.exists(), reason=f"there is no {BIOS}: the package seabios has it")
@pytest.mark.skipif(not GRUB.exists(), reason=f"there is no {GRUB}: the package grub-rescue-pc has it")
def test_seabios_boots_grub(standard_kvm: StandardKvm, tmp_path: Path) -> None:
    floppy = tmp_path / "grub.img"
    floppy.write_bytes((GRUB / "grub-rescue-floppy.img").read_bytes().ljust(FLOPPY, b"\0"))
    what = ("tests.guest.grub", str(BIOS), str(floppy))
    done = standard_kvm.run("-m", *what, seconds=PATIENCE, files=[BIOS, floppy])
    assert done.status == 0, done.output
    assert "base_addr = 0x0, length = 0x9fc00, available RAM" in done.output
