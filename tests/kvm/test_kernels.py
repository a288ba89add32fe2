"""Test kernels in C, as multiboot images, run to their end without a failed check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from irqchip_client._daemon import Daemon
from irqchip_client.kvm import why_not
from tests.kvm.build import build
from tests.kvm.lines import LINES

RINGS = "PASS: CPUs that interrupt each other lose nothing"  # a further line of smp.c, with more than two


@pytest.fixture(params=["32", "64"])
def bits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("embedded", [False, True], ids=["daemon", "embedded"])
@pytest.mark.parametrize("name", ["apic", "ioapic"])
def test_a_kernel_passes(irqchip_server: Daemon, tmp_path: Path, name: str, bits: str, embedded: bool) -> None:
    if reason := why_not():
        pytest.skip(reason)
    image = build(name, bits, tmp_path)
    done = _run(image, "embedded:" if embedded else irqchip_server.target)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("PASS: ")] == ["END"], done
    assert len(lines) > 10
    assert done.returncode == 1


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("cpus", "bits"), [("2", "64"), ("4", "32")], indirect=["bits"])
def test_a_kernel_of_several_cpus_passes(tmp_path: Path, cpus: str, bits: str) -> None:
    if reason := why_not():
        pytest.skip(reason)
    done = _run(build("smp", bits, tmp_path), "embedded:", "--cpus", cpus, seconds=300)
    assert done.stdout.splitlines() == [*LINES["smp"], *([] if cpus == "2" else [RINGS]), "END"], done
    assert done.returncode == 1


def _run(image: Path, target: str, *options: str, seconds: int = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", target, "run", "--cpu", "kvm"]
    command += ["--kernel", str(image), "--timeout", str(seconds), *options]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + 60, check=False
    )
