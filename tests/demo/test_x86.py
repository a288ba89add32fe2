"""The demo of a PC."""

from __future__ import annotations

import os

import pytest

from tests.demo import PATIENCE, demo


@pytest.mark.timeout(PATIENCE + 10)
def test_the_demo_runs_to_its_end() -> None:
    said = demo("--cpu", "unicorn")
    for what in ("crc32 89cdff97", "keyboard: Hello, irqchipd", "disk: no answer at sector", "the line is back"):
        assert what in said
    assert "ended with status 85" in said
    assert "done, on unicorn, with a daemon and without" in said


@pytest.mark.long
@pytest.mark.timeout(PATIENCE + 10)
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm to use")
def test_the_demo_has_the_same_transcript_on_unicorn_and_on_kvm() -> None:
    assert "done, on unicorn and kvm" in demo()
