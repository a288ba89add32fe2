"""The demo's machine in a longer run: its ticks are counted, and its port accesses timed."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.__main__ import DEVICES
from examples.demo.monitor import Monitor
from examples.demo.stage import Stage

pytestmark = pytest.mark.long

TICKS, HZ = 10_000, 500
PORTS = 5_000


@pytest.fixture(
    params=[
        pytest.param(
            "unicorn",
            marks=pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="Unicorn is not installed"),
        ),
        pytest.param(
            "kvm",
            marks=pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm"),
        ),
    ]
)
def monitor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Monitor]:
    """The monitor of a guest whose interrupts come through the PIC; the PIT waits for its ticks to be acknowledged."""
    stage = Stage(tmp_path, quiet=True)
    try:
        stage.start_daemon()
        stage.start_vcpu(request.param, "--append", "irq=pic")
        for device in DEVICES:
            stage.start_device(device)
        monitor = Monitor(tmp_path / "serial", lambda _: None)
        monitor.banner()
        yield monitor
        monitor.close()
    finally:
        stage.close()


def test_none_of_10000_timer_interrupts_is_lost(monitor: Monitor, capsys: pytest.CaptureFixture[str]) -> None:
    monitor.say(f"ticks {TICKS} {HZ}")
    counted, *_, rate = monitor.answer("ticks", 4 * TICKS / HZ)
    with capsys.disabled():
        print(f"\n{counted}; {rate}")
    came, lost = map(int, re.findall(r"\d+", counted))
    assert lost == 0
    assert TICKS <= came <= TICKS + HZ  # a busy machine may deliver some more before the guest looks


def test_port_accesses_are_timed(monitor: Monitor, capsys: pytest.CaptureFixture[str]) -> None:
    direct, through_a_device = monitor.command(f"ports {PORTS}")
    with capsys.disabled():
        print(f"\n{direct}\n{through_a_device}")
    for line in (direct, through_a_device):
        (rate,) = re.findall(r"(\d+) a second", line)
        assert int(rate) > 100
