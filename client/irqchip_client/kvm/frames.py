"""Frames of exceptions and interrupts that came in a single step: KVM's TF is among the flags in them.

It is cleared here. The guest would load it with IRET, and have a debug exception of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from irqchip_client._errors import IrqchipError

from .emulator import TF, BeyondError, State
from .registers import RIP, RSP

LONGEST = 15  # bytes of an instruction


@dataclass(frozen=True, slots=True)
class Frame:
    """What a frame would hold, and where it would be, if an exception or interrupt came at or behind an instruction."""

    address: int
    rip: int
    selector: int

    def clear_tf(self, state: State) -> None:
        """It may have come: the guest is behind the step now."""
        size = 8 if state.long else 4
        if state.base("ss") + state.regs[RSP] > self.address:
            return
        try:
            rip, selector, flags = (state.read(self.address + size * n, size) for n in range(3))
            if flags & TF and selector & 0xFFFF == self.selector and 0 <= rip - self.rip <= LONGEST:
                state.write(self.address + size * 2, [flags & ~TF])
        except (BeyondError, IrqchipError):
            pass


def next_frame(state: State) -> Frame | None:
    """That of the guest's next instruction; None: in real mode, and 16-bit segments."""
    if state.narrow:
        return None
    top = state.regs[RSP] & ~0xF if state.long else state.base("ss") + state.regs[RSP]
    return Frame(top - (5 * 8 if state.long else 3 * 4), state.regs[RIP], state.selector("cs"))
