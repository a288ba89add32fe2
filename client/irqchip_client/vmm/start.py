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
    """The state of an x86 vCPU before its first instruction; the rest is as after RESET, with interrupts off.

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


@dataclass(frozen=True, slots=True)
class Arm64Start:
    """The state of an arm64 vCPU before its first instruction: EL1, MMU and caches off, interrupts masked.

    entry  the physical address of the first instruction
    x0     and the other registers: their values; Linux expects the device tree's address in x0
    """

    entry: int
    x0: int = 0
    x1: int = 0
    x2: int = 0
    x3: int = 0
