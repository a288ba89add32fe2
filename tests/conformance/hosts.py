"""What shows of the host's processor, and is not the irqchip's: docs/exactness.md has a table of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import Reg
from tests.conformance.machines import Answer, Op

# What of an answer to an operation is the irqchip's.
Comparable = Callable[[Op, Answer], Answer]

PAGE_HEX = 2048
TPR_KEPT = 0xF0
PRIORITIES = (Reg.TPR, Reg.PPR)
X2APIC_PRIORITIES = tuple(Msr.X2APIC + (register >> 4) for register in PRIORITIES)


def all_of_it(_: Op, answer: Answer) -> Answer:
    """Where nothing shows."""
    return answer


def beside_svm(op: Op, answer: Answer) -> Answer:
    """SVM keeps CR8, of which KVM makes TPR after every entry; and an x2APIC's ICR is two registers to it; and more."""
    match op:
        case ["get_lapic_page", _] if isinstance(answer, str) and len(answer) == PAGE_HEX:
            page = bytearray.fromhex(answer)
            page[Reg.TPR : Reg.TPR + 4] = bytes((page[Reg.TPR] & TPR_KEPT, 0, 0, 0))
            page[Reg.ICR_HIGH : Reg.ICR_HIGH + 4] = page[Reg.ICR2 : Reg.ICR2 + 4] = bytes(4)
            return page.hex()
        case ["mmio_read", _, address, _] if isinstance(answer, int) and address & 0xFF0 in PRIORITIES:
            return answer & TPR_KEPT if not address & 0xF else 0
        case ["msr_read", _, register] if isinstance(answer, int) and register in X2APIC_PRIORITIES:
            return answer & TPR_KEPT
        case ["get_events", _] if isinstance(answer, list):
            return answer[:2]  # without NMIs: INIT leaves them masked
        case _:
            return answer


def of_this_host() -> Comparable:
    """By the module that KVM uses."""
    return beside_svm if Path("/sys/module/kvm_amd").exists() else all_of_it
