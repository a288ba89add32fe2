"""A Unicorn machine, or a skip with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from irqchip_client import Client

if TYPE_CHECKING:
    from .machine import Machine


@pytest.fixture
def machine(irqchip_client: Client) -> Iterator[Machine]:
    pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")
    from irqchip_client.unicorn import GuestMemory

    from .machine import Machine

    with GuestMemory(1 << 20) as memory:
        machine = Machine(irqchip_client, memory)
        yield machine
        machine.close()
