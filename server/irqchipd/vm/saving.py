"""Between a board and the state that is saved of it.

What is restored may come from anywhere: check_state refuses every value that a VM can't have had, so that nothing fails
later on, and nothing is held for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from irqchipd.chips import i8254, i8259, ioapic, lapic_registers
from irqchipd.chips.i8254 import Pit, PitState
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.ioapic import MAX_SUCCESSIVE_EOIS, IoapicState
from irqchipd.chips.lapic import ADDRESS_BITS, BASE_X2APIC, Features, Lapic, lint0_is_nmi, x2apic_logical_id
from irqchipd.chips.lapic_registers import LapicRegisters
from irqchipd.chips.lapic_timer import (
    FOREVER,
    MAX_BUS_NS,
    MAX_PERIOD,
    MIN_PERIOD,
    PERIODIC,
    TIMER_MODE,
    TIMER_MODE_SHIFT,
)
from irqchipd.vm.board import Board
from irqchipd.vm.capabilities import (
    MAX_VCPU_ID,
    QUIRKS,
    X2APIC_32BIT_IDS,
    X2APIC_API,
    X2APIC_NO_BROADCAST_QUIRK,
)
from irqchipd.vm.cpu import MAX_NMIS, MAX_QUEUED, Cpu, MpState
from irqchipd.vm.errors import invalid
from irqchipd.vm.notices import MAX_UNHEARD
from irqchipd.vm.routing import INPUTS, MAX_GSIS, PINS, ChipId, PinRoute, check_routes
from irqchipd.vm.snapshot import (
    CLOCK_REAL,
    CLOCK_VIRTUAL,
    IRQCHIP_FULL,
    IRQCHIP_NONE,
    IRQCHIP_SPLIT,
    MP_STATE_OFFSET,
    ChipsState,
    PitTimerState,
    SourceState,
    VcpuState,
    VmState,
)
from irqchipd.vm.sources import (
    MAX_CLIENT_NAME,
    MAX_SOURCES,
    PIT,
    RESAMPLERS,
    SHARED,
    SOURCES_BYTES,
    LineSource,
    bytes_of,
    reach_for,
)
from irqchipd.vm.turns import MAX_TIME
from irqchipd.vm.vcpus import LEAST_ADDRESS_BITS

MAX_SOURCE = 1 << 13
MAX_PIT_PERIOD = 0xFFFF_FFFF * 1_000_000_000 // i8254.FREQUENCY  # nanoseconds; a restored count has 32 bits
# How late a periodic timer is at the most when it is restored, nanoseconds. Of one that is later, because its VM had
# more timers than time, or its snapshot comes from anywhere, the expiries before that are lost: else a VM could have to
# catch up with centuries of them.
MAX_LATE = 60_000_000_000
_MP_STATES = {state + MP_STATE_OFFSET for state in MpState if state is not MpState.SIPI_RECEIVED}
VECTOR_BYTES = lapic_registers.VECTORS // 8


# Saving.


def save_capabilities(board: Board) -> dict[str, int]:
    """What capabilities have changed: fields of VmState."""
    apics = board.apics
    return {
        "disabled_quirks": QUIRKS & ~board.quirks,
        "boot_vcpu": board.boot_vcpu,
        "max_vcpu_ids": board.max_vcpu_ids,
        "x2apic_api": apics.x2apic_format * X2APIC_32BIT_IDS | apics.no_broadcast_quirk * X2APIC_NO_BROADCAST_QUIRK,
        "apic_bus_ns": board.apic_bus_ns if board.has_irqchip else 0,
    }


def save_chips(board: Board) -> ChipsState | None:
    """The PICs, the IOAPIC, and who drives their inputs."""
    pic, io = board.pic, board.ioapic
    if pic is None or io is None:
        return None
    state = io.state()
    state.irr = io.irr
    return ChipsState(
        primary=pic.primary.pack(),
        secondary=pic.secondary.pack(),
        output=pic.output,
        ioapic=state.pack(),
        irr_delivered=io.irr_delivered,
        rtc_vectors=dict(io.rtc.vectors),
        rtc_pending_eoi=io.rtc.pending_eoi,
        successive_eois=tuple(io.successive_eois),
        delayed_eoi_ns=board.delayed_eoi.deadline,
        sources=tuple(sources.to_bytes((sources.bit_length() + 7) // 8, "little") for sources in board.sources),
    )


def save_pit(board: Board) -> PitTimerState | None:
    """The PIT."""
    pit = board.pit
    if pit is None:
        return None
    return PitTimerState(
        state=pit.state().pack(),
        speaker=board.speaker,
        reinject=pit.reinject,
        acknowledged=pit.acknowledged,
        pending=pit.pending,
        period_ns=pit.period,
        periodic=pit.periodic,
        expires_ns=pit.expires,
        running=pit.running,
    )


def save_cpu(board: Board, cpu: Cpu) -> VcpuState:
    """A vCPU and its local APIC."""
    chip = cpu.lapic
    timer = chip.timer if chip is not None else None
    return VcpuState(
        vcpu=cpu.id,
        mp_state=cpu.mp_state + MP_STATE_OFFSET,
        lapic=chip.pack() if chip is not None else None,
        apic_base=chip.base if chip is not None else 0,
        tsc_offset=timer.tsc_offset if timer is not None else 0,
        timer_period_ns=timer.period if timer is not None else 0,
        timer_target_ns=timer.target if timer is not None else 0,
        tsc_deadline=timer.tsc_deadline if timer is not None else 0,
        timer_expires_ns=cpu.alarm.deadline,
        handled=cpu.handled.to_bytes(VECTOR_BYTES, "little"),
        stale=cpu.stale,
        scan=cpu.scanned != board.generation,
        queued=tuple(cpu.queued),
        external_vector=cpu.external_vector,
        nmis=cpu.nmis,
        smi=cpu.smi,
        init=cpu.init,
        sipi_vector=cpu.sipi_vector,
        timer_pending=timer.pending if timer is not None else False,
        nmi_watchdog=chip.nmi_watchdog if chip is not None else None,
        lacks_x2apic=chip is not None and not chip.features.x2apic,
        lacks_tsc_deadline=chip is not None and not chip.features.tsc_deadline,
        lacks_tsc_adjust=chip is not None and not chip.features.tsc_adjust,
        address_bits=chip.features.address_bits if chip is not None else 0,
        timer_mode=timer.mode >> TIMER_MODE_SHIFT if timer is not None else None,
        tsc_adjust=timer.tsc_adjust if timer is not None else 0,
        last_sipi=cpu.last_sipi,
        nmi_masked=cpu.nmi_masked,
        nmi_injected=cpu.nmi_injected,
        unhalted=cpu.unhalted,
    )


def save_source(source: LineSource) -> SourceState:
    """A line source."""
    return SourceState(
        source=source.number,
        client=source.client,
        resampled_gsis=dict(source.resampled),
        asserted=source.asserted.to_bytes((source.asserted.bit_length() + 7) // 8, "little"),
    )


# Restoring, from states that have been checked.


def restore_source(source: LineSource, state: SourceState) -> None:
    """Make a new source what was saved: its Session is yet to come."""
    source.detached = True
    source.asserted = int.from_bytes(state.asserted, "little")
    source.resampled = dict(state.resampled_gsis)


def _not_too_late(expires: int, period: int, now: int) -> int:
    """When a periodic timer is due, MAX_LATE ago at the most."""
    missed = now - MAX_LATE - expires
    return expires + -(-missed // period) * period if missed > 0 else expires


def restore_board(board: Board, state: VmState, sources: Iterable[LineSource]) -> None:
    """Make a new board what was saved."""
    board.quirks &= ~state.disabled_quirks
    board.boot_vcpu = state.boot_vcpu
    board.max_vcpu_ids = state.max_vcpu_ids or (MAX_VCPU_ID + 1 if state.vcpus else 0)
    board.apic_bus_ns = state.apic_bus_ns or 1
    board.apics.x2apic_format = bool(state.x2apic_api & X2APIC_32BIT_IDS)
    board.apics.no_broadcast_quirk = bool(state.x2apic_api & X2APIC_NO_BROADCAST_QUIRK)
    if state.irqchip_mode == IRQCHIP_FULL:
        board.add_irqchip()
    elif state.irqchip_mode == IRQCHIP_SPLIT:
        board.split = state.reserved_gsis
    board.set_routes(state.routing)
    if state.pit is not None:
        board.add_pit(state.pit.speaker)
    for vcpu in state.vcpus:
        _restore_cpu(board, board.add_cpu(vcpu.vcpu), vcpu, state.now_ns)
    board.apics.mapped = state.mapped_vcpus
    if state.chips is not None:
        _restore_chips(board, state.chips)
    if state.pit is not None and board.pit is not None:
        _restore_pit(board.pit, state.pit, state.now_ns)
    for source in sources:
        for gsi in source.resampled:
            board.notices.resample(gsi, source)
    board.notices.update()
    for vcpu, cpu in zip(state.vcpus, board.cpus, strict=True):
        cpu.scanned = -1 if vcpu.scan else board.generation
    board.unsettled = True


def _restore_chips(board: Board, state: ChipsState) -> None:
    pic, io = board.pic, board.ioapic
    assert pic is not None
    assert io is not None
    for chip, data in ((pic.primary, state.primary), (pic.secondary, state.secondary)):
        lines = I8259.unpack(data)
        for name in I8259.__slots__:
            setattr(chip, name, getattr(lines, name))
    pic.output = state.output
    saved = IoapicState.unpack(state.ioapic)
    io.base_address, io.ioregsel, io.id, io.irr, io.pad = (
        saved.base_address,
        saved.ioregsel,
        saved.id,
        saved.irr,
        saved.pad,
    )
    io.redirection = list(saved.redirection)
    io.irr_delivered = state.irr_delivered
    io.rtc.vectors = dict(state.rtc_vectors)
    io.rtc.pending_eoi = state.rtc_pending_eoi
    io.successive_eois = list(state.successive_eois)
    board.set_alarm(board.delayed_eoi, state.delayed_eoi_ns)
    board.sources = [int.from_bytes(sources, "little") for sources in state.sources]


def _restore_pit(pit: Pit, state: PitTimerState, now: int) -> None:
    saved = PitState.unpack(state.state)
    pit.channels, pit.flags = list(saved.channels), saved.flags
    pit.reinject, pit.acknowledged, pit.pending = state.reinject, state.acknowledged, state.pending
    pit.period, pit.periodic = state.period_ns, state.periodic
    pit.expires, pit.running = state.expires_ns, state.running
    if pit.running and pit.periodic and pit.expires is not None:
        pit.expires = _not_too_late(pit.expires, pit.period, now)
    pit.wires.set_pit_alarm(pit.expires if pit.running else None)


def _features(state: VcpuState) -> Features:
    return Features(
        x2apic=not state.lacks_x2apic,
        tsc_deadline=not state.lacks_tsc_deadline,
        tsc_adjust=not state.lacks_tsc_adjust,
        address_bits=state.address_bits or ADDRESS_BITS,
    )


def _restore_cpu(board: Board, cpu: Cpu, state: VcpuState, now: int) -> None:
    cpu.mp_state = MpState(state.mp_state - MP_STATE_OFFSET)
    cpu.handled, cpu.stale = int.from_bytes(state.handled, "little"), state.stale
    cpu.queued, cpu.external_vector = list(state.queued), state.external_vector
    cpu.nmis, cpu.smi, cpu.init, cpu.sipi_vector = state.nmis, state.smi, state.init, state.sipi_vector
    cpu.nmi_masked, cpu.nmi_injected, cpu.unhalted = state.nmi_masked, state.nmi_injected, state.unhalted
    cpu.last_sipi = state.last_sipi
    chip = cpu.lapic
    if chip is None or state.lapic is None:
        return
    registers = LapicRegisters.unpack(state.lapic)
    for name in LapicRegisters.__slots__:
        setattr(chip, name, getattr(registers, name))
    chip.restore_base(state.apic_base)
    watchdog = state.nmi_watchdog
    chip.nmi_watchdog = lint0_is_nmi(chip.lvt_lint0) if watchdog is None else watchdog
    chip.set_features(_features(state), ioapic=board.ioapic is not None)
    timer = chip.timer
    timer.mode = chip.lvt_timer & timer.mode_mask
    if state.timer_mode is not None:
        timer.mode = state.timer_mode << TIMER_MODE_SHIFT
    timer.tsc_adjust = state.tsc_adjust
    timer.set_divide(chip.timer_divide)
    timer.period, timer.target = state.timer_period_ns, state.timer_target_ns
    timer.tsc_offset, timer.tsc_deadline = state.tsc_offset, state.tsc_deadline
    timer.pending = state.timer_pending
    expires = state.timer_expires_ns
    if expires is not None and timer.mode == PERIODIC:
        expires = _not_too_late(expires, timer.period, now)
        timer.target = min(_not_too_late(timer.target, timer.period, now), FOREVER)
    board.set_alarm(cpu.alarm, expires)


# Checking.


def _check(condition: object, what: str) -> None:
    if not condition:
        raise invalid(f"no VM has this state: {what}")


def _in_range(value: int | None, low: int, high: int, what: str) -> None:
    _check(value is None or low <= value <= high, f"{what} is {value}, and not {low} to {high}")


def _unique(values: Sequence[int], what: str) -> None:
    _check(len(set(values)) == len(values), f"{what} are there twice")


def check_state(state: VmState, max_vcpus: int) -> None:
    """Refuse what is not a VM's: EINVAL."""
    _check(state.clock in (CLOCK_REAL, CLOCK_VIRTUAL), f"clock {state.clock}")
    _in_range(state.now_ns, 0, MAX_TIME, "now_ns")
    full = state.irqchip_mode == IRQCHIP_FULL
    _check(state.irqchip_mode in (IRQCHIP_NONE, IRQCHIP_FULL, IRQCHIP_SPLIT), f"irqchip_mode {state.irqchip_mode}")
    _in_range(state.reserved_gsis, 0, 0xFF if state.irqchip_mode == IRQCHIP_SPLIT else 0, "reserved_gsis")
    check_routes(state.routing)
    _check(state.irqchip_mode != IRQCHIP_NONE or not state.routing, "routes without an irqchip")
    _check(full or not any(isinstance(route, PinRoute) for route in state.routing), "routes to pins that are not here")
    _check((state.chips is not None) == full, "chips go with a full irqchip")
    _check(full or state.pit is None, "a PIT without a PIC")
    _check(len(state.vcpus) <= max_vcpus, f"{len(state.vcpus)} vCPUs; at most {max_vcpus} are allowed")
    _unique([vcpu.vcpu for vcpu in state.vcpus], "vCPUs")
    _check(not state.disabled_quirks & ~QUIRKS, f"disabled_quirks {state.disabled_quirks:#x}")
    _in_range(state.max_vcpu_ids, 0, MAX_VCPU_ID + 1, "max_vcpu_ids")
    _in_range(state.boot_vcpu, 0, state.max_vcpu_ids or MAX_VCPU_ID + 1, "boot_vcpu")
    _check(not state.x2apic_api & ~X2APIC_API, f"x2apic_api {state.x2apic_api:#x}")
    _in_range(state.apic_bus_ns, 0, 0 if state.irqchip_mode == IRQCHIP_NONE else MAX_BUS_NS, "apic_bus_ns")
    for vcpu in state.vcpus:
        _check_cpu(vcpu, state)
    _in_range(state.mapped_vcpus, 0, len(state.vcpus), "mapped_vcpus")
    _check(len(state.sources) <= MAX_SOURCES, f"{len(state.sources)} sources; a VM has at most {MAX_SOURCES}")
    _unique([source.source for source in state.sources], "sources")
    size = sum(_check_source(source, full) for source in state.sources)
    _check(size <= SOURCES_BYTES, f"its sources hold {size} bytes of names and GSIs, and not {SOURCES_BYTES} or less")
    _check_gsis(state.asserted_gsis)
    if state.chips is not None:
        _check_chips(state.chips, state)
    if state.pit is not None:
        _check_pit(state.pit, state.now_ns)


def _check_gsis(gsis: Collection[int]) -> None:
    _check(len(gsis) <= MAX_GSIS, f"{len(gsis)} GSIs; there are {MAX_GSIS}")
    for gsi in (min(gsis), max(gsis)) if gsis else ():
        _in_range(gsi, 0, MAX_GSIS - 1, "a GSI")


def _check_source(source: SourceState, full: bool) -> int:
    """What it is charged of SOURCES_BYTES."""
    _in_range(source.source, SHARED + 1, MAX_SOURCE, "a source")
    _check(source.source not in (PIT, RESAMPLERS), f"source {source.source} is no Session's")
    name = source.client
    _check(len(name) <= MAX_CLIENT_NAME and name.isprintable(), f"client {name[:MAX_CLIENT_NAME]!r}")
    _check(len(source.asserted) <= MAX_GSIS // 8, f"asserted has more than {MAX_GSIS} bits")
    _check_gsis(source.resampled_gsis)
    for count in source.resampled_gsis.values():
        _in_range(count, 0, MAX_UNHEARD, "what a source was not told of")
    _check(full or not source.resampled_gsis, "GSIs are resampled without a PIC and IOAPIC")
    highest = int.from_bytes(source.asserted, "little").bit_length() - 1
    return bytes_of(name, reach_for(highest), len(source.resampled_gsis))


def _check_chips(chips: ChipsState, state: VmState) -> None:
    _check(len(chips.primary) == len(chips.secondary) == i8259.STATE_SIZE, f"a PIC is not {i8259.STATE_SIZE} bytes")
    _check(len(chips.ioapic) == ioapic.STATE_SIZE, f"the IOAPIC is not {ioapic.STATE_SIZE} bytes")
    pins = PINS[ChipId.IOAPIC]
    _check(not (IoapicState.unpack(chips.ioapic).irr | chips.irr_delivered) >> pins, f"irr has more than {pins} pins")
    for cpu, vector in chips.rtc_vectors.items():
        _in_range(cpu, 0, len(state.vcpus) - 1, "a vCPU of rtc_vectors")
        _in_range(vector, 0, 0xFF, "a vector of rtc_vectors")
    _in_range(chips.rtc_pending_eoi, 0, len(state.vcpus), "rtc_pending_eoi")
    _check(len(chips.successive_eois) == pins, f"successive_eois are not {pins}")
    for count in chips.successive_eois:
        _in_range(count, 0, MAX_SUCCESSIVE_EOIS - 1, "one of successive_eois")
    _in_range(chips.delayed_eoi_ns, 0, state.now_ns + ioapic.DELAYED_EOI, "delayed_eoi_ns")
    _check(len(chips.sources) == INPUTS, f"sources are not those of {INPUTS} inputs")
    known = 1 << SHARED | 1 << RESAMPLERS | (1 << PIT if state.pit is not None else 0)
    known |= sum(1 << source.source for source in state.sources)
    for sources in chips.sources:
        _check(len(sources) <= MAX_SOURCE // 8 + 1, "an input is driven by too many")
        _check(not int.from_bytes(sources, "little") & ~known, "an input is driven by nobody")


def _check_pit(pit: PitTimerState, now: int) -> None:
    _check(len(pit.state) == i8254.STATE_SIZE, f"the PIT is not {i8254.STATE_SIZE} bytes")
    channels = PitState.unpack(pit.state).channels
    _check(all(channel.count for channel in channels), "a channel of the PIT counts from 0")
    for channel in channels[1:]:  # the first has a timer instead
        _in_range(channel.count_load_time, 0, now, "count_load_time")
    _check((pit.expires_ns is None) == (pit.period_ns == 0), "expires_ns and period_ns of the PIT go together")
    _in_range(pit.period_ns, 0, MAX_PIT_PERIOD, "period_ns of the PIT")
    _in_range(pit.pending, 0, i8254.MAX_PENDING, "pending of the PIT")
    _in_range(pit.expires_ns, 0, now + pit.period_ns, "expires_ns of the PIT")
    _check(not pit.running or pit.expires_ns is not None, "the PIT runs and does not expire")
    _check(not (pit.running and pit.periodic) or pit.period_ns >= i8254.MIN_PERIOD, "the PIT's period is too short")


def _check_cpu(cpu: VcpuState, state: VmState) -> None:
    _in_range(cpu.vcpu, 0, (state.max_vcpu_ids or MAX_VCPU_ID + 1) - 1, "a vCPU's id")
    _check(cpu.mp_state in _MP_STATES, f"mp_state {cpu.mp_state}")
    _check((cpu.lapic is not None) == (state.irqchip_mode != IRQCHIP_NONE), "local APICs go with an irqchip")
    _in_range(cpu.stale, -1, 0xFF, "stale")
    _in_range(cpu.nmis, 0, MAX_NMIS, "nmis")
    _in_range(cpu.external_vector, 0, 0xFF, "external_vector")
    _check(cpu.external_vector is None or state.irqchip_mode == IRQCHIP_SPLIT, "an external_vector beside a PIC")
    _in_range(cpu.sipi_vector, 0, 0xFF, "sipi_vector")
    _in_range(cpu.last_sipi, 0, 0xFF, "last_sipi")
    _in_range(cpu.timer_mode, 0, TIMER_MODE >> TIMER_MODE_SHIFT, "timer_mode")
    _in_range(cpu.address_bits or ADDRESS_BITS, LEAST_ADDRESS_BITS, ADDRESS_BITS, "address_bits")
    _check(len(cpu.queued) <= MAX_QUEUED, f"{len(cpu.queued)} interrupts are queued; at most {MAX_QUEUED} can be")
    for vector, _ in cpu.queued:
        _in_range(vector, 0, 0xFF, "a queued vector")
    _check(len(cpu.handled) == VECTOR_BYTES, f"handled is not {VECTOR_BYTES} bytes")
    if cpu.lapic is None:
        _check(cpu.timer_expires_ns is None and not cpu.timer_pending, "a timer without a local APIC")
        vectors = (cpu.sipi_vector, cpu.external_vector)
        waits = cpu.queued or cpu.nmis or cpu.smi or cpu.init or vectors != (None, None)
        waits = waits or cpu.nmi_masked or cpu.nmi_injected or cpu.unhalted or cpu.last_sipi
        _check(not waits, "a vCPU without a local APIC has something to take")
        _check(cpu.mp_state == MpState.RUNNABLE + MP_STATE_OFFSET, "a vCPU without a local APIC waits")
        return
    _check(len(cpu.lapic) == lapic_registers.STATE_SIZE, f"a local APIC is not {lapic_registers.STATE_SIZE} bytes")
    registers = LapicRegisters.unpack(cpu.lapic)
    expected = Lapic.version_beside(ioapic=state.irqchip_mode == IRQCHIP_FULL or cpu.lacks_x2apic)
    _check(registers.version == expected, f"a local APIC's version is {registers.version:#x}, and not {expected:#x}")
    x2apic = bool(cpu.apic_base & BASE_X2APIC)
    # Whatever the guest's CPUID has: that may have come later.
    _check(not Features().refuse_base(cpu.apic_base), f"apic_base {cpu.apic_base:#x}")
    identity = (registers.id, registers.ldr)
    _check(not x2apic or identity == (cpu.vcpu, x2apic_logical_id(cpu.vcpu)), "an x2APIC's ID is its vCPU's")
    _in_range(cpu.timer_period_ns, 0, MAX_PERIOD * (state.apic_bus_ns or 1), "an APIC timer's period")
    _in_range(cpu.timer_target_ns, 0, FOREVER, "an APIC timer's target")
    _in_range(cpu.timer_expires_ns, 0, FOREVER, "when an APIC timer expires")
    mode = registers.lvt_timer & TIMER_MODE if cpu.timer_mode is None else cpu.timer_mode << TIMER_MODE_SHIFT
    running = mode == PERIODIC and cpu.timer_expires_ns is not None
    _check(not running or cpu.timer_period_ns >= MIN_PERIOD, "an APIC timer's period is too short")
