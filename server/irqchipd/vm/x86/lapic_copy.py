"""The interface to a copy of a local APIC's registers, for the process that executes the vCPU."""

from __future__ import annotations

from typing import Protocol

from irqchipd.chips.lapic import Lapic


class LapicCopy(Protocol):
    """A copy. Called with the VM's lock."""

    def publish(self, lapic: Lapic) -> None:
        """Copy the registers, which may have changed."""

    def withdraw(self) -> None:
        """Make the copy invalid until the next publish."""
