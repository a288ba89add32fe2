"""RAM disks, for machines that tests boot in QEMU: linux/Documentation/driver-api/early-userspace/buffer-format.rst."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from stat import S_IFCHR, S_ISLNK, S_ISREG
from typing import BinaryIO


def write_cpio(file: BinaryIO, root: Path) -> None:
    """Pack a folder as the kernel's initial RAM disk, with a console."""

    def entry(name: str, mode: int, data: bytes = b"", mtime: int = 0, device: Sequence[int] = (0, 0)) -> None:
        encoded = name.encode() + b"\0"
        fields = (0, mode, 0, 0, 1, mtime, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        file.write(header.ljust(-(-len(header) // 4) * 4, b"\0"))
        file.write(data.ljust(-(-len(data) // 4) * 4, b"\0"))

    for where, folders, files in os.walk(root):
        for path in (Path(where, name) for name in sorted((*folders, *files))):
            found = path.lstat()
            name = str(path.relative_to(root))
            # Python checks a source's modification time: the compiled file is valid as long as the time is unchanged.
            data = os.readlink(path).encode() if S_ISLNK(found.st_mode) else b""
            data = path.read_bytes() if S_ISREG(found.st_mode) else data
            entry(name, found.st_mode, data, int(found.st_mtime))
    if not (root / "dev").exists():
        entry("dev", 0o040755)
    entry("dev/console", S_IFCHR | 0o600, device=(5, 1))
    entry("TRAILER!!!", 0)
