"""pytest fixtures for tests against a real daemon: installed with the package, loaded when used.

def test_my_device(irqchip_client):
    vm = irqchip_client.create_vm()
    ...
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ._daemon import Daemon
    from ._sync.client import Client


@pytest.fixture(scope="session")
def irqchip_server() -> Iterator["Daemon"]:
    """A daemon process for the whole run, with `.target`, `.pid`, `.process`, `.stderr` and `.connect()`."""
    from ._daemon import start_daemon

    with start_daemon() as daemon:
        yield daemon
        if daemon.process.poll() is not None:
            pytest.fail(f"irqchipd died with status {daemon.process.returncode}. Its stderr:\n{daemon.stderr}")


@pytest.fixture
def irqchip_client(irqchip_server: "Daemon") -> Iterator["Client"]:
    """A Client of irqchip_server's daemon. After the test it deletes the VMs that the test left."""
    with irqchip_server.connect() as client:
        before = {vm.name for vm in client.vms()}
        yield client
        for vm in client.vms():
            if vm.name not in before:
                client.delete_vm(vm.name)
