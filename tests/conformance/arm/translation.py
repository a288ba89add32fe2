"""A family about interrupt translation services: their attributes and registers, without the guest's memory."""

from __future__ import annotations

from random import Random

from tests.conformance.arm.script import GICD, GICR, ITS, V3, Action, Group, Script, pick, repeat

BASES = (0x0808_0000, 0x0900_0000)
TRANSLATER = 0x1_0040
ADDRESS = 4  # KVM_VGIC_ITS_ADDR_TYPE
VALID = 1 << 63
WORDS = (0, 4, 0xFFD0, 0xFFE0, 0xFFE4, 0xFFE8, 0xFFEC, 0xFFF0, 0xFFFC, 0x10000)
DOUBLES = (8, 0x80, 0x88, 0x90, 0x98, 0x100, 0x108, 0x110, 0x138, 0x140)


class _Translation(Script):
    """The steps of `translation`. No memory is at the addresses of queues and tables."""

    def __init__(self, rng: Random, gic: int) -> None:
        super().__init__(rng, gic)
        self._kinds: list[int] = []
        self.vcpus = list(range(rng.choice((1, 2))))

    def make(self, kind: int) -> None:
        """Make a device."""
        self.create_device(kind)
        self._kinds.append(kind)

    def its(self) -> int:
        """The number of any ITS."""
        return self.rng.choice([number for number, kind in enumerate(self._kinds) if kind == ITS])

    def value(self) -> int:
        rng = self.rng
        table = VALID | rng.getrandbits(16) << 32 | rng.getrandbits(12)
        return pick(
            rng,
            (4, table),
            (1, table & ~VALID),
            (2, rng.getrandbits(64)),
            (1, rng.getrandbits(20) & ~0x1F),
            (1, rng.getrandbits(20)),
            (1, rng.choice((0, 1, 0x20, 0xFE0, 0x1000))),
        )

    def offset(self) -> int:
        rng = self.rng
        usual = rng.choice((*WORDS[:2], 0, *DOUBLES, *DOUBLES, *WORDS))
        return usual if rng.random() < 0.93 else usual + rng.choice((1, 2, 4, 8))

    def place(self) -> None:
        rng, its = self.rng, self.its()
        index = [number for number, kind in enumerate(self._kinds) if kind == ITS].index(its)
        usual = BASES[index]
        odd = rng.choice((usual + 0x1000, usual | 1, 1 << 40, (1 << 40) - 0x1_0000, 0xFFFF_FFFF_FFFF_0000))
        attr = ADDRESS if rng.random() < 0.8 else rng.randrange(8)
        self.set_attr(Group.ADDR, attr, usual if rng.random() < 0.7 else odd, its)

    def ask_place(self) -> None:
        self.get_attr(Group.ADDR, self.rng.choice((ADDRESS, ADDRESS, self.rng.randrange(8))), 0, self.its())

    def ask_whether(self) -> None:
        rng = self.rng
        group = rng.choice((*Group, Group.ADDR, Group.CTRL, Group.ITS_REGS, Group.ITS_REGS, 10))
        attr = self.offset() if group == Group.ITS_REGS else rng.randrange(8)
        self.has_attr(group, attr, self.its())

    def other_group(self) -> None:
        rng, group = self.rng, self.rng.choice((*Group, 10))
        if group in (Group.ITS_REGS, Group.ADDR, Group.CTRL):
            return
        if rng.random() < 0.5:
            self.get_attr(group, rng.randrange(8), 0, self.its())
        else:
            self.set_attr(group, rng.randrange(8), 64, self.its())

    def control(self) -> None:
        self.set_attr(Group.CTRL, self.rng.choice((0, 1, 2, 4, 4, self.rng.randrange(8))), 0, self.its())

    def read_register(self) -> None:
        self.get_attr(Group.ITS_REGS, self.offset(), self.rng.getrandbits(64), self.its())

    def write_register(self) -> None:
        self.set_attr(Group.ITS_REGS, self.offset(), self.value(), self.its())

    def enable(self) -> None:
        """Give it tables and a queue, perhaps all of them, and enable it."""
        rng, its = self.rng, self.its()
        for offset in (0x100, 0x108, 0x80):
            if rng.random() < 0.85:
                self.set_attr(Group.ITS_REGS, offset, self.value() | VALID, its)
        if rng.random() < 0.5:
            self.set_attr(Group.ITS_REGS, 0x88, rng.getrandbits(12), its)
        if rng.random() < 0.5:
            self.set_attr(Group.ITS_REGS, 0, 1, its)
        else:
            self.write(rng.choice(self.vcpus), rng.choice(BASES), 1)

    def access(self) -> None:
        rng = self.rng
        at, size = rng.choice(BASES) + self.offset(), pick(rng, (4, 4), (4, 8), (0.5, 1), (0.5, 2))
        if rng.random() < 0.1:
            at = rng.choice(BASES) + rng.choice((TRANSLATER, 0x1_FFF8, 0x1_0000))
        at -= at % size
        if rng.random() < 0.5:
            self.read(rng.choice(self.vcpus), at, size)
        else:
            self.write(rng.choice(self.vcpus), at, self.value() & (1 << 8 * size) - 1, size)

    def send(self) -> None:
        rng = self.rng
        address = rng.choice(BASES) + rng.choice((TRANSLATER, TRANSLATER, 0, 0x1_FFFF, 0x2_0000))
        self.do("signal_msi", address if rng.random() < 0.9 else GICD, rng.randrange(40), rng.choice((1, 1, 0, 2)), 3)

    def steps(self) -> list[tuple[float, Action]]:
        return [
            *((3, self.place), (2, self.ask_place), (4, self.ask_whether), (1, self.other_group), (3, self.control)),
            *((8, self.read_register), (10, self.write_register), (2, self.enable), (8, self.access), (3, self.send)),
        ]


def translation(rng: Random, gic: int) -> Script:
    """All that an ITS answers to user space and a guest, before and after it has an address."""
    script = _Translation(rng, gic)
    devices = rng.choice(([V3, ITS], [V3, ITS], [ITS, V3], [V3, ITS, ITS], [ITS]))
    early = rng.random() < 0.5
    for vcpu in script.vcpus if early else ():
        script.create_vcpu(vcpu)
        script.init_vcpu(vcpu)
    for kind in devices:
        script.make(kind)
    for vcpu in () if early else script.vcpus:
        script.create_vcpu(vcpu)
        script.init_vcpu(vcpu)
    before = [(weight, step) for weight, step in script.steps() if step not in (script.access, script.enable)]
    repeat(rng, 6, *before)
    if V3 in devices:
        gic_device = devices.index(V3)
        script.set_attr(Group.ADDR, 2, GICD, gic_device)
        script.set_attr(Group.ADDR, 3, GICR, gic_device)
        script.set_attr(Group.CTRL, 0, 0, gic_device)
    if rng.random() < 0.9:
        for number, kind in enumerate(devices):
            if kind == ITS:
                base = BASES[sum(one == ITS for one in devices[:number])]
                script.set_attr(Group.ADDR, ADDRESS, base, number)
    repeat(rng, 50, *script.steps())
    for number, kind in enumerate(devices):
        if kind == ITS:
            blocks = [[Group.ITS_REGS, 0, 4, 2], [Group.ITS_REGS, 8, 8, 1], [Group.ITS_REGS, 0x80, 8, 3]]
            blocks += [[Group.ITS_REGS, 0x100, 8, 8], [Group.ITS_REGS, 0xFFD0, 4, 12]]
            script.do("state", number, [list(map(int, block)) for block in blocks])
    return script
