"""Saving and restoring an arm64 VM; the GIC and the timers save, check and resume their own state."""

from __future__ import annotations

from irqchipd.chips.gic.gicv2 import SavedGicV2
from irqchipd.chips.gic.gicv3 import SavedGicV3
from irqchipd.vm.arm64.board import Arm64Board
from irqchipd.vm.arm64.cpu import Arm64Cpu
from irqchipd.vm.arm64.places import Place, RedistributorRegion
from irqchipd.vm.arm64.states import Arm64State, Arm64VcpuState, ItsState, PlaceState, RegionState
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.sources import RESAMPLERS, SHARED, numbers_of
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET

# Saving.


def save_board(board: Arm64Board, version: int, devices: list[int]) -> Arm64State:
    """The GIC and the vCPUs."""
    places = board.places
    return Arm64State(
        gic_version=version,
        list_registers=board.list_registers,
        priority_bits=board.priority_bits,
        devices=tuple(devices),
        interrupts=board.interrupts_wanted,
        initialised=board.initialised,
        ready=board.ready,
        dead=board.dead is not None,
        features=board.features,
        timer_interrupts=tuple(board.ppis),
        timer_interrupts_fixed=board.ppis_fixed,
        dist_address=places.dist,
        cpu_address=places.cpu,
        regions=tuple(
            RegionState(index=region.index, base=region.base, count=region.count, used=region.used)
            for region in places.regions
        ),
        vcpus=tuple(_save_cpu(board, cpu) for cpu in board.cpus),
        resampled_lines=tuple(sorted(line for line, by in board.drivers.items() if by >> RESAMPLERS & 1)),
        gicv2=None if board.v2 is None else SavedGicV2(**board.v2.save()),
        its=tuple(ItsState(address=frame.address, **frame.its.save()) for frame in board.its),
        gicv3=None if board.v3 is None else SavedGicV3(**board.v3.save()),
    )


def _save_cpu(board: Arm64Board, cpu: Arm64Cpu) -> Arm64VcpuState:
    place = board.places.of[cpu.index]
    return Arm64VcpuState(
        vcpu=cpu.id,
        features=cpu.features,
        mp_state=cpu.mp_state + MP_STATE_OFFSET,
        initial_state=cpu.initial_state + MP_STATE_OFFSET,
        has_run=cpu.has_run,
        lines=cpu.lines,
        stolen_time=cpu.stolen_time,
        pmu_interrupt=cpu.pmu_interrupt,
        pmu_ready=cpu.pmu_ready,
        timers_wired=cpu.virtual_timer.wired,
        virtual_timer=cpu.virtual_timer.save(),
        physical_timer=cpu.physical_timer.save(),
        place=None
        if place is None
        else PlaceState(
            region=None if place.region is None else place.region.index,
            index=place.index,
            base=place.base,
            on_bus=board.is_on_bus(place),
        ),
    )


# Restoring, from states that have been checked.


def restore_board(board: Arm64Board, state: VmState, saved: Arm64State) -> None:
    """Restore a new board from a checked state."""
    for its in saved.its:
        board.add_its()
        board.its[-1].its.resume(its)
        if its.address is not None:
            board.place_its(board.its[-1], its.address)
    board.features = saved.features
    board.ppis, board.ppis_fixed = list(saved.timer_interrupts), saved.timer_interrupts_fixed
    if saved.gicv2 is not None or saved.gicv3 is not None:
        board.add_gic(2 if saved.gicv2 is not None else 3)
    _restore_places(board, saved)
    for vcpu in saved.vcpus:
        cpu = board.put_cpu(vcpu.vcpu, _place_of(board, vcpu.place))
        _resume_cpu(cpu, vcpu)
        if vcpu.place is not None and vcpu.place.on_bus:
            board.register_redistributor(cpu.index)
    if saved.interrupts and board.gic is not None:
        board.want_interrupts(saved.interrupts)
    if board.v2 is not None and saved.gicv2 is not None:
        board.v2.resume(saved.gicv2)
    if board.v3 is not None and saved.gicv3 is not None:
        board.v3.resume(saved.gicv3)
    if board.gic is not None:
        board.gic.interrupts = max(board.gic.interrupts, saved.interrupts)
    board.initialised = saved.initialised
    board.set_routes(state.routing)
    if saved.ready:
        board.register_frames()
    if saved.dead:
        board.die("it was dead when it was saved")
    for cpu, vcpu in zip(board.cpus, saved.vcpus, strict=True):
        for timer, part in ((cpu.virtual_timer, vcpu.virtual_timer), (cpu.physical_timer, vcpu.physical_timer)):
            assert part is not None
            timer.wired = vcpu.timers_wired
            timer.resume(part)


def _restore_places(board: Arm64Board, saved: Arm64State) -> None:
    if saved.dist_address is not None:
        board.set_dist(saved.dist_address)
    if saved.cpu_address is not None:
        board.set_cpu_frame(saved.cpu_address)
    for part in saved.regions:
        region = RedistributorRegion(part.index, part.base, part.count)
        region.used = part.used
        board.places.regions.append(region)


def _place_of(board: Arm64Board, saved: PlaceState | None) -> Place | None:
    if saved is None:
        return None
    region = None if saved.region is None else board.places.region(saved.region)
    return Place(region, saved.index, saved.base)


def _resume_cpu(cpu: Arm64Cpu, saved: Arm64VcpuState) -> None:
    cpu.features = saved.features
    cpu.mp_state, cpu.initial_state = saved.mp_state - MP_STATE_OFFSET, saved.initial_state - MP_STATE_OFFSET
    cpu.has_run, cpu.lines = saved.has_run, saved.lines
    cpu.stolen_time, cpu.pmu_interrupt, cpu.pmu_ready = saved.stolen_time, saved.pmu_interrupt, saved.pmu_ready


def finish_board(board: Arm64Board, state: VmState, saved: Arm64State) -> None:
    """Once the line sources exist: restore which sources drive each line."""
    board.hold(state.asserted_gsis, SHARED)
    for source in state.sources:
        board.hold(numbers_of(int.from_bytes(source.asserted, "little")), source.source)
    board.hold(saved.resampled_lines, RESAMPLERS)
