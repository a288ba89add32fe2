"""RAM disks of Linux guests whose first process is a shell script."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.debian_kernel import fetch_package, modules
from tests.ram_disk import write_cpio


def make_initrd(cache: Path, kernel: Path, script: Path, drivers: Iterable[str], folder: Path) -> Path:
    """A RAM disk with busybox, a script as /init, and drivers of a kernel, each of which needs no other module.

    MissingError if busybox cannot be downloaded.
    """
    (program,) = fetch_package(cache, "^busybox-static$").glob("**/bin/busybox")
    root = folder / "root"
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(program, root / "bin")
    shutil.copy(script, root / "init")
    (root / "init").chmod(0o755)
    for driver in drivers:
        (image,) = modules(kernel, driver)
        (root / f"{driver}.ko").write_bytes(image)
    with open(folder / "initrd", "wb") as file:
        write_cpio(file, root)
    return folder / "initrd"
