"""The whole state of a VM, as plain values: what Vm.save() gives and Registry.restore() takes.

The classes here, and the Saved classes of the chips and vCPUs, mirror the contract's messages: a field has the same
name and holds the same value. Enumerations hold the contract's numbers; an absent field is None; numbers in
bytes are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.i8254_state import SavedPit
from irqchipd.chips.ioapic import SavedIoapic
from irqchipd.chips.s390.flic import SavedFlic
from irqchipd.vm.arm64.states import Arm64State
from irqchipd.vm.routing import Route
from irqchipd.vm.s390.cpu import SavedS390Vcpu
from irqchipd.vm.x86.vcpu_state import SavedVcpu

# VmState.architecture: Architecture's numbers.
X86: Final = 1
ARM64: Final = 2
S390: Final = 3
# VmState.clock: ClockKind's numbers.
CLOCK_REAL: Final = 1
CLOCK_VIRTUAL: Final = 2
# VmState.irqchip_mode: IrqchipMode's numbers.
IRQCHIP_NONE: Final = 1
IRQCHIP_FULL: Final = 2
IRQCHIP_SPLIT: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VmState:
    """A VM: VmSnapshot."""

    architecture: int
    clock: int
    now_ns: int
    routing: tuple[Route, ...]
    asserted_gsis: tuple[int, ...]
    sources: tuple[SourceState, ...]
    # x86's.
    tsc_khz: int = 0
    irqchip_mode: int = IRQCHIP_NONE
    reserved_gsis: int = 0
    disabled_quirks: int = 0
    x2apic_api: int = 0
    apic_bus_ns: int = 0
    max_vcpu_ids: int = 0
    boot_vcpu: int = 0
    chips: ChipsState | None = None
    pit: SavedPit | None = None
    vcpus: tuple[SavedVcpu, ...] = ()
    mapped_vcpus: int | None = None
    # arm64's.
    arm64: Arm64State | None = None
    # s390's.
    s390: S390State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsState(SavedIoapic):
    """The PICs and the IOAPIC: ChipsSnapshot."""

    primary: bytes
    secondary: bytes
    output: bool
    delayed_eoi_ns: int | None
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class S390State:
    """The part that only an s390 VM has: S390Snapshot."""

    can_create_irqchip: bool = False
    irqchip: bool = False
    user_controls: bool = False
    device: bool = False
    flic: SavedFlic
    vcpus: tuple[SavedS390Vcpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """A Session's line source: SourceSnapshot."""

    source: int
    client: str
    asserted: bytes
    resampled_gsis: Mapping[int, int]
