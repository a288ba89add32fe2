"""xv6, where its images are at hand, on Unicorn: its file system in memory and on disk, its programs in ring 3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from tests.guest.xv6 import Shell, images

pytestmark = [pytest.mark.long, pytest.mark.boots, pytest.mark.timeout(600)]


@contextmanager
def shell(*options: str) -> Iterator[Shell]:
    xv6 = Shell("--cpu", "unicorn", *options)
    try:
        xv6.prompt()
        yield xv6
    finally:
        xv6.end()


def test_its_file_system_is_in_memory() -> None:
    (kernel,) = images("kernelmemfs")
    with shell("--kernel", str(kernel)) as xv6:
        listed = xv6.command("ls")
        assert listed[0].split()[:3] == [".", "1", "1"]
        assert any(line.startswith("forktest ") for line in listed)
        assert xv6.command("forktest") == ["fork test", "fork test OK"]


def test_its_file_system_is_on_a_disk(tmp_path: Path) -> None:
    kernel, boot_disk, disk = images("kernel", "xv6.img", "fs.img")
    own = Path(shutil.copy(disk, tmp_path))
    options = ("--kernel", str(kernel), "--disk", str(boot_disk), "--disk", str(own))
    with shell(*options) as xv6:
        assert xv6.command("forktest")[-1] == "fork test OK"
        assert xv6.command("echo written > kept") == []
    with shell(*options) as xv6:
        assert xv6.command("cat kept") == ["written"]
