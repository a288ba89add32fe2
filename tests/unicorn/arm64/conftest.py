"""A standard Linux kernel for arm64."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debian_kernel import fetch_kernel
from tests.this_machine import MissingError


@pytest.fixture
def debian(request: pytest.FixtureRequest) -> Path:
    """The folder of Debian's kernel for clouds, unpacked."""
    cache = request.config.cache
    assert cache is not None
    try:
        return fetch_kernel(cache.mkdir("arm64"), "arm64", "6.12")
    except MissingError as missing:
        pytest.skip(f"this machine is {missing}")
