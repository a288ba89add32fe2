"""Test kernels with programs in ring 3, which print the same lines on the standard KVM (tests/nested)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from tests.kvm.build import build
from tests.kvm.lines import KERNELS, LINES
from tests.kvm.pattern import make_disk, was_written


@pytest.mark.parametrize(("name", "bits"), KERNELS)
def test_a_kernel_with_programs_passes(tmp_path: Path, name: str, bits: str) -> None:
    kernel, disk = build(name, bits, tmp_path), tmp_path / "disk.img"
    make_disk(disk)
    command = [sys.executable, "-m", "irqchip_client.cli", "run", "--cpu", "unicorn", "--kernel", str(kernel)]
    command += ["--disk", str(disk), "--timeout", "200"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.splitlines() == [*LINES[name], "END"], done
    assert done.returncode == 1
    assert was_written(disk) is (name == "processes")
