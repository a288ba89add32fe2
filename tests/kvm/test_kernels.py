"""Test kernels in C, as multiboot images, run to their end without a failed check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon
from irqchip_client.kvm import why_not
from tests.kvm.build import build


@pytest.fixture(params=["32", "64"])
def bits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("embedded", [False, True], ids=["daemon", "embedded"])
@pytest.mark.parametrize("name", ["apic", "ioapic"])
def test_a_kernel_passes(irqchip_server: Daemon, tmp_path: Path, name: str, bits: str, embedded: bool) -> None:
    if reason := why_not():
        pytest.skip(reason)
    image = build(name, bits, tmp_path)
    command = [
        sys.executable,
        "-m",
        "irqchip_client.cli",
        "--target",
        "embedded:" if embedded else irqchip_server.target,
    ]
    command += ["run", "--cpu", "kvm", "--kernel", str(image), "--timeout", "30"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("PASS: ")] == ["END"], done
    assert len(lines) > 10
    assert done.returncode == 1
