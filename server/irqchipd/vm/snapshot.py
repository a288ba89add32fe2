"""The whole state of a VM, as plain values: what Vm.save() gives and Registry.restore() takes.

The classes, but for VmSnapshot's version, mirror the contract's messages: a field has the same name, and holds the same
value. Enumerations hold the contract's numbers; what is absent is None; bytes that are numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irqchipd.vm.routing import Route

# VmState.clock: ClockKind's numbers.
CLOCK_REAL, CLOCK_VIRTUAL = 1, 2
# VmState.irqchip_mode: IrqchipMode's numbers.
IRQCHIP_NONE, IRQCHIP_FULL, IRQCHIP_SPLIT = 1, 2, 3
# VcpuState.mp_state: MpState's numbers are KVM's, and one more.
MP_STATE_OFFSET = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VmState:
    """A VM: VmSnapshot."""

    clock: int
    now_ns: int
    tsc_khz: int
    irqchip_mode: int
    reserved_gsis: int
    disabled_quirks: int = 0
    x2apic_api: int = 0
    apic_bus_ns: int = 0
    max_vcpu_ids: int = 0
    boot_vcpu: int = 0
    routing: tuple[Route, ...]
    chips: ChipsState | None
    pit: PitTimerState | None
    vcpus: tuple[VcpuState, ...]
    mapped_vcpus: int | None
    asserted_gsis: tuple[int, ...]
    sources: tuple[SourceState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsState:
    """The PICs and the IOAPIC: ChipsSnapshot."""

    primary: bytes
    secondary: bytes
    output: bool
    ioapic: bytes
    irr_delivered: int
    rtc_vectors: Mapping[int, int]
    rtc_pending_eoi: int
    successive_eois: tuple[int, ...]
    delayed_eoi_ns: int | None
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PitTimerState:
    """The PIT, its struct and its timer: PitSnapshot."""

    state: bytes
    speaker: bool
    reinject: bool
    acknowledged: bool
    pending: int
    period_ns: int
    periodic: bool
    expires_ns: int | None
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuState:
    """A vCPU: VcpuSnapshot. queued are vectors, each with whether the PIC gave it."""

    vcpu: int
    mp_state: int
    lacks_x2apic: bool = False
    lacks_tsc_deadline: bool = False
    lacks_tsc_adjust: bool = False
    address_bits: int = 0
    lapic: bytes | None
    apic_base: int
    tsc_offset: int
    tsc_adjust: int = 0
    tsc_deadline: int
    timer_mode: int | None = None
    timer_period_ns: int
    timer_target_ns: int
    timer_expires_ns: int | None
    timer_pending: bool
    handled: bytes
    stale: int
    scan: bool
    nmi_watchdog: bool | None = None
    queued: tuple[tuple[int, bool], ...]
    external_vector: int | None
    nmis: int
    nmi_masked: bool = False
    nmi_injected: bool = False
    smi: bool
    init: bool
    sipi_vector: int | None
    last_sipi: int = 0
    unhalted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """A Session's line source: SourceSnapshot."""

    source: int
    client: str
    asserted: bytes
    resampled_gsis: Mapping[int, int]
