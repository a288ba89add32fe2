"""Families with everything at once: guests, their VMMs and lines change all that there is, at any moment.

An access of 8 bytes to GICC is aligned: QEMU's own emulation, not KVM, answers another one.
"""

from __future__ import annotations

from random import Random
from typing import Any

from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.program import Source
from tests.conformance.arm.script import (
    GICC,
    PTIMER,
    SGI_FRAME,
    USER_SYSREGS,
    VTIMER,
    Action,
    Board,
    Cpu,
    Dist,
    Group,
    affinity,
    pick,
    repeat,
)
from tests.conformance.arm.traffic import ALL, EDGE

ENDS = (Source.LAST, Source.LAST, Source.LAST, Source.FIRST, Source.LAST_TO_DEACTIVATE, Source.LAST_TO_DEACTIVATE)
DEACTIVATIONS = (Source.DEACTIVATE, Source.DEACTIVATE, Source.LAST_KEPT)
STRANGE = (1019, 1020, 1023, 1024, 5000)
PRIORITIES = (0, 8, 0x20, 0x40, 0x40, 0x80, 0x80, 0xA0, 0xF0, 0xF8)
IIDRS = (0x4B00_243B, 0x4B00_343B, 0x4B00_143B, 0x4B00_043B)
BITS = (
    *(Dist.IGROUPR, Dist.ISENABLER, Dist.ISENABLER, Dist.ICENABLER, Dist.ISPENDR, Dist.ISPENDR, Dist.ICPENDR),
    *(Dist.ISACTIVER, Dist.ICACTIVER),
)
LENGTH = 110


class _Chaos:
    """Actions on a board, each with a vCPU and an interrupt that are drawn."""

    def __init__(self, board: Board, intids: list[int]) -> None:
        self.board = board
        self.rng = board.rng
        self.intids = intids

    def vcpu(self) -> int:
        return self.board.vcpu()

    def intid(self) -> int:
        return self.rng.choice(self.intids)

    def value(self) -> int:
        """For a register with a bit for each interrupt."""
        return pick(self.rng, (3, self.rng.getrandbits(32)), (3, 1 << (self.intid() & 31)), (1, ALL), (1, 0))

    def priority(self) -> int:
        return self.rng.choice((*PRIORITIES, self.rng.randrange(256)))

    def triggers(self) -> int:
        return self.rng.choice((0, EDGE, self.rng.getrandbits(32)))

    def drive(self) -> None:
        intid = self.intid()
        if intid < 16:
            self.sgi(intid)
        else:
            self.board.line(self.vcpu(), intid, self.rng.random() < 0.65)

    def sgi(self, intid: int) -> None:
        raise NotImplementedError

    def acknowledge(self) -> None:
        self.board.acknowledge(self.vcpu(), self._group())

    def end(self) -> None:
        self.board.end(self.vcpu(), self.rng.choice(ENDS), self._group())

    def deactivate(self) -> None:
        self.board.deactivate(self.vcpu(), self.rng.choice(DEACTIVATIONS))

    def end_anything(self) -> None:
        intid = self.intid()
        value = self.rng.choice((intid, self.intid(), *STRANGE, 1 << 24 | intid, 0x1C00 | intid, 0xFF_FFFF))
        if self.rng.random() < 0.6:
            self.board.end(self.vcpu(), value, self._group())
        else:
            self.board.deactivate(self.vcpu(), value)

    def _group(self) -> int:
        return 1 if self.board.v2 else self.rng.choice((1, 1, 1, 0))

    def prioritise(self) -> None:
        self.board.byte(self.vcpu(), Dist.IPRIORITYR, self.intid(), self.priority())

    def set_triggers(self) -> None:
        self.board.trigger(self.vcpu(), self.rng.choice((self.intid(), 16, 32, 48)), self.triggers())

    def write_bits(self) -> None:
        register, intid = self.rng.choice(BITS), self.rng.choice((self.intid(), 0, 32, 64))
        self.board.write(self.vcpu(), self.board.where(self.vcpu(), register, intid, 1), self.value())

    def read_bits(self) -> None:
        register, intid = self.rng.choice(BITS), self.rng.choice((self.intid(), 0, 32, 64))
        self.board.read(self.vcpu(), self.board.where(self.vcpu(), register, intid, 1))

    def read_isr(self) -> None:
        self.board.mrs(self.vcpu(), "ISR")

    def set_iidr(self) -> None:
        self.board.set_attr(Group.DIST, self.rng.choice((8, 8, 4, 0)), self.rng.choice((*IIDRS, 0, 1, 2)))


class _V2(_Chaos):
    def place(self) -> int:
        """The upper half of an attribute: any vCPU's, or none's."""
        return self.rng.choice((*self.board.vcpus, self.rng.randrange(8))) << 32

    def sgi(self, intid: int) -> None:
        rng = self.rng
        how = rng.choice((0, 0, 0, 1, 2, 3)) << 24 | rng.randrange(256) << 16 | rng.randrange(2) << 15
        self.board.dist_write(self.vcpu(), Dist.SGIR, how | intid)

    def read_cpu(self) -> None:
        registers = (Cpu.CTLR, Cpu.PMR, Cpu.BPR, Cpu.RPR, Cpu.HPPIR, Cpu.ABPR, Cpu.APR, 0xD4, 0xE0)
        self.board.read(self.vcpu(), GICC + self.rng.choice(registers))

    def write_cpu(self) -> None:
        rng, vcpu = self.rng, self.vcpu()
        match rng.randrange(8):
            case 0 | 1:
                register, value = rng.choice((Cpu.PMR, Cpu.BPR, Cpu.ABPR)), rng.getrandbits(rng.choice((3, 8, 32)))
            case 2 | 3:
                register, value = Cpu.CTLR, rng.getrandbits(rng.choice((2, 5, 10, 32)))
            case 4:
                register, value = Cpu.APR, rng.choice((0, rng.getrandbits(32), 1 << rng.randrange(32)))
            case 5:
                register, value = Cpu.PMR, rng.choice((0xF8, 0xF0, 0x80, 0))
            case _:
                register, value = Cpu.CTLR, rng.choice((1, 3, 7, 0x201, 0x203))
        self.board.cpu_write(vcpu, register, value)

    def access_cpu_oddly(self) -> None:
        """With other sizes than 4."""
        rng, vcpu = self.rng, self.vcpu()
        match rng.randrange(3):
            case 0:
                self.board.read(vcpu, GICC + rng.choice((0, 8, 0x10, 0x18, 0xD0)), rng.choice((1, 2, 8)))
            case 1:
                self.board.write(vcpu, GICC + rng.choice((0, 8, 0x10, 0x18)), rng.getrandbits(64), 8)
            case 2:
                at = GICC + rng.choice((0, 4, 8, 0x18))
                self.board.write(vcpu, at, rng.getrandbits(8), rng.choice((1, 2)))

    def set_targets(self) -> None:
        intid = self.intid()
        if intid >= 32:
            targets = (0, 1, 1 << self.rng.randrange(8), self.rng.randrange(256))
            self.board.byte(self.vcpu(), Dist.ITARGETSR, intid, self.rng.choice(targets))

    def set_distributor(self) -> None:
        self.board.dist_write(self.vcpu(), Dist.CTLR, self.rng.choice((1, 1, 1, 3, 2, 0)))

    def sgi_sources(self) -> None:
        rng, vcpu = self.rng, self.vcpu()
        register, sgi = rng.choice((Dist.CPENDSGIR, Dist.SPENDSGIR)), self.intid() & 15
        match rng.randrange(3):
            case 0:
                self.board.dist_read(vcpu, register + (sgi & ~3))
            case 1:
                self.board.dist_write(vcpu, register + (sgi & ~3), rng.getrandbits(32) & rng.getrandbits(32))
            case 2:
                self.board.dist_write(vcpu, register + sgi, rng.randrange(256), 1)

    def distributor_by_attribute(self) -> None:
        rng, intid = self.rng, self.intid()
        register = rng.choice((*BITS, 0x400, 0x800, 0xC00, 0xF10, 0xF20, 0xF2C, 0))
        match register:
            case 0x400 | 0x800:
                offset = register + (intid & ~3)
            case 0xC00:
                offset = register + (intid >> 4) * 4
            case 0xF10 | 0xF20 | 0xF2C | 0:
                offset = register
            case _:
                offset = register + rng.choice((0, 4, (intid >> 5) * 4))
        self.board.set_attr(Group.DIST, self.place() | offset, self.value())

    def cpu_by_attribute(self) -> None:
        rng = self.rng
        at = self.place() | rng.choice((0, 4, 8, 0x1C, 0xD0, 0xD4, 0xFC))
        if rng.random() < 0.3:
            self.board.get_attr(Group.CPU, at)
        else:
            self.board.set_attr(Group.CPU, at, rng.getrandbits(rng.choice((3, 5, 8, 10, 32))))

    def actions(self) -> list[tuple[float, Action]]:
        return [
            *((24, self.drive), (19, self.acknowledge), (13, self.end), (5, self.deactivate), (3, self.end_anything)),
            *((3, self.read_isr), (4, self.read_cpu), (6, self.write_cpu), (2, self.access_cpu_oddly)),
            *((7, self.write_bits), (4, self.read_bits), (3, self.prioritise), (2, self.set_targets)),
            *((1, self.set_distributor), (2, self.set_triggers), (2, self.sgi_sources)),
            *((2, self.distributor_by_attribute), (0.5, self.set_iidr), (2, self.cpu_by_attribute)),
        ]


def _start_v2(rng: Random, board: Board, intids: list[int], priorities: tuple[int, ...]) -> None:
    for vcpu in board.vcpus:
        board.cpu_write(vcpu, Cpu.PMR, rng.choice((0xF8, 0xF8, 0xFF, 0xF0)))
        board.cpu_write(vcpu, Cpu.CTLR, rng.choice((1, 1, 3, 3, 7, 0x201, 0x203, 0x207, 0xB, 0xF, 0x1F, 0x21F)))
        for register in (Cpu.BPR, Cpu.ABPR):
            if rng.random() < 0.25:
                board.cpu_write(vcpu, register, rng.randrange(8))
    if rng.random() < 0.2:
        board.set_attr(Group.DIST, 8, IIDRS[1])
    for intid in intids:
        for vcpu in board.vcpus if intid < 32 else board.vcpus[:1]:
            board.byte(vcpu, Dist.IPRIORITYR, intid, rng.choice(priorities))
            if rng.random() < 0.9:
                board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32:
            targets = rng.choice((1, 1, 1 << rng.randrange(len(board.vcpus)), rng.randrange(256)))
            board.byte(board.vcpus[0], Dist.ITARGETSR, intid, targets)
            if rng.random() < 0.6:
                board.trigger(board.vcpus[0], intid, rng.choice((0, EDGE, rng.getrandbits(32))))
    for first in range(0, board.interrupts, 32):
        if rng.random() < 0.3:
            board.dist_write(board.vcpu(), Dist.IGROUPR + first // 8, rng.getrandbits(32))
    board.dist_write(board.vcpus[0], Dist.CTLR, rng.choice((1, 1, 1, 1, 3, 0)))


def v2_chaos(rng: Random, gic: int) -> Board:
    """Any number of vCPUs in any order, few or many interrupts, in few or many priorities."""
    vcpus = rng.choice(([0], [0, 1], [1, 0], [2, 5], [7, 3, 0], [0, 1, 2, 3], rng.sample(range(8), 8)))
    board = Board(rng, gic, vcpus, rng.choice((64, 64, 96, 256, 992)))
    sgis = rng.sample(range(16), rng.randrange(4))
    ppis = rng.sample((16, 18, 20, 23, 25, 26, VTIMER, VTIMER, 28, PTIMER, 31), rng.randrange(4))
    spis = rng.sample(range(32, min(board.interrupts, 128)), rng.choice((2, 4, 7, 9)))
    intids = [*sgis, *ppis, *spis, board.interrupts - 1]
    priorities = rng.choice(((0x40,), (0x40, 0x80), tuple(range(0, 0xF8, 8)), (0, 8, 0x10, 0x18), PRIORITIES))
    _start_v2(rng, board, intids, priorities)
    repeat(rng, LENGTH, *_V2(board, intids).actions())
    board.state()
    return board


class _V3(_Chaos):
    def frame(self) -> int:
        """The SGI frame of any vCPU's redistributor."""
        return self.board.redist(self.vcpu()) + SGI_FRAME

    def sgi(self, intid: int) -> None:
        rng = self.rng
        usual = (rng.getrandbits(4), 1 << 40, 1 << 16 | 1, 1 << 16 | 2, rng.getrandbits(16))
        where = rng.choice((*usual, rng.getrandbits(64) & ~(0xF << 24)))
        self.board.msr(self.vcpu(), rng.choice(("SGI1R", "SGI1R", "SGI0R", "ASGI1R")), intid << 24 | where)

    def read_cpu(self) -> None:
        self.board.mrs(self.vcpu(), self.rng.choice(("ISR", "ISR", "HPPIR1", "HPPIR0", "RPR", *USER_SYSREGS)))

    def write_cpu(self) -> None:
        rng = self.rng
        name = rng.choice(("PMR", "BPR0", "BPR1", "CTLR", "IGRPEN0", "IGRPEN1", "AP0R0", "AP1R0", "SRE"))
        bits = 3 if name.startswith("BPR") else rng.choice((1, 3, 8, 32, 64))
        self.board.msr(self.vcpu(), name, rng.getrandbits(bits))

    def write_bits_of_another(self) -> None:
        self.board.write(self.vcpu(), self.frame() + self.rng.choice(BITS), self.value())

    def read_bits_of_another(self) -> None:
        self.board.read(self.vcpu(), self.frame() + self.rng.choice(BITS))

    def route(self) -> None:
        intid, places = self.intid(), [affinity(vcpu) >> 32 for vcpu in self.board.vcpus]
        if intid >= 32:
            where = self.rng.choice((*places, 0, 7, 1 << 31))
            self.board.dist_write(self.vcpu(), Dist.IROUTER + 8 * intid, where, 8)

    def set_distributor(self) -> None:
        self.board.dist_write(self.vcpu(), Dist.CTLR, self.rng.choice((2, 3, 2, 0, 1)))

    def redistributor(self) -> None:
        rng, vcpu, base = self.rng, self.vcpu(), self.board.redist(self.vcpu())
        if rng.random() < 0.5:
            offset = rng.choice((0, 0x14, 0x70, 0x74, 0x78, 0x7C, 0xA0, 0xB0))
            self.board.write(vcpu, base + offset, rng.choice((0, 1, rng.getrandbits(32))))
        else:
            self.board.read(vcpu, base + rng.choice((0, 8, 12, 0x70, 0x74, 0x78, 0x7C, 0xC0)))

    def by_attribute(self) -> None:
        rng, cpu = self.rng, affinity(self.vcpu())
        match rng.randrange(5):
            case 0:
                offset = rng.choice((*(one + rng.choice((4, 8)) for one in BITS), 0x420, 0xC08, 0x6100, 0))
                self.board.set_attr(Group.DIST, offset, self.value())
            case 1:
                offset = rng.choice((*BITS, 0x410, 0x418))
                self.board.set_attr(Group.REDIST, cpu | SGI_FRAME | offset, self.value())
            case 2:
                self.board.set_attr(Group.REDIST, cpu | rng.choice((0, 8, 0x70, 0x74, 0x78, 0x7C)), self.value())
            case 3:
                values = (*(rng.getrandbits(bits) for bits in (3, 8, 64)), 0x8C00, 0x8C03, 0x8402)
                self.board.set_attr(Group.SYSREGS, cpu | SYSREGS[rng.choice(USER_SYSREGS)], rng.choice(values))
            case 4:
                self.board.set_attr(Group.LEVEL_INFO, cpu | rng.choice((0, 32, 64)), rng.getrandbits(32))

    def actions(self) -> list[tuple[float, Action]]:
        return [
            *((22, self.drive), (18, self.acknowledge), (12, self.end), (4, self.deactivate), (4, self.end_anything)),
            *((8, self.read_cpu), (5, self.write_cpu), (4, self.write_bits), (3, self.write_bits_of_another)),
            *((3, self.read_bits), (2, self.read_bits_of_another), (3, self.prioritise), (2, self.route)),
            *((1, self.set_distributor), (1, self.set_triggers), (2, self.redistributor), (5, self.by_attribute)),
            (1, self.set_iidr),
        ]


def _start_v3(rng: Random, board: Board, intids: list[int]) -> None:
    first = board.vcpus[0]
    for vcpu in board.vcpus:
        board.msr(vcpu, "PMR", rng.choice((0xF8, 0xFF, 0xF0)))
        board.msr(vcpu, "IGRPEN1", 1)
        board.msr(vcpu, "IGRPEN0", rng.randrange(2))
        if rng.random() < 0.5:
            board.msr(vcpu, "CTLR", rng.randrange(4))
    board.dist_write(first, Dist.CTLR, rng.choice((2, 3, 2, 0)))
    chaos = _V3(board, intids)
    for intid in intids:
        if rng.random() < 0.15:
            continue
        for vcpu in board.vcpus if intid < 32 else [first]:
            board.byte(vcpu, Dist.IPRIORITYR, intid, chaos.priority())
            board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32:
            where: Any = rng.choice([affinity(vcpu) >> 32 for vcpu in board.vcpus] + [0, 7])
            board.dist_write(first, Dist.IROUTER + 8 * intid, where, 8)
    for intid in range(32, min(board.interrupts, 96), 16):
        board.trigger(first, intid, chaos.triggers())
    if rng.random() < 0.6:
        board.dist_write(first, Dist.IGROUPR + 4, rng.getrandbits(32))
    if rng.random() < 0.6:
        board.write(first, chaos.frame() + Dist.IGROUPR, rng.getrandbits(32))


def v3_chaos(rng: Random, gic: int) -> Board:
    """Any affinities, redistributors of others, perhaps an interrupt translation service."""
    vcpus = rng.choice(([0], [0, 1], [1, 0], [2, 5], [0, 16, 1], [17, 3, 0], [0, 1, 2, 3]))
    board = Board(rng, gic, vcpus, rng.choice((64, 64, 96, 992)), its=rng.random() < 0.3)
    spis = [*rng.sample(range(32, min(board.interrupts, 96)), 6), board.interrupts - 1]
    ppis = [*rng.sample((16, 20, 23, 25, 26, 31), 2), VTIMER, PTIMER]
    intids = [*spis, *ppis, *rng.sample(range(16), 2)]
    _start_v3(rng, board, intids)
    repeat(rng, LENGTH, *_V3(board, intids).actions())
    board.state()
    return board
