"""A guest's memory that a client shares as a memfd. Its bits are set atomically, as by a processor."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import socket
import sys
from typing import Final

from irqchipd.vm.errors import VmError, invalid

PAGE: Final = 4096
# The kernel sets a bit of a shared word atomically with FUTEX_WAKE_OP; no thread waits to be woken. futex(2).
_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "s390x": 238}.get(platform.machine(), 0)
_WAKE_OP_PRIVATE: Final = 5 | 128
_OR_BIT: Final = 2 | 8  # FUTEX_OP_OR of 1 << the operand


def check_memfd(descriptor: int, offset: int, length: int) -> None:
    """EINVAL for a descriptor that is not a memfd, or memory that is not in it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        # Reads of any other file could wait for a disk or for another process.
        raise invalid("the descriptor is not a memfd") from None
    if offset % PAGE:
        raise invalid(f"offset {offset:#x} of a memfd: use a multiple of {PAGE}")
    size = os.fstat(descriptor).st_size
    if not 0 < length <= size - offset:
        raise invalid(f"{length} bytes at {offset:#x} exceed the memfd's {size}: make the memfd longer")


def keeps_its_size(memfd: int) -> bool:
    """Whether a memfd is sealed against shrinking."""
    return fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK != 0


def send_memfd(memfd: int, over: int) -> None:
    """Send a descriptor through a unix socket, without waiting: EINVAL if that is impossible."""
    try:
        # Its family and type are those of the descriptor.
        connection = socket.socket(fileno=os.dup(over))
    except OSError:
        raise invalid("the descriptor is not a socket") from None
    with connection:
        if connection.family != socket.AF_UNIX:
            raise invalid("the descriptor is not a unix socket")
        try:
            socket.send_fds(connection, [b"\0"], [memfd], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise invalid(f"the memfd can't be sent through the socket: {error.strerror}") from None


class SharedMemory:
    """A part of a memfd, mapped.

    The daemon never accesses the mapping itself: a client may shrink its memfd at any time. Then a system call fails,
    but a load would raise SIGBUS.
    """

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        """Map a checked range. EINVAL for a memfd that can't be written. The descriptor stays the caller's."""
        if not _SYS_FUTEX:
            raise VmError(errno.EOPNOTSUPP, f"memory can't be shared on {platform.machine()}: answer for it instead")
        try:
            self._map = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
        except OSError as error:
            number = errno.ENOMEM if error.errno == errno.ENOMEM else errno.EINVAL
            raise VmError(number, f"the memfd can't be mapped for writing: {error.strerror}") from None
        except (ValueError, OverflowError) as error:
            raise invalid(f"the memfd can't be mapped: {error}") from None
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._descriptor = descriptor
        self._offset = offset
        self._call = ctypes.PyDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long

    def set_bits(self, offset: int, mask: int) -> int | None:
        """Set the one bit of a mask in a byte, and return the old byte; None where the memfd has shrunk.

        The guest may clear the bit at any time; only calls of this method set it, one at a time. So if the read finds
        the bit set, nothing has to be done; and if it finds the bit clear, the bit is clear until the call sets it.
        """
        byte = os.pread(self._descriptor, 1, self._offset + offset)
        if not byte:
            return None
        before = byte[0]
        if before & mask:
            return before
        bit = 8 * (offset % 4) + mask.bit_length() - 1
        if sys.byteorder == "big":
            bit ^= 24
        word = ctypes.c_void_p(self._address + offset // 4 * 4)
        operation = ctypes.c_uint(_OR_BIT << 28 | bit << 12)
        zero = ctypes.c_long(0)
        done = self._call(ctypes.c_long(_SYS_FUTEX), word, ctypes.c_long(_WAKE_OP_PRIVATE), zero, zero, word, operation)
        return None if done < 0 else before

    def close(self) -> None:
        """Unmap the memory."""
        self._map.close()
