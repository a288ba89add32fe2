"""memtest86+ on Unicorn: a kernel of Linux's boot protocol in 64-bit mode, which tests memory and knows when it errs.

It reads the memory map, the MADT and the timer, calibrates its TSC by the PIT, and shows its screen on the serial port.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.cli.console import PATIENCE, Console

KERNEL = Path("/boot/memtest86+x64.bin")
# It waits 80 seconds twice to see whether bits fade. The rest is 80 seconds of a processor.
PASS_SECONDS = 1500.0

pytestmark = [
    pytest.mark.long,
    pytest.mark.boots,
    pytest.mark.timeout(1700),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="Unicorn is not installed"),
    pytest.mark.skipif(not KERNEL.exists(), reason=f"there is no {KERNEL}: the package memtest86+ has it"),
]


def test_memtest86_finds_no_error_in_a_pass_over_16_mib() -> None:
    options = ("--append", "console=ttyS0 nopause nobench", "--memory", "16")
    console = Console("run", "--cpu", "unicorn", "--kernel", str(KERNEL), *options)
    try:
        shown = console.expect(r"Pass:\s+1\s+Errors: \d+", PASS_SECONDS)
        assert set(re.findall(r"Errors: (\d+)", shown)) == {"0"}
        # The screen shows what is going on once a second: short tests may be over before.
        tests = set(re.findall(r"#(\d+) ", shown))
        assert "10" in tests  # the last one
        assert len(tests) > 3
        assert "of 15.6MB]" in shown
        console.type("\x1b")
        assert console.process.wait(PATIENCE) == 0
    finally:
        console.close()
