"""Random operations on a VM: strategies that draw operations, and apply(), which executes one."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from irqchipd.chips import i8254, ioapic, lapic
from irqchipd.chips.i8254_state import STATE_SIZE as PIT_STATE_SIZE
from irqchipd.chips.i8259 import STATE_SIZE as PIC_SIZE
from irqchipd.chips.i8259 import Port
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import STATE_SIZE, Reg
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event
from irqchipd.vm.machine import MAX_VCPUS
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import Outcome
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from irqchipd.vm.x86.vcpu_state import MP_STATES, VcpuEvents
from tests.vm.pc import Pc

VCPUS = 2
SOURCES = 3  # the shared source and two more

Operation = tuple[str, tuple[object, ...]]

PORTS = [getattr(Port, name) for name in vars(Port) if not name.startswith("_")]
IOAPIC_OFFSETS = [0x00, 0x10]
LAPIC_OFFSETS = sorted(getattr(Reg, name) for name in vars(Reg) if not name.startswith("_"))

vcpus = st.integers(0, VCPUS - 1)
gsis = st.integers(0, 26) | st.sampled_from([0, 1, 8, 9, 16])
vectors = st.integers(0, 255) | st.sampled_from([0x31, 0x38, 0x41])


def bits(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << count) - 1)


@st.composite
def pages(draw: st.DrawFn, size: int, likely: dict[int, int]) -> bytes:
    """Bytes of a given length: a uniform fill with some random words, and likely values at some offsets."""
    page = bytearray([draw(st.sampled_from([0x00, 0xFF]) | st.integers(0, 255))]) * size
    words = draw(st.dictionaries(st.integers(0, size // 4 - 1), bits(32), max_size=30))
    sensible = likely.items() if draw(st.sampled_from([True, True, False])) else ()
    for offset, word in (*((4 * index, word) for index, word in words.items()), *sensible):
        page[offset : offset + 4] = word.to_bytes(4, "little")
    return bytes(page)


pic_structs = st.binary(min_size=PIC_SIZE, max_size=PIC_SIZE)
ioapic_structs = pages(ioapic.STATE_SIZE, {0: ioapic.DEFAULT_BASE, 4: 0})
lapic_structs = pages(STATE_SIZE, {Reg.SVR: 0x1FF, Reg.ID: 0, Reg.TPR: 0})

# Entries and register values that have an effect are likelier than random numbers.
entries = st.one_of(
    bits(64),
    st.builds(
        lambda vector, mode, flags, destination: vector | mode << 8 | flags << 11 | destination << 56,
        vectors,
        st.integers(0, 1),
        bits(6),
        st.sampled_from([0, 1, 2, 3, 0xFF]),
    ),
)
# End of interrupt, rotations, reads of ISR, a poll, the start of an initialisation.
pic_values = bits(8) | st.sampled_from([0x20, 0x20, 0x61, 0xA0, 0xC3, 0x0B, 0x0C, 0x11, 0x00])
lapic_values = bits(32) | st.sampled_from(
    [0, 0x1FF, 0x700, 0x0100_0000, 0x0300_0000, 0xFFFF_FFFF, 0x0FFF_FFFF, 0x8_4031]
)

raw_restores = st.one_of(
    st.tuples(st.just("set_irqchip"), st.tuples(st.sampled_from([0, 1]), pic_structs)),
    st.tuples(st.just("set_irqchip"), st.tuples(st.just(2), ioapic_structs)),
    st.tuples(st.just("set_lapic"), st.tuples(vcpus, lapic_structs)),
)

routes = st.lists(
    st.builds(PinRoute, gsis, st.sampled_from(ChipId), st.integers(0, 23))
    | st.builds(MsiRoute, gsis, st.sampled_from([0xFEE0_0000, 0xFEE0_1000, 0xFEEF_F00C]), bits(16)),
    max_size=6,
)

accesses = st.one_of(
    st.tuples(
        st.just("pio_write"), st.tuples(vcpus, st.sampled_from(PORTS), st.sampled_from([1, 1, 1, 2]), pic_values)
    ),
    st.tuples(st.just("pio_read"), st.tuples(vcpus, st.sampled_from(PORTS), st.sampled_from([1, 1, 1, 2]))),
    st.tuples(
        st.just("mmio_write"),
        st.tuples(
            vcpus,
            st.sampled_from(IOAPIC_OFFSETS).map(lambda offset: ioapic.DEFAULT_BASE + offset),
            st.sampled_from([4, 4, 4, 8]),
            bits(32) | st.integers(0, 0x3F),
        ),
    ),
    st.tuples(
        st.just("mmio_write"),
        st.tuples(
            vcpus,
            st.sampled_from(LAPIC_OFFSETS).map(lambda offset: LAPIC_BASE + offset),
            st.just(4),
            lapic_values,
        ),
    ),
    st.tuples(
        st.just("mmio_read"),
        st.tuples(
            vcpus,
            st.sampled_from(IOAPIC_OFFSETS).map(lambda offset: ioapic.DEFAULT_BASE + offset)
            | bits(12).map(lambda offset: LAPIC_BASE + offset),
            st.sampled_from([1, 2, 4, 8]),
        ),
    ),
    st.tuples(st.just("write_entry"), st.tuples(vcpus, st.integers(0, 23), entries)),
    st.tuples(st.just("mmio_write"), st.tuples(vcpus, st.just(LAPIC_BASE + Reg.EOI), st.just(4), bits(1))),
)
acks = st.tuples(st.just("ack_interrupt"), st.tuples(vcpus))
lines = st.tuples(st.just("irq_line"), st.tuples(gsis, st.booleans(), st.integers(0, SOURCES - 1)))
operations = st.one_of(
    lines,
    lines,
    accesses,
    accesses,
    accesses,
    acks,
    st.tuples(st.just("signal_msi"), st.tuples(bits(20).map(lambda low: 0xFEE0_0000 | low), bits(16))),
    st.tuples(st.just("set_routing"), st.tuples(routes)),
    st.tuples(st.just("close_source"), st.tuples(st.integers(1, SOURCES - 1))),
)


# Operations that take time or depend on time.

PIT_PORTS = [i8254.Port.CHANNEL_0, i8254.Port.CHANNEL_1, i8254.Port.CHANNEL_2, i8254.Port.CONTROL, i8254.Port.SPEAKER]
# Control words that start channel 0, latches, read-backs; counts.
pit_values = bits(8) | st.sampled_from([0x14, 0x16, 0x34, 0x36, 0x30, 0x38, 0x00, 0x04, 0xC2, 0xE2, 0xDE, 0x03, 0x05])
lvts = st.sampled_from([0x31, 0x2_0031, 0x2_0031, 0x4_0031, 0x6_0031, 0x1_0031, 0x3_0041])
apic_counts = st.sampled_from([0, 1, 1000, 250_000, 5_000_000, 0xFFFF_FFFF])
divides = st.sampled_from([0x0, 0x1, 0x8, 0xA, 0xB])
timer_writes = st.one_of(
    st.tuples(st.just(Reg.LVT_TIMER), lvts),
    st.tuples(st.just(Reg.TIMER_INITIAL_COUNT), apic_counts),
    st.tuples(st.just(Reg.TIMER_DIVIDE), divides),
)
MSRS = [lapic.Msr.TSC, lapic.Msr.APIC_BASE, lapic.Msr.TSC_ADJUST, lapic.Msr.TSC_DEADLINE, 0x174]
msrs = st.sampled_from(MSRS) | st.integers(0x800, 0x840)
msr_values = bits(64) | st.sampled_from(
    [0, 1, 1_000_000, 20_000_000, 0xFEE0_0900, 0xFEE0_0D00, 0xFEE0_0C00, 0xFEE0_0100, 0xFEE1_0800, 0x4_4031, 0x1FF]
)
pit_structs = pages(PIT_STATE_SIZE, {})
times = st.tuples(st.just("advance"), st.tuples(st.sampled_from([0, 1, 1000, 200_000, 1_000_000, 7_654_321])))
of_time = st.one_of(
    st.tuples(st.just("pio_write"), st.tuples(vcpus, st.sampled_from(PIT_PORTS), st.just(1), pit_values)),
    st.tuples(st.just("pio_read"), st.tuples(vcpus, st.sampled_from(PIT_PORTS), st.just(1))),
    st.builds(lambda vcpu, write: ("mmio_write", (vcpu, LAPIC_BASE + write[0], 4, write[1])), vcpus, timer_writes),
    st.tuples(st.just("start_apic_timer"), st.tuples(vcpus, lvts, divides, apic_counts | bits(64))),
    st.tuples(st.just("start_pit"), st.tuples(st.integers(0, 7), st.sampled_from([0, 1, 200, 1193, 11932]))),
    st.tuples(st.just("msr_read"), st.tuples(vcpus, msrs)),
    st.tuples(st.just("msr_write"), st.tuples(vcpus, msrs, msr_values)),
    st.tuples(st.just("set_pit_reinject"), st.tuples(st.booleans())),
    st.tuples(st.just("set_pit"), st.tuples(pit_structs)),
)
of_run_states = st.one_of(
    st.tuples(st.just("halt"), st.tuples(vcpus, st.booleans(), st.booleans())),
    st.tuples(st.just("take_signal"), st.tuples(vcpus)),
    st.tuples(st.just("get_mp_state"), st.tuples(vcpus)),
    st.tuples(st.just("set_mp_state"), st.tuples(vcpus, st.sampled_from(MP_STATES))),
    st.tuples(st.just("nmi"), st.tuples(vcpus)),
    st.tuples(st.just("interrupt"), st.tuples(vcpus, vectors)),
    st.tuples(
        st.just("mmio_write"),
        st.tuples(
            vcpus,
            st.just(LAPIC_BASE + Reg.ICR),
            st.just(4),
            st.sampled_from([0x8_4500, 0x8_4612, 0x8_4400, 0x8_4200, 0xC_4500, 0xC_4612, 0x4_4031, 0xC_4041]),
        ),
    ),
)
features = st.builds(
    lapic.Features, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([31, 32, 33, 36, 52, 53])
)
numbers = st.none() | st.sampled_from([0, 1, 2, 0x55, 255, 256])
vcpu_events = st.builds(
    VcpuEvents,
    nmi_injected=st.none() | st.booleans(),
    nmi_pending=numbers,
    nmi_masked=st.none() | st.booleans(),
    smi_pending=st.none() | st.booleans(),
    interrupt_injected=st.none() | st.booleans(),
    interrupt_vector=vectors,
    sipi_vector=numbers,
)
of_the_vmm = st.one_of(
    st.tuples(st.just("set_cpuid"), st.tuples(vcpus, features)),
    st.tuples(st.just("set_events"), st.tuples(vcpus, vcpu_events)),
    st.tuples(st.just("get_events"), st.tuples(vcpus)),
    st.tuples(st.just("cr8_write"), st.tuples(vcpus, st.integers(0, 16))),
    st.tuples(st.just("cr8_read"), st.tuples(vcpus)),
    st.tuples(st.just("host_msr_write"), st.tuples(vcpus, msrs, msr_values)),
    st.tuples(
        st.just("enable_cap"),
        st.tuples(
            st.sampled_from([116, 121, 128, 129, 213, 237, 1]),
            st.just(0),
            st.tuples(st.sampled_from([0, 1, 2, 3, 4, 5, 4096, 1 << 40])),
        ),
    ),
    st.tuples(st.just("set_boot_vcpu"), st.tuples(vcpus)),
    st.tuples(st.just("irq_line_without_status"), st.tuples(gsis, st.booleans())),
)
everything = st.one_of(
    *(operations, operations, times, times, of_time, of_time, of_run_states, of_the_vmm, raw_restores),
    st.just(("reset", ())),
)


class Machine(Pc):
    """A PC whose line sources have numbers, for use in operations."""

    def __init__(self, *, pit: bool = False) -> None:
        super().__init__(VCPUS, pit=pit)
        # Per source, the GSIs that it resamples, and the events it received about these.
        self.resampled: dict[int, list[int]] = {2: [5, 16]} if pit else {}
        self.told: list[Event] = []
        self.sources: list[LineSource | None] = [None, *(self._open_source(number) for number in range(1, SOURCES))]

    def moved(self) -> Machine:
        """The same PC, saved and restored on a virtual clock, with its sources resumed."""
        copy = Machine.__new__(Machine)
        copy.vm = X86Vm.restored("moved", MAX_VCPUS, self.vm.save())
        copy.clock, copy.resampled, copy.told = VirtualClock(), self.resampled, list(self.told)
        copy.sources = [None, *(copy._open_source(number, resume=True) for number in range(1, SOURCES))]
        return copy

    def _open_source(self, number: int, *, resume: bool = False) -> LineSource:
        return self.vm.open_source(
            str(number), resampled=self.resampled.get(number, ()), listener=self.told.append, resume=resume
        )

    def apply(self, operation: Operation) -> object:
        """Execute an operation, which may be refused but must not fail. Returns its result, or the refusal's reason."""
        name, arguments = operation
        try:
            match name:
                case "irq_line":
                    return self._irq_line(*arguments)  # type: ignore[arg-type]
                case "close_source":
                    return self._close_source(*arguments)  # type: ignore[arg-type]
                case "halt":
                    return self._halt(*arguments)  # type: ignore[arg-type]
                case "start_apic_timer":
                    return self._start_apic_timer(*arguments)  # type: ignore[arg-type]
                case "start_pit":
                    return self._start_pit(*arguments)  # type: ignore[arg-type]
                case "write_entry":
                    return self._write_entry(*arguments)  # type: ignore[arg-type]
                case "host_msr_write":
                    return self.vm.msr_write(*arguments, host=True)  # type: ignore[arg-type]
                case "irq_line_without_status":
                    return self.vm.irq_line(*arguments, line_status=False)  # type: ignore[arg-type]
                case _:
                    return getattr(self.vm, name)(*arguments)
        except VmError as error:
            return error.reason

    def apply_all(self, operations: Iterable[Operation]) -> list[object]:
        return [self.apply(operation) for operation in operations]

    def _irq_line(self, gsi: int, level: bool, number: int) -> object:
        return self.vm.irq_line(gsi, level, self.sources[number])

    def _write_entry(self, vcpu: int, pin: int, entry: int) -> object:
        for register, half in ((0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xFFFF_FFFF)):
            self.vm.mmio_write(vcpu, ioapic.DEFAULT_BASE, 4, register)
            claimed = self.vm.mmio_write(vcpu, ioapic.DEFAULT_BASE + 0x10, 4, half)
        return claimed

    def _start_apic_timer(self, vcpu: int, lvt: int, divide: int, count: int) -> object:
        """In TSC-deadline mode the count is the deadline."""
        for register, value in (
            (Reg.TIMER_DIVIDE, divide),
            (Reg.LVT_TIMER, lvt),
            (Reg.TIMER_INITIAL_COUNT, count & 0xFFFF_FFFF),
        ):
            self.vm.mmio_write(vcpu, LAPIC_BASE + register, 4, value)
        return self.vm.msr_write(vcpu, lapic.Msr.TSC_DEADLINE, count)

    def _start_pit(self, mode: int, count: int) -> object:
        self.vm.pio_write(0, i8254.Port.CONTROL, 1, 0x30 | mode << 1)
        return [self.vm.pio_write(0, i8254.Port.CHANNEL_0, 1, half) for half in (count & 0xFF, count >> 8)]

    def _close_source(self, number: int) -> object:
        source = self.sources[number]
        assert source is not None
        self.vm.close_source(source)
        self.sources[number] = self._open_source(number)
        return None

    def _halt(self, vcpu: int, masked: bool, abandoned: bool) -> object:
        """A halt that ends at once or is given up. An abandoned halt's caller is gone when the halt ends."""
        outcomes: list[Outcome] = []
        halt = self.vm.halt(vcpu, outcomes.append, masked)
        if abandoned or not outcomes:
            self.vm.abandon(halt)
        return outcomes


def restore(vm: X86Vm, other: X86Vm) -> None:
    """Copy the chips' states and the routes of another VM."""
    vm.set_routing(other.routing())
    for vcpu in other.describe().vcpus:
        vm.set_lapic(vcpu, other.get_lapic(vcpu).pack())
    for chip in ChipId:
        vm.set_irqchip(chip, other.get_irqchip(chip).pack())
