"""The start of a vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

# Segment descriptors: flat, present, of ring 0.
FLAT_CODE: Final = 0x00CF_9B00_0000_FFFF
CODE_64: Final = 0x00AF_9B00_0000_FFFF
FLAT_DATA: Final = 0x00CF_9300_0000_FFFF


class StartMode(Enum):
    """The processor's mode at the first instruction."""

    REAL = "16-bit real mode"
    PROTECTED = "32-bit protected mode, flat segments, no paging"
    LONG = "64-bit mode, flat segments, page tables of four levels"


@dataclass(frozen=True, slots=True)
class Start:
    """The state of an x86 vCPU before its first instruction; the rest is as after RESET, with interrupts off.

    mode   in real mode, below 1 MiB, CS has the base `entry & ~0xffff`, and IP the rest
    entry  the physical address of the first instruction
    eax    and the other registers: their values
    gdt    the address of a descriptor table of 32 bytes, with code at selector 10h and data at 18h, as Linux wants;
           0: there is no table, and the selectors are 8 and 10h
    cr3    for 64-bit mode: the address of the page tables
    """

    mode: StartMode
    entry: int
    eax: int = 0
    ebx: int = 0
    edx: int = 0
    esi: int = 0
    esp: int = 0
    gdt: int = 0
    cr3: int = 0

    @property
    def selectors(self) -> tuple[int, int]:
        """The selectors of the code segment and of the others. Not for real mode."""
        return (0x10, 0x18) if self.gdt else (0x08, 0x10)


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
