"""A PC for tests: a VM, with short names for a guest's and a device's actions."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from irqchipd.chips import ioapic
from irqchipd.chips.i8259 import Port
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import Reg
from irqchipd.chips.lapic_timer import ONE_SHOT, PERIODIC
from irqchipd.vm.clock import Clock, Deadlines, RealClock, VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId

LEVEL, MASKED, LOGICAL, REMOTE_IRR = 1 << 15, 1 << 16, 1 << 11, 1 << 14
LOWEST_PRIORITY = 1 << 8
EOI = 0x20
MSI = 0xFEE0_0000
DIVIDE_BY_1 = 0xB
PRIMARY, SECONDARY = 0x20, 0x28  # the PICs' vector bases after initialise_pics

State = tuple[object, ...]


def to(cpu: int) -> int:
    """A redirection entry's destination field."""
    return cpu << 56


class Pc:
    """A VM with an irqchip, all of whose local APICs are enabled."""

    def __init__(
        self,
        vcpus: int = 1,
        *,
        clock: Clock | None = None,
        deadlines: Deadlines | None = None,
        real: bool = False,
        pit: bool = False,
    ) -> None:
        self.deadlines = deadlines if deadlines is not None else Deadlines()
        self.clock = clock if clock is not None else RealClock(self.deadlines) if real else VirtualClock()
        self.vm = X86Vm("pc", clock=self.clock, deadlines=self.deadlines)
        self.vm.create_irqchip()
        for vcpu in range(vcpus):
            self.vm.create_vcpu(vcpu)
            self.lapic_write(vcpu, Reg.SVR, 0x1FF)
        if pit:
            self.vm.create_pit()

    def start(self, *vcpus: int) -> None:
        """Start vCPUs that wait for a start-up."""
        for vcpu in vcpus:
            self.vm.set_mp_state(vcpu, MpState.RUNNABLE)

    # Time.

    def elapse(self, nanoseconds: int) -> None:
        """Move the virtual clock by the whole time."""
        while nanoseconds:
            nanoseconds = self.vm.advance(nanoseconds).remaining

    def count_pit(self, count: int, *, mode: int = 2) -> None:
        """Program channel 0 of the PIT."""
        self.out(0x43, 0x30 | mode << 1)
        self.out(0x40, count & 0xFF, count >> 8)

    def count_apic(self, vcpu: int, vector: int, count: int, *, periodic: bool = False) -> None:
        """Start a vCPU's APIC timer, which counts nanoseconds."""
        self.lapic_write(vcpu, Reg.TIMER_DIVIDE, DIVIDE_BY_1)
        self.lapic_write(vcpu, Reg.LVT_TIMER, vector | (PERIODIC if periodic else ONE_SHOT))
        self.lapic_write(vcpu, Reg.TIMER_INITIAL_COUNT, count)

    # Guest.

    def out(self, port: int, *values: int) -> None:
        for value in values:
            assert self.vm.pio_write(0, port, 1, value)

    def initialise_pics(self, *, icw4: int = 0x01) -> None:
        self.out(Port.PRIMARY_COMMAND, 0x11)
        self.out(Port.PRIMARY_DATA, PRIMARY, 0x04, icw4)
        self.out(Port.SECONDARY_COMMAND, 0x11)
        self.out(Port.SECONDARY_DATA, SECONDARY, 0x02, icw4)

    def mask_pics(self) -> None:
        self.out(Port.PRIMARY_DATA, 0xFF)
        self.out(Port.SECONDARY_DATA, 0xFF)

    def _ioapic_register(self, register: int, value: int | None = None, *, vcpu: int = 0) -> int:
        window = ioapic.DEFAULT_BASE + ioapic.Offset.REGISTER_WINDOW
        self.vm.mmio_write(vcpu, ioapic.DEFAULT_BASE, 4, register)
        if value is not None:
            assert self.vm.mmio_write(vcpu, window, 4, value)
            return value
        read = self.vm.mmio_read(vcpu, window, 4)
        assert isinstance(read, int)
        return read

    def program(self, pin: int, entry: int, *, vcpu: int = 0) -> None:
        """Write a redirection entry, the high half first."""
        self._ioapic_register(0x11 + 2 * pin, entry >> 32, vcpu=vcpu)
        self._ioapic_register(0x10 + 2 * pin, entry & 0xFFFF_FFFF, vcpu=vcpu)

    def entry(self, pin: int) -> int:
        return self._ioapic_register(0x11 + 2 * pin) << 32 | self._ioapic_register(0x10 + 2 * pin)

    def lapic_write(self, vcpu: int, register: int, value: int) -> None:
        assert self.vm.mmio_write(vcpu, LAPIC_BASE + register, 4, value)

    def lapic_read(self, vcpu: int, register: int) -> int:
        value = self.vm.mmio_read(vcpu, LAPIC_BASE + register, 4)
        assert isinstance(value, int)
        return value

    def ipi(self, vcpu: int, low: int, destination: int = 0) -> None:
        self.lapic_write(vcpu, Reg.ICR2, destination << 24)
        self.lapic_write(vcpu, Reg.ICR, low)

    def eoi(self, vcpu: int = 0) -> None:
        self.lapic_write(vcpu, Reg.EOI, 0)

    # CPU.

    def take(self, vcpu: int = 0) -> int | None:
        """Take a vCPU's next interrupt; returns its vector, or None."""
        taken = self.vm.ack_interrupt(vcpu)
        return taken[0] if taken is not None else None

    def takers(self) -> dict[int, int]:
        """Take the next interrupt of every vCPU; returns the vectors by vCPU."""
        taken = {vcpu: self.take(vcpu) for vcpu in self.vm.describe().vcpus}
        return {vcpu: vector for vcpu, vector in taken.items() if vector is not None}

    def serve_all(self, vcpu: int = 0) -> list[int]:
        """Take and end local APIC interrupts until there are no more."""
        served = []
        while (vector := self.take(vcpu)) is not None:
            served.append(vector)
            assert len(served) <= 256, "a line is high, and this would go on forever"
            self.eoi(vcpu)
        return served

    # Devices.

    def msi(self, vcpu: int, vector: int) -> None:
        """Send an edge-triggered MSI to one vCPU."""
        assert self.vm.signal_msi(MSI | vcpu << 12, vector) == 1

    def line(self, gsi: int, *levels: int, source: LineSource | None = None) -> list[int]:
        """Drive a GSI to some levels in turn; returns the statuses."""
        return [self.vm.irq_line(gsi, bool(level), source) for level in levels]

    def state(self) -> State:
        return state_of(self.vm)


class Ear(list[Event]):
    """A listener that records its events."""

    def __init__(self, vm: X86Vm, vcpus: Sequence[int] = (), gsis: Sequence[int] = ()) -> None:
        super().__init__()
        vm.subscribe(vcpus, self.append, gsis)

    def heard(self) -> list[Event]:
        """The events since the last call."""
        events = list(self)
        self.clear()
        return events


def state_of(vm: X86Vm) -> State:
    """All visible state of a VM."""
    if vm.describe().irqchip_mode == "none":
        return (vm.describe().vcpus, vm.describe().sources)
    chips = [vm.get_irqchip(chip).pack() for chip in ChipId]
    lapics = [vm.get_lapic(vcpu).pack() for vcpu in vm.describe().vcpus]
    return (chips, lapics, vm.describe().vcpus, vm.describe().sources, vm.routing())


@contextmanager
def refused(reason: str) -> Iterator[None]:
    """The operation fails with an errno of this name."""
    with pytest.raises(VmError) as failure:
        yield
    assert failure.value.reason == reason
    assert failure.value.number == getattr(errno, reason)
