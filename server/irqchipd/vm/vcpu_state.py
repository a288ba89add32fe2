"""The states of a vCPU of any architecture: run states, and what ends a halt. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from irqchipd.vm.errors import VmError


class MpState(IntEnum):
    """KVM_MP_STATE_*."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    CHECK_STOP = 6
    OPERATING = 7
    LOAD = 8
    AP_RESET_HOLD = 9
    SUSPENDED = 10


# A snapshot's run states are the contract's numbers: KVM's plus one.
MP_STATE_OFFSET: Final = 1


@dataclass(frozen=True, slots=True)
class Signal:
    """What an x86 vCPU takes besides interrupts: an NMI, SMI, INIT, or a start-up, whose page is the vector.

    A HLT can also take a remote read, by which KVM's guests wake each other.
    """

    delivery_mode: int
    vector: int = 0


# A vector, and which controller gave it: an index of CONTROLLERS in edge/convert.py. x86: whether it is the PIC.
Taken = tuple[int, int]
# How a halt ends: what the vCPU took; None after the timeout; an error where the VM was deleted.
Outcome = Taken | Signal | VmError | None
