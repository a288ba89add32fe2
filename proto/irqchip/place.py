"""The default socket of a daemon and its clients: its path, and the owner and mode of its folder."""

from __future__ import annotations

import os
import stat


def default_socket() -> str:
    """The path of the default socket, in a folder that only its user can enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/irqchipd/irqchipd.sock" if runtime else f"/tmp/irqchipd-{os.getuid()}/irqchipd.sock"


def is_own(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a directory of this user: in /tmp another user could have made it, or a link.

    OSError if it does not exist.
    """
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def is_private(folder: str | os.PathLike[str]) -> bool:
    """Whether only its owner can enter a directory: another user who can enter it may have put a socket there."""
    return not os.lstat(folder).st_mode & 0o077
