"""Families about interrupts on their way through a guest."""

from __future__ import annotations

from random import Random

from tests.conformance.arm.program import Source
from tests.conformance.arm.script import Action, Board, Dist, pick, ppi, repeat, spi
from tests.conformance.arm.traffic import ALL, EDGE, PPIS, Traffic, configure, enable, some_interrupts

LINES = 32  # SPIs on a board with 64 interrupts


def _settings(traffic: Traffic, weight: float) -> list[tuple[float, Action]]:
    """Everything that changes while interrupts are handled, with a weight for all."""
    actions: list[tuple[float, Action]] = [
        *((1.0, traffic.set_mask), (2.0, traffic.set_binary_point), (1.0, traffic.set_cpu), (1.0, traffic.read_cpu)),
        *((1.0, traffic.set_enabled), (1.0, traffic.set_pending), (1.0, traffic.set_active)),
        *((1.0, traffic.set_priority), (1.0, traffic.set_target), (1.0, traffic.set_distributor)),
        *((1.0, traffic.read_bits), (1.0, traffic.end_oddly), (2.0, traffic.cpu_by_attribute)),
    ]
    total = sum(share for share, _ in actions)
    return [(share * weight / total, action) for share, action in actions]


def handle(traffic: Traffic, times: int, *, settings: float = 0.15) -> None:
    """A guest that handles interrupts, while settings change."""
    repeat(
        traffic.rng,
        times,
        *((0.38, traffic.drive), (0.20, traffic.acknowledge), (0.13, traffic.end), (0.06, traffic.deactivate)),
        *((0.08, traffic.look), *_settings(traffic, settings)),
    )


def cpu_interface(rng: Random, gic: int) -> Board:
    """Acknowledge, end, deactivate, running priority, binary points, priority mask, groups."""
    board = Board(rng, gic, rng.choice((1, 1, 2)))
    intids = some_interrupts(board, sgis=rng.choice((0, 0, 1)))
    if rng.random() < 0.7:
        intids = intids[:4]
    enable(board)
    configure(board, intids)
    handle(Traffic(board, intids), 60)
    board.state()
    return board


def sgis(rng: Random, gic: int) -> Board:
    """Software-generated interrupts: who gets them, from whom, and what is pending."""
    board = Board(rng, gic, rng.choice((1, 2, 3, 4, 4, 8) if gic == 2 else (1, 2, 3, 4, 4)))
    intids = rng.sample(range(16), 3)
    traffic = Traffic(board, intids)
    if board.v2:
        enable(board)
    for vcpu in board.vcpus:
        if not board.v2:
            board.open_cpu(vcpu)
            board.msr(vcpu, "IGRPEN0", rng.randrange(2))
            groups = rng.choice((ALL, ALL, rng.getrandbits(32), 0))
            board.write(vcpu, board.where(vcpu, Dist.IGROUPR, 0, 1), groups)
        for intid in intids:
            if rng.random() < 0.8:
                board.byte(vcpu, Dist.IPRIORITYR, intid, rng.choice((0, 0x40, 0x80, 0xC0)))
        if rng.random() < 0.3:
            board.write(vcpu, board.where(vcpu, Dist.ICENABLER, 0, 1), rng.choice((0xFFFF, 1 << intids[0])))
            board.write(vcpu, board.where(vcpu, Dist.ISENABLER, 0, 1), rng.getrandbits(16))
    if not board.v2:
        board.dist_write(0, Dist.CTLR, rng.choice((2, 3, 3)))

    def odd_sgi() -> None:
        """GICv3: affinities that nobody has, all but oneself, the range selector."""
        targets = rng.getrandbits(16)
        odd = (1 << 40, 1 << 40 | targets, 1 << 16 | 1, 1 << 32 | 3, 1 << 48 | 3, 1 << 44 | 3, targets)
        value = rng.choice(intids) << 24 | rng.choice(odd)
        board.msr(board.vcpu(), pick(rng, (7, "SGI1R"), (2, "SGI0R"), (1, "ASGI1R")), value)

    def read_sgi_register() -> None:
        board.mrs(board.vcpu(), rng.choice(("SGI1R", "SGI0R", "ASGI1R")))

    actions: list[tuple[float, Action]] = [
        *((0.30, traffic.drive), (0.20, traffic.acknowledge), (0.15, traffic.end), (0.06, traffic.read_bits)),
        *((0.06, traffic.set_pending), (0.02, traffic.set_active), (0.04, traffic.set_enabled), (0.06, traffic.look)),
    ]
    if board.v2:
        actions += [(0.20, traffic.sgi_registers)]
    else:
        actions += [(0.10, odd_sgi), (0.02, read_sgi_register), (0.04, traffic.set_group)]
    repeat(rng, 55, *actions)
    board.state()
    return board


def levels(rng: Random, gic: int) -> Board:
    """Level and edge lines of SPIs and PPIs against pending, active, enabled and the trigger."""
    board = Board(rng, gic, rng.choice((1, 2)))
    intids = rng.sample(range(32, 64), 2) + rng.sample(PPIS, 1)
    _open_all(board)
    for intid in (32, 48):  # SPIs are edge-triggered at reset
        board.trigger(0, intid, rng.choice((0, 0, rng.getrandbits(32))))
    for intid in intids:
        for vcpu in board.vcpus if intid < 32 else board.vcpus[:1]:
            board.byte(vcpu, Dist.IPRIORITYR, intid, rng.choice((0x20, 0x40, 0x60, 0x80, 0xA0)))
            board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32:
            board.route(intid, board.vcpu())
    traffic = Traffic(board, intids)
    odd = (
        *(ppi(0, 27), ppi(0, 30), ppi(0, 26), spi(27), spi(64), spi(1019), ppi(5, 20), ppi(0, 40)),
        *(0, 3 << 24 | 40, ppi(0, 3), ppi(board.vcpus[-1], 27), ppi(board.vcpus[-1], 30)),
    )
    actions: list[tuple[float, Action]] = [
        *((0.38, traffic.drive), (0.15, traffic.acknowledge), (0.13, traffic.end), (0.14, traffic.read_bits)),
        *((0.08, traffic.set_pending), (0.04, traffic.set_active), (0.02, traffic.set_enabled)),
        *((0.02, traffic.set_trigger), (0.03, traffic.bits_by_attribute), (0.02, traffic.look_at_isr)),
        (0.02, lambda: board.irq_line(rng.choice(odd), rng.randrange(2))),
    ]
    if not board.v2:
        actions += [(0.06, traffic.level_info)]
    repeat(rng, 65, *actions)
    board.state()
    return board


def overflow(rng: Random, gic: int) -> Board:
    """More pending interrupts than list registers, of which there are 4: which are seen, and in which order."""
    board = Board(rng, gic, rng.choice((1, 2)))
    intids = rng.sample(range(32, 64), 9)
    _open_all(board, split_end=rng.random() < 0.33)
    priorities = [rng.choice((0x40, 0x80)) for _ in intids]
    if rng.random() < 0.6:
        priorities = rng.sample(range(0, 0xF0, 8), 9)
    edge = rng.random() < 0.5
    for intid, priority in zip(intids, priorities, strict=True):
        if edge:
            board.trigger(0, intid, EDGE)
        board.byte(0, Dist.IPRIORITYR, intid, priority)
        board.bit(0, Dist.ISENABLER, intid)
        board.route(intid, rng.choice((0, 0, board.vcpu())))
    for intid in rng.sample(intids, 8):
        board.line(0, intid, 1)
    traffic = Traffic(board, intids)
    repeat(
        rng,
        40,
        *((0.25, traffic.drive), (0.25, traffic.acknowledge), (0.20, traffic.end), (0.10, traffic.look)),
        *((0.05, traffic.set_priority), (0.05, traffic.read_bits), (0.02, traffic.set_enabled)),
        *((0.03, traffic.set_pending), (0.03, traffic.look_at_isr), (0.03, traffic.deactivate)),
    )
    board.state()
    return board


def nested(rng: Random, gic: int) -> Board:
    """Active interrupts up to and past the number of list registers: nesting, ISACTIVER, ends of those without one."""
    board = Board(rng, gic, rng.choice((1, 1, 2)))
    intids = rng.sample(range(32, 64), 7) + rng.sample(PPIS[:5], 1)
    split_end = rng.random() < 0.4
    for vcpu in board.vcpus:
        board.open_cpu(vcpu, split_end=split_end)
    for intid in (32, 48):
        board.trigger(0, intid, rng.choice((0, EDGE, rng.getrandbits(32))))
    board.dist_write(0, Dist.CTLR, 3)
    for intid, priority in zip(intids, sorted(rng.sample(range(0, 0xF0, 8), 8), reverse=True), strict=True):
        for vcpu in board.vcpus if intid < 32 else board.vcpus[:1]:
            board.byte(vcpu, Dist.IPRIORITYR, intid, priority)
            board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32 and board.v2:
            board.route(intid, 0)
    traffic = Traffic(board, intids)
    for intid in intids[: rng.randrange(2, 8)]:
        board.line(0, intid, 1)
        board.acknowledge(0)
    ends = (Source.LAST_TO_DEACTIVATE, Source.LAST_TO_DEACTIVATE, Source.LAST)
    if not split_end:
        ends = (Source.LAST, Source.LAST, Source.FIRST)
    repeat(
        rng,
        45,
        *((0.18, traffic.drive), (0.20, traffic.acknowledge), (0.12, traffic.read_bits), (0.14, traffic.look)),
        (0.14, lambda: board.end(rng.choice((0, 0, 0, board.vcpus[-1])), rng.choice(ends))),
        (0.08, traffic.deactivate if split_end else traffic.end),
        *((0.12, traffic.set_active), (0.02, traffic.look_at_isr)),
    )
    board.state()
    return board


def _open_all(board: Board, *, split_end: bool = False) -> None:
    """Enable everything, with all interrupts in group 1 of a GICv3."""
    for vcpu in board.vcpus:
        board.open_cpu(vcpu, split_end=split_end)
        if not board.v2:
            board.write(vcpu, board.where(vcpu, Dist.IGROUPR, 0, 1), ALL)
    board.dist_write(0, Dist.CTLR, 1 if board.v2 else 3)
    if not board.v2:
        board.write(0, board.where(0, Dist.IGROUPR, 32, 1), ALL)
