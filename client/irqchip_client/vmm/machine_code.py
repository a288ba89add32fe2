"""Machine code of the host: a few instructions, where Python would cost too much."""

from __future__ import annotations

import ctypes
import mmap
import platform


def executable(code: bytes) -> ctypes.Array[ctypes.c_char] | None:
    """x86-64 machine code in memory; None on another host, and without executable memory."""
    if platform.machine() != "x86_64":
        return None
    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # A hardened system.
        return None
    memory.write(code)
    return (ctypes.c_char * len(code)).from_buffer(memory)
