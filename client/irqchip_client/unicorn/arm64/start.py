"""The start of an arm64 vCPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arm64Start:
    """The state of a vCPU before its first instruction: EL1, MMU and caches off, interrupts masked.

    entry  the physical address of the first instruction
    x0     and the other registers: their values; Linux expects the device tree's address in x0
    """

    entry: int
    x0: int = 0
    x1: int = 0
    x2: int = 0
    x3: int = 0
