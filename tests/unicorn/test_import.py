"""The adapter without the Unicorn library."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import PATIENCE


def test_importing_the_adapter_without_unicorn_says_what_to_install() -> None:
    code = "import sys; sys.modules['unicorn'] = None; import irqchip_client.unicorn"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "pip install 'irqchipd[unicorn]'" in result.stderr.splitlines()[-1]
