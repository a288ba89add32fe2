"""Kernels with paging and programs in ring 3, on two vCPUs of a standard KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.xv6 import images
from tests.kvm.build import build
from tests.kvm.pattern import make_disk
from tests.nested.standard_kvm import StandardKvm

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PATIENCE = 600.0  # seconds; most of it is for a machine that is busy otherwise
CHECKS = 27


def test_a_kernel_with_programs_passes(standard_kvm: StandardKvm, tmp_path: Path) -> None:
    """The same kernel as in tests/unicorn/test_kernels.py, and with a second processor."""
    kernel, disk = build("processes", "32", tmp_path), tmp_path / "disk.img"
    make_disk(disk)
    options = ("--cpu", "kvm", "--cpus", "2", "--kernel", str(kernel), "--disk", str(disk), "--timeout", "120")
    done = standard_kvm.run("-m", "irqchip_client.cli", "run", *options, seconds=PATIENCE, files=[kernel, disk])
    lines = [line for line in done.output.splitlines() if line]
    assert [line for line in lines if not line.startswith("PASS: ")] == ["END"], done.output
    assert len(lines) == CHECKS + 1
    assert done.status == 1


def test_xv6_runs_on_two_processors(standard_kvm: StandardKvm) -> None:
    (kernel,) = images("kernelmemfs")
    options = ("--cpu", "kvm", "--cpus", "2", "--kernel", str(kernel))
    commands = ("ls", "forktest")
    done = standard_kvm.run("-m", "tests.guest.xv6", *commands, "--", *options, seconds=PATIENCE, files=[kernel])
    assert done.status == 0, done.output
    assert "cpu1: starting 1" in done.output
    assert "README " in done.output
    assert "fork test OK" in done.output
