"""Random operations on an arm64 VM: a strategy that draws them, and apply(), which executes one."""

from __future__ import annotations

from hypothesis import strategies as st

from irqchipd.chips.gic.icc import Icc
from irqchipd.vm.arm64.machine import Arm64Vm
from irqchipd.vm.arm64.numbers import Group
from irqchipd.vm.arm64.vcpus import Sysreg
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.regions import Access
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import MpState, Outcome
from tests.vm.arm64.machine import FRAME, GICC, GICD, GICR, SGI_BASE, Arm, ppi, spi, u64

VCPUS = 2
SOURCES = 3  # the shared source and two more
Operation = tuple[str, tuple[object, ...]]

vcpus = st.integers(0, VCPUS - 1)
spis = st.sampled_from([32, 33, 40, 63])
ppis = st.sampled_from([16, 20, 27, 30])
words = st.sampled_from([0, 1, 0xFFFF_FFFF, 0xFFFF, 1 << 8, 0xAAAA_AAAA]) | st.integers(0, (1 << 32) - 1)
offsets = st.sampled_from(
    [
        0x000,
        *(base + 4 * word for base in (0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380) for word in (0, 1)),
        0x410,
        0x420,
        0x428,
        0x820,
        0x828,
        0xC04,
        0xC08,
        0xF00,
        0xF10,
        0xF20,
    ]
)
gicc = st.sampled_from([0x00, 0x04, 0x08, 0x0C, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x1000])
icc = st.sampled_from([value for name, value in vars(Icc).items() if name.isupper()])
timers = st.sampled_from([getattr(Sysreg, name) for name in vars(Sysreg) if name.startswith("CNT")])
lines = st.tuples(
    st.just("line"), st.tuples(spis.map(spi) | st.builds(ppi, vcpus, ppis), st.booleans(), st.integers(0, SOURCES - 1))
)
distributor = st.tuples(st.just("write"), st.tuples(vcpus, offsets.map(lambda offset: GICD + offset), words))
private = st.tuples(
    st.just("write"),
    st.tuples(vcpus, st.builds(lambda cpu, at: GICR + FRAME * cpu + SGI_BASE + at, vcpus, offsets), words),
)
interface = st.tuples(st.just("write"), st.tuples(vcpus, gicc.map(lambda offset: GICC + offset), words))
reads = st.tuples(
    st.just("read"),
    st.tuples(vcpus, gicc.map(lambda offset: GICC + offset) | offsets.map(lambda offset: GICD + offset)),
)
operations = (
    lines
    | distributor
    | private
    | interface
    | reads
    | st.tuples(st.just("msr"), st.tuples(vcpus, icc | timers, words | st.integers(32, 63)))
    | st.tuples(st.just("mrs"), st.tuples(vcpus, icc | timers | st.just(Sysreg.ISR)))
    | st.tuples(st.just("acknowledge"), st.tuples(vcpus))
    | st.tuples(st.just("end"), st.tuples(vcpus))
    | st.tuples(st.just("elapse"), st.tuples(st.sampled_from([1, 16, 1000, 1 << 20, 1 << 36])))
    | st.tuples(st.just("halt"), st.tuples(vcpus))
    | st.tuples(st.just("signal"), st.tuples(st.integers(0, 10)))
    | st.tuples(st.just("attribute"), st.tuples(st.integers(0, 7), st.integers(0, 0x400), words))
    | st.tuples(st.just("route"), st.tuples(st.lists(st.integers(0, 40), max_size=4)))
    | st.tuples(st.just("mp_state"), st.tuples(vcpus, st.sampled_from([0, MpState.STOPPED])))
    | st.tuples(st.just("vcpu_init"), st.tuples(vcpus))
    | st.tuples(st.just("reset"), st.just(()))
    | st.tuples(st.just("close"), st.tuples(st.integers(1, SOURCES - 1)))
)


class Machine(Arm):
    """A VM with line sources, to which operations are applied."""

    def __init__(self, gic: int) -> None:
        super().__init__(gic, VCPUS)
        self.sources: list[LineSource | None] = [None, *map(self._open, range(1, SOURCES))]
        self.acknowledged: list[int] = []

    def _open(self, number: int) -> LineSource:
        return self.vm.open_source(str(number))

    def apply(self, operation: Operation) -> object:
        """Execute an operation; its result, or the errno."""
        name, arguments = operation
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except VmError as error:
            return error.reason

    def apply_all(self, operations: list[Operation]) -> list[object]:
        return [self.apply(operation) for operation in operations]

    def moved(self) -> Machine:
        """Another one, whose VM is restored from a snapshot of this one's."""
        other = object.__new__(Machine)
        other.gic = self.gic
        other.vm = Arm64Vm.restored("moved", MAX_VCPUS, self.vm.save())
        other.acknowledged = list(self.acknowledged)
        other.sources = [None]
        for source in self.sources[1:]:
            assert source is not None
            gone = source.closed
            other.sources.append(other.vm.open_source(source.client, resume=not gone))
            if gone:
                closed = other.sources[-1]
                assert closed is not None
                other.vm.close_source(closed)
        return other

    def do_line(self, irq: int, level: bool, source: int) -> int:
        return self.vm.irq_line(irq, level, self.sources[source])

    def do_write(self, vcpu: int, address: int, value: int) -> object:
        return self.vm.mmio_write(vcpu, address, 4, value)

    def do_read(self, vcpu: int, address: int) -> object:
        value = self.vm.mmio_read(vcpu, address, 4)
        assert not isinstance(value, Access)
        return value

    def do_msr(self, vcpu: int, register: int, value: int) -> object:
        return self.vm.sysreg_write(vcpu, register, value)

    def do_mrs(self, vcpu: int, register: int) -> object:
        return self.vm.sysreg_read(vcpu, register)

    def do_acknowledge(self, vcpu: int) -> int:
        intid = self.acknowledge(vcpu)
        self.acknowledged.append(intid)
        return intid

    def do_end(self, vcpu: int) -> None:
        if self.acknowledged:
            self.end(self.acknowledged.pop(), vcpu)

    def do_elapse(self, nanoseconds: int) -> object:
        return self.vm.advance(nanoseconds)

    def do_halt(self, vcpu: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        self.vm.abandon(self.vm.halt(vcpu, outcomes.append))
        return outcomes

    def do_signal(self, gsi: int) -> None:
        source = self.sources[1]
        assert source is not None
        self.vm.trigger(self.vm.add_irqfd(source, gsi))

    def do_attribute(self, group: int, attr: int, value: int) -> None:
        if group not in (Group.NR_IRQS, Group.CTRL, Group.ADDR):
            self.vm.set_device_attr(0, None, group, attr, u64(value))

    def do_route(self, pins: list[int]) -> None:
        self.vm.set_routing([PinRoute(gsi, 0, pin) for gsi, pin in enumerate(pins)])

    def do_mp_state(self, vcpu: int, state: int) -> None:
        self.vm.set_mp_state(vcpu, state)

    def do_vcpu_init(self, vcpu: int) -> None:
        self.vm.vcpu_init(vcpu, None, 4)

    def do_reset(self) -> None:
        self.vm.reset()

    def do_close(self, number: int) -> None:
        source = self.sources[number]
        assert source is not None
        self.vm.close_source(source)
