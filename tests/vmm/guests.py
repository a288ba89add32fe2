"""Guests that read their local APIC, for any vCPU in protected mode. A write to port f4h ends the run."""

from __future__ import annotations

import struct

FLAG, SEEN = 0x504, 0x508


def reads_id(times: int) -> bytes:
    """A guest that reads the APIC ID this many times."""
    return (
        b"\xb9"
        + struct.pack("<I", times)
        + bytes.fromhex(
            "a12000e0fe"  # again: mov eax, [0xfee00020]
            "e2f9"  # loop again
            "e6f4"  # out 0xf4, al
            "ebfe"  # jmp $
        )
    )


# Reads TPR until there is a flag in memory, and keeps the TPR that it read after the flag.
WAITS_FOR_FLAG = bytes.fromhex(
    "a104050000"  # again: mov eax, [0x504]
    "8b1d8000e0fe"  # mov ebx, [0xfee00080]
    "85c0"  # test eax, eax
    "74f1"  # je again
    "891d08050000"  # mov [0x508], ebx
    "e6f4"  # out 0xf4, al
    "ebfe"  # jmp $
)
