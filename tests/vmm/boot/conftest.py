"""A guest's memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_client.vmm.memory import GuestMemory

from .images import MIB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(4 * MIB) as memory:
        yield memory
