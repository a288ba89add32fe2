"""Families of random operations (see families.py) in areas where differences were found: many vCPUs, registers that
move, states that no guest sets, and chips that act on each other.
"""

from __future__ import annotations

import struct
from random import Random

from irqchipd.chips.i8254 import Port as PitPort
from irqchipd.chips.i8254_state import STATE_SIZE as PIT_STATE_SIZE
from irqchipd.chips.i8254_state import Mode, PitChannel, PitState
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.i8259 import Port as PicPort
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.ioapic import PINS, IoapicState
from irqchipd.chips.lapic_registers import BASE_ENABLED, DFR_CLUSTER, DFR_FLAT, WORDS, LapicRegisters, Reg
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.routing import ChipId
from irqchipd.vm.x86.vcpu_state import MP_STATES
from tests.conformance.machines import Op
from tests.conformance.mode_families import X2APIC, ModeScript
from tests.conformance.script import (
    ALL_MODES,
    EXTINT,
    FIXED,
    HARMLESS_MODES,
    INIT,
    LOWEST,
    MASKED,
    NMI,
    REMOTE_READ,
    STARTUP,
    U32,
    Script,
)

LEVEL, LOGICAL, REMOTE_IRR = 1 << 15, 1 << 11, 1 << 14
RTC = 8
# Addresses without memory, where registers may be: beside their defaults, over the IOAPIC's, and elsewhere.
LOW_BASES = (0xFEE0_1000, 0xFEDF_F000, 0xFEC0_0000, 0xFEC0_1000, 0xFEBF_F000, 0xFFFF_F000, 0x8000_0000, 0x0010_0000)
ABOVE_4_GIB = (0x1_0000_0000, 0x2_FEE0_0000, 0x7F_C123_4000)  # within the gibibytes that guest.py maps
READABLE = sorted(WORDS.keys() - {Reg.TIMER_CURRENT_COUNT, Reg.ICR_HIGH})  # the last is half a register
BYTES = (0, 1, 2, 3, 4, 5, 0x7F, 0xFF)


def many(rng: Random) -> list[Op]:
    """At least ten vCPUs with IDs from the whole range, addressed in every way, and in several ways at once."""
    ids = rng.sample(range(255), rng.randrange(10, 17))
    for number in (0, 1, 254):
        if number not in ids and not rng.randrange(3):
            ids[rng.randrange(len(ids))] = number
    script = ModeScript(rng, list(dict.fromkeys(ids)))
    style = rng.choice(("flat", "cluster", "x2apic", "mixed"))
    in_x2apic_mode: set[int] = set()
    script.destinations = [
        *rng.sample(ids, 3),
        rng.choice(ids) ^ 1 << rng.randrange(8),
        *rng.sample((0xFF, 0xF0, 0x0F, 0x1F, 0x2F, 0x11, 0x03, 0x80, rng.randrange(256)), 3),
    ]
    x2apic_ids = [(vcpu >> 4) << 16 | 1 << (vcpu & 0xF) for vcpu in ids]

    def write(vcpu: int, register: int, value: int) -> None:
        if vcpu in in_x2apic_mode:
            script.x2apic_write(register, value)
        else:
            script.lapic_write(vcpu, register, value)

    def logical_id(place: int, cluster: bool) -> int:
        if script.one_in(8):
            return rng.randrange(256)
        return (place // 4 % 15) << 4 | 1 << place % 4 if cluster else 1 << place % 8

    for place, vcpu in enumerate(script.vcpus):
        mode = rng.choice(("flat", "cluster", "x2apic")) if style == "mixed" else style
        if mode == "x2apic":
            script.add("msr_write", vcpu, 0x1B, LAPIC_BASE | X2APIC)
            in_x2apic_mode.add(vcpu)
        else:
            cluster = mode == "cluster"
            script.lapic_write(vcpu, Reg.DFR, DFR_CLUSTER if cluster else DFR_FLAT)
            script.lapic_write(vcpu, Reg.LDR, logical_id(place, cluster) << 24)
        if not script.one_in(10):
            if mode == "x2apic":
                script.add("msr_write", vcpu, 0x800 + (Reg.SVR >> 4), 0x1FF)
            else:
                script.lapic_write(vcpu, Reg.SVR, 0x1FF)

    def x2apic_ipi() -> None:
        if not in_x2apic_mode:
            return
        sender = rng.choice(sorted(in_x2apic_mode))
        destination = rng.choice((*x2apic_ids, *ids, U32, rng.choice(x2apic_ids) | 0xFFFF, script.few_bits(20)))
        low = script.mode() << 8 | script.vector() | script.one_in(2) << 11
        low |= rng.choice((0, 0, 0, 1, 2, 3)) << 18
        script.add("msr_write", sender, 0x830, destination << 32 | low)

    def address() -> None:
        vcpu = script.vcpu()
        if script.one_in(3):
            script.address()
        elif vcpu in in_x2apic_mode and script.one_in(4):
            script.add("msr_write", vcpu, 0x1B, LAPIC_BASE)
            in_x2apic_mode.discard(vcpu)
        else:
            script.lapic_write(vcpu, Reg.LDR, logical_id(rng.randrange(16), rng.choice((True, False))) << 24)

    def see() -> None:
        for vcpu in script.vcpus:
            script.add("get_lapic_page", vcpu)

    return script.some_of(
        [
            (12, script.msi),
            (10, script.ipi),
            (10, x2apic_ipi),
            (8, script.line),
            (6, script.program),
            (4, address),
            (6, script.take_if_enabled),
            (3, script.ack),
            (2, see),
            (1, script.base),
            (1, script.set_lapic),
            (1, script.routing),
        ]
    )


def bases(rng: Random) -> list[Op]:
    """Registers that move beside, over and far from other registers. Only words that are registers are read."""
    script = ModeScript(rng, rng.choice(([0], [0, 1], [0, 1, 2], [3, 0, 1])))
    script.enable_all()
    places = [LAPIC_BASE, LAPIC_BASE, *rng.sample(LOW_BASES, 2), rng.randrange(0x1_0000, 0xF_0000) << 12]
    places += [rng.choice(ABOVE_4_GIB), rng.choice(ABOVE_4_GIB) + (rng.randrange(0x100) << 12)]

    def base() -> None:
        bits = rng.choice((BASE_ENABLED, BASE_ENABLED, BASE_ENABLED, BASE_ENABLED, 0, X2APIC))
        script.add("msr_write", script.vcpu(), 0x1B, rng.choice(places) | bits)

    def read() -> None:
        script.add("mmio_read", script.vcpu(), rng.choice(places) + rng.choice(READABLE), 4)

    def write() -> None:
        vcpu, page = script.vcpu(), rng.choice(places)
        register, value = rng.choice(
            (
                (Reg.TPR, rng.choice((0, 0x20, 0x55, 0xFF))),
                (Reg.LDR, rng.choice(script.logical_ids) << 24),
                (Reg.ID, script.destination() << 24),
                (Reg.SVR, rng.choice((0x1FF, 0x1FF, 0xFF))),
                (Reg.ICR2, script.destination() << 24),
                (Reg.ICR, script.mode() << 8 | script.vector() | rng.choice((0, 1, 2, 3)) << 18),
                (Reg.EOI, 0),
                (Reg.LVT_LINT0, rng.choice((0x700, MASKED))),
            )
        )
        script.add("mmio_write", vcpu, page + register, 4, value)

    return script.some_of(
        [
            (6, base),
            (3, lambda: script.add("msr_read", script.vcpu(), 0x1B)),
            (12, read),
            (12, write),
            (4, script.msi),
            (4, script.line),
            (3, script.program),
            (6, script.take_if_enabled),
            (3, script.ack),
            (3, script.get_state),
            (1, script.set_lapic),
        ]
    )


def odd_lapic(rng: Random) -> list[Op]:
    """States that a local APIC never reaches, restored in each of its modes, and their consequences."""
    script = ModeScript(rng, rng.choice(([0], [0, 1], [0, 1, 2], [5, 0, 254])))
    script.enable_all()
    script.pins = [RTC, *rng.sample(range(PINS), 2)]

    def restore() -> None:
        vcpu = script.vcpu()
        page = bytearray(script.page())
        if not script.one_in(3):  # an ID that an x2APIC accepts, or almost
            apic_id = rng.choice((vcpu, vcpu, vcpu, vcpu << 24, vcpu + 1, vcpu | 1 << 31))
            struct.pack_into("<I", page, Reg.ID, apic_id)
        if script.one_in(3):
            for register in rng.sample((*READABLE, Reg.EOI, 0x90, 0xC0, Reg.ICR_HIGH, 0x3F0), 3):
                if register != Reg.LVT_TIMER:
                    struct.pack_into("<I", page, register, script.word())
        if script.one_in(4):
            page[Reg.ISR : Reg.ESR] = rng.randbytes(Reg.ESR - Reg.ISR)  # ISR, TMR and IRR, and the words between them
        if script.one_in(6):
            page[Reg.SVR + 1] = rng.choice((0, 1, 0x10, 0x11, 0xFF))
        script.add("set_lapic", vcpu, page.hex())
        if script.one_in(2):
            script.add("get_lapic_page", vcpu)

    def modes() -> None:
        script.add("msr_write", script.vcpu(), 0x1B, LAPIC_BASE | rng.choice((0, BASE_ENABLED, X2APIC, X2APIC)))

    return script.some_of(
        [
            (10, restore),
            (4, modes),
            (6, script.msr_read),
            (4, script.msr_program),
            (6, script.lapic_read),
            (4, script.lapic_program),
            (2, script.address),
            (4, script.icr),
            (3, script.ipi),
            (5, script.msi),
            (6, script.line),
            (4, script.program),
            (5, script.take_if_enabled),
            (4, script.ack),
            (4, script.eoi),
            (3, script.get_state),
        ]
    )


def raw_pit(rng: Random) -> list[Op]:
    """States of the PIT that no guest sets, and how its ports behave then. No answer depends on time."""
    script = Script(rng, [0])
    script.ops.insert(1, ["create_pit", rng.choice((0, 1, 1))])

    def channel() -> PitChannel:
        return PitChannel(
            count=rng.choice((0, 1, 2, 0xFFFF, 0x1_0000, 0x1_0001, U32, rng.getrandbits(16), rng.getrandbits(32))),
            latched_count=rng.getrandbits(16),
            count_latched=rng.choice(BYTES),
            status_latched=rng.choice((0, 0, 1, 2, 0xFF)),
            status=rng.getrandbits(8),
            read_state=rng.choice(BYTES),
            write_state=rng.choice(BYTES),
            write_latch=rng.getrandbits(8),
            rw_mode=rng.choice(BYTES),
            mode=rng.choice((*range(8), 0x7F, 0xFF)),
            bcd=rng.choice((0, 1, 0xFF)),
            gate=rng.choice((0, 1, 1, 0xFF)),
            count_load_time=rng.getrandbits(63),
        )

    def restore() -> None:
        channels = channel(), channel(), channel()
        script.add("set_pit", PitState(channels, rng.choice((0, 0, 1, 2, 3, script.word()))).pack().hex())
        for number, one in enumerate(channels):  # only the latches
            latched = bool(one.status_latched) + (0 if not one.count_latched else 1 + (one.count_latched == 3))
            for _ in range(rng.randrange(latched + 1)):
                script.add("pio_read", 0, PitPort.CHANNEL_0 + number, rng.choice((1, 1, 1, 2, 4)))

    def noise() -> None:
        script.add("set_pit", rng.randbytes(PIT_STATE_SIZE).hex())

    def control() -> None:
        script.add("pio_write", 0, PitPort.CONTROL, rng.choice((1, 1, 1, 2, 4)), rng.getrandbits(8))

    def load() -> None:
        port = PitPort.CHANNEL_0 + rng.randrange(3)
        for _ in range(rng.randrange(1, 4)):
            script.add("pio_write", 0, port, rng.choice((1, 1, 1, 2, 4)), rng.getrandbits(8))

    def read() -> None:
        port = rng.choice((PitPort.CHANNEL_0, PitPort.CHANNEL_0 + 1, PitPort.CHANNEL_0 + 2, PitPort.CONTROL))
        script.add("pio_touch", 0, port, rng.choice((1, 1, 1, 2, 4)))

    def speaker() -> None:
        script.add("pio_write", 0, PitPort.SPEAKER, 1, rng.getrandbits(8))

    return script.some_of(
        [
            (4, restore),
            (1, noise),
            (6, control),
            (6, load),
            (6, read),
            (2, speaker),
            (1, lambda: script.add("pit_reinject", rng.randrange(2))),
            (10, lambda: script.add("get_pit")),
        ]
    )


def running(rng: Random) -> list[Op]:
    """Run states, INIT and SIPI, mixed with the IOAPIC and its RTC: some vCPUs run, others are started and stopped.

    No signal that would stop a guest is sent to a running vCPU.
    """
    vcpus = rng.choice(([0, 1, 2], [0, 1, 2, 3], [3, 0, 1, 2], [1, 2, 0, 3], [0, 200, 254]))
    script = Script(rng, vcpus)
    guests, others = vcpus[:1] if script.one_in(2) else vcpus[:2], vcpus[2:]
    harmless = (FIXED, FIXED, FIXED, LOWEST, EXTINT, REMOTE_READ)
    script.vectors = rng.sample((0x31, 0x32, 0x41, 0x9A, 0xFE), 3)
    script.pins = [RTC, RTC, *rng.sample(range(PINS), 2)]
    stopped: set[int] = set()

    for vcpu in vcpus:
        script.lapic_write(vcpu, Reg.SVR, 0x1FF)
        script.lapic_write(vcpu, Reg.LDR, rng.choice((1, 2, 4, 8)) << 24)

    def guest() -> int:
        """A vCPU that runs now."""
        vcpu = rng.choice(guests)
        if vcpu in stopped:
            script.add("set_mp_state", vcpu, MpState.RUNNABLE)
            stopped.discard(vcpu)
        return vcpu

    def entry() -> int:
        flags = script.one_in(2) * LEVEL | script.one_in(6) * MASKED | script.one_in(4) * REMOTE_IRR
        if script.one_in(2):  # any mode, to a vCPU that need not run
            return rng.choice(others) << 56 | rng.choice((*ALL_MODES, INIT, STARTUP)) << 8 | script.vector() | flags
        destination = rng.choice((*vcpus, 0xFF, 1, 3, 0xF))
        return destination << 56 | rng.choice(harmless) << 8 | script.one_in(2) * LOGICAL | script.vector() | flags

    def program() -> None:
        """An entry with a mode that stops guests is never together with another entry's destination."""
        pin, value = rng.choice(script.pins), entry()
        low, high = (0, value & U32), (1, value >> 32)
        for half, word in ((0, MASKED), high, low) if value >> 8 & 7 in (NMI, INIT, STARTUP) else (low, high):
            vcpu = guest()
            script.select(vcpu, 0x10 + 2 * pin + half)
            script.add("mmio_write", vcpu, IOAPIC_BASE + 0x10, 4, word)

    def restore_ioapic() -> None:
        entries = [MASKED] * PINS
        for pin in script.pins:
            entries[pin] = entry()
        irr = sum({1 << pin for pin in script.pins if script.one_in(2)})
        script.add("set_irqchip", 2, IoapicState(redirection=tuple(entries), irr=irr).pack().hex())

    def restore_lapic() -> None:
        vcpu = script.vcpu()
        registers = LapicRegisters(id=vcpu << 24, svr=rng.choice((0x1FF, 0x1FF, 0xFF)))
        registers.ldr = rng.choice((1, 2, 4, 8)) << 24
        registers.isr, registers.irr, registers.tmr = (
            sum(1 << vector for vector in script.vectors if script.one_in(3)) for _ in range(3)
        )
        script.add("set_lapic", vcpu, registers.pack().hex())

    def line() -> None:
        for level in rng.choice(((1,), (0,), (0, 1), (1, 0), (1, 0, 1, 0))):
            script.add("irq_line", rng.choice(script.pins), level)

    def message() -> None:
        dangerous = script.one_in(2)
        destination = rng.choice(others) if dangerous else rng.choice((*vcpus, 0xFF))
        mode = rng.choice((*ALL_MODES, INIT, STARTUP, STARTUP)) if dangerous else rng.choice(harmless)
        data = mode << 8 | script.vector() | script.one_in(3) * LEVEL | script.one_in(2) << 14
        script.add("signal_msi", LAPIC_BASE | destination << 12, data, 0)

    def ipi() -> None:
        vcpu = guest()
        script.lapic_write(vcpu, Reg.ICR2, rng.choice(others) << 24)
        mode = rng.choice((FIXED, LOWEST, NMI, INIT, INIT, STARTUP, STARTUP))
        script.lapic_write(vcpu, Reg.ICR, mode << 8 | script.vector() | script.one_in(3) * LEVEL | 1 << 14)

    def set_state() -> None:
        if script.one_in(2):
            script.add("set_mp_state", rng.choice(others), rng.choice((*MP_STATES, 5)))
            return
        vcpu = rng.choice(guests)
        script.add("set_mp_state", vcpu, rng.choice((MpState.HALTED, MpState.UNINITIALIZED)))
        stopped.add(vcpu)

    return script.some_of(
        [
            (10, line),
            (8, program),
            (8, message),
            (6, ipi),
            (6, set_state),
            (8, lambda: script.add("get_mp_state", script.vcpu())),
            (6, lambda: script.add("take", guest())),
            (5, lambda: script.add("ack_lapic", script.vcpu())),
            (5, lambda: script.lapic_write(guest(), Reg.EOI, 0)),
            (2, restore_ioapic),
            (3, restore_lapic),
            (4, lambda: script.add("get_irqchip", 2)),
            (4, lambda: script.add("get_lapic_page", script.vcpu())),
        ]
    )


def resamplers(rng: Random) -> list[Op]:
    """Devices that hold a line until they are notified of its acknowledgement, several of them on one pin."""
    script = Script(rng, rng.choice(([0], [0, 1], [0, 1], [1, 0])))
    script.vectors = rng.sample((0x31, 0x32, 0x41, 0xFE), 2)
    script.pins = rng.sample((1, 3, 5, RTC, 10, 14, 16, 20, 23), 3)
    script.destinations = [*script.vcpus, 0xFF]
    gsis = [*script.pins, 24, 30]
    script.enable_all()
    if script.one_in(2):
        script.pic_init(PicPort.PRIMARY_COMMAND, PicPort.PRIMARY_DATA)
        script.pic_init(PicPort.SECONDARY_COMMAND, PicPort.SECONDARY_DATA)
    made = 0
    held: list[int] = []

    def resampler() -> None:
        nonlocal made
        if made < 6:
            script.add("resampler", rng.choice(gsis))
            held.append(made)
            made += 1

    def drop() -> None:
        if held:
            number = rng.choice(held)
            held.remove(number)
            script.add("drop", number)

    def hold() -> None:
        if held:
            script.add("assert_gsi", rng.choice(held))

    def heard() -> None:
        for number in held:
            script.add("resampled", number)

    def line() -> None:
        for level in rng.choice(((1,), (0,), (1, 0), (0, 1))):
            script.add("irq_line", rng.choice(gsis), level)

    def share() -> None:
        """Route several GSIs to one pin, and one GSI to several chips."""
        table: list[list[object]] = []
        for gsi in gsis:
            pin = rng.choice(script.pins)
            if not script.one_in(5):
                table.append([gsi, "irqchip", int(ChipId.IOAPIC), pin])
            if pin < 16 and script.one_in(2):
                chip = ChipId.PIC_SECONDARY if pin >= 8 else ChipId.PIC_PRIMARY
                table.append([gsi, "irqchip", int(chip), pin & 7])
        script.add("set_gsi_routing", script.default_table() if script.one_in(6) else table)

    def program() -> None:
        pin = rng.choice(script.pins)
        entry = rng.choice(script.vcpus) << 56 | script.vector() | (not script.one_in(4)) * LEVEL
        entry |= script.one_in(4) * MASKED
        for half in (1, 0):
            script.select(script.vcpu(), 0x10 + 2 * pin + half)
            script.add("mmio_write", script.vcpu(), IOAPIC_BASE + 0x10, 4, entry >> 32 * half & U32)

    resampler()
    resampler()
    return script.some_of(
        [
            (3, resampler),
            (1, drop),
            (10, hold),
            (8, line),
            (8, heard),
            (7, program),
            (3, share),
            (10, script.take),
            (3, script.ack),
            (4, script.eoi),
            (4, script.pic_command),
            (5, lambda: script.add("get_irqchip", rng.randrange(3))),
            (1, lambda: script.add("get_lapic_page", script.vcpu())),
        ],
        100,
    )


def watchdog(rng: Random) -> list[Op]:
    """The PIT's tick at the local APICs' LINT0: the NMI watchdog of old kernels, and its effect on other CPUs."""
    script = Script(rng, rng.choice(([0], [0, 1], [0, 1, 2], [2, 0, 1])))
    script.ops.insert(1, ["create_pit", 0])
    script.add("pit_reinject", 0)
    script.vectors = rng.sample((0x31, 0x41, 0xFE, 0x0F), 2)
    script.pins = [0, *rng.sample(range(1, PINS), 2)]
    script.modes = tuple(mode for mode in HARMLESS_MODES if mode != REMOTE_READ)
    script.enable_all()
    # The PIC does not deliver the ticks, but its IRR shows that there was one.
    pic = I8259(imr=0xFF, elcr_mask=0xF8).pack().hex()
    stop = [["pio_write", 0, PitPort.CONTROL, 1, 0x30 | Mode.HARDWARE_STROBE << 1]]
    stop += [["pio_write", 0, PitPort.CHANNEL_0, 1, 0]] * 2

    def lint0() -> int:
        return rng.choice((0x400, 0x400, script.vector(), script.vector(), 0x700, MASKED | 0x400, script.mode() << 8))

    def write_lint0() -> None:
        script.lapic_write(script.vcpu(), Reg.LVT_LINT0, lint0())

    def restore() -> None:
        vcpu = script.vcpu()
        enabled = not script.one_in(3)
        registers = LapicRegisters(id=vcpu << 24, svr=0x1FF if enabled else 0xFF, lvt_lint0=lint0())
        script.add("set_lapic", vcpu, registers.pack().hex())

    def disable() -> None:
        script.lapic_write(script.vcpu(), Reg.SVR, rng.choice((0xFF, 0xFF, 0x1FF)))

    def base() -> None:
        script.add("msr_write", script.vcpu(), 0x1B, LAPIC_BASE | rng.choice((BASE_ENABLED, BASE_ENABLED, 0)))

    def take_nmis() -> None:
        for vcpu in script.vcpus:
            script.add("take_nmis", vcpu)

    def tick() -> None:
        script.add("set_irqchip", 0, pic)
        script.add("pio_write", 0, PitPort.CONTROL, 1, 0x30)
        script.add("pio_write", 0, PitPort.CHANNEL_0, 1, 1)
        script.add("pio_write", 0, PitPort.CHANNEL_0, 1, 0)
        script.add("await_tick")
        for op in stop:  # KVM: i8254.c destroy_pit_timer, which waits for a tick's work to end
            script.add(*op)
        take_nmis()  # no guest may run with a pending NMI
        for vcpu in script.vcpus:
            script.add("get_lapic_page", vcpu)

    return script.some_of(
        [
            (6, write_lint0),
            (3, restore),
            (2, disable),
            (1, base),
            (5, tick),
            (3, script.ack),
            (3, script.eoi),
            (2, script.program),
            (1, script.msi),
            (1, lambda: script.add("get_irqchip", 2)),
        ],
        120,
    )
