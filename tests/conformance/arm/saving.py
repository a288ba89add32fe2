"""A family about saving a GIC by its attributes while it works, and restoring it into another VM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.interrupts import handle
from tests.conformance.arm.program import Earlier
from tests.conformance.arm.script import SGI_FRAME, Board, Cpu, Dist, Group, affinity
from tests.conformance.arm.traffic import Traffic, configure, enable, some_interrupts

Attribute = tuple[Group, int]

REGISTERS = (
    *((register, 32) for register in (Dist.IGROUPR, Dist.ISENABLER, Dist.ISPENDR, Dist.ISACTIVER)),
    *((Dist.IPRIORITYR, 4), (Dist.ITARGETSR, 4), (Dist.ICFGR, 16)),
)
CLEARED_BY = 0x80  # from a register that sets bits to the one that clears them
IIDR: Attribute = (Group.DIST, Dist.IIDR)


def save_and_restore(rng: Random, gic: int) -> Board:
    """A GIC saved in mid-flight, restored into a new VM or into itself, and used further."""
    board = Board(rng, gic, rng.choice((1, 2, 4) if gic == 2 else (1, 2, 3)))
    intids = [*some_interrupts(board)[:5], rng.randrange(16)]
    traffic = Traffic(board, intids)
    enable(board)
    configure(board, intids)
    handle(traffic, 30, settings=0.25)
    saved = list(_v2_attributes(board) if board.v2 else _v3_attributes(board, intids))
    if rng.random() < 0.3:
        rng.shuffle(saved)
    values = {attribute: board.get_attr(*attribute) for attribute in saved}
    if rng.random() < 0.8:
        board.new_vm()
    for group, attr in _order(rng, saved):
        where = attr
        if board.v2 and group == Group.DIST and attr & 0xF80 in (0x100, 0x200, 0x300) and rng.random() < 0.08:
            where += CLEARED_BY
        board.set_attr(group, where, values[group, attr])
    if rng.random() < 0.3:
        _reuse(board, values)
    board.state()
    handle(traffic, 25)
    board.state()
    return board


def _order(rng: Random, saved: Sequence[Attribute]) -> list[Attribute]:
    order = list(saved)
    if rng.random() < 0.5:
        order.remove(IIDR)
        order.insert(0, IIDR)
    if rng.random() < 0.2:
        order = [attribute for attribute in order if rng.random() < 0.8]
    return order


def _reuse(board: Board, values: dict[Attribute, Earlier]) -> None:
    """A second restore of some registers: those that set bits merge with what is there."""
    for attribute in board.rng.sample(sorted(values), 10):
        board.set_attr(*attribute, values[attribute])


def _v2_attributes(board: Board) -> Iterator[Attribute]:
    for register, per_word in REGISTERS:
        for vcpu in board.vcpus:
            yield from ((Group.DIST, vcpu << 32 | register + 4 * word) for word in range(32 // per_word))
        first, end = 32 // per_word, board.interrupts // per_word
        yield from ((Group.DIST, register + 4 * word) for word in range(first, end))
    for vcpu in board.vcpus:
        yield from ((Group.DIST, vcpu << 32 | Dist.SPENDSGIR + 4 * word) for word in range(4))
        for register_of_cpu in (Cpu.CTLR, Cpu.PMR, Cpu.BPR, Cpu.ABPR, Cpu.APR):
            yield Group.CPU, vcpu << 32 | register_of_cpu
    yield Group.DIST, Dist.CTLR
    yield IIDR


def _v3_attributes(board: Board, intids: Sequence[int]) -> Iterator[Attribute]:
    yield Group.DIST, Dist.CTLR
    yield IIDR
    for register, per_word in REGISTERS:
        if register != Dist.ITARGETSR:
            first, end = 32 // per_word, board.interrupts // per_word
            yield from ((Group.DIST, register + 4 * word) for word in range(first, end))
    yield from ((Group.DIST, Dist.IROUTER + 8 * intid) for intid in intids if intid >= 32)
    yield Group.LEVEL_INFO, 32
    for vcpu in board.vcpus:
        cpu = affinity(vcpu)
        yield Group.REDIST, cpu
        yield Group.REDIST, cpu | 0x14
        for register, per_word in REGISTERS:
            if register != Dist.ITARGETSR:
                words = range(32 // per_word)
                yield from ((Group.REDIST, cpu | SGI_FRAME | register + 4 * word) for word in words)
        yield Group.LEVEL_INFO, cpu
        for name in ("SRE", "CTLR", "PMR", "BPR0", "BPR1", "AP0R0", "AP1R0", "IGRPEN0", "IGRPEN1"):
            yield Group.SYSREGS, cpu | SYSREGS[name]
