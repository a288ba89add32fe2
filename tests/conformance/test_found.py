"""The differences found by comparing with a live kernel, replayed on any machine."""

from __future__ import annotations

import pytest

from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.found import FOUND, Found


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_the_answers_are_the_kernels(found: Found) -> None:
    assert found.answers_of(DaemonMachine()) == found.answers
