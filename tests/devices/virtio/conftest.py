"""Fixtures of virtio devices' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.virtio.machine import SECTORS


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk's file, in which all bytes of a sector are the sector's number."""
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(SECTORS)))
    return path
