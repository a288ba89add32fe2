"""Families for corners that the others seldom reach."""

from __future__ import annotations

from random import Random

from tests.conformance.arm.script import PTIMER, VTIMER, Action, Board, Dist, ppi, repeat, spi
from tests.conformance.arm.traffic import ALL, EDGE, PPIS, Traffic, configure, enable, some_interrupts

PMU_GROUP = 0  # KVM_ARM_VCPU_PMU_V3_CTRL
PSCI, PMU_V3 = 1 << 2, 1 << 3  # KVM_ARM_VCPU_*: features
TIMER_GROUP = 1  # KVM_ARM_VCPU_TIMER_CTRL: attribute 0 is the virtual timer's PPI, 1 the physical one's


def anything(rng: Random, gic: int) -> Board:
    """Every action at any moment: a guest that handles interrupts, and a VMM that writes its GIC meanwhile."""
    board = Board(rng, gic, rng.choice((1, 2, 3)), rng.choice((64, 64, 96, 256)))
    intids = some_interrupts(board, sgis=2) + ([rng.choice((VTIMER, PTIMER))] if rng.random() < 0.3 else [])
    enable(board)
    configure(board, intids)
    traffic = Traffic(board, intids)
    actions: list[tuple[float, Action]] = [
        *((20, traffic.drive), (15, traffic.acknowledge), (10, traffic.end), (5, traffic.deactivate)),
        *((2, traffic.end_oddly), (6, traffic.look), (2, traffic.look_at_isr), (4, traffic.read_bits)),
        *((2, traffic.set_enabled), (3, traffic.set_pending), (3, traffic.set_active), (2, traffic.set_trigger)),
        *((2, traffic.set_priority), (3, traffic.set_target), (2, traffic.set_group), (1, traffic.set_distributor)),
        *((1, traffic.set_mask), (2, traffic.set_binary_point), (1, traffic.set_cpu), (1, traffic.read_cpu)),
        *((2, traffic.cpu_by_attribute), (1, traffic.active_priorities_by_attribute), (3, traffic.bits_by_attribute)),
        (1, traffic.sgi_registers if board.v2 else traffic.level_info),
        (0.3, board.state),
        (0.2, lambda: board.init_vcpu(board.vcpu())),
    ]
    repeat(rng, rng.choice((40, 80, 120)), *actions)
    board.state()
    return board


def crowd(rng: Random, gic: int) -> Board:
    """SGIs, PPIs and SPIs that do not fit into the list registers; GICv2's SGIs from several sources, too.

    KVM: vgic.c vgic_flush_lr_state, where an SGI with several sources keeps others out of the list registers.
    """
    board = Board(rng, gic, rng.choice((2, 3, 4)))
    intids = rng.sample(range(16), 3) + rng.sample(PPIS, 2) + rng.sample(range(32, 64), 4)
    for vcpu in board.vcpus:
        board.open_cpu(vcpu, split_end=rng.random() < 0.2)
        if not board.v2:
            board.write(vcpu, board.where(vcpu, Dist.IGROUPR, 0, 1), ALL)
    board.dist_write(0, Dist.CTLR, 3)
    priorities = rng.choice(((0x80,), (0x40, 0x80), tuple(range(0, 0xF0, 0x10))))
    for intid in intids:
        for vcpu in board.vcpus if intid < 32 else board.vcpus[:1]:
            board.byte(vcpu, Dist.IPRIORITYR, intid, rng.choice(priorities))
            board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32:
            board.route(intid, rng.choice((0, 0, board.vcpu())))
            board.trigger(0, intid, rng.choice((0, EDGE)))
    traffic = Traffic(board, intids)

    def burst() -> None:
        for vcpu in board.vcpus:
            for intid in rng.sample(intids, 3):
                if intid < 16:
                    board.send_sgi(vcpu, intid)
                else:
                    board.line(vcpu, intid, 1)

    burst()
    repeat(
        rng,
        60,
        *((2, burst), (12, traffic.drive), (22, traffic.acknowledge), (16, traffic.end), (3, traffic.deactivate)),
        *((6, traffic.look), (4, traffic.look_at_isr), (5, traffic.read_bits), (2, traffic.set_priority)),
        *((2, traffic.set_enabled), (2, traffic.set_pending), (2, traffic.set_active)),
        (3, traffic.sgi_registers if board.v2 else traffic.set_group),
    )
    board.state()
    return board


def numbers(rng: Random, gic: int) -> Board:
    """vCPUs whose ids have gaps and come in any order, and a GIC with many interrupts."""
    ids = (0, 1, 2, 3, 5, 7) if gic == 2 else (0, 1, 3, 15, 16, 17, 33, 100, 255)
    board = Board(rng, gic, rng.sample(ids, rng.choice((2, 3, 4))), rng.choice((64, 256, 992)))
    last = board.interrupts - 1
    intids = [last, *rng.sample(range(32, last), 3), rng.choice(PPIS), *rng.sample(range(16), 2)]
    enable(board)
    configure(board, intids)
    traffic = Traffic(board, intids)

    def by_number() -> None:
        """By the ids of vCPUs that may not exist."""
        vcpu = rng.choice(ids)
        if rng.random() < 0.5:
            board.irq_line(ppi(vcpu, rng.choice(PPIS)), rng.randrange(2))
        else:
            board.irq_line(spi(rng.choice((last, last + 1, 32))), rng.randrange(2))

    repeat(
        rng,
        50,
        *((20, traffic.drive), (14, traffic.acknowledge), (10, traffic.end), (3, traffic.deactivate)),
        *((6, traffic.look), (5, traffic.read_bits), (5, traffic.set_target), (2, traffic.set_pending)),
        *((2, traffic.set_active), (3, traffic.bits_by_attribute), (2, traffic.cpu_by_attribute), (4, by_number)),
    )
    board.state()
    return board


def timer_interrupts(rng: Random, gic: int) -> Board:
    """The PPIs of the generic timer, before and after a vCPU has run, and PPIs that a VMM gives to the timer."""
    has_pmu = rng.random() < 0.4
    board = Board(rng, gic, rng.choice((1, 2)), features=PSCI | PMU_V3 * has_pmu)
    own = [VTIMER, PTIMER]

    def pmu(give_to_pmu: Action) -> list[tuple[float, Action]]:
        return [(6, give_to_pmu)] if has_pmu else []

    def give() -> None:
        intid = rng.choice((*PPIS, VTIMER, PTIMER, 15, 32))
        own.append(intid if 16 <= intid < 32 else VTIMER)
        board.do("vcpu_set_attr", board.vcpu(), TIMER_GROUP, rng.randrange(3), intid)

    def ask() -> None:
        if rng.random() < 0.5:
            board.do("vcpu_get_attr", board.vcpu(), TIMER_GROUP, rng.randrange(3), 0)
        else:
            board.do("vcpu_has_attr", board.vcpu(), rng.choice((PMU_GROUP, TIMER_GROUP)), rng.randrange(5))

    def drive() -> None:
        board.line(board.vcpu(), rng.choice(own), rng.randrange(2))

    def give_to_pmu() -> None:
        """Its interrupt or a filter; or say that it is ready."""
        a_filter = rng.randrange(1100) | rng.randrange(1100) << 16 | rng.randrange(3) << 32
        value = rng.choice((*own, *PPIS, 40, 63, 64, 15, 1020, a_filter))
        board.do("vcpu_set_attr", board.vcpu(), PMU_GROUP, rng.choice((0, 0, 1, 1, 1, 2, 4)), value)

    repeat(rng, 6, (2, give), (1, ask), (3, drive), *pmu(give_to_pmu))
    for vcpu in board.vcpus:
        board.open_cpu(vcpu)
        for intid in own:
            if rng.random() < 0.8:
                board.bit(vcpu, Dist.ISENABLER, intid)
    board.dist_write(0, Dist.CTLR, 3)
    traffic = Traffic(board, own)
    actions: list[tuple[float, Action]] = [
        *((1, give), (1, ask), (8, drive), (6, traffic.acknowledge), (5, traffic.end), (3, traffic.look)),
        *((5, traffic.read_bits), (4, traffic.set_pending), (4, traffic.set_active), (2, traffic.set_trigger)),
        *((2, traffic.set_enabled), (4, traffic.bits_by_attribute), (1, traffic.set_priority)),
        *pmu(give_to_pmu),
    ]
    repeat(rng, 45, *actions)
    board.state()
    return board
