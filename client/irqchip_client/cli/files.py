"""Files that are written completely, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress

_MOST_LINKS = 40  # The kernel's limit.


def write_file(path: str, data: bytes) -> None:
    """Replaces a file as a whole: if the disk is full or the machine stops, the old file stays.

    A pipe, or /dev/stdout, is written directly. Raises OSError that names the failed step.
    """
    try:
        place = _place(path)
        if place is None:
            with open(path, "wb") as opened:
                opened.write(data)
        else:
            _replace(place, data)
    except OSError as error:
        error.filename, error.filename2 = path, None
        if error.errno == errno.ENOENT:
            error.strerror = f"the folder {os.path.dirname(path) or '.'} does not exist: make it first"
        raise


def _place(path: str) -> str | None:
    """The path of the file to replace, behind symbolic links; None for a path that can only be written to."""
    for _ in range(_MOST_LINKS):
        folder = os.path.dirname(path) or "."
        if os.path.realpath(folder).startswith("/proc/"):  # A descriptor of a process, as /dev/stdout links to.
            return None
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISREG(mode):
        return None
    if not os.access(path, os.W_OK):  # Replacing needs only the folder's permissions: check the file's.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _replace(path: str, data: bytes) -> None:
    folder = os.path.dirname(path) or "."
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".irqchipctl-", dir=folder)
    except PermissionError as error:
        raise PermissionError(
            error.errno, f"{error.strerror} to make a file beside it, which is to replace it"
        ) from None
    try:
        with open(descriptor, "wb") as opened:
            _take_over_mode(descriptor, path)
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C as well
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # Makes the new name last; if that is not possible, nothing is lost.
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _take_over_mode(descriptor: int, path: str) -> None:
    """Gives the file its former owner and permissions; a new file gets the usual ones."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)
        return
    with suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
