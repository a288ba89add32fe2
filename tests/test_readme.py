"""The examples of the README run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from irqchip_client import Client
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_sdk_in_ten_lines_prints_what_it_says(
    irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert irqchip_client.vms() == []
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (promised,) = re.findall(r"print\(cpu.*# (.*)", code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == promised


def test_every_file_it_names_exists() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        text = document.read_text()
        links = [document.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        files = [ROOT / name for name in re.findall(r"`((?:tests|docs|server|client|examples|bench)/[\w./-]+)`", text)]
        for path in [*links, *files]:
            assert path.exists(), f"{document.name} names {path}"
