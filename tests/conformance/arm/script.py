"""The parts of random programs: operations with their defaults, and a board with a GIC and vCPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from random import Random
from typing import Any, TypeVar

from irqchip_client.replay.arm64 import SYSREGS
from tests.conformance.arm.program import Acknowledge, Earlier, Op, Source

Drawn = TypeVar("Drawn")
Action = Callable[[], object]

GICD, GICC, GICR = 0x0800_0000, 0x0801_0000, 0x080A_0000
REDISTRIBUTOR, SGI_FRAME = 0x2_0000, 0x1_0000  # sizes
V2, V3, ITS = 5, 7, 8  # KVM_DEV_TYPE_ARM_VGIC_V2, _V3, _ITS
VTIMER, PTIMER = 27, 30  # the PPIs of the generic timer

# What KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS has.
USER_SYSREGS = (
    *("PMR", "BPR0", "AP0R0", "AP0R1", "AP0R2", "AP0R3", "AP1R0", "AP1R1", "AP1R2", "AP1R3"),
    *("BPR1", "CTLR", "SRE", "IGRPEN0", "IGRPEN1"),
)


class Group(IntEnum):
    """KVM_DEV_ARM_VGIC_GRP_*."""

    ADDR, DIST, CPU, NR_IRQS, CTRL, REDIST, SYSREGS, LEVEL_INFO, ITS_REGS, MAINT_IRQ = range(10)


class Dist(IntEnum):
    """Registers of the distributor, and of a redistributor's SGI frame."""

    CTLR, TYPER, IIDR = 0, 4, 8
    IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR = 0x80, 0x100, 0x180, 0x200, 0x280
    ISACTIVER, ICACTIVER, IPRIORITYR, ITARGETSR, ICFGR = 0x300, 0x380, 0x400, 0x800, 0xC00
    SGIR, CPENDSGIR, SPENDSGIR, IROUTER = 0xF00, 0xF10, 0xF20, 0x6000


class Cpu(IntEnum):
    """Registers of a GICv2's CPU interface."""

    CTLR, PMR, BPR, IAR, EOIR, RPR, HPPIR, ABPR, APR, IIDR, DIR = (
        0,
        4,
        8,
        0xC,
        0x10,
        0x14,
        0x18,
        0x1C,
        0xD0,
        0xFC,
        0x1000,
    )


def spi(intid: int) -> int:
    """KVM_IRQ_LINE's number of an SPI."""
    return 1 << 24 | intid


def ppi(vcpu: int, intid: int) -> int:
    """KVM_IRQ_LINE's number of a vCPU's PPI."""
    return 2 << 24 | (vcpu >> 8) << 28 | (vcpu & 0xFF) << 16 | intid


def affinity(vcpu: int) -> int:
    """The upper half of a GICv3's attribute: the affinity that KVM gives a vCPU (vcpu_mpidr_el0)."""
    return ((vcpu & 15) | (vcpu >> 4 & 0xFF) << 8) << 32


def pick(rng: Random, *weighted: tuple[float, Drawn]) -> Drawn:
    """Draw from weighted values."""
    return rng.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


def word(rng: Random) -> int:
    """A value for a register of 32 bits."""
    few = rng.getrandbits(32) & rng.getrandbits(32) & rng.getrandbits(32)
    return pick(rng, (3, rng.getrandbits(32)), (2, 1 << rng.randrange(32)), (1, 0xFFFF_FFFF), (1, 0), (1, few))


def repeat(rng: Random, times: int, *weighted: tuple[float, Action]) -> None:
    """Do one of the weighted actions, several times."""
    for _ in range(times):
        pick(rng, *weighted)()


class Script:
    """A program under construction, on a host with a GIC."""

    def __init__(self, rng: Random, gic: int) -> None:
        self.rng = rng
        self.gic = gic
        self.vcpus: list[int] = []
        self.ops: list[Op] = []

    @property
    def v2(self) -> bool:
        """Whether the host has a GICv2."""
        return self.gic == 2

    @property
    def kind(self) -> int:
        """The device that this host can make."""
        return V2 if self.v2 else V3

    def do(self, name: str, *arguments: Any) -> Earlier:
        """Append an operation; returns what stands for its answer."""
        self.ops.append([name, *arguments])
        return Earlier(len(self.ops) - 1)

    def create_device(self, kind: int, flags: int = 0) -> None:
        self.do("create_device", kind, flags)

    def create_vcpu(self, vcpu: int) -> None:
        self.do("create_vcpu", vcpu)

    def init_vcpu(self, vcpu: int, features: int = 4, target: int = -1) -> None:
        self.do("vcpu_init", vcpu, features, target)

    def set_attr(self, group: int, attr: int, value: Any, device: int = 0) -> None:
        self.do("set_attr", device, int(group), int(attr), value)

    def get_attr(self, group: int, attr: int, before: int = 0, device: int = 0) -> Earlier:
        return self.do("get_attr", device, int(group), int(attr), before)

    def has_attr(self, group: int, attr: int, device: int = 0) -> None:
        self.do("has_attr", device, int(group), int(attr))

    def irq_line(self, irq: int, level: bool | int) -> None:
        self.do("irq_line", irq, int(level))

    def set_routes(self, table: Sequence[Sequence[Any]], flags: int = 0) -> None:
        self.do("set_gsi_routing", table, flags)

    def read(self, vcpu: int, address: int, size: int = 4, *, acknowledges: bool = False) -> None:
        self.do("read", vcpu, address, size, *([Acknowledge()] if acknowledges else []))

    def write(self, vcpu: int, address: int, value: Any, size: int = 4) -> None:
        self.do("write", vcpu, address, size, value)

    def mrs(self, vcpu: int, register: str, *, acknowledges: bool = False) -> None:
        self.do("mrs", vcpu, register, *([Acknowledge()] if acknowledges else []))

    def msr(self, vcpu: int, register: str, value: Any) -> None:
        self.do("msr", vcpu, register, value)


class Board(Script):
    """A VM with a GIC that is ready, and vCPUs."""

    def __init__(
        self,
        rng: Random,
        gic: int,
        vcpus: int | Sequence[int],
        interrupts: int = 64,
        *,
        redistributors: int = GICR,
        its: bool = False,
        features: int = 4,
    ) -> None:
        super().__init__(rng, gic)
        self.vcpus = list(range(vcpus)) if isinstance(vcpus, int) else list(vcpus)
        self.interrupts = interrupts
        self.redistributors = redistributors
        self._its = its
        self._features = features
        self._vcpus_first = rng.random() < 0.5
        self.set_up()

    def set_up(self) -> None:
        """Make the GIC and the vCPUs, and initialise the GIC."""
        if self._vcpus_first:
            self._make_vcpus()
        self.create_device(self.kind)
        if self._its:
            self.create_device(ITS)
        if self.interrupts != 256:  # the default is also left as it is
            self.set_attr(Group.NR_IRQS, 0, self.interrupts)
        first = 0 if self.v2 else 2  # KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST
        self.set_attr(Group.ADDR, first, GICD)
        if not self._vcpus_first:
            self._make_vcpus()
        self.set_attr(Group.ADDR, first + 1, GICC if self.v2 else self.redistributors)
        self.set_attr(Group.CTRL, 0, 0)

    def _make_vcpus(self) -> None:
        for vcpu in self.vcpus:
            self.create_vcpu(vcpu)
            self.init_vcpu(vcpu, self._features)

    def new_vm(self) -> None:
        """Begin again, on a new VM."""
        self.do("new_vm")
        self.set_up()

    def vcpu(self) -> int:
        """Any of the vCPUs."""
        return self.rng.choice(self.vcpus)

    def targets(self) -> int:
        """Any set of vCPUs, by their places."""
        return self.rng.randrange(1 << len(self.vcpus))

    # ---- A guest's accesses.

    def dist_read(self, vcpu: int, offset: int, size: int = 4) -> None:
        self.read(vcpu, GICD + offset, size)

    def dist_write(self, vcpu: int, offset: int, value: Any, size: int = 4) -> None:
        self.write(vcpu, GICD + offset, value, size)

    def cpu_read(self, vcpu: int, register: Cpu, *, acknowledges: bool = False) -> None:
        self.read(vcpu, GICC + register, acknowledges=acknowledges)

    def cpu_write(self, vcpu: int, register: Cpu, value: Any) -> None:
        self.write(vcpu, GICC + register, value)

    def redist(self, vcpu: int) -> int:
        """The address of a vCPU's redistributor."""
        return self.redistributors + REDISTRIBUTOR * self.vcpus.index(vcpu)

    def where(self, vcpu: int, register: int, intid: int, bits: int) -> int:
        """The address of the word with an interrupt's bits; for those below 32 it is the vCPU's own."""
        offset = register + (intid * bits // 32) * 4
        return self.redist(vcpu) + SGI_FRAME + offset if intid < 32 and not self.v2 else GICD + offset

    def bit(self, vcpu: int, register: Dist, intid: int) -> None:
        """Write a one to an interrupt's bit."""
        self.write(vcpu, self.where(vcpu, register, intid, 1), 1 << (intid & 31))

    def bits_read(self, vcpu: int, register: Dist, intid: int) -> None:
        """Read the word with an interrupt's bit."""
        self.read(vcpu, self.where(vcpu, register, intid, 1))

    def byte(self, vcpu: int, register: Dist, intid: int, value: int) -> None:
        """Write an interrupt's byte."""
        self.write(vcpu, self.where(vcpu, register, intid, 8) + (intid & 3), value, 1)

    def trigger(self, vcpu: int, intid: int, value: int) -> None:
        """Write the word that says whether an interrupt and its neighbours are edge-triggered."""
        self.write(vcpu, self.where(vcpu, Dist.ICFGR, intid, 2), value)

    def route(self, intid: int, vcpu: int) -> None:
        """Send an SPI to a vCPU."""
        if self.v2:
            self.byte(self.vcpus[0], Dist.ITARGETSR, intid, 1 << self.vcpus.index(vcpu))
        else:
            self.dist_write(self.vcpus[0], Dist.IROUTER + 8 * intid, affinity(vcpu) >> 32, 8)

    # ---- A guest's CPU interface, of either GIC.

    def acknowledge(self, vcpu: int, group: int = 1) -> None:
        if self.v2:
            self.cpu_read(vcpu, Cpu.IAR, acknowledges=True)
        else:
            self.mrs(vcpu, f"IAR{group}", acknowledges=True)

    def end(self, vcpu: int, value: Any = Source.LAST, group: int = 1) -> None:
        if self.v2:
            self.cpu_write(vcpu, Cpu.EOIR, value)
        else:
            self.msr(vcpu, f"EOIR{group}", value)

    def deactivate(self, vcpu: int, value: Any = Source.DEACTIVATE) -> None:
        if self.v2:
            self.cpu_write(vcpu, Cpu.DIR, value)
        else:
            self.msr(vcpu, "DIR", value)

    def look(self, vcpu: int) -> None:
        """Read what is pending or running."""
        register = self.rng.choice(("ISR", "HPPIR1", "RPR") if self.v2 else ("ISR", "HPPIR1", "HPPIR0", "RPR"))
        if self.v2 and register != "ISR":
            self.cpu_read(vcpu, Cpu.RPR if register == "RPR" else Cpu.HPPIR)
        else:
            self.mrs(vcpu, register)

    def send_sgi(self, vcpu: int, intid: int) -> None:
        """Send an SGI to any vCPUs."""
        if self.v2:
            how = self.rng.choice((0, 0, 0, 1, 2, 3))
            self.dist_write(vcpu, Dist.SGIR, how << 24 | self.targets() << 16 | self.rng.randrange(2) << 15 | intid)
        else:
            to = self.vcpu()
            value = 1 << (to & 15) | (to >> 4) << 16 | intid << 24
            if to < 16:
                value |= self.rng.getrandbits(4)
            self.msr(vcpu, pick(self.rng, (7, "SGI1R"), (2, "SGI0R"), (1, "ASGI1R")), value)

    def open_cpu(self, vcpu: int, priority_mask: int = 0xF8, *, split_end: bool = False) -> None:
        """Enable a CPU interface. With `split_end`, EOIR only drops the priority, and DIR deactivates."""
        if self.v2:
            self.cpu_write(vcpu, Cpu.PMR, priority_mask)
            self.cpu_write(vcpu, Cpu.CTLR, 0x201 if split_end else 1)
            return
        self.msr(vcpu, "PMR", priority_mask)
        self.msr(vcpu, "IGRPEN1", 1)
        if split_end:
            self.msr(vcpu, "CTLR", 2)

    # ---- The host's side.

    def line(self, vcpu: int, intid: int, level: bool | int) -> None:
        """Drive the line of an SPI or of a vCPU's PPI."""
        self.irq_line(ppi(vcpu, intid) if intid < 32 else spi(intid), level)

    def user(self, vcpu: int, register: int, intid: int, bits: int = 1) -> tuple[Group, int]:
        """The attribute of the word with an interrupt's bits."""
        offset = register + (intid * bits // 32) * 4
        if self.v2:
            return Group.DIST, vcpu << 32 | offset
        if intid < 32:
            return Group.REDIST, affinity(vcpu) | SGI_FRAME | offset
        return Group.DIST, affinity(vcpu) | offset

    def state(self) -> None:
        """Read the whole state."""
        self.do("state", 0, [list(map(int, block)) for block in (_v2_state(self) if self.v2 else _v3_state(self))])


Block = tuple[int, int, int, int]  # group, first attribute, step, how many

_V2_BANKED = (
    *((register, 32) for register in (Dist.IGROUPR, Dist.ISENABLER, Dist.ISPENDR, Dist.ISACTIVER)),
    *((Dist.IPRIORITYR, 4), (Dist.ITARGETSR, 4), (Dist.ICFGR, 16)),
)


def _v2_state(board: Board) -> Iterable[Block]:
    yield Group.DIST, 0, 4, 3
    places = [vcpu << 32 for vcpu in board.vcpus]
    for register, per_word in _V2_BANKED:
        for cpu in places:
            yield Group.DIST, cpu | register, 4, 32 // per_word
        yield Group.DIST, register + 128 // per_word, 4, (board.interrupts - 32) // per_word
    for cpu in places:
        yield Group.DIST, cpu | Dist.CPENDSGIR, 4, 4
        for register_of_cpu, count in ((Cpu.CTLR, 3), (Cpu.ABPR, 1), (Cpu.APR, 4), (Cpu.IIDR, 1)):
            yield Group.CPU, cpu | register_of_cpu, 4, count


def _v3_state(board: Board) -> Iterable[Block]:
    yield Group.DIST, 0, 4, 3
    for register, per_word in _V2_BANKED:
        if register != Dist.ITARGETSR:
            yield Group.DIST, register + 128 // per_word, 4, (board.interrupts - 32) // per_word
    yield Group.DIST, Dist.IROUTER + 8 * 32, 8, board.interrupts - 32
    yield Group.LEVEL_INFO, 32, 32, board.interrupts // 32 - 1
    for vcpu in board.vcpus:
        cpu = affinity(vcpu)
        for offset, count in ((0, 4), (0x14, 1), (0x70, 4)):
            yield Group.REDIST, cpu | offset, 4, count
        for register, per_word in _V2_BANKED:
            if register != Dist.ITARGETSR:
                yield Group.REDIST, cpu | SGI_FRAME | register, 4, 32 // per_word
        for name in USER_SYSREGS:
            yield Group.SYSREGS, cpu | SYSREGS[name], 1, 1
        yield Group.LEVEL_INFO, cpu, 32, 1
