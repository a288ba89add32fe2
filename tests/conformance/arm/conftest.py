"""A real arm64 KVM, or a skip with the reason."""

from __future__ import annotations

import pytest

from tests.conformance.arm.machine import ArmKvm
from tests.this_machine import MissingError


@pytest.fixture(scope="session")
def arm_kvm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ArmKvm:
    """Boots machines; pytest's cache keeps the kernel."""
    try:
        return ArmKvm(request.config.cache.mkdir("arm64"), tmp_path_factory.mktemp("arm64"))
    except MissingError as error:
        pytest.skip(f"no arm64 KVM can be made here {error}")
