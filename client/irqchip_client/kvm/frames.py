"""Clears TF in the frames of exceptions and interrupts that came in a single step.

KVM sets TF for the step, and the frame saves it. The guest would load it with IRET, and get a debug exception.
"""

from __future__ import annotations

from dataclasses import dataclass

from irqchip_client._errors import IrqchipError

from .emulator import TF, BeyondError, State
from .registers import RIP, RSP

LONGEST = 15  # bytes of an instruction


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame that an exception or interrupt pushes if it comes at an instruction or behind it."""

    address: int
    rip: int
    selector: int

    def clear_tf(self, state: State) -> None:
        """After the step: clears TF in the frame, if one was pushed."""
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
    """The frame for the guest's next instruction; None in real mode and in 16-bit segments."""
    if state.narrow:
        return None
    top = state.regs[RSP] & ~0xF if state.long else state.base("ss") + state.regs[RSP]
    return Frame(top - (5 * 8 if state.long else 3 * 4), state.regs[RIP], state.selector("cs"))
