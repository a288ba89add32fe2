"""Families about how a VM gets its GIC: orders, addresses, and what is refused."""

from __future__ import annotations

from random import Random

from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.script import (
    GICC,
    GICD,
    GICR,
    ITS,
    PTIMER,
    REDISTRIBUTOR,
    V2,
    V3,
    VTIMER,
    Action,
    Group,
    Script,
    affinity,
    pick,
    ppi,
    repeat,
    spi,
)

ADDRESS_LIMIT = 1 << 40
PLACES = (
    *(GICD, GICC, GICR, 0x0802_0000, 0x0801_1000, 0x0800_0800, 0, ADDRESS_LIMIT, ADDRESS_LIMIT - 0x1000),
    *(0xFFFF_FFFF_FFFF_0000, GICD),
)
VCPU_EVENTS_TIMER = 1  # KVM_ARM_VCPU_TIMER_CTRL


class _Creation(Script):
    """The steps of `creation`, each as a VMM might do it at any moment, also with wrong arguments."""

    def __init__(self, rng: Random, gic: int) -> None:
        super().__init__(rng, gic)
        self._made = False
        self._next_vcpu = 0

    def device(self) -> None:
        rng = self.rng
        other = V3 if self.v2 else V2
        kind = pick(rng, (6, self.kind), (2, other), (1, ITS), (0.3, rng.choice((0, 4, 6, 9, 99))))
        flags = pick(rng, (7, 0), (2, 1), (0.4, rng.choice((2, 3, 0x8000_0000))))
        if kind == ITS and not self._made:
            flags = 1  # device 0 is the GIC
        self._made = self._made or (kind == self.kind and not flags)
        self.create_device(kind, flags)

    def irqchip(self) -> None:
        self.do("create_irqchip")

    def vcpu(self) -> None:
        rng = self.rng
        odd = rng.choice((8, 9, 16, 255, 256, 511, 512, 513, 0xFFFF_FFFF))
        vcpu = pick(rng, (8, self._next_vcpu % 8), (2, rng.randrange(9)), (0.5, odd))
        self._next_vcpu += 1
        self.create_vcpu(vcpu)

    def init(self) -> None:
        features = pick(self.rng, (6, 4), (0.5, 1 << 20), (0.5, 0), (0.3, 1 << 7))
        self.init_vcpu(self.rng.randrange(3), features, pick(self.rng, (8, -1), (0.5, 0), (0.5, 5)))

    def address(self) -> None:
        rng = self.rng
        kind = rng.choice((0, 1) if self.v2 else (2, 3)) if rng.random() < 0.8 else rng.randrange(8)
        usual = {0: GICD, 1: GICC, 2: GICD, 3: GICR}.get(kind, GICR)
        base = usual if rng.random() < 0.6 else rng.choice(PLACES)
        if kind == 5:
            count = rng.choice((0, 1, 2, 4, 4095))
            base = (base & (1 << 52) - 0x10000) | rng.choice((0, 1, 2, 0x10)) | count << 52
        if kind < 4 and rng.random() < 0.25:
            self.do("device_addr", rng.choice((kind, kind | 1 << 16, kind | 2 << 16, 5, 9)), base)
        else:
            self.set_attr(Group.ADDR, kind, base)

    def interrupts(self) -> None:
        rng = self.rng
        odd = rng.choice((0, 31, 32, 63, 65, 988, 992, 1019, 1020, 1023, 1024, 1056, 1 << 31, (1 << 32) + 64))
        self.set_attr(Group.NR_IRQS, pick(rng, (5, 0), (0.3, 1)), pick(rng, (4, rng.choice((64, 96, 128))), (2, odd)))

    def control(self) -> None:
        self.set_attr(Group.CTRL, pick(self.rng, (7, 0), (1, self.rng.randrange(1, 6))), 0)

    def attribute(self) -> None:
        rng = self.rng
        group = rng.choice((*Group, Group.ADDR, Group.ADDR, 10, 1 << 31))
        attr = 0
        match group:
            case Group.ADDR:
                attr = rng.randrange(8)
            case Group.DIST:
                attr = rng.choice((0, 4, 8, 1 << 32, 3, 0x100, 0x2000))
            case Group.CPU:
                attr = rng.choice((0, 4, 0xFC, 1 << 32 | 4))
            case Group.REDIST:
                attr = rng.choice((0, 4, 8, 1 << 32, 0x1_0080))
            case Group.SYSREGS:
                attr = rng.choice((SYSREGS["PMR"], SYSREGS["CTLR"], SYSREGS["SRE"], 0))
            case Group.LEVEL_INFO:
                attr = rng.choice((32, 0, 33, 64, 1 << 10 | 32))
        rng.choice((self.get_attr, self.has_attr))(group, attr)
        if rng.random() < 0.1:
            self.set_attr(group, attr, rng.choice((0, 1, 0xF0, 7)))

    def drive(self) -> None:
        rng = self.rng
        an_spi = spi(rng.choice((31, 32, 40, 63, 64, 95, 127, 128, 255, 256, 991, 1019, 1020)))
        a_ppi = ppi(rng.choice((0, 0, 1, 3, 9, 256)), rng.choice((15, 16, 20, VTIMER, PTIMER, 31, 32)))
        of_cpu = rng.choice((0, 1, 2, 1 << 16, 9 << 16))
        odd = rng.randrange(3, 16) << 24 | 40
        self.irq_line(pick(rng, (4, an_spi), (3, a_ppi), (2, of_cpu), (1, odd)), rng.randrange(2))

    def access(self) -> None:
        rng, vcpu = self.rng, self.rng.randrange(3)
        if rng.random() < 0.5:
            at = rng.choice((GICD, GICD + 4, GICD + 0x104, GICC + 4, GICR + 8, GICR + REDISTRIBUTOR))
            self.read(vcpu, at)
        else:
            self.write(vcpu, rng.choice((GICD, GICD + 0x104, GICC + 4, GICR + 0x14)), rng.choice((0, 1, 3, 0xF0)))

    def elsewhere(self) -> None:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                self.do("signal_msi", 0x0802_0040, 35, 0, 0)
            case 1:
                self.set_routes([[1, "irqchip", 0, 33]])
            case 2:
                self.do("irqfd", 0, rng.choice((1, 33, 5000)), 0)
            case 3:
                vcpu, attr = rng.randrange(2), rng.randrange(3)
                value = rng.choice((VTIMER, PTIMER, 20, 40, 15))
                name = rng.choice(("get", "has", "set"))
                self.do(f"vcpu_{name}_attr", vcpu, VCPU_EVENTS_TIMER, attr, *([] if name == "has" else [value]))

    def steps(self) -> tuple[tuple[float, Action], ...]:
        return (
            *((6, self.device), (2, self.irqchip), (7, self.vcpu), (6, self.init), (9, self.address)),
            *((4, self.interrupts), (6, self.control), (7, self.attribute), (4, self.drive)),
            *((1, self.access), (2, self.elsewhere)),
        )


def creation(rng: Random, gic: int) -> Script:
    """Every ioctl of the set-up at any moment, with wrong arguments too; then what a guest sees."""
    script = _Creation(rng, gic)
    steps = script.steps()
    device_first = [script.device, script.interrupts, script.address, script.address, script.vcpu, script.init]
    vcpu_first = [script.vcpu, script.init, script.device, script.address, script.address]
    if rng.random() < 0.7:
        for step in rng.choice(([*device_first, script.address, script.control], [*vcpu_first, script.control])):
            step()
            if rng.random() < 0.35:
                repeat(rng, 1, *steps)
        if rng.random() < 0.5:
            script.access()
    repeat(rng, rng.randrange(12, 30), *steps)
    for kind in range(4):
        script.get_attr(Group.ADDR, kind)
    script.get_attr(Group.NR_IRQS, 0)
    for _ in range(6):
        script.access()
    repeat(rng, 4, *steps)
    return script


def order(rng: Random, gic: int) -> Script:
    """The orders that a VMM uses, with one thing out of place: what each step answers, and when."""
    script = Script(rng, gic)
    dist, other = (0, 1) if script.v2 else (2, 3)
    base = GICC if script.v2 else GICR
    make: list[Action] = [
        lambda: script.create_device(script.kind),
        lambda: script.set_attr(Group.NR_IRQS, 0, rng.choice((64, 96, 128))),
    ]
    place: list[Action] = [
        lambda: script.set_attr(Group.ADDR, dist, GICD),
        lambda: script.set_attr(Group.ADDR, other, base),
    ]
    rng.shuffle(place)
    first: list[Action] = [lambda: script.create_vcpu(0), lambda: script.init_vcpu(0)]
    second: list[Action] = [lambda: script.create_vcpu(1), lambda: script.init_vcpu(1)]
    ready: list[Action] = [lambda: script.set_attr(Group.CTRL, 0, 0)]
    steps = [*make, *place, *first, *second, *ready]
    if rng.random() < 0.5:
        steps = [*first, make[0], *second, make[1], *place, *ready]
    for _ in range(rng.randrange(3)):
        steps.insert(rng.randrange(len(steps)), steps.pop(rng.randrange(len(steps))))
    if rng.random() < 0.3:
        steps.pop(rng.randrange(len(steps)))
    if rng.random() < 0.3:
        steps.insert(rng.randrange(len(steps)), rng.choice(steps))
    groups = (Group.DIST, Group.CPU, Group.REDIST, Group.SYSREGS, Group.LEVEL_INFO, Group.CTRL, Group.ADDR)
    between: tuple[tuple[float, Action], ...] = (
        (0.3, lambda: script.get_attr(rng.choice((Group.NR_IRQS, Group.ADDR)), rng.choice((0, dist, other)))),
        (0.15, lambda: script.irq_line(rng.choice((spi(40), ppi(1, 20), ppi(0, 20))), rng.randrange(2))),
        (0.15, lambda: script.has_attr(rng.choice(groups), rng.choice((0, 4, 32)))),
        (0.15, lambda: script.get_attr(Group.DIST, rng.choice((0, 4, 8, 0x104, 1 << 32 | 0x100)))),
        (0.08, lambda: script.set_attr(Group.DIST, 0, 1)),
        (0.05, lambda: script.read(0, GICD + 4)),
    )
    for step in steps:
        step()
        for chance, action in between:
            if rng.random() < chance:
                action()
    for vcpu in (0, 1):
        script.read(vcpu, GICD + 4)
        script.read(vcpu, base + (4 if script.v2 else 8 + REDISTRIBUTOR * vcpu))
    for irq in (spi(40), spi(100), ppi(1, 20)):
        script.irq_line(irq, 1)
    script.set_attr(Group.CTRL, 0, 0)
    for step in rng.sample(steps, 4):
        step()
    script.create_vcpu(2)
    script.init_vcpu(2)
    script.read(2, GICD + 4)
    for group, attr in ((Group.ADDR, dist), (Group.ADDR, other), (Group.NR_IRQS, 0), (Group.DIST, 0x200)):
        script.get_attr(group, attr)
    script.get_attr(Group.DIST, 0x204)
    return script


def regions(rng: Random, gic: int) -> Script:
    """GICv3's redistributor regions: several, in and out of order, with wrong counts, flags and overlaps."""
    script = Script(rng, gic)
    count = rng.randrange(1, 6)
    ids = list(range(count)) if rng.random() < 0.8 else rng.sample((0, 1, 2, 5, 15, 16, 17, 33, 255), count)
    script.vcpus = list(ids)
    if rng.random() < 0.3:
        rng.shuffle(ids)

    def make_vcpus(which: list[int]) -> None:
        for vcpu in which:
            script.create_vcpu(vcpu)
            script.init_vcpu(vcpu)

    before = pick(rng, (5, count), (2, count // 2), (3, 0))
    make_vcpus(ids[:before])
    script.create_device(V3)
    script.set_attr(Group.NR_IRQS, 0, 64)
    if rng.random() < 0.96:
        script.set_attr(Group.ADDR, 2, GICD)
    at, index, left = GICR, 0, count
    for _ in range(rng.randrange(1, 6)):
        size, base, number, flags = rng.choice((1, 1, 2, 2, 3, max(1, left))), at, index, 0
        mistake = pick(
            rng, (67, ""), (12, "overlap"), (4, "unaligned"), (6, "index"), (4, "flags"), (4, "size"), (6, "end")
        )
        match mistake:
            case "overlap":
                base = rng.choice((GICD, GICR))
            case "unaligned":
                base += rng.choice((0x1000, 0x8000))
            case "index":
                number = rng.choice((0, index + 1, 5, 4095))
            case "flags":
                flags = rng.choice((1, 8, 15))
            case "size":
                size = rng.choice((0, 4095, 512))
            case "end":
                base = rng.choice((ADDRESS_LIMIT - 0x1_0000, ADDRESS_LIMIT - 0x2_0000, ADDRESS_LIMIT, 0x4000_0000))
        if rng.random() < 0.08:
            script.set_attr(Group.ADDR, 3, rng.choice((base, GICR, GICD)))
        else:
            script.set_attr(Group.ADDR, 5, base | number | flags << 12 | size << 52)
        if not mistake:
            at += REDISTRIBUTOR * size + rng.choice((0, 0, 0x1_0000, 0x10_0000))
            index, left = index + 1, left - size
        if rng.random() < 0.2:
            script.get_attr(Group.ADDR, 5, rng.choice((0, 1, index, 0x1000, 1 << 52)))
    make_vcpus(ids[before:])
    if rng.random() < 0.93:
        script.set_attr(Group.CTRL, 0, 0)
    if rng.random() < 0.3:
        script.set_attr(Group.ADDR, 5, at | index | 1 << 52)
    if rng.random() < 0.2:
        make_vcpus([count])
    for index in range(5):
        script.get_attr(Group.ADDR, 5, index)
    script.get_attr(Group.ADDR, 3)
    offsets = (0, 0x2_0000, 0x3_0000, 0x4_0000, 0x5_0000, 0x6_0000, 0x8_0000, 0x15_0000)
    for vcpu in script.vcpus:
        for offset in rng.sample(offsets, 4):
            script.read(vcpu, GICR + offset + 8, rng.choice((8, 8, 4)))
    for vcpu in (*script.vcpus, max(script.vcpus) + 1):
        script.get_attr(Group.REDIST, affinity(vcpu) | 8)
        script.get_attr(Group.REDIST, affinity(vcpu) | 12)
    script.has_attr(Group.ADDR, 5)
    script.has_attr(Group.ADDR, 3)
    return script


# KVM_CAP_*: those that are about interrupts, and enough others.
CAPABILITIES = (
    *(0, 1, 3, 7, 8, 9, 10, 14, 15, 16, 17, 18, 24, 25, 26, 29, 32, 36, 39, 40, 55, 58, 61, 62, 66, 67, 70, 71, 72, 73),
    *(75, 76, 77, 79, 80, 81, 82, 83, 84, 87, 88, 89, 92, 94, 95, 96, 102, 103, 104, 105, 115, 118, 120, 121, 123, 126),
    *(
        127,
        128,
        129,
        130,
        131,
        132,
        136,
        140,
        146,
        148,
        149,
        150,
        151,
        155,
        158,
        159,
        160,
        161,
        165,
        168,
        169,
        170,
        171,
    ),
    *(174, 177, 178, 189, 192, 193, 195, 196, 199, 203, 207, 212, 222, 226, 227, 228, 229, 230, 231, 233, 239),
)


def capabilities(rng: Random, gic: int) -> Script:
    """KVM_CHECK_EXTENSION of the system and of a VM, before and after the GIC."""
    script = Script(rng, gic)
    asked = rng.sample(CAPABILITIES, 24)
    for capability in asked:
        script.do("check_extension", rng.choice(("sys", "vm")), capability)
    rng.choice((lambda: script.create_device(script.kind), lambda: script.do("create_irqchip")))()
    for capability in asked:
        script.do("check_extension", "vm", capability)
    return script
