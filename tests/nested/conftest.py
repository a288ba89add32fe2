"""A machine with a standard KVM, or a skip with the reason."""

from __future__ import annotations

import pytest

from tests.nested.standard_kvm import QEMU, StandardKvm, standard_kernel
from tests.this_machine import MissingError, find


@pytest.fixture(scope="session")
def standard_kvm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StandardKvm:
    """Runs commands on the standard KVM; pytest's cache keeps the kernel."""
    try:
        find(QEMU)
        kernel = standard_kernel(request.config.cache.mkdir("nested"))
    except MissingError as error:
        pytest.skip(f"no standard KVM can be made here {error}")
    return StandardKvm(tmp_path_factory.mktemp("nested"), kernel)
