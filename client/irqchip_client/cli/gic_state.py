"""An arm64 VM's GIC and timers for `regs`, from a snapshot, so that all values belong to one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from irqchip_client import MpState

if TYPE_CHECKING:
    from irqchip.v1 import irqchip_pb2 as pb

CHIPS: Final = ("gicd", "gicr", "gicc", "timer")
FIRST_SPI, SGIS = 32, 16
IDLE: Final = 0xFF  # the running priority, if nothing is active
TICK_NS: Final = 16  # of a generic timer, whose frequency is CNTFRQ_EL0's
_ENABLE, _IMASK = 1, 2  # CNTV_CTL_EL0
_V2_PRIORITY_BITS: Final = 5


@dataclass(frozen=True, slots=True)
class GicInterrupt:
    """An interrupt of the GIC."""

    intid: int
    enabled: bool
    pending: bool
    active: bool
    line: bool  # The input is high.
    group: int
    priority: int
    trigger: str  # "edge" or "level"
    vcpu: int | None  # The vCPU that gets it next; None: no vCPU.
    targets: int | None = None  # GICv2's SPIs: GICD_ITARGETSR.
    affinity: str | None = None  # GICv3's SPIs: GICD_IROUTER.
    sources: tuple[int, ...] = ()  # GICv2's SGIs: the vCPUs from which it is pending.
    active_source: int | None = None  # GICv2's SGIs that are active: the vCPU from which it came.


@dataclass(frozen=True, slots=True)
class Distributor:
    """The distributor, with the SPIs."""

    version: int
    address: int | None
    initialised: bool
    enabled: bool
    intids: int
    interrupts: tuple[GicInterrupt, ...]


@dataclass(frozen=True, slots=True)
class PrivateInterrupts:
    """A vCPU's SGIs and PPIs: a GICv3's redistributor, or a GICv2's banked registers."""

    vcpu: int
    address: int | None
    affinity: str | None
    interrupts: tuple[GicInterrupt, ...]


@dataclass(frozen=True, slots=True)
class CpuInterface:
    """A CPU interface, with the vCPU's run state."""

    vcpu: int
    mp_state: MpState
    group0: bool  # whether interrupts of the group are enabled
    group1: bool
    pmr: int
    rpr: int
    bpr0: int  # GICv2's GICC_BPR
    bpr1: int  # GICv2's GICC_ABPR
    cbpr: bool
    eoi_mode: int
    ack_ctl: bool  # GICv2
    fiq_enable: bool  # GICv2
    active_priorities0: tuple[int, ...]  # of a GICv2: those of both groups
    active_priorities1: tuple[int, ...]
    queue: tuple[int, ...]  # the INTIDs that wait for the vCPU, or are active at it, in KVM's order


@dataclass(frozen=True, slots=True)
class GenericTimer:
    """One of a vCPU's timers."""

    name: str  # "CNTV" or "CNTP"
    ppi: int
    enabled: bool
    masked: bool
    expired: bool
    compare: int
    expires_ns: int | None  # the VM's time, if the timer runs


@dataclass(frozen=True, slots=True)
class Timers:
    """A vCPU's timers."""

    vcpu: int
    timers: tuple[GenericTimer, ...]


Part = Distributor | PrivateInterrupts | CpuInterface | Timers


def parts_of(snapshot: pb.VmSnapshot) -> dict[str, Part]:
    """The chips by their names: gicd; gicr0 (GICv2: gicd0), gicc0 and timer0 of each vCPU."""
    state = snapshot.arm64
    parts: dict[str, Part] = {}
    if state.HasField("gicv2") or state.HasField("gicv3"):
        parts |= _Gic(state).parts()
    for vcpu in state.vcpus:
        timers = zip(("CNTV", "CNTP"), state.timer_interrupts, (vcpu.virtual_timer, vcpu.physical_timer), strict=False)
        made = tuple(_timer(name, ppi, timer, snapshot.now_ns) for name, ppi, timer in timers)
        parts[f"timer{vcpu.vcpu}"] = Timers(vcpu.vcpu, made)
    return parts


class _Gic:
    """Makes the parts of a GIC."""

    def __init__(self, state: pb.Arm64Snapshot) -> None:
        self._state = state
        self._is_v2 = state.HasField("gicv2")
        self._gic: Any = state.gicv2 if self._is_v2 else state.gicv3
        self._ids = [vcpu.vcpu for vcpu in state.vcpus]
        self._priority_bits = _V2_PRIORITY_BITS if self._is_v2 else state.priority_bits

    def parts(self) -> dict[str, Part]:
        state, gic = self._state, self._gic
        parts: dict[str, Part] = {
            "gicd": Distributor(
                version=2 if self._is_v2 else 3,
                address=state.dist_address if state.HasField("dist_address") else None,
                initialised=state.initialised,
                enabled=gic.enabled,
                intids=FIRST_SPI + len(gic.spis),
                interrupts=tuple(self._interrupt(FIRST_SPI + n, one) for n, one in enumerate(gic.spis)),
            )
        }
        for index, (vcpu, cpu) in enumerate(zip(state.vcpus, gic.cpus, strict=False)):
            parts[f"{'gicd' if self._is_v2 else 'gicr'}{vcpu.vcpu}"] = PrivateInterrupts(
                vcpu=vcpu.vcpu,
                address=vcpu.place.base if vcpu.HasField("place") else None,
                affinity=None if self._is_v2 else dotted(gic.redistributors[index].affinity),
                interrupts=tuple(self._interrupt(n, one) for n, one in enumerate(cpu.private)),
            )
            parts[f"gicc{vcpu.vcpu}"] = self._interface(vcpu, cpu)
        return parts

    def _interrupt(self, intid: int, one: pb.GicInterruptSnapshot) -> GicInterrupt:
        is_sgi, is_spi = intid < SGIS, intid >= FIRST_SPI
        has_source = self._is_v2 and is_sgi
        return GicInterrupt(
            intid=intid,
            enabled=one.enabled,
            pending=one.pending_latch or (one.level and one.line),
            active=one.active,
            line=one.line,
            group=one.group,
            priority=one.priority,
            trigger="level" if one.level else "edge",
            vcpu=self._ids[one.target] if one.HasField("target") and one.target < len(self._ids) else None,
            targets=one.targets if self._is_v2 and is_spi else None,
            affinity=dotted(one.affinity) if not self._is_v2 and is_spi else None,
            sources=tuple(n for n in range(8) if one.source >> n & 1) if has_source else (),
            active_source=one.active_source if has_source and one.active else None,
        )

    def _interface(self, vcpu: pb.Arm64VcpuSnapshot, cpu: pb.GicCpuSnapshot) -> CpuInterface:
        active = [self._priorities(words) for words in (cpu.ap0r, cpu.ap1r)]
        return CpuInterface(
            vcpu=vcpu.vcpu,
            mp_state=MpState.from_proto(vcpu.mp_state),
            group0=bool(cpu.grpen0),
            group1=bool(cpu.grpen1),
            pmr=cpu.pmr,
            rpr=min((*active[0], *active[1]), default=IDLE),
            bpr0=cpu.bpr,
            bpr1=cpu.abpr,
            cbpr=bool(cpu.cbpr),
            eoi_mode=cpu.eoim,
            ack_ctl=bool(cpu.ackctl),
            fiq_enable=bool(cpu.fiqen),
            active_priorities0=active[0],
            active_priorities1=active[1],
            queue=tuple(cpu.ap_list),
        )

    def _priorities(self, words: Sequence[int]) -> tuple[int, ...]:
        """The priorities of the bits of active priorities registers, the highest first."""
        bits = sum(word << 32 * n for n, word in enumerate(words))
        return tuple(n << 8 - self._priority_bits for n in range(bits.bit_length()) if bits >> n & 1)


def _timer(name: str, ppi: int, timer: pb.TimerSnapshot, now_ns: int) -> GenericTimer:
    enabled, masked = bool(timer.control & _ENABLE), bool(timer.control & _IMASK)
    expired = timer.compare <= now_ns // TICK_NS
    return GenericTimer(
        name=name,
        ppi=ppi,
        enabled=enabled,
        masked=masked,
        expired=enabled and expired,
        compare=timer.compare,
        expires_ns=timer.compare * TICK_NS if enabled and not expired else None,
    )


def dotted(affinity: int) -> str:
    """Aff3.Aff2.Aff1.Aff0, of GICD_IROUTER or MPIDR_EL1."""
    return ".".join(str(affinity >> shift & 0xFF) for shift in (32, 16, 8, 0))


def wanted(parts: Mapping[str, Part], chips: Sequence[str]) -> dict[str, Part]:
    """The parts of some kinds; without kinds, all."""
    kinds = chips or CHIPS
    return {name: part for name, part in parts.items() if name.rstrip("0123456789") in kinds}
