"""The process at the other end of a socket, and the packets that it has not received."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import termios
from struct import Struct
from typing import Final

CREDENTIALS: Final = Struct("@iII")  # struct ucred: pid, uid and gid of the process that connected
_SO_PEERPIDFD: Final = 77  # <asm-generic/socket.h>, of Linux 6.5


def process_of(client: socket.socket) -> int:
    """A descriptor that is readable when the process that connected has ended. OSError.

    Before Linux 6.5 that process is looked up by its pid, which has no meaning here if the process is in another
    container: OSError.
    """
    try:
        try:
            packed = client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            pid, _, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
            return os.pidfd_open(pid)
    except ProcessLookupError:
        return os.eventfd(1, os.EFD_CLOEXEC)
    return int.from_bytes(packed, sys.byteorder)


def unreceived(client: socket.socket) -> int:
    """The memory of the packets that the other end has not received; unix(7), SIOCOUTQ."""
    return int.from_bytes(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
