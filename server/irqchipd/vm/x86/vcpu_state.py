"""The state of an x86 vCPU: its pending events, and its part of a snapshot. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from irqchipd.chips.lapic import SavedLapic
from irqchipd.chips.lapic_registers import VECTORS
from irqchipd.chips.saved import check, in_range
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET, MpState

# Interrupts taken by Halts whose callers gave up. The guest has not received them, so it has not ended them: a local
# APIC has at most one in service for each of 15 priority classes, and the PICs one for each of 16 lines. More can come
# only from PICs with automatic EOI, or from a caller that ends other callers' interrupts: those are lost.
MAX_QUEUED: Final = 32
MAX_NMIS: Final = 2  # KVM: x86.c process_nmi; one to take, and one after it


@dataclass(frozen=True, slots=True)
class VcpuEvents:
    """A vCPU's pending events outside its chips: struct kvm_vcpu_events. None leaves a field unchanged."""

    nmi_injected: bool | None = None
    nmi_pending: int | None = None
    nmi_masked: bool | None = None
    smi_pending: bool | None = None
    interrupt_injected: bool | None = None
    interrupt_vector: int = 0  # of the injected interrupt
    sipi_vector: int | None = None


HANDLED_BYTES: Final = VECTORS // 8
# The run states of an x86 vCPU; SIPI_RECEIVED can be set, but a vCPU is never in it.
MP_STATES: Final = (
    MpState.RUNNABLE,
    MpState.UNINITIALIZED,
    MpState.INIT_RECEIVED,
    MpState.HALTED,
    MpState.SIPI_RECEIVED,
    MpState.AP_RESET_HOLD,
)
_SAVED_MP_STATES: Final = {state + MP_STATE_OFFSET for state in MP_STATES if state is not MpState.SIPI_RECEIVED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedVcpu(SavedLapic):
    """A vCPU and its local APIC as a snapshot holds them: the contract's VcpuSnapshot.

    queued are vectors, each with whether the PIC gave it.
    """

    vcpu: int
    mp_state: int
    handled: bytes
    stale: int
    scan: bool
    queued: tuple[tuple[int, bool], ...]
    external_vector: int | None
    nmis: int
    smi: bool
    init: bool
    sipi_vector: int | None
    last_sipi: int = 0
    nmi_masked: bool = False
    nmi_injected: bool = False
    unhalted: bool = False

    def check(self, *, ids: int, full: bool, split: bool, bus_ns: int) -> None:
        """Refuse a state that no vCPU of a VM with this many ids and this irqchip can have."""
        in_range(self.vcpu, 0, ids - 1, "a vCPU's id")
        check(self.mp_state in _SAVED_MP_STATES, f"mp_state {self.mp_state}")
        check((self.lapic is not None) == (full or split), "a vCPU has a local APIC exactly if the VM has an irqchip")
        in_range(self.stale, -1, 0xFF, "stale")
        in_range(self.nmis, 0, MAX_NMIS, "nmis")
        in_range(self.external_vector, 0, 0xFF, "external_vector")
        check(self.external_vector is None or split, "an external_vector with PICs in the VM")
        in_range(self.sipi_vector, 0, 0xFF, "sipi_vector")
        in_range(self.last_sipi, 0, 0xFF, "last_sipi")
        check(len(self.queued) <= MAX_QUEUED, f"{len(self.queued)} interrupts are queued; at most {MAX_QUEUED} can be")
        for vector, _ in self.queued:
            in_range(vector, 0, 0xFF, "a queued vector")
        check(len(self.handled) == HANDLED_BYTES, f"handled is not {HANDLED_BYTES} bytes")
        if self.lapic is not None:
            self.check_lapic(self.vcpu, ioapic=full, bus_ns=bus_ns)
            return
        check(self.timer_expires_ns is None and not self.timer_pending, "a timer without a local APIC")
        check(self.timer_mode is None and not self.address_bits, "features without a local APIC")
        vectors = (self.sipi_vector, self.external_vector)
        waits = self.queued or self.nmis or self.smi or self.init or vectors != (None, None)
        waits = waits or self.nmi_masked or self.nmi_injected or self.unhalted or self.last_sipi
        check(not waits, "a vCPU without a local APIC has a pending event")
        check(self.mp_state == MpState.RUNNABLE + MP_STATE_OFFSET, "a vCPU without a local APIC waits")
