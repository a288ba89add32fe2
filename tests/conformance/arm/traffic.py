"""What happens while a guest handles interrupts, as actions to draw from: lines, acknowledgement, ends, settings."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.program import Source
from tests.conformance.arm.script import GICD, USER_SYSREGS, Board, Cpu, Dist, Group, affinity, pick

PPIS = (16, 18, 20, 22, 23, 25, 29, 31)  # that no timer owns
PRIORITIES = (0, 0x20, 0x40, 0x60, 0x80, 0xA0, 0xB8, 0xC0, 0xF0)
ALL, EDGE = 0xFFFF_FFFF, 0xAAAA_AAAA
ENDS = (Source.LAST, Source.LAST, Source.LAST, Source.FIRST, Source.LAST_TO_DEACTIVATE, Source.LAST_TO_DEACTIVATE)


def some_interrupts(board: Board, *, sgis: int = 0) -> list[int]:
    """A few interrupts, for one program."""
    rng = board.rng
    return rng.sample(range(32, board.interrupts), 5) + rng.sample(PPIS, 2) + rng.sample(range(16), sgis)


def enable(board: Board) -> None:
    """Enable the CPU interfaces and the distributor, each in one of the usual ways."""
    rng = board.rng
    for vcpu in board.vcpus:
        if board.v2:
            board.cpu_write(vcpu, Cpu.PMR, rng.choice((0xF0, 0xFF, 0xF8)))
            board.cpu_write(vcpu, Cpu.CTLR, rng.choice((1, 3, 3, 7, 0x203, 0x203, 0x201, 0xB)))
            if rng.random() < 0.3:
                board.cpu_write(vcpu, Cpu.BPR, rng.randrange(8))
            continue
        board.write(vcpu, board.redist(vcpu) + 0x14, 0)  # GICR_WAKER
        board.msr(vcpu, "SRE", 7)
        board.msr(vcpu, "PMR", rng.choice((0xFF, 0xF0, 0xF8)))
        board.msr(vcpu, "IGRPEN1", 1)
        if rng.random() < 0.5:
            board.msr(vcpu, "IGRPEN0", 1)
        if rng.random() < 0.45:
            board.msr(vcpu, "CTLR", rng.choice((2, 2, 1, 3)))
        if rng.random() < 0.3:
            board.msr(vcpu, rng.choice(("BPR0", "BPR1")), rng.randrange(8))
    usual = rng.choice((1, 1, 1, 3) if board.v2 else (2, 3, 3, 0x12, 0x13, 0x13, 1))
    board.dist_write(board.vcpus[0], Dist.CTLR, usual if rng.random() < 0.95 else rng.getrandbits(8))


def configure(board: Board, intids: Sequence[int], *, grouped: float = 0.3) -> None:
    """Give interrupts their triggers, priorities, targets and groups, and enable them."""
    rng = board.rng
    for intid in intids:
        for vcpu in board.vcpus if intid < 32 else [board.vcpu()]:
            if intid >= 16 and rng.random() < 0.6:
                board.trigger(vcpu, intid, rng.choice((0, EDGE, rng.getrandbits(32))))
            board.byte(vcpu, Dist.IPRIORITYR, intid, rng.choice((*PRIORITIES, rng.randrange(256))))
            board.bit(vcpu, Dist.ISENABLER, intid)
        if intid >= 32:
            if board.v2 and rng.random() < 0.3:
                board.byte(board.vcpus[0], Dist.ITARGETSR, intid, rng.randrange(256))
            elif board.v2 or rng.random() < 0.7:
                board.route(intid, board.vcpu())
    for first in sorted({intid & ~31 for intid in intids}):
        for vcpu in board.vcpus if not first else board.vcpus[:1]:
            if grouped and rng.random() < (grouped if board.v2 else 0.6):
                groups = pick(rng, (4, ALL), (4, rng.getrandbits(32)), (1, 0))
                board.write(vcpu, board.where(vcpu, Dist.IGROUPR, first, 1), groups)


class Traffic:
    """Actions on a board; each draws a vCPU and one of the interrupts."""

    def __init__(self, board: Board, intids: Sequence[int]) -> None:
        self.board = board
        self.rng: Random = board.rng
        self.intids = intids

    def _intid(self) -> int:
        return self.rng.choice(self.intids)

    def _group(self) -> int:
        return 0 if not self.board.v2 and self.rng.random() < 0.25 else 1

    def drive(self) -> None:
        """A line of an SPI or PPI goes up or down; an SGI is sent."""
        vcpu, intid = self.board.vcpu(), self._intid()
        if intid < 16:
            self.board.send_sgi(vcpu, intid)
        else:
            self.board.line(vcpu, intid, self.rng.random() < 0.7)

    def acknowledge(self) -> None:
        self.board.acknowledge(self.board.vcpu(), self._group())

    def end(self) -> None:
        self.board.end(self.board.vcpu(), self.rng.choice(ENDS), self._group())

    def end_oddly(self) -> None:
        """End what is perhaps not running."""
        self.board.end(self.board.vcpu(), self.rng.choice((1023, 1020, 1022, self._intid(), 1019)), self._group())

    def deactivate(self) -> None:
        source = self.rng.choice((Source.DEACTIVATE, Source.DEACTIVATE, Source.LAST_KEPT))
        self.board.deactivate(self.board.vcpu(), source if self.rng.random() < 0.9 else self._intid())

    def look(self) -> None:
        self.board.look(self.board.vcpu())

    def look_at_isr(self) -> None:
        self.board.mrs(self.board.vcpu(), "ISR")

    def read_bits(self) -> None:
        """Read whether it is pending, active or enabled."""
        registers = (Dist.ISPENDR, Dist.ISACTIVER, Dist.ISPENDR, Dist.ISACTIVER, Dist.ICPENDR, Dist.ISENABLER)
        self.board.bits_read(self.board.vcpu(), self.rng.choice(registers), self._intid())

    def set_enabled(self) -> None:
        registers = (Dist.ISENABLER, Dist.ISENABLER, Dist.ISENABLER, Dist.ICENABLER)
        self.board.bit(self.board.vcpu(), self.rng.choice(registers), self._intid())

    def set_pending(self) -> None:
        registers = (Dist.ISPENDR, Dist.ISPENDR, Dist.ICPENDR)
        self.board.bit(self.board.vcpu(), self.rng.choice(registers), self._intid())

    def set_active(self) -> None:
        registers = (Dist.ISACTIVER, Dist.ICACTIVER, Dist.ICACTIVER)
        self.board.bit(self.board.vcpu(), self.rng.choice(registers), self._intid())

    def set_trigger(self) -> None:
        value = self.rng.choice((0, EDGE, self.rng.getrandbits(32)))
        self.board.trigger(self.board.vcpu(), self._intid(), value)

    def set_priority(self) -> None:
        value = self.rng.choice((*PRIORITIES, self.rng.randrange(256)))
        self.board.byte(self.board.vcpu(), Dist.IPRIORITYR, self._intid(), value)

    def set_target(self) -> None:
        board, intid = self.board, self._intid()
        if intid < 32:
            return
        if self.rng.random() < 0.6:
            board.route(intid, board.vcpu())
        elif board.v2:
            board.byte(board.vcpu(), Dist.ITARGETSR, intid, board.targets())
        else:
            where = self.rng.choice((2, 7, 0x8000_0000, 0x100, 0x1_0000))
            board.dist_write(board.vcpu(), Dist.IROUTER + 8 * intid, where, 8)

    def set_group(self) -> None:
        board, vcpu, intid = self.board, self.board.vcpu(), self._intid()
        value = pick(self.rng, (3, ALL), (1, 0), (3, self.rng.getrandbits(32)))
        board.write(vcpu, board.where(vcpu, Dist.IGROUPR, intid, 1), value)

    def set_distributor(self) -> None:
        value = pick(self.rng, (6, 1), (3, 3), (1, 0)) if self.board.v2 else pick(self.rng, (3, 2), (8, 3), (1, 0))
        self.board.dist_write(self.board.vcpu(), Dist.CTLR, value)

    def set_mask(self) -> None:
        value = pick(self.rng, (5, 0xF0), (3, 0xFF), (1, 0), (1, 0x80), (2, self.rng.randrange(256)))
        if self.board.v2:
            self.board.cpu_write(self.board.vcpu(), Cpu.PMR, value)
        else:
            self.board.msr(self.board.vcpu(), "PMR", value)

    def set_binary_point(self) -> None:
        vcpu, value = self.board.vcpu(), self.rng.randrange(8)
        if self.board.v2:
            self.board.cpu_write(vcpu, self.rng.choice((Cpu.BPR, Cpu.ABPR)), value)
        else:
            self.board.msr(vcpu, self.rng.choice(("BPR0", "BPR1")), value)

    def set_cpu(self) -> None:
        """What a CPU interface enables, and how interrupts end."""
        board, rng, vcpu = self.board, self.rng, self.board.vcpu()
        if board.v2:
            usual = pick(rng, (3, 1), (5, 3), (4, 7), (2, 0x201), (3, 0x203), (1, 0x1B), (1, 0))
            board.cpu_write(vcpu, Cpu.CTLR, usual if rng.random() < 0.95 else rng.getrandbits(10))
        elif rng.random() < 0.5:
            board.msr(vcpu, rng.choice(("IGRPEN0", "IGRPEN1")), int(rng.random() < 0.8))
        else:
            board.msr(vcpu, "CTLR", rng.choice((0, 1, 2, 3, 0, 0x40)))

    def read_cpu(self) -> None:
        """Read a setting or the active priorities."""
        if self.board.v2:
            self.board.cpu_read(self.board.vcpu(), self.rng.choice((Cpu.CTLR, Cpu.PMR, Cpu.BPR, Cpu.ABPR, Cpu.APR)))
        else:
            names = ("PMR", "BPR0", "BPR1", "CTLR", "SRE", "IGRPEN0", "IGRPEN1", "AP0R0", "AP1R0")
            self.board.mrs(self.board.vcpu(), self.rng.choice(names))

    def cpu_by_attribute(self) -> None:
        """Read or write a CPU interface as a VMM does."""
        board, rng, vcpu = self.board, self.rng, self.board.vcpu()
        if board.v2:
            at = vcpu << 32
            if rng.random() < 0.5:
                board.get_attr(Group.CPU, at | rng.choice((Cpu.CTLR, Cpu.PMR, Cpu.BPR, Cpu.ABPR, Cpu.APR, Cpu.IIDR)))
            else:
                register = rng.choice((Cpu.CTLR, Cpu.PMR, Cpu.BPR, Cpu.ABPR))
                board.set_attr(Group.CPU, at | register, rng.getrandbits(rng.choice((3, 8, 10))))
            return
        at = affinity(vcpu)
        if rng.random() < 0.5:
            board.get_attr(Group.SYSREGS, at | SYSREGS[rng.choice(USER_SYSREGS)])
        else:
            name = rng.choice(("PMR", "BPR0", "BPR1", "IGRPEN0", "IGRPEN1"))
            board.set_attr(Group.SYSREGS, at | SYSREGS[name], rng.getrandbits(rng.choice((1, 3, 8))))

    def active_priorities_by_attribute(self) -> None:
        """Write them, as a VMM does that restores a VM."""
        board, rng, vcpu = self.board, self.rng, self.board.vcpu()
        value = rng.choice((0, 1 << rng.randrange(32), rng.getrandbits(32) & rng.getrandbits(32)))
        if board.v2:
            board.set_attr(Group.CPU, vcpu << 32 | Cpu.APR, value)
        else:
            board.set_attr(Group.SYSREGS, affinity(vcpu) | SYSREGS[rng.choice(("AP0R0", "AP1R0"))], value)

    def bits_by_attribute(self) -> None:
        """Read or write what is pending, active, enabled or in a group, as a VMM does."""
        board, rng = self.board, self.rng
        registers = (Dist.ISPENDR, Dist.ICPENDR, Dist.ISACTIVER, Dist.ICACTIVER, Dist.ISENABLER, Dist.ICENABLER)
        intid = self._intid()
        group, attr = board.user(board.vcpu(), rng.choice((*registers, Dist.IGROUPR)), intid)
        if rng.random() < 0.4:
            board.get_attr(group, attr)
        else:
            board.set_attr(group, attr, rng.choice((0, 1 << (intid & 31), rng.getrandbits(32))))

    def level_info(self) -> None:
        """Read or write LEVEL_INFO, which a GICv2 does not have."""
        board, rng = self.board, self.rng
        attr = rng.choice((32, affinity(board.vcpu()), affinity(board.vcpu()) | 32, 33, 16, 1 << 10 | 32, 992, 1024))
        if rng.random() < 0.5:
            board.get_attr(Group.LEVEL_INFO, attr)
        else:
            board.set_attr(Group.LEVEL_INFO, attr, rng.getrandbits(32) & rng.getrandbits(32))

    def sgi_registers(self) -> None:
        """GICv2's registers of pending SGIs by source."""
        board, rng, vcpu = self.board, self.rng, self.board.vcpu()
        sgi = rng.choice([intid for intid in self.intids if intid < 16] or [rng.randrange(16)])
        register = rng.choice((Dist.CPENDSGIR, Dist.SPENDSGIR))
        match rng.randrange(4):
            case 0:
                board.read(vcpu, GICD + register + (sgi & ~3))
            case 1:
                board.write(vcpu, GICD + register + (sgi & ~3), rng.getrandbits(32) & rng.getrandbits(32))
            case 2:
                board.write(vcpu, GICD + register + sgi, rng.randrange(256), 1)
            case 3:
                at = vcpu << 32 | register | (sgi & ~3)
                if rng.random() < 0.4:
                    board.get_attr(Group.DIST, at)
                else:
                    board.set_attr(Group.DIST, at, rng.getrandbits(32))
