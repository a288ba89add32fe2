"""The demo of an arm64 machine."""

from __future__ import annotations

import pytest

from tests.demo import PATIENCE, demo


@pytest.mark.timeout(PATIENCE + 10)
def test_the_demo_for_arm64_runs_to_its_end() -> None:
    said = demo("--gic", "3", "--gic", "2", module="examples.demo.arm64")
    for what in ("GICv3, 2 CPUs", "GICv2, 2 CPUs", "sgis: 100 of 100 came back", "disk: no answer at sector"):
        assert what in said
    assert "done, with GICv3 and GICv2" in said
