"""The parts of random sequences: small pools to draw from, and operations on what is drawn."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import cycle
from random import Random
from typing import Any

from irqchipd.chips.i8259 import Port
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.ioapic import PINS, IoapicState
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import DFR_CLUSTER, DFR_FLAT, LapicRegisters, Reg
from irqchipd.vm.routing import MAX_GSIS, PinRoute
from irqchipd.vm.x86.routing import DEFAULT_ROUTES, ChipId
from tests.conformance.machines import Op

LENGTH = 150

PORTS = (
    Port.PRIMARY_COMMAND,
    Port.PRIMARY_DATA,
    Port.SECONDARY_COMMAND,
    Port.SECONDARY_DATA,
    Port.PRIMARY_ELCR,
    Port.SECONDARY_ELCR,
)
VECTORS = (0x00, 0x0F, 0x10, 0x1F, 0x20, 0x21, 0x2F, 0x30, 0x31, 0x50, 0x5F, 0x60, 0xE0, 0xEF, 0xF0, 0xFE, 0xFF)
VCPU_IDS = (
    [0],
    [0, 1],
    [0, 1, 2],
    [0, 1, 2, 3],
    [0, 1, 2, 3],
    [0, 1, 2, 3],
    [1, 2],
    [3, 0, 1],
    [0, 8, 200, 254],
    [254, 2, 1, 0],
    list(range(9)),
)
FIXED, LOWEST, SMI, REMOTE_READ, NMI, INIT, STARTUP, EXTINT = range(8)
HARMLESS_MODES = (FIXED, FIXED, FIXED, FIXED, LOWEST, LOWEST, LOWEST, REMOTE_READ, EXTINT)
ALL_MODES = (*HARMLESS_MODES, NMI, INIT, STARTUP)  # without SMI, which not every kernel supports
MASKED = 1 << 16
U32 = 0xFFFF_FFFF
LVTS = (
    Reg.LVT_TIMER,
    Reg.LVT_THERMAL,
    Reg.LVT_PERFORMANCE,
    Reg.LVT_LINT0,
    Reg.LVT_LINT1,
    Reg.LVT_ERROR,
)


class Script:
    """A sequence under construction, and its pools."""

    def __init__(self, rng: Random, vcpus: Sequence[int]) -> None:
        self.rng = rng
        self.ops: list[Op] = [["create_irqchip"], *(["create_vcpu", vcpu] for vcpu in vcpus)]
        self.vcpus = vcpus
        self.modes: Sequence[int] = HARMLESS_MODES
        self.vectors = [*rng.sample(VECTORS, 3), rng.randrange(256)]
        self.pins = [*rng.sample(range(PINS), 3), rng.choice((8, rng.randrange(PINS)))]
        self.destinations = [
            rng.choice(vcpus),
            rng.choice(vcpus),
            *rng.sample((0, 1, 2, 3, 7, 0x0F, 0x11, 0x12, 0x1F, 0xF1, 0xFF), 3),
        ]
        self.logical_ids = rng.sample((0, 1, 1, 2, 2, 3, 4, 8, 0x10, 0x11, 0x12, 0x14, 0x21, 0x81, 0xF1, 0xFF), 4)

    # Drawing.

    def one_in(self, n: int) -> bool:
        return self.rng.randrange(n) == 0

    def vcpu(self) -> int:
        return self.rng.choice(self.vcpus)

    def vector(self) -> int:
        return self.rng.choice(self.vectors)

    def destination(self) -> int:
        return self.rng.choice(self.destinations)

    def word(self) -> int:
        """32 bits: random, a single bit, or a common value."""
        match self.rng.randrange(4):
            case 0:
                return self.rng.getrandbits(32)
            case 1:
                return 1 << self.rng.randrange(32)
            case 2:
                return self.rng.choice((0, U32, U32 ^ 1 << self.rng.randrange(32)))
            case _:
                return self.rng.randrange(256)

    def few_bits(self, width: int) -> int:
        """A number of this width with a few bits set."""
        return self.rng.getrandbits(width) & self.rng.getrandbits(width) & self.rng.getrandbits(width)

    def mode(self) -> int:
        return self.rng.choice(self.modes)

    def entry(self) -> int:
        """A redirection entry."""
        entry = self.destination() << 56 | self.mode() << 8 | self.vector()
        for bit, odds in ((11, 2), (15, 2), (14, 3), (16, 4), (12, 8), (13, 8)):
            entry |= self.one_in(odds) << bit
        if self.one_in(6):
            entry |= self.rng.getrandbits(39) << 17
        return entry

    def message(self) -> tuple[int, int]:
        """An MSI's address and data."""
        address = self.rng.choice((0xFEE0_0000, 0xFEE0_0000, 0xFEE0_0000, 0x1230_0000)) | self.destination() << 12
        address |= self.rng.randrange(4) << 2
        if self.one_in(6):
            address ^= self.few_bits(64) & ~(0xFF << 12 | 0xC)
        data = self.mode() << 8 | self.vector() | self.one_in(2) << 15 | self.one_in(2) << 14
        if self.one_in(6):
            data ^= self.few_bits(21) << 11
        return address, data

    def table(self) -> list[list[Any]]:
        """A routing table, mostly a valid one."""
        table: list[list[Any]] = []
        destinations: dict[int, set[object]] = {}
        for _ in range(self.rng.randrange(12)):
            gsi = self.rng.choice((*self.pins, 0, 5, 23, 24, MAX_GSIS - 1))
            entry: list[Any]
            if self.one_in(4):
                entry = [gsi, "msi", *self.message()]
                allowed = gsi not in destinations
            else:
                chip = self.rng.choice((ChipId.PIC_PRIMARY, ChipId.PIC_SECONDARY, ChipId.IOAPIC, ChipId.IOAPIC))
                pin = self.rng.choice(self.pins) if chip == ChipId.IOAPIC else self.rng.randrange(8)
                entry = [gsi, "irqchip", int(chip), pin]
                allowed = not destinations.get(gsi, set()) & {"msi", chip}
            if allowed or self.one_in(30):
                destinations.setdefault(gsi, set()).add("msi" if entry[1] == "msi" else chip)
                table.append(entry)
        if table and self.one_in(15):
            self._break(self.rng.choice(table))
        self.rng.shuffle(table)
        return table

    def _break(self, entry: list[Any]) -> None:
        """Change a routing entry, mostly into an invalid one."""
        match self.rng.randrange(3):
            case 0:
                entry[0] = self.rng.choice((MAX_GSIS, MAX_GSIS + 1, U32))
            case place if entry[1] == "irqchip":
                entry[place + 1] = self.rng.choice((3, 8, 24, U32))  # chip or pin
            case _:
                entry.append(self.rng.choice((1, 2, 3, U32)))  # flags

    def default_table(self) -> list[list[Any]]:
        return [
            [route.gsi, "irqchip", int(route.chip), route.pin]
            for route in DEFAULT_ROUTES
            if isinstance(route, PinRoute)
        ]

    # Adding operations.

    def grow(self) -> None:
        """Create one more vCPU."""
        vcpu = next(number for number in range(254) if number not in self.vcpus)
        self.vcpus = [*self.vcpus, vcpu]
        self.add("create_vcpu", vcpu)

    def add(self, *op: object) -> None:
        self.ops.append(list(op))

    def some_of(self, choices: Sequence[tuple[int, Callable[[], None]]], length: int = LENGTH) -> list[Op]:
        """Add operations by weight until the sequence is long enough."""
        weights = [weight for weight, _ in choices]
        actions = [action for _, action in choices]
        end = len(self.ops) + length
        while len(self.ops) < end:
            self.rng.choices(actions, weights)[0]()
        return self.ops

    def line(self) -> None:
        """Drive a line."""
        gsi = self.rng.choice(self.pins)
        if self.one_in(12):
            gsi = self.rng.choice((self.rng.randrange(24), 24, 4095, 4096, U32))
        name = "irq_line" if not self.one_in(12) else "irq_line_without_status"
        for level in self.rng.choice(((1,), (0,), (1, 0), (0, 1), (1, 1), (0, 1, 0, 1), (U32, 0, 2))):
            self.add(name, gsi, level)

    def msi(self) -> None:
        address, data = self.message()
        self.add("signal_msi", address, data, self.rng.choice((0, 0, 0, 0, 0, 0, 1, 2, 3, 1 << 31)))

    def routing(self) -> None:
        self.add("set_gsi_routing", self.default_table() if self.one_in(3) else self.table())

    def get_state(self) -> None:
        if self.one_in(2):
            self.add("get_irqchip", self.rng.randrange(3))
        else:
            self.add("get_lapic_page", self.vcpu())

    def get_all(self) -> None:
        for chip in range(3):
            self.add("get_irqchip", chip)
        for vcpu in self.vcpus:
            self.add("get_lapic_page", vcpu)

    # PIC.

    def pic_access(self) -> None:
        """Access any port of the pair with any value."""
        port = self.rng.choice(PORTS)
        size = 1 if not self.one_in(12) else self.rng.choice((2, 4))
        if self.one_in(12):
            port += self.rng.choice((-1, 1))
        if self.one_in(3):
            self.add("pio_read", self.vcpu(), port, size)
        else:
            self.add("pio_write", self.vcpu(), port, size, self.rng.getrandbits(8 * size))

    def pic_command(self) -> None:
        """Write a meaningful command, alone or with a subsequent access."""
        vcpu = self.vcpu()
        command, data = self.rng.choice(
            ((Port.PRIMARY_COMMAND, Port.PRIMARY_DATA), (Port.SECONDARY_COMMAND, Port.SECONDARY_DATA))
        )
        match self.rng.randrange(8):
            case 0 | 1:  # OCW2
                self.add("pio_write", vcpu, command, 1, self.rng.randrange(8) << 5 | self.rng.randrange(8))
            case 2:  # EOI
                self.add("pio_write", vcpu, command, 1, self.rng.choice((0x20, 0xA0)))
            case 3:  # poll
                self.add("pio_write", vcpu, command, 1, 0x0C | self.rng.randrange(4))
                self.add("pio_read", vcpu, self.rng.choice(PORTS[:4]), 1)
            case 4:  # read a register
                self.add("pio_write", vcpu, command, 1, 0x0A | self.rng.randrange(2))
                self.add("pio_read", vcpu, command, 1)
            case 5:
                self.add("pio_write", vcpu, data, 1, self.few_bits(8))
            case 6:
                self.pic_init(command, data)
            case _:
                self.add("pio_write", vcpu, self.rng.choice(PORTS[4:]), 1, self.rng.getrandbits(8))

    def pic_init(self, command: int, data: int) -> None:
        vcpu = self.vcpu()
        icw1 = 0x10 | self.rng.choice((1, 1, 1, 0, self.rng.getrandbits(4)))
        icws = [self.vector(), 4, self.rng.choice((1, 1, 3, 0x11, 0x13, self.rng.getrandbits(8)))]
        self.add("pio_write", vcpu, command, 1, icw1)
        for icw in icws[: 3 if icw1 & 1 else 2]:
            if self.one_in(20):
                return
            self.add("pio_write", vcpu, data, 1, icw)

    def pic_line(self) -> None:
        for level in self.rng.choice(((1,), (0,), (1, 0), (0, 1), (1, 1))):
            self.add("irq_line", self.rng.randrange(16) if self.one_in(3) else self.rng.choice(self.pins) & 15, level)

    def take(self) -> None:
        self.add("take", self.vcpu())

    def set_pic(self) -> None:
        """Restore a raw state, valid or not."""
        rng = self.rng
        state = [self.few_bits(8), self.few_bits(8), self.few_bits(8), self.few_bits(8)]  # last_irr irr imr isr
        state += [
            rng.randrange(8),
            self.vector(),
            rng.randrange(2),
            rng.randrange(2),
            rng.randrange(2),
            rng.randrange(4),
        ]
        state += [rng.randrange(2), rng.randrange(2), rng.randrange(2), rng.randrange(2), self.few_bits(8), 0xFF]
        for _ in range(rng.choice((0, 0, 1, 3, 16))):
            state[rng.randrange(16)] = rng.getrandbits(8)
        self.add("set_irqchip", rng.randrange(2), bytes(state).hex())

    # IOAPIC.

    def ioapic_register(self) -> int:
        if self.one_in(8):
            return self.rng.randrange(256)
        return 0x10 + 2 * self.rng.choice(self.pins) + self.rng.randrange(2)

    def select(self, vcpu: int, register: int) -> None:
        self.add("mmio_write", vcpu, IOAPIC_BASE, 4, register)

    def ioapic_write(self) -> None:
        """Write a register, seldom with an unusual size."""
        vcpu = self.vcpu()
        size = 4 if not self.one_in(12) else self.rng.choice((1, 2, 8))
        self.select(vcpu, self.ioapic_register())
        value = self.rng.choice((self.entry() & U32, self.entry() >> 32, self.word()))
        self.add("mmio_write", self.vcpu(), IOAPIC_BASE + 0x10, size, self.sane_low(value) & (1 << 8 * size) - 1)

    def sane_low(self, value: int) -> int:
        """The low half of an entry, without delivery modes that this family does not send."""
        if value >> 8 & 7 not in self.modes:
            value &= ~(7 << 8)
        return value

    def program(self) -> None:
        """Write both halves of an entry, in either order."""
        vcpu, pin, entry = self.vcpu(), self.rng.choice(self.pins), self.entry()
        halves = [(0x10 + 2 * pin, entry & U32), (0x11 + 2 * pin, entry >> 32)]
        if self.one_in(2):
            halves.reverse()
        for register, value in halves:
            self.select(vcpu, register)
            self.add("mmio_write", vcpu, IOAPIC_BASE + 0x10, 4, value)

    def ioapic_read(self) -> None:
        vcpu = self.vcpu()
        self.select(vcpu, self.ioapic_register())
        self.add("mmio_read", vcpu, IOAPIC_BASE + self.rng.choice((0x10, 0x10, 0)), self.rng.choice((4, 4, 1, 2, 8)))

    def set_ioapic(self) -> None:
        rng = self.rng
        state = IoapicState(redirection=tuple(self.entry() if not self.one_in(3) else MASKED for _ in range(PINS)))
        state.ioregsel = rng.choice((0, self.ioapic_register(), self.word()))
        state.id = self.word()
        state.irr = sum({1 << pin for pin in self.pins if self.one_in(2)}) | (self.word() if self.one_in(4) else 0)
        state.pad = rng.choice((0, self.word()))
        if self.one_in(10):
            state.base_address = rng.choice(
                (IOAPIC_BASE + 0x10, IOAPIC_BASE - 0x80, LAPIC_BASE, 0, rng.getrandbits(64))
            )
        if self.one_in(4):
            entries = [rng.getrandbits(64) for _ in range(PINS)]
            state.redirection = tuple(self.sane_low(entry) for entry in entries)
        self.add("set_irqchip", 2, state.pack().hex())

    # Local APICs.

    def lapic_write(self, vcpu: int, register: int, value: int) -> None:
        self.add("mmio_write", vcpu, LAPIC_BASE + register, 4, value)

    def lapic_read(self) -> None:
        register = self.rng.choice((Reg.PPR, Reg.PPR, self.rng.randrange(0x40) << 4))
        if register != Reg.TIMER_CURRENT_COUNT:
            self.add("mmio_read", self.vcpu(), LAPIC_BASE + register, 4)

    def enable_all(self) -> None:
        """Software-enable most of the local APICs, with logical IDs."""
        for vcpu, logical_id in zip(self.vcpus, cycle(self.logical_ids), strict=False):
            if not self.one_in(8):
                self.lapic_write(vcpu, Reg.SVR, 0x1FF)
            self.lapic_write(vcpu, Reg.LDR, logical_id << 24)

    def address(self) -> None:
        """Change something that decides which APICs a message reaches."""
        vcpu = self.vcpu()
        match self.rng.randrange(5):
            case 0:
                self.lapic_write(vcpu, Reg.ID, self.destination() << 24 | self.rng.getrandbits(24))
            case 1 | 2:
                self.lapic_write(vcpu, Reg.LDR, self.rng.choice(self.logical_ids) << 24 | self.rng.getrandbits(24))
            case 3:
                dfr = self.rng.choice((U32, U32, 0x0FFF_FFFF, 0x0FFF_FFFF, 0, 0x7FFF_FFFF))
                self.lapic_write(vcpu, Reg.DFR, dfr)
            case _:
                self.lapic_write(vcpu, Reg.SVR, self.rng.choice((0x1FF, 0x1FF, 0xFF, self.word(), 0x11FF)))

    def lvt(self, register: int) -> int:
        value = self.rng.choice((MASKED, 0x700, self.word(), self.vector()))
        if register == Reg.LVT_TIMER:
            value = MASKED | value & ~(3 << 17) | self.rng.randrange(4) << 17
        return value

    def lapic_program(self) -> None:
        """Write one of the other registers."""
        vcpu = self.vcpu()
        match self.rng.randrange(5):
            case 0 | 1:
                self.lapic_write(vcpu, Reg.TPR, self.rng.choice((0, 0, 0x10, 0x2F, 0x50, 0xFF, self.word())))
            case 2:
                register = self.rng.choice((*LVTS, Reg.LVT_TIMER))
                self.lapic_write(vcpu, register, self.lvt(register))
            case 3:
                register = self.rng.choice((Reg.TIMER_INITIAL_COUNT, Reg.TIMER_DIVIDE))
                self.lapic_write(vcpu, register, self.rng.choice((0, U32, self.rng.getrandbits(32))))
            case _:
                register = self.rng.randrange(0x40) << 4
                if register not in (Reg.LVT_TIMER, Reg.ICR):
                    self.lapic_write(vcpu, register, self.word())

    def ipi(self) -> None:
        vcpu = self.vcpu()
        if not self.one_in(4):
            self.lapic_write(vcpu, Reg.ICR2, self.destination() << 24 | self.rng.getrandbits(24))
        command = self.mode() << 8 | self.vector() | self.one_in(2) << 11 | self.one_in(3) << 15
        command |= self.rng.choice((0, 0, 0, 1, 2, 3)) << 18 | (not self.one_in(4)) << 14
        if self.one_in(5):
            command |= self.few_bits(32) & ~0x0000_0FFF
        self.lapic_write(vcpu, Reg.ICR, command)

    def ack(self) -> None:
        self.add("ack_lapic", self.vcpu())

    def eoi(self) -> None:
        self.lapic_write(self.vcpu(), Reg.EOI, self.rng.choice((0, 0, U32)))

    def serve(self) -> None:
        """Accept an interrupt and end it, sometimes with another operation in between."""
        vcpu = self.vcpu()
        for _ in range(self.rng.randrange(1, 4)):
            self.add("ack_lapic", vcpu)
            if self.one_in(3):
                self.rng.choice((self.line, self.program, self.msi, self.get_state))()
            self.lapic_write(vcpu, Reg.EOI, 0)

    def vector_map(self) -> int:
        """A word of IRR, ISR or TMR."""
        match self.rng.randrange(8):
            case 0:
                return self.rng.getrandbits(256)
            case 1:
                return (1 << 256) - 1
            case 2 | 3:
                return 0
            case _:
                return sum({1 << self.vector() for _ in range(self.rng.randrange(4))})

    def page(self) -> bytes:
        """A local APIC's page with random content, except for a timer that could interrupt."""
        rng = self.rng
        if self.one_in(10):
            page = bytearray(rng.choice((rng.randbytes(1024), b"\xff" * 1024, bytes(1024))))
        else:
            registers = LapicRegisters(
                id=self.vcpu() << 24, svr=0x1FF, page=rng.choice((bytes(1024), rng.randbytes(1024)))
            )
            registers.ldr = rng.choice(self.logical_ids) << 24
            registers.isr, registers.irr, registers.tmr = self.vector_map(), self.vector_map(), self.vector_map()
            registers.dfr = rng.choice((DFR_FLAT, DFR_FLAT, DFR_CLUSTER, self.word()))
            for name, odds in (("id", 6), ("ldr", 6), ("svr", 4), ("tpr", 4), ("icr", 2), ("icr2", 2), ("esr", 4)):
                if self.one_in(odds):
                    setattr(registers, name, self.word())
            registers.svr |= self.one_in(4) << 12
            if not self.one_in(6):
                registers.svr |= 0x100
            for name in ("lvt_timer", "lvt_thermal", "lvt_lint0", "lvt_lint1", "lvt_error", "lvt_performance"):
                setattr(registers, name, rng.choice((MASKED, self.word())))
            registers.timer_initial_count = rng.choice((0, 0, U32, rng.getrandbits(32)))
            registers.timer_divide = self.word()
            page = bytearray(registers.pack())
            struct.pack_into("<I", page, Reg.TIMER_CURRENT_COUNT, self.word())
            struct.pack_into("<I", page, Reg.PPR, self.word())
        page[Reg.LVT_TIMER + 2] |= 1  # masked
        return bytes(page)

    def set_lapic(self) -> None:
        self.add("set_lapic", self.vcpu(), self.page().hex())
