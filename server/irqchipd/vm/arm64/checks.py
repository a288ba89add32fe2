"""Checks of a snapshot of an arm64 VM: every state that no VM can have is refused, so that nothing fails later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from irqchipd.chips.gic.interrupt import NO_OWNER, PRIVATE, SGIS
from irqchipd.chips.gic.its import FRAME_SIZE as ITS_FRAME_SIZE
from irqchipd.chips.gic.redistributor import FRAME_SIZE
from irqchipd.chips.gic.saving import SavedGic
from irqchipd.chips.saved import StateError, check, in_range
from irqchipd.vm import saving
from irqchipd.vm.arm64.host import check_host, kinds_of, max_vcpus
from irqchipd.vm.arm64.line_numbers import LINES, VCPU_LINES, owner_of
from irqchipd.vm.arm64.numbers import HOST_FEATURES, IPA_SIZE, MAX_DEVICES, MAX_INTERRUPTS, MP_STATES, DeviceType, Owner
from irqchipd.vm.arm64.places import (
    MAX_REGIONS,
    PAGE_4K,
    PAGE_64K,
    V2_CPU_SIZE,
    V2_DIST_SIZE,
    V3_DIST_SIZE,
)
from irqchipd.vm.arm64.routing import CHIPS
from irqchipd.vm.arm64.states import Arm64State, Arm64VcpuState
from irqchipd.vm.arm64.timer import PHYSICAL, TIMERS, USUAL_PPIS, VIRTUAL
from irqchipd.vm.arm64.vcpu_attributes import STOLEN_TIME_ALIGNMENT
from irqchipd.vm.errors import invalid
from irqchipd.vm.routing import check_routes
from irqchipd.vm.snapshot import IRQCHIP_FULL, IRQCHIP_NONE, VmState
from irqchipd.vm.sources import numbers_of
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET

_PPIS: Final = range(SGIS, PRIVATE)
_U12: Final = (1 << 12) - 1


def check_state(state: VmState, max_vcpus: int) -> Arm64State:
    """Refuse a state that no arm64 VM can have: EINVAL."""
    saved = state.arm64
    if saved is None:
        raise invalid("no VM has this state: arm64 is absent")
    has_gic = saved.gicv2 is not None or saved.gicv3 is not None
    saving.check_state(state, max_vcpus, has_gic, _check_chips, LINES)
    return saved


def _check_chips(state: VmState) -> None:
    saved = state.arm64
    assert saved is not None
    check(
        not (state.vcpus or state.chips or state.pit or state.tsc_khz or state.reserved_gsis or state.max_vcpu_ids),
        "parts of an x86 VM",
    )
    check(state.s390 is None, "parts of an s390 VM")
    check_host(saved.gic_version, saved.list_registers, saved.priority_bits)
    gic: SavedGic | None = saved.gicv2 or saved.gicv3
    check(saved.gicv2 is None or saved.gicv3 is None, "there are a GICv2 and a GICv3")
    check(state.irqchip_mode == (IRQCHIP_NONE if gic is None else IRQCHIP_FULL), f"irqchip_mode {state.irqchip_mode}")
    check_routes(state.routing, CHIPS)
    _check_devices(saved)
    _check_stages(saved, gic)
    _check_vcpus(saved, gic)
    for its in saved.its:
        its.check()
        _check_address(its.address, PAGE_64K, ITS_FRAME_SIZE, there=True, what="an interrupt translation service")
    _check_places(saved)
    _check_gic(saved, gic)
    _check_lines(state, saved)


def _check_devices(saved: Arm64State) -> None:
    check(len(saved.devices) <= MAX_DEVICES, f"{len(saved.devices)} devices; at most {MAX_DEVICES} are allowed")
    kinds = kinds_of(saved.gic_version)
    for kind in saved.devices:
        check(kind in kinds, f"a device of type {kind}")
    for kind in (DeviceType.VFIO, DeviceType.GICV2, DeviceType.GICV3):
        check(saved.devices.count(kind) <= 1, f"several devices of type {kind}")
    check(saved.devices.count(DeviceType.ITS) == len(saved.its), "an interrupt translation service has no state")
    check(DeviceType.GICV2 not in saved.devices or saved.gicv2 is not None, "a GICv2 has no state")
    check((DeviceType.GICV3 in saved.devices) == (saved.gicv3 is not None), "a GICv3 and its state must come together")
    check(saved.gicv2 is None or saved.gic_version != 3, "a GICv2 on a host without one")


def _check_stages(saved: Arm64State, gic: SavedGic | None) -> None:
    check(not saved.initialised or gic is not None, "initialised without a GIC")
    check(not saved.ready or (saved.initialised and not saved.dead), "ready without being initialised, or dead")
    check(not saved.dead or gic is not None, "dead without a GIC")
    number = saved.interrupts
    check(number == 0 or (64 <= number <= MAX_INTERRUPTS and number % 32 == 0), f"{number} interrupts")
    check(number == 0 or gic is not None, "interrupts without a GIC")
    check(number != 0 or not saved.initialised, "an initialised GIC without interrupts")
    check(len(saved.timer_interrupts) == len(USUAL_PPIS), f"{len(saved.timer_interrupts)} timer_interrupts")
    for ppi in saved.timer_interrupts:
        in_range(ppi, SGIS, PRIVATE - 1, "a timer's interrupt")
    distinct = saved.timer_interrupts[VIRTUAL] != saved.timer_interrupts[PHYSICAL]
    check(not saved.timer_interrupts_fixed or (saved.ready and distinct), "timer_interrupts_fixed")


def _check_vcpus(saved: Arm64State, gic: SavedGic | None) -> None:
    version = saved.gic_version if gic is None else 2 if saved.gicv2 is not None else 3
    most = max_vcpus(version)
    vcpus = saved.vcpus
    check(len(vcpus) <= most, f"{len(vcpus)} vCPUs; at most {most} are allowed")
    saving.unique([vcpu.vcpu for vcpu in vcpus], "vCPUs")
    features = saved.features
    check(features is None or not features & ~HOST_FEATURES, f"features {features}")
    for vcpu in vcpus:
        in_range(vcpu.vcpu, 0, max_vcpus(saved.gic_version) - 1, "a vCPU's id")
        check(vcpu.features is None or vcpu.features == features, f"features {vcpu.features} of vCPU {vcpu.vcpu}")
        _check_vcpu(vcpu, saved, gic)


def _check_vcpu(vcpu: Arm64VcpuState, saved: Arm64State, gic: SavedGic | None) -> None:
    states = [state + MP_STATE_OFFSET for state in MP_STATES]
    check(vcpu.mp_state in states and vcpu.initial_state in states, f"run states of vCPU {vcpu.vcpu}")
    check(not vcpu.has_run or vcpu.features is not None, f"vCPU {vcpu.vcpu} has run, but is not initialised")
    check(
        not vcpu.has_run or gic is None or vcpu.timers_wired, f"vCPU {vcpu.vcpu} has run, but its timers are not wired"
    )
    wired = saved.ready and saved.timer_interrupts_fixed and vcpu.features is not None
    check(not vcpu.timers_wired or wired, f"timers_wired of vCPU {vcpu.vcpu}")
    in_range(vcpu.lines, 0, 3, "lines")
    time = vcpu.stolen_time
    check(time is None or (time < IPA_SIZE and time % STOLEN_TIME_ALIGNMENT == 0), f"stolen_time {time}")
    check(vcpu.pmu_interrupt == 0 or SGIS <= vcpu.pmu_interrupt < 1020, f"pmu_interrupt {vcpu.pmu_interrupt}")
    for timer, which in ((vcpu.virtual_timer, VIRTUAL), (vcpu.physical_timer, PHYSICAL)):
        if timer is None:
            raise StateError(f"a timer of vCPU {vcpu.vcpu} is absent")
        timer.check(which)


def _check_places(saved: Arm64State) -> None:
    v2, v3 = saved.gicv2 is not None, saved.gicv3 is not None
    dist_size = V2_DIST_SIZE if v2 else V3_DIST_SIZE
    _check_address(saved.dist_address, PAGE_4K if v2 else PAGE_64K, dist_size, v2 or v3, "dist_address")
    _check_address(saved.cpu_address, PAGE_4K, V2_CPU_SIZE, v2, "cpu_address")
    check(len(saved.regions) <= MAX_REGIONS and (v3 or not saved.regions), "regions")
    bases = {}
    for at, region in enumerate(saved.regions):
        check(region.index == at, f"region {at} has index {region.index}")
        in_range(region.count, 1 if at else 0, _U12, "count of a region")
        in_range(region.used, 0, region.count or (1 << 16), "used of a region")
        size = FRAME_SIZE * region.count
        _check_address(region.base, PAGE_64K, size, there=True, what="the base of a region")
        bases[at] = region
    frames = [(its.address, ITS_FRAME_SIZE) for its in saved.its if its.address is not None]
    taken = set()
    for vcpu in saved.vcpus:
        place = vcpu.place
        if place is None:
            check(not (saved.ready and v3), f"vCPU {vcpu.vcpu} has no redistributor")
            continue
        check(v3, "a place without a GICv3")
        _check_address(place.base, PAGE_64K, FRAME_SIZE, there=True, what="a redistributor's address")
        if place.region is not None:
            check(place.region in bases, f"region {place.region} of vCPU {vcpu.vcpu} is absent")
            region = bases[place.region]
            check(place.index < region.used, f"the place of vCPU {vcpu.vcpu} is not in use")
            check(place.base == region.base + FRAME_SIZE * place.index, f"the address of vCPU {vcpu.vcpu}'s place")
            check((place.region, place.index) not in taken, "two vCPUs have the same place")
            taken.add((place.region, place.index))
        in_range(place.index, 0, 1 << 16, "index of a place")
        if place.on_bus:
            frames.append((place.base, FRAME_SIZE))
    if saved.ready:
        check(saved.dist_address is not None and (saved.cpu_address is not None or v3), "ready without addresses")
        frames.append((saved.dist_address or 0, dist_size))
        if v2:
            frames.append((saved.cpu_address or 0, V2_CPU_SIZE))
    _check_apart(frames)


def _check_address(address: int | None, alignment: int, size: int, there: bool, what: str) -> None:
    check(address is None or there, f"{what} without its GIC")
    if address is not None:
        check(address % alignment == 0 and address < IPA_SIZE and address + size <= IPA_SIZE, f"{what} is {address:#x}")


def _check_apart(frames: Iterable[tuple[int, int]]) -> None:
    end = 0
    for base, size in sorted(frames):
        check(base >= end, f"two frames overlap at {base:#x}")
        end = base + size


def _check_gic(saved: Arm64State, gic: SavedGic | None) -> None:
    if gic is None:
        return
    vcpus = saved.vcpus
    if saved.gicv2 is not None:
        saved.gicv2.check(len(vcpus), saved.list_registers)
    if saved.gicv3 is not None:
        saved.gicv3.check(len(vcpus), saved.list_registers, saved.priority_bits)
        check(saved.gicv3.has_its == (DeviceType.ITS in saved.devices), "has_its differs from the devices")
    spis = saved.interrupts - PRIVATE if saved.initialised else 0
    check(len(gic.spis) == spis, f"the GIC has {len(gic.spis)} SPIs, not {spis}")
    virtual, physical = saved.timer_interrupts[:TIMERS]
    for vcpu, cpu in zip(vcpus, gic.cpus, strict=True):
        check(not cpu.list_registers, "list registers are in use outside of a guest")
        for ppi in _PPIS:
            interrupt = cpu.private[ppi]
            mapped = vcpu.timers_wired and ppi == virtual
            what = f"interrupt {ppi} of vCPU {vcpu.vcpu}"
            check(interrupt.hardware == mapped, f"{what} is mapped: {interrupt.hardware}")
            check(not mapped or interrupt.physical == USUAL_PPIS[VIRTUAL], f"{what} is mapped to {interrupt.physical}")
            check((interrupt.owner == Owner.VIRTUAL_TIMER) == mapped, f"the owner of {what} is {interrupt.owner}")
            wired = vcpu.timers_wired and ppi == physical
            check(not wired or interrupt.owner == Owner.PHYSICAL_TIMER, f"the owner of {what} is {interrupt.owner}")
            check(interrupt.owner != Owner.PHYSICAL_TIMER or saved.ready, f"{what} has an owner before vCPUs can run")
            check(interrupt.owner != Owner.PMU or _is_of_pmu(vcpu, ppi), f"{what} is not the PMU's")
            in_range(interrupt.owner, NO_OWNER, Owner.PMU, f"the owner of {what}")
    for spi, interrupt in enumerate(gic.spis, PRIVATE):
        owned = interrupt.owner == Owner.PMU and any(_is_of_pmu(vcpu, spi) for vcpu in vcpus)
        check(interrupt.owner == NO_OWNER or owned, f"the owner of interrupt {spi}")


def _is_of_pmu(vcpu: Arm64VcpuState, interrupt: int) -> bool:
    return vcpu.pmu_ready and vcpu.pmu_interrupt == interrupt


def _check_lines(state: VmState, saved: Arm64State) -> None:
    known = {vcpu.vcpu for vcpu in saved.vcpus}
    lines = set(state.asserted_gsis)
    for source in state.sources:
        lines.update(numbers_of(int.from_bytes(source.asserted, "little")))
    for line in saved.resampled_lines:
        in_range(line, PRIVATE, VCPU_LINES - 1, "a resampled line")
    lines.update(saved.resampled_lines)
    for line in lines:
        if line < VCPU_LINES:
            check(saved.initialised and PRIVATE <= line < saved.interrupts, f"line {line} is not an SPI")
            continue
        vcpu, number = owner_of(line)
        check(vcpu in known, f"line {line} belongs to vCPU {vcpu}, which does not exist")
        check(number < 2 or (saved.initialised and number in _PPIS), f"line {line} is neither a PPI nor a vCPU's line")
