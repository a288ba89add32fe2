"""irqchipctl run with an arm64 guest."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from examples.guest.build import ARM64, X86
from irqchip_client._daemon import Daemon

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")


@pytest.fixture
def run(irqchip_server: Daemon) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "irqchip_client.cli", "--target", irqchip_server.target, "run", *options]
        return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=280, check=False)

    return run


@pytest.mark.parametrize("gic", ["2", "3"])
def test_the_guest_is_recognised_and_runs_until_it_turns_itself_off(
    run: Callable[..., subprocess.CompletedProcess[str]], gic: str
) -> None:
    done = run("--kernel", str(ARM64.binary), "--gic", gic, typed="ticks 5\rsgis 3\rdisk\rexit\r")
    assert done.returncode == 0, done.stderr
    assert f"irqchipd demo guest, arm64, GICv{gic}, 1 CPU" in done.stdout
    (ticks,) = re.findall(r"CPU 0: (\d+) ticks came", done.stdout)
    assert int(ticks) >= 5  # more on a busy machine, where some are late
    assert "sgis: 3 of 3 came back" in done.stdout
    assert "disk: none" in done.stdout


def test_a_guest_that_crashes_says_where(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("--kernel", str(ARM64.binary), typed="crash\r")
    assert "exception 4 on CPU 0, ESR 02000000, ELR 4008" in done.stdout  # 4: from EL1 with its own stack, synchronous
    assert done.returncode == 0, done.stderr


def test_it_ends_by_its_timeout(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("--kernel", str(ARM64.binary), "--without", "serial", "--timeout", "0.5")
    assert done.returncode == 124
    assert "the guest has not ended within 0.5 s" in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--cpu", "kvm"], "--cpu kvm is for x86"),
        (["--vcpus", "2"], "with Unicorn a machine has one vCPU"),
        (["--append", "x" * 70_000], "its command line is too long"),
        (["--arch", "x86"], "this image can't be booted"),
    ],
)
def test_what_it_can_not_do_is_refused(
    run: Callable[..., subprocess.CompletedProcess[str]], options: list[str], why: str
) -> None:
    done = run("--kernel", str(ARM64.binary), *options)
    assert done.returncode == 2
    assert why in done.stderr


def test_a_pcs_guest_is_none_for_arm64(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("--kernel", str(X86.binary), "--arch", "arm64")
    assert done.returncode == 2
    assert "it is neither an ELF file for arm64" in done.stderr
