"""Families about single registers: all of them, with all sizes, by a guest and by attribute."""

from __future__ import annotations

from random import Random

from irqchip_client.arm64 import sysreg
from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.script import (
    GICR,
    REDISTRIBUTOR,
    SGI_FRAME,
    USER_SYSREGS,
    Board,
    Cpu,
    Dist,
    Group,
    affinity,
    pick,
    word,
)

LENGTH = 64
# Registers of a distributor and the words that 32 interrupts have in them: 0 for one that is alone.
WORDS = (
    *((Dist.CTLR, 0), (Dist.TYPER, 0), (Dist.IIDR, 0)),
    *((register, 1) for register in (Dist.IGROUPR, Dist.ISENABLER, Dist.ICENABLER, Dist.ISPENDR, Dist.ICPENDR)),
    *((Dist.ISACTIVER, 1), (Dist.ICACTIVER, 1), (Dist.IPRIORITYR, 8), (Dist.ITARGETSR, 8), (Dist.ICFGR, 2)),
)
V2_HOLES = (
    *(0xE00, 0xF00, 0xF10, 0xF14, 0xF20, 0xF2C, 0xFD0, 0xFE0, 0xFE4, 0xFE8, 0xFEC, 0xFF0, 0xFFC),
    *(0x00C, 0x010, 0x040, 0x0FC, 0x17C, 0x7FC, 0xBFC, 0xD00),
)
V3_HOLES = (
    *(0x00C, 0x010, 0x040, 0x048, 0xD00, 0xD04, 0xE00, 0xE04, 0xF00, 0xF10, 0xF20, 0xFFD0, 0xFFE0, 0xFFE8, 0xFFEC),
    *(0xFFF0, 0xFFFC, 0x6000, 0x60F8, 0x7FD8, 0x8000, 0xC000, 0x5FF8),
)
REDISTRIBUTOR_REGISTERS = (
    *(0, 4, 8, 0xC, 0x10, 0x14, 0x18, 0x40, 0x48, 0x70, 0x74, 0x78, 0x7C, 0xA0, 0xB0, 0xC0, 0xFFD0, 0xFFE0, 0xFFE8),
    *(0xFFF0, 0xFFFC, 0x1000),
)
SGI_FRAME_REGISTERS = (
    *(Dist.IGROUPR, Dist.ISENABLER, Dist.ICENABLER, Dist.ISPENDR, Dist.ICPENDR, Dist.ISACTIVER, Dist.ICACTIVER),
    *(0xC00, 0xC04, 0xD00, 0xE00, 0x84, 0x104, 0x420, 0xC08, 0xFFE8, *range(0x400, 0x420, 4)),
)


def _offset(board: Board) -> int:
    register, words = board.rng.choice(WORDS)
    if not words:
        return register
    end = (board.interrupts // 32 + (board.rng.random() < 0.1)) * words
    return register + 4 * board.rng.randrange(end)


def _access(board: Board, base: int, offset: int, size: int, value: int) -> None:
    """A guest's read or write, of any part of the register."""
    rng, vcpu = board.rng, board.vcpu()
    at = base + (offset & ~7 if size == 8 else offset + rng.randrange(0, 4, size) if size < 4 else offset)
    if rng.random() < 0.58:
        board.write(vcpu, at, value & (1 << 8 * size) - 1, size)
    else:
        board.read(vcpu, at, size)


def _wide(rng: Random, size: int) -> int:
    return word(rng) | (rng.getrandbits(32) << 32 if size == 8 else 0)


def _drive(board: Board) -> None:
    rng = board.rng
    last = board.interrupts - 1
    board.line(board.vcpu(), rng.choice((32, 33, last, rng.randrange(32, last), 16, 20, 25, 31)), rng.randrange(2))


def _by_attribute(board: Board, group: Group, attr: int, odd: tuple[int, ...]) -> None:
    rng = board.rng
    action = pick(rng, (8, "get"), (8, "set"), (2, "has"), (1, "get odd"), (1, "has odd"))
    at = rng.choice(odd) if action.endswith("odd") else attr
    if action == "set":
        board.set_attr(group, at, word(rng))
    elif action.startswith("get"):
        board.get_attr(group, at)
    else:
        board.has_attr(group, at)


def v2_distributor(rng: Random, gic: int) -> Board:
    """GICv2's distributor: all registers with all sizes, banked ones from every vCPU, and by attribute."""
    board = Board(rng, gic, rng.choice((1, 2, 4, 4, 8)), rng.choice((64, 96, 128, 256, 992)))
    absent = len(board.vcpus)
    for _ in range(LENGTH):
        offset = rng.choice(V2_HOLES) if rng.random() < 0.08 else _offset(board)
        size = pick(rng, (8, 4), (2, 1), (0.7, 2), (0.5, 8))
        cpu = board.vcpu() << 32
        chance = rng.random()
        if chance < 0.72:
            _access(board, 0x0800_0000, offset, size, _wide(rng, size))
        elif chance < 0.92:
            group = rng.choice((Group.DIST, Group.DIST, Group.DIST, Group.CPU))
            at = cpu | (offset if group == Group.DIST else rng.choice((*Cpu, 0x14, 0xD4, 0xDC, 0xE0)))
            others = (cpu | 0x1000, cpu | 0xE00, cpu | 0xF00, cpu | 0xFE8, 0xFF << 32)
            _by_attribute(board, group, at, (absent << 32 | offset, cpu | offset | 1, *others))
        else:
            _drive(board)
    board.state()
    return board


def v3_distributor(rng: Random, gic: int) -> Board:
    """GICv3's distributor: all registers with all sizes, IROUTER, and by attribute."""
    board = Board(rng, gic, rng.choice((1, 2, 4)), rng.choice((64, 96, 128, 256, 992)))
    absent = affinity(len(board.vcpus))
    for _ in range(LENGTH):
        kind = pick(rng, (86, "usual"), (10, "hole"), (7, "router"))
        offset = _offset(board)
        sizes = ((8, 4), (2, 1), (0.7, 2), (0.5, 8))
        value = _wide(rng, 8)
        if kind == "hole":
            offset = rng.choice(V3_HOLES)
        elif kind == "router":
            offset = Dist.IROUTER + 8 * rng.randrange(32, board.interrupts + (rng.random() < 0.1) * 16)
            sizes = ((3, 4), (6, 8), (0.5, 1), (0.5, 2))
            if rng.random() < 0.7:
                value = rng.choice((0, 1, 2, 3, 1, 0x8000_0000, 0x100, 0x8000_0001, 1 << 32 | 1))
        size = pick(rng, *sizes)
        if kind == "router" and size == 4 and rng.random() < 0.4:
            offset |= 4
        cpu = affinity(board.vcpu())
        chance = rng.random()
        if chance < 0.72:
            _access(board, 0x0800_0000, offset, size, value)
        elif chance < 0.92:
            odd = (absent | offset, cpu | offset | 1, 0x1_0000, 0xFFD0, 0x8000_0000, cpu | 0xFFE8, 0xFF << 32)
            _by_attribute(board, Group.DIST, cpu | offset, odd)
        else:
            _drive(board)
    board.state()
    return board


def v3_redistributor(rng: Random, gic: int) -> Board:
    """GICv3's redistributors: both frames, a vCPU's own and others', and by attribute."""
    board = Board(rng, gic, rng.choice((1, 2, 3, 4)), 64, redistributors=rng.choice((GICR, 0x0900_0000)))
    absent = affinity(len(board.vcpus))
    for _ in range(LENGTH):
        of = board.vcpu()
        offset = rng.choice(REDISTRIBUTOR_REGISTERS)
        if rng.random() < 0.65:
            offset = SGI_FRAME + rng.choice(SGI_FRAME_REGISTERS)
        size = pick(rng, (8, 4), (2, 1), (0.7, 2), (2.5, 8))
        chance = rng.random()
        if chance < 0.74:
            _access(board, board.redistributors + REDISTRIBUTOR * of, offset, size, _wide(rng, size))
        elif chance < 0.94:
            cpu = affinity(of)
            odd = (absent | offset, cpu | offset | 1, 0x2_0000, 0x1_FFE8, cpu | 0xFFE8)
            _by_attribute(board, Group.REDIST, cpu | offset, odd)
        else:
            _drive(board)
    board.state()
    return board


def sysregs(rng: Random, gic: int) -> Board:
    """GICv3's CPU interface by guest and by attribute: every register, odd values, what is refused."""
    board = Board(rng, gic, rng.choice((1, 2, 2)))
    absent = affinity(len(board.vcpus))

    def value() -> int:
        return pick(
            rng, (2, rng.getrandbits(3)), (2, rng.getrandbits(8)), (1, rng.getrandbits(32)), (0.5, rng.getrandbits(64))
        )

    written = ("PMR", "PMR", "BPR0", "BPR1", "CTLR", "CTLR", "SRE", "IGRPEN0", "IGRPEN1", "AP0R0", "AP1R0")
    read = (*USER_SYSREGS, "RPR", "HPPIR0", "HPPIR1", "IAR0", "IAR1", "AP0R1", "AP1R1", "AP0R3", "ISR")
    controls = (0x400, 0x401, 0x402, 0x8400, 0x403, 0x700, 0x500, 0x4400, 0x8002, 0x8C00, 0x8C03, 0x8C40)
    for _ in range(LENGTH):
        vcpu, chance = board.vcpu(), rng.random()
        cpu = affinity(vcpu)
        if chance < 0.28:
            name = rng.choice(written)
            board.msr(vcpu, name, value() & 7 if name.startswith("BPR") else value())  # QEMU compares before it masks
        elif chance < 0.56:
            board.mrs(vcpu, rng.choice(read))
        elif chance < 0.72:
            board.get_attr(Group.SYSREGS, cpu | SYSREGS[rng.choice(USER_SYSREGS)])
        elif chance < 0.90:
            name = rng.choice(USER_SYSREGS)
            usual = {"CTLR": rng.choice(controls), "SRE": 7}.get(name, 1)
            board.set_attr(Group.SYSREGS, cpu | SYSREGS[name], usual if rng.random() < 0.15 else value())
        elif chance < 0.95:
            board.has_attr(Group.SYSREGS, cpu | SYSREGS[rng.choice(USER_SYSREGS)])
        else:
            unknown = (
                sysreg(3, 0, 12, 12, 0),
                sysreg(3, 0, 12, 11, 3),
                sysreg(3, 4, 12, 9, 5),
                0,
                sysreg(3, 0, 12, 11, 5),
            )
            at = rng.choice((absent | SYSREGS["PMR"], cpu | 1 << 16 | SYSREGS["PMR"], *(cpu | one for one in unknown)))
            rng.choice((board.get_attr, board.has_attr))(Group.SYSREGS, at)
    board.state()
    return board
