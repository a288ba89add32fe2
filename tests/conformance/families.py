"""Random sequences of operations, one function per family. They do not depend on the machine's answers.

Each sequence chooses small pools at its start and draws everything from them, so that its operations soon interact:
vectors, pins and destinations collide, and later operations undo earlier ones.

Guests run in every family except `creation`, `messages` and `startup`. The other families therefore send no signal that
would stop a running guest (NMI, SMI, INIT, start-up). No local APIC timer interrupts, because that depends on time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from irqchipd.chips.i8259 import Port
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.ioapic import PINS, IoapicState
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from tests.conformance.corner_families import bases, many, odd_lapic, raw_pit, resamplers, running, watchdog
from tests.conformance.machines import Op
from tests.conformance.mode_families import split, startup, wide, x2apic
from tests.conformance.script import ALL_MODES, EXTINT, FIXED, LOWEST, MASKED, PORTS, U32, VCPU_IDS, Script


def creation(rng: Random) -> list[Op]:
    """Creations and other operations in any order, before there is anything to operate on."""
    script = Script(rng, [0])
    script.ops.clear()
    # irqchipd keeps no trace of a vCPU whose creation failed, but KVM's map of destinations does; other delivery
    # modes would show that.
    script.modes = (FIXED, LOWEST, EXTINT)
    vcpus: list[int] = []

    def vcpu() -> None:
        number = rng.choice((0, 1, 2, 3, 1 << 20, (1 << 31) - 1))
        script.add("create_vcpu", number)
        if number < 4:
            vcpus.append(number)

    def irqchip() -> None:
        script.add("create_irqchip")

    def get_chip() -> None:
        script.add("get_irqchip", rng.choice((0, 1, 2, 3, U32)))

    def lapic() -> None:
        if vcpus:
            script.vcpus = vcpus
            script.rng.choice((script.set_lapic, lambda: script.add("get_lapic_page", rng.choice(vcpus))))()

    actions = [(2, vcpu), (1, irqchip), (1, script.line), (1, get_chip), (1, script.set_pic), (1, script.set_ioapic)]
    return script.some_of([*actions, (1, script.routing), (1, script.msi), (1, lapic)], rng.randrange(4, 30))


def lines(rng: Random) -> list[Op]:
    """The statuses of lines, with the default routing and with random ones."""
    script = Script(rng, rng.choice(VCPU_IDS))
    script.enable_all()
    return script.some_of(
        [
            (30, script.line),
            (4, script.routing),
            (4, script.program),
            (3, script.ioapic_write),
            (3, script.pic_command),
            (3, script.serve),
            (2, script.take),
            (1, script.get_state),
            (1, script.set_pic),
        ]
    )


def pic(rng: Random) -> list[Op]:
    """The PIC pair, programmed validly and invalidly, restored, and read by several vCPUs."""
    script = Script(rng, rng.choice(([0], [0], [0, 1], [1, 0], [1, 2])))
    if not script.one_in(4):
        script.pic_init(Port.PRIMARY_COMMAND, Port.PRIMARY_DATA)
        script.pic_init(Port.SECONDARY_COMMAND, Port.SECONDARY_DATA)

    def lint0() -> None:
        script.lapic_write(script.vcpu(), Reg.LVT_LINT0, rng.choice((0x700, 0x700, MASKED | 0x700, 0x400, 0x8700)))

    def enable() -> None:
        script.lapic_write(script.vcpu(), Reg.SVR, rng.choice((0x1FF, 0xFF)))

    return script.some_of(
        [
            (20, script.pic_line),
            (12, script.pic_command),
            (6, script.pic_access),
            (10, script.take),
            (2, script.set_pic),
            (1, script.get_state),
            (1, lint0),
            (1, enable),
        ]
    )


def apic(rng: Random) -> list[Op]:
    """IOAPIC and local APICs: addressing of all kinds, shared vectors, interrupts ended late or elsewhere."""
    script = Script(rng, rng.choice(VCPU_IDS))
    script.enable_all()
    return script.some_of(
        [
            (12, script.line),
            (8, script.program),
            (5, script.ioapic_write),
            (2, script.ioapic_read),
            (6, script.address),
            (4, script.lapic_program),
            (8, script.ipi),
            (4, script.msi),
            (8, script.serve),
            (4, script.ack),
            (4, script.eoi),
            (8, script.take),
            (3, script.lapic_read),
            (2, script.get_state),
            (1, script.routing),
        ]
    )


def service(rng: Random) -> list[Op]:
    """Interrupts that end late, elsewhere, or never: entries and APICs get other destinations while in service.

    With two vectors, three pins (one of them the RTC's) and few CPUs, most EOIs concern some pin.
    """
    script = Script(rng, rng.choice(([0], [0, 1], [0, 1], [0, 1, 2], [2, 0])))
    script.vectors = rng.sample((0x31, 0x32, 0x41, 0xFE), 2)
    script.pins = [8, *rng.sample(range(PINS), rng.randrange(1, 3))]
    script.destinations = [*script.vcpus, rng.choice((0xFF, 1, 2, 3, 0x55))]
    script.logical_ids = rng.choice(([1, 2, 4], [1, 3, 2], [0x11, 0x12, 0x21], [1, 1, 2]))
    script.enable_all()

    def line() -> None:
        name = "irq_line" if not script.one_in(8) else "irq_line_without_status"
        for level in rng.choice(((1,), (1,), (0,), (0, 1), (1, 0))):
            script.add(name, rng.choice(script.pins), level)

    def entry() -> int:
        """An unmasked entry, fixed or lowest-priority."""
        value = script.destination() << 56 | rng.choice((FIXED, FIXED, FIXED, LOWEST)) << 8 | script.vector()
        return value | script.one_in(3) << 11 | (not script.one_in(3)) << 15 | script.one_in(8) << 16

    def program() -> None:
        pin, value = rng.choice(script.pins), entry()
        for half in rng.choice(((0, 1), (1, 0), (0,), (1,))):
            script.select(script.vcpu(), 0x10 + 2 * pin + half)
            script.add("mmio_write", script.vcpu(), IOAPIC_BASE + 0x10, 4, value >> 32 * half & U32)

    def restore_ioapic() -> None:
        entries = [MASKED] * PINS
        for pin in script.pins:
            entries[pin] = entry() | script.one_in(3) << 14
        irr = sum(1 << pin for pin in script.pins if script.one_in(2))
        script.add("set_irqchip", 2, IoapicState(redirection=tuple(entries), irr=irr).pack().hex())

    def restore_lapic() -> None:
        vcpu = script.vcpu()
        registers = LapicRegisters(id=vcpu << 24, svr=0x1FF)
        registers.ldr = rng.choice(script.logical_ids) << 24
        registers.isr, registers.irr, registers.tmr = (
            sum(1 << vector for vector in script.vectors if script.one_in(2)) for _ in range(3)
        )
        script.add("set_lapic", vcpu, registers.pack().hex())

    def message() -> None:
        script.add("signal_msi", 0xFEE0_0000 | script.destination() << 12, script.vector() | script.one_in(2) << 15, 0)

    choices = [
        (12, line),
        (10, program),
        (12, script.take),
        (6, message),
        (4, script.eoi),
        (4, lambda: script.add("get_irqchip", 2)),
        (1, lambda: script.add("set_gsi_routing", script.default_table())),
    ]
    if script.one_in(2):  # makes KVM rescan the EOIs of every vCPU, which hides missing rescans
        choices += [
            (8, script.eoi),
            (rng.choice((0, 8)), script.ack),
            (rng.choice((0, 4)), script.serve),
            (3, restore_lapic),
            (1, restore_ioapic),
            (rng.choice((0, 2)), script.address),
            (1, script.ipi),
        ]
    if script.one_in(8):
        choices.append((1, script.grow))
    return script.some_of(choices)


def state(rng: Random) -> list[Op]:
    """Raw states restored at any time, and further operations on them."""
    script = Script(rng, rng.choice(VCPU_IDS))
    return script.some_of(
        [
            (6, script.set_lapic),
            (3, script.set_ioapic),
            (2, script.set_pic),
            (4, script.get_all),
            (6, script.line),
            (3, script.program),
            (2, script.ioapic_read),
            (2, script.address),
            (3, script.lapic_program),
            (4, script.ipi),
            (4, script.serve),
            (4, script.ack),
            (5, script.eoi),
            (6, script.lapic_read),
            (2, script.msi),
            (2, script.pic_command),
            (2, script.take),
        ]
    )


def messages(rng: Random) -> list[Op]:
    """MSIs, routings and IOAPIC entries of every delivery mode, valid and invalid; no guest runs."""
    script = Script(rng, rng.choice((*VCPU_IDS, [0], [1])))
    script.modes = ALL_MODES

    def reset_lapic() -> None:
        """Restore a vCPU's initial state, completely or in part."""
        vcpu = script.vcpu()
        script.add("set_lapic", vcpu, LapicRegisters(id=vcpu << 24, svr=rng.choice((0xFF, 0x1FF))).pack().hex())

    choices = [(1, script.grow)] if len(script.vcpus) < 3 else []
    return script.some_of(
        [
            *choices,
            (2, reset_lapic),
            (20, script.msi),
            (6, script.set_lapic),
            (4, script.routing),
            (10, script.line),
            (2, script.set_ioapic),
            (3, script.ack),
            (2, script.get_state),
        ]
    )


def widths(rng: Random) -> list[Op]:
    """Accesses of every size at every place in and around the chips' addresses."""
    script = Script(rng, rng.choice(([0], [0, 1])))
    script.enable_all()

    def mmio() -> None:
        size = rng.choice((1, 2, 4, 8))
        base, length = rng.choice(
            ((IOAPIC_BASE, 0x120), (IOAPIC_BASE, 0x20), (LAPIC_BASE, 0x420), (LAPIC_BASE, 0x1000))
        )
        offset = rng.randrange(length)
        if script.one_in(2):
            offset &= ~0xF
        if base == LAPIC_BASE and (offset >> 4) in (Reg.LVT_TIMER >> 4, Reg.TIMER_CURRENT_COUNT >> 4, Reg.ICR >> 4):
            return
        if offset + size > 0x1000:  # two accesses
            return
        address = base + offset
        if script.one_in(2):
            script.add("mmio_read", script.vcpu(), address, size)
        else:
            value = script.sane_low(rng.getrandbits(8 * size))
            script.add("mmio_write", script.vcpu(), address, size, value)

    def pio() -> None:
        port = rng.choice(PORTS) + rng.randrange(-4, 4)
        size = rng.choice((1, 2, 4))
        if script.one_in(2):
            script.add("pio_read", script.vcpu(), port, size)
        else:
            script.add("pio_write", script.vcpu(), port, size, rng.getrandbits(8 * size))

    return script.some_of(
        [
            (10, mmio),
            (5, pio),
            (2, script.set_ioapic),
            (2, script.set_lapic),
            (2, script.get_state),
            (1, script.line),
        ]
    )


FAMILIES: dict[str, Callable[[Random], list[Op]]] = {
    family.__name__: family
    for family in (
        *(creation, lines, pic, apic, service, state, messages, widths, x2apic, startup, split, wide),
        *(many, bases, odd_lapic, raw_pit, running, resamplers, watchdog),
    )
}
