"""Numbers of interrupt lines: KVM_IRQ_LINE's, and those in a line source's bitmap.

In a bitmap an SPI's number is its INTID. 32 numbers for each vCPU follow: there a PPI's INTID, or IRQ (0) and FIQ (1)
of a vCPU without a GIC, is added to the vCPU's first number.
"""

from __future__ import annotations

from typing import Final

from irqchipd.chips.gic.interrupt import PRIVATE, SGIS
from irqchipd.vm.arm64.numbers import MAX_VCPUS_V3, LineType

VCPU_LINES: Final = 1024
LINES: Final = VCPU_LINES + PRIVATE * MAX_VCPUS_V3
NUMBER_BYTES: Final = 5  # of KVM's number in a message, at the most


def parts_of(irq: int) -> tuple[int, int, int]:
    """The type, the vCPU and the number in KVM's encoding. KVM: arm.c kvm_vm_ioctl_irq_line."""
    return irq >> 24 & 0xF, (irq >> 16 & 0xFF) + 256 * (irq >> 28 & 0xF), irq & 0xFFFF


def line_of(kind: int, vcpu: int, number: int) -> int:
    """The number in a bitmap, from checked parts."""
    return number if kind == LineType.SPI else VCPU_LINES + PRIVATE * vcpu + number


def owner_of(line: int) -> tuple[int, int]:
    """The vCPU of a line from VCPU_LINES on, and the line's number in the vCPU."""
    return divmod(line - VCPU_LINES, PRIVATE)


def irq_of(line: int) -> int:
    """KVM's encoding of a bitmap's number."""
    if line < VCPU_LINES:
        return LineType.SPI << 24 | line
    vcpu, number = owner_of(line)
    kind = LineType.CPU if number < SGIS else LineType.PPI
    return (vcpu >> 8) << 28 | kind << 24 | (vcpu & 0xFF) << 16 | number


def line_name(line: int) -> str:
    """The probe of a bitmap's number."""
    if line < VCPU_LINES:
        return f"spi{line - PRIVATE}"
    vcpu, number = owner_of(line)
    return f"vcpu{vcpu}.{'line' if number < SGIS else 'ppi'}{number}"
