"""The file with a disk's sectors."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from irqchip_client._errors import IrqchipError, make_error

SECTOR: Final = 512  # bytes


def open_image(path: str | os.PathLike[str], *, read_only: bool) -> int:
    """A descriptor of a file or block device. NotFound or IrqchipError, with advice, if it cannot be opened."""
    try:
        file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            os.close(file)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise _not_opened(path, error, read_only) from None
    return file


def count_sectors(file: int) -> int:
    """The number of whole sectors: an incomplete one at the end does not count."""
    return os.lseek(file, 0, os.SEEK_END) // SECTOR


def read_sectors(file: int, first: int, count: int) -> bytes:
    """Reads sectors. OSError for fewer than `count`: the file was truncated."""
    data = os.pread(file, count * SECTOR, first * SECTOR)
    _check_moved(len(data), count * SECTOR)
    return data


def write_sectors(file: int, first: int, data: bytes | bytearray) -> None:
    """Writes sectors. OSError if not all of them were written: the host's disk is full."""
    _check_moved(os.pwrite(file, data, first * SECTOR), len(data))


def _check_moved(moved: int, size: int) -> None:
    if moved != size:
        raise OSError(errno.EIO, f"{moved} of {size} bytes were read or written")


def _not_opened(path: str | os.PathLike[str], error: OSError, read_only: bool) -> IrqchipError:
    if error.errno == errno.ENOENT:
        advice = f"check the path, or make the file with `truncate -s 64M {os.fspath(path)}`"
    elif error.errno == errno.EISDIR:
        advice = "give a file, or a block device"
    else:
        advice = f"give a file that this user may read{'' if read_only else ' and write, or read_only=True'}"
    return make_error(error.errno or errno.EIO, f"{os.fspath(path)} can't be opened ({error.strerror}): {advice}")
