"""The state of an arm64 VM for a snapshot: plain values, which mirror the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass

from irqchipd.chips.gic.gicv2 import SavedGicV2
from irqchipd.chips.gic.gicv3 import SavedGicV3
from irqchipd.chips.gic.its import SavedIts
from irqchipd.vm.arm64.timer import SavedTimer


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionState:
    """A region of redistributors: GicRegionSnapshot."""

    index: int
    base: int
    count: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceState:
    """The place of a vCPU's redistributor: GicPlaceSnapshot."""

    region: int | None
    index: int
    base: int
    on_bus: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm64VcpuState:
    """A vCPU: Arm64VcpuSnapshot. Its part of the GIC is in the GIC's state."""

    vcpu: int
    features: int | None
    mp_state: int
    initial_state: int
    has_run: bool
    lines: int
    stolen_time: int | None
    pmu_interrupt: int
    pmu_ready: bool
    timers_wired: bool
    virtual_timer: SavedTimer | None  # a vCPU always has a timer, but a message may lack it
    physical_timer: SavedTimer | None
    place: PlaceState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItsState(SavedIts):
    """An interrupt translation service and its address: ItsSnapshot."""

    address: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm64State:
    """The part that only an arm64 VM has: Arm64Snapshot."""

    gic_version: int
    list_registers: int
    priority_bits: int
    devices: tuple[int, ...]
    interrupts: int
    initialised: bool
    ready: bool
    dead: bool
    features: int | None
    timer_interrupts: tuple[int, ...]
    timer_interrupts_fixed: bool
    dist_address: int | None
    cpu_address: int | None
    regions: tuple[RegionState, ...]
    vcpus: tuple[Arm64VcpuState, ...]
    resampled_lines: tuple[int, ...]
    gicv2: SavedGicV2 | None
    gicv3: SavedGicV3 | None
    its: tuple[ItsState, ...]
