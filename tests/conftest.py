"""Settings of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from irqchip_client._daemon import Daemon

with suppress(ModuleNotFoundError):  # as in the machine of tests/nested, whose tests need no hypothesis
    from hypothesis import HealthCheck, settings

    # A busy machine makes an example slow; that says nothing about the code.
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(scope="session")
def irqchip_server() -> Iterator[Daemon]:
    """The package's fixture, but for the time that a device has for an access: on a busy machine 2 s may be too few."""
    from irqchip_client._daemon import start_daemon

    with start_daemon(arguments=("--access-timeout", "60000")) as daemon:
        yield daemon
        if daemon.process.poll() is not None:
            pytest.fail(f"irqchipd died with status {daemon.process.returncode}. Its stderr:\n{daemon.stderr}")
