"""Adding 1 to an eventfd without ever waiting: Linux's AIO calls the kernel's eventfd_signal.

A write waits while the counter is full. A client that has the eventfd can fill the counter between a poll and the
write, and would stop the thread that serves all clients. O_NONBLOCK does not help: the client shares that flag.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import struct
import threading
from functools import cache

_ONE = (1).to_bytes(8, "little")
_SYSCALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}  # io_setup, io_getevents, io_submit
_EVENTS = 64  # the most that a context keeps until they are taken
_EVENT_BYTES = 32  # struct io_event
# struct iocb, <linux/aio_abi.h>: a read of one byte, which is done at once, and then signals an eventfd.
_IOCB = struct.Struct("<QIIHhIQQqQII")
_PREAD, _RESFD = 0, 1


class AioWriter:
    """Writes by AIO; from any thread. OSError without AIO."""

    def __init__(self) -> None:
        try:
            setup, self._getevents, self._submit = _SYSCALLS[platform.machine()]
        except KeyError:
            raise OSError(errno.ENOSYS, "the system calls' numbers are not known") from None
        # Keep the interpreter's lock: none of these calls waits.
        self._call = ctypes.PyDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        context = ctypes.c_ulong()
        self._zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        self._byte = ctypes.create_string_buffer(1)
        self._iocb = ctypes.create_string_buffer(_IOCB.size)
        self._iocbs = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._events = ctypes.create_string_buffer(_EVENTS * _EVENT_BYTES)
        self._no_time = struct.pack("@ll", 0, 0)
        self._untaken = 0
        self._lock = threading.Lock()
        if self._call(setup, ctypes.c_long(_EVENTS), ctypes.byref(context)) < 0:
            os.close(self._zeros)
            raise _failure()
        self._context = context

    def add_one(self, eventfd: int) -> None:
        """Add 1, up to the largest counter, 2^64 - 1, which a write can't reach."""
        with self._lock:
            if self._untaken == _EVENTS:
                self._call(
                    self._getevents,
                    self._context,
                    ctypes.c_long(0),
                    ctypes.c_long(_EVENTS),
                    self._events,
                    self._no_time,
                )
                self._untaken = 0
            _IOCB.pack_into(
                *(self._iocb, 0, 0, 0, 0, _PREAD, 0, self._zeros),
                *(ctypes.addressof(self._byte), 1, 0, 0, _RESFD, eventfd),
            )
            if self._call(self._submit, self._context, ctypes.c_long(1), self._iocbs) < 0:
                raise _failure()
            self._untaken += 1


class _PlainWriter:
    """Writes without AIO. A client can make a write wait."""

    def add_one(self, eventfd: int) -> None:
        """Add 1, unless the counter is full."""
        poll = select.poll()
        poll.register(eventfd, select.POLLOUT)
        if poll.poll(0):
            os.write(eventfd, _ONE)


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


@cache
def writer() -> AioWriter | _PlainWriter:
    """The best writer on this system."""
    try:
        return AioWriter()
    except OSError:
        return _PlainWriter()
