"""A family about GSIs: tables of routes, irqfds, KVM_SIGNAL_MSI without an ITS, KVM_IRQ_LINE's numbers."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.conformance.arm.script import V2, Action, Board, Cpu, Dist, pick, ppi, repeat, spi
from tests.conformance.arm.traffic import ALL, EDGE, Traffic

GSIS = 12  # the GSIs of a program's routes
SLOTS = 4
DEASSIGN, RESAMPLE = 1, 2
DOORBELLS = (0x0802_0040, 0x0800_0040, 0)


class _Routing:
    """The actions, and the irqfds that have been asked for."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.rng = board.rng
        self.used: list[int] = []

    def table(self) -> None:
        rng = self.rng
        table: list[list[Any]] = [self._route(gsi) for gsi in rng.sample(range(GSIS), rng.randrange(6))]
        if table and rng.random() < 0.15:
            table.append(list(table[0]))
        if table and rng.random() < 0.15:
            table.append([table[0][0], "irqchip", 0, rng.randrange(20)])
        self.board.set_routes(table, pick(rng, (12, 0), (1, 1)))

    def _route(self, gsi: int) -> list[Any]:
        rng, last = self.rng, self.board.interrupts - 33
        return pick(
            rng,
            (6, [gsi, "irqchip", 0, rng.randrange(last + 1)]),
            (1, [gsi, "irqchip", 0, rng.choice((last + 1, last + 33, 987, 988, 1023, 5000))]),
            (0.5, [gsi, "irqchip", rng.choice((1, 2)), 3]),
            (2, [gsi, "msi", DOORBELLS[0], 40, rng.choice((None, 1))]),
            (0.3, [gsi, rng.choice((0, 3, 4, 5, 6, 9))]),
            (0.3, [rng.choice((4095, 4096, 0xFFFF_FFFF)), "irqchip", 0, 1]),
        )

    def irqfd(self) -> None:
        rng, last = self.rng, self.board.interrupts - 33
        gsi = pick(rng, (6, rng.randrange(GSIS)), (1, rng.choice((last, last + 1, 1023, 4095, 4096))))
        flags = pick(rng, (6, 0), (3, RESAMPLE), (2, DEASSIGN), (0.5, DEASSIGN | RESAMPLE), (0.5, 4))
        self._assign(rng.randrange(SLOTS), gsi, flags)

    def _assign(self, slot: int, gsi: int, flags: int) -> None:
        self.board.do("irqfd", slot, gsi, flags)
        self.used.append(slot)

    def resampling(self) -> None:
        """An irqfd with resampling, from its signal to the guest's end."""
        rng, board = self.rng, self.board
        slot = rng.randrange(SLOTS)
        if rng.random() < 0.7:
            self._assign(slot, rng.randrange(GSIS), RESAMPLE)
        board.do("irqfd_signal", slot)
        board.bits_read(0, Dist.ISPENDR, 32)
        for vcpu in board.vcpus:
            board.acknowledge(vcpu)
            board.end(vcpu)
        board.do("irqfd_resampled", slot)
        board.bits_read(0, Dist.ISPENDR, 32)

    def signal(self) -> None:
        if self.used:
            self.board.do("irqfd_signal", self.rng.choice(self.used))

    def resampled(self) -> None:
        if self.used:
            self.board.do("irqfd_resampled", self.rng.choice(self.used))

    def message(self) -> None:
        rng = self.rng
        flags = pick(rng, (4, 0), (2, 1), (0.5, 2))
        self.board.do("signal_msi", rng.choice(DOORBELLS), rng.choice((35, 40, 8192)), flags, rng.choice((0, 1)))

    def line(self) -> None:
        rng, last = self.rng, self.board.interrupts - 1
        odd = (
            *(0, 1, 5, 40, 1 << 16, 0xF << 24 | 33, 1 << 28 | ppi(0, 20), 1 << 28 | spi(40)),
            *(spi(last), spi(last + 1), ppi(7, 20)),
        )
        usual = spi(32 + rng.randrange(GSIS))
        self.board.irq_line(pick(rng, (4, usual), (1, ppi(0, 20)), (1, rng.choice(odd))), rng.randrange(2))


def routing(rng: Random, gic: int) -> Board:
    """GSI tables, irqfds with and without resampling, messages without an ITS, and lines."""
    board = Board(rng, gic, rng.choice((1, 2)), rng.choice((64, 96)))
    for vcpu in board.vcpus:
        board.open_cpu(vcpu, 0xF0, split_end=rng.random() < 0.15)
    board.dist_write(0, Dist.CTLR, 1 if board.kind == V2 else 3)
    for intid in range(32, board.interrupts, 32):
        if not board.v2:
            board.write(0, board.where(0, Dist.IGROUPR, intid, 1), ALL)
        board.write(0, board.where(0, Dist.ISENABLER, intid, 1), ALL)
        for half in (intid, intid + 16):
            board.trigger(0, half, rng.choice((0, EDGE, rng.getrandbits(32))))
        if board.v2 and rng.random() < 0.8:
            for word in range(intid, intid + 32, 4):
                board.write(0, board.where(0, Dist.ITARGETSR, word, 8), rng.choice((0x0101_0101, 0x0202_0202)))
    steps, traffic = _Routing(board), Traffic(board, range(32, 32 + GSIS))

    def look() -> None:
        board.bits_read(0, rng.choice((Dist.ISPENDR, Dist.ISACTIVER)), 32)

    actions: list[tuple[float, Action]] = [
        *((0.06, steps.resampling), (0.08, steps.table), (0.16, steps.irqfd), (0.20, steps.signal)),
        *((0.05, steps.resampled), (0.05, steps.message), (0.12, steps.line), (0.10, traffic.acknowledge)),
        *((0.10, traffic.end), (0.06, look), (0.02, traffic.set_trigger), (0.02, traffic.set_enabled)),
        *((0.02, traffic.deactivate), (0.02, traffic.set_active)),
    ]
    repeat(rng, 36, *actions)
    if board.v2:
        board.cpu_read(0, Cpu.RPR)
    board.state()
    return board
