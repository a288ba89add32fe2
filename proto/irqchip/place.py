"""The default socket, of a daemon and its clients where none is named: its path, and whose its folder must be."""

from __future__ import annotations

import os
import stat


def default_socket() -> str:
    """The path of the default socket, in a folder that only its user can enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/irqchipd/irqchipd.sock" if runtime else f"/tmp/irqchipd-{os.getuid()}/irqchipd.sock"


def is_own(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a directory of this user's: /tmp is everybody's, and there it could be a stranger's, or a link.

    OSError where there is none.
    """
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def is_private(folder: str | os.PathLike[str]) -> bool:
    """Whether only its owner can enter a directory: any other user who can might have put a socket into it."""
    return not os.lstat(folder).st_mode & 0o077
