"""What comparing with a live kernel has found, on any machine."""

from __future__ import annotations

import pytest

from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.found import FOUND, Found


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_the_answers_are_those_the_kernel_gave(found: Found) -> None:
    assert found.answers_of(DaemonMachine()) == found.answers
