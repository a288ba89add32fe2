"""A test kernel with paging, programs in ring 3, preemption and a disk. The standard KVM runs the same one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from tests.kvm.build import build
from tests.kvm.pattern import make_disk, was_written

CHECKS = 22


def test_a_kernel_with_programs_passes(tmp_path: Path) -> None:
    kernel, disk = build("processes", "32", tmp_path), tmp_path / "disk.img"
    make_disk(disk)
    command = [sys.executable, "-m", "irqchip_client.cli", "run", "--cpu", "unicorn", "--kernel", str(kernel)]
    command += ["--disk", str(disk), "--timeout", "30"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("PASS: ")] == ["END"], done
    assert len(lines) == CHECKS + 1
    assert done.returncode == 1
    assert was_written(disk)
