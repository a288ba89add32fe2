"""The examples of the README run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irqchip_client import Client
from irqchip_client._daemon import Daemon

ROOT = Path(__file__).parent.parent
PATIENCE = 220  # seconds, for the demo, which runs two or three times
README = (ROOT / "README.md").read_text()


def test_the_sdk_in_ten_lines_prints_what_it_says(
    irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert irqchip_client.vms() == []
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (promised,) = re.findall(r"print\(cpu.*# (.*)", code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == promised


def test_every_file_it_names_exists() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        text = document.read_text()
        links = [document.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        files = [ROOT / name for name in re.findall(r"`((?:tests|docs|server|client|examples|bench)/[\w./-]+)`", text)]
        for path in [*links, *files]:
            assert path.exists(), f"{document.name} names {path}"


def demo(*options: str, module: str = "examples.demo") -> str:
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(PATIENCE + 10)
def test_the_demo_runs_to_its_end() -> None:
    said = demo("--cpu", "unicorn")
    for what in ("crc32 89cdff97", "keyboard: Hello, irqchipd", "disk: no answer at sector", "the line is back"):
        assert what in said
    assert "ended with status 85" in said
    assert "done, on unicorn, with a daemon and without" in said


@pytest.mark.timeout(PATIENCE + 10)
def test_the_demo_for_arm64_runs_to_its_end() -> None:
    said = demo("--gic", "3", "--gic", "2", module="examples.demo.arm64")
    for what in ("GICv3, 2 CPUs", "GICv2, 2 CPUs", "sgis: 100 of 100 came back", "disk: no answer at sector"):
        assert what in said
    assert "done, with GICv3 and GICv2" in said


@pytest.mark.long
@pytest.mark.timeout(PATIENCE + 10)
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm to use")
def test_the_demo_has_the_same_transcript_on_unicorn_and_on_kvm() -> None:
    assert "done, on unicorn and kvm" in demo()
