"""How many descriptors the daemon may have, and how many of these may be eventfds."""

from __future__ import annotations

import resource

import pytest

from irqchip_client._daemon import start_daemon
from irqchipd.limits import Limits


def test_it_raises_its_limit_of_descriptors_to_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with start_daemon() as daemon:
            assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("most", "irqfds"), [(resource.RLIM_INFINITY, 1024), (20_000, 1024), (1024, 128)])
def test_eventfds_leave_descriptors_for_clients(monkeypatch: pytest.MonkeyPatch, most: int, irqfds: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    assert Limits(irqfds=1024).within_descriptors().irqfds == irqfds
