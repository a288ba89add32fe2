"""The common part of the virtual CPU interfaces of a GICv2 and a GICv3: both work on list registers, as hardware does.

Where the architecture leaves a choice, this code follows QEMU (hw/intc/arm_gic.c, arm_gicv3_cpuif.c): the recorded
answers of the kernel come from KVM on QEMU's CPU interfaces.
"""

from __future__ import annotations

from typing import Final, Protocol

from irqchipd.chips.gic.list_register import CpuInterfaceState, ListRegister

SPURIOUS: Final = 1023  # the answer to an acknowledgement without a pending interrupt
SPECIAL: Final = 1020  # INTIDs from here to 1023 are not interrupts


class CpuInterfaceWires(Protocol):
    """The calls of a virtual CPU interface to its surroundings."""

    def deactivate(self, physical: int) -> None:
        """The guest deactivated an interrupt whose list register has HW: end the physical interrupt, too."""


class CpuInterface:
    """A virtual CPU interface: list registers in, IRQ and FIQ out."""

    def __init__(self, state: CpuInterfaceState, wires: CpuInterfaceWires) -> None:
        self.state = state
        self.wires = wires

    def load(self) -> None:
        """Before a vCPU runs: load the state into hardware, which limits fields to what hardware can hold."""
        raise NotImplementedError

    def outputs(self) -> tuple[bool, bool]:
        """Whether IRQ and FIQ are asserted at the CPU."""
        raise NotImplementedError

    def find_active(self, intid: int) -> ListRegister | None:
        """The list register of an active interrupt. GICv3: FindActiveVirtualInterrupt()."""
        for register in self.state.list_registers:
            if register.active and register.intid == intid:
                return register
        return None

    def deactivate(self, register: ListRegister) -> None:
        """End an active interrupt, and its physical interrupt."""
        if register.hardware and register.physical < SPECIAL:
            self.wires.deactivate(register.physical)
        register.active = False
