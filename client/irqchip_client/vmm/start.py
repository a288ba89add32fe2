"""The start of a vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class StartMode(Enum):
    """The processor's mode at the first instruction."""

    REAL = "16-bit real mode"
    PROTECTED = "32-bit protected mode, flat segments, no paging"


@dataclass(frozen=True, slots=True)
class Start:
    """The state of a vCPU before its first instruction; the rest is as after RESET, with interrupts off.

    mode   in real mode, below 1 MiB, CS has the base `entry & ~0xffff`, and IP the rest
    entry  the physical address of the first instruction
    eax    and the other registers: their values
    """

    mode: StartMode
    entry: int
    eax: int = 0
    ebx: int = 0
    edx: int = 0
    esp: int = 0
