"""Opens the file that has a disk's sectors."""

from __future__ import annotations

import errno
import os
import stat

from irqchip_client._errors import IrqchipError, make_error


def open_image(path: str | os.PathLike[str], *, read_only: bool) -> int:
    """A descriptor of a file or block device. NotFound or IrqchipError where it cannot be opened, with advice."""
    try:
        file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            os.close(file)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise _not_opened(path, error, read_only) from None
    return file


def _not_opened(path: str | os.PathLike[str], error: OSError, read_only: bool) -> IrqchipError:
    if error.errno == errno.ENOENT:
        advice = f"check the path, or make the file with `truncate -s 64M {os.fspath(path)}`"
    elif error.errno == errno.EISDIR:
        advice = "give a file, or a block device"
    else:
        advice = f"give a file that this user may read{'' if read_only else ' and write, or read_only=True'}"
    return make_error(error.errno or errno.EIO, f"{os.fspath(path)} can't be opened ({error.strerror}): {advice}")
