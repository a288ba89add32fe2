"""What Linux's drivers and SeaBIOS do to a PC's devices to find them, in the order in which they do it.

Linux 6.12: drivers/tty/serial/8250/8250_port.c, drivers/input/serio/i8042.c, drivers/input/keyboard/atkbd.c,
drivers/input/mouse/psmouse-base.c, drivers/rtc/rtc-cmos.c, drivers/rtc/rtc-mc146818-lib.c. SeaBIOS 1.16: src/serial.c,
src/hw/ps2port.c, src/hw/rtc.c, src/boot.c. The PC speaker's and the PIT's are in tests/chips/test_i8254.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_client.devices import I8042, Rtc, Uart
from tests.devices.bench import Bench

# The serial port: 8250_port.c.

SERIAL, SERIAL_IRQ = 0x3F8, 4
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
DLL, DLM, FCR = DATA, IER, IIR
LOOP, OUT2 = 0x10, 0x08
NO_INTERRUPT, THR_EMPTY = 0x01, 0x02
EMPTY = 0x60
MODE_A, MODE_B, BANK_2 = 0x80, 0xBF, 0xE0  # of LCR: the divisor latch, a 16650's EFR, a National SuperIO's bank


class Serial(Bench):
    """A serial port as on QEMU's PC, and its driver."""

    def __init__(self, *, paced: bool = False, out2_gates: bool = False) -> None:
        self.sent = bytearray()
        super().__init__(Uart(self.sent.extend, base=SERIAL, gsi=SERIAL_IRQ, paced=paced, out2_gates=out2_gates))

    def get(self, register: int) -> int:
        return self.read(SERIAL + register)

    def put(self, register: int, *values: int) -> None:
        for value in values:
            self.write(SERIAL + register, value)

    def divisor(self, divisor: int | None = None) -> int:
        if divisor is not None:
            self.put(DLL, divisor & 0xFF)
            self.put(DLM, divisor >> 8)
        return self.get(DLL) | self.get(DLM) << 8

    def fifo_size(self) -> int:
        """size_fifo()"""
        lcr = self.get(LCR)
        self.put(LCR, 0)
        fcr, mcr = self.get(IIR), self.get(MCR)
        self.put(FCR, 0x07)
        self.put(MCR, LOOP)
        self.put(LCR, MODE_A)
        divisor = self.divisor()
        self.divisor(1)
        self.put(LCR, 0x03)
        self.put(DATA, *range(256))
        self.advance(0.02)
        count = 0
        while self.get(LSR) & 1 and count < 256:
            self.get(DATA)
            count += 1
        self.put(FCR, fcr)
        self.put(MCR, mcr)
        self.put(LCR, MODE_A)
        self.divisor(divisor)
        self.put(LCR, lcr)
        return count

    def kind(self) -> str:
        """autoconfig(), with the test that it leaves out for COM1 to COM4, and autoconfig_16550a()"""
        ier = self.get(IER)
        self.put(IER, 0)
        none = self.get(IER) & 0x0F
        self.put(IER, 0x0F)
        every = self.get(IER) & 0x0F
        self.put(IER, ier)
        if (none, every) != (0, 0x0F):
            return "none"
        mcr, lcr = self.get(MCR), self.get(LCR)
        self.put(MCR, LOOP | 0x0A)
        looped = self.get(MSR) & 0xF0
        self.put(MCR, mcr)
        if looped != 0x90:
            return "none"
        self.put(LCR, MODE_B)
        self.put(FCR, 0)
        self.put(LCR, 0)
        self.put(FCR, 1)
        kind = ("8250", "unknown", "16550", "16550A")[self.get(IIR) >> 6]
        if kind == "16550A":
            kind = self.kind_of_16550a()
        self.put(LCR, lcr)
        self.put(MCR, mcr)
        self.put(FCR, 1, 7, 0)
        self.get(DATA)
        self.put(IER, 0)
        return kind

    def kind_of_16550a(self) -> str:
        for mode in (MODE_A, MODE_B):
            self.put(LCR, mode)
            if self.get(IIR) == 0:  # where a 16650 has its EFR
                return "16650"
        self.put(LCR, 0)
        mcr = self.get(MCR)
        self.put(LCR, BANK_2)
        if not (self.get(2) ^ mcr) & LOOP:
            self.put(LCR, 0)
            self.put(MCR, mcr ^ LOOP)
            self.put(LCR, BANK_2)
            bank_2 = self.get(2)
            self.put(LCR, 0)
            self.put(MCR, mcr)
            if (bank_2 ^ mcr) & LOOP:
                return "National SuperIO"
        self.put(LCR, 0)
        with_64_bytes = []
        for mode in (0, MODE_A):
            self.put(LCR, mode)
            self.put(FCR, 0x21)
            with_64_bytes.append(self.get(IIR) >> 5)
            self.put(FCR, 1)
        self.put(LCR, 0)
        if with_64_bytes == [6, 7]:
            return "16750"
        ier = self.get(IER)
        self.put(IER, ier & ~0x40)
        if not self.get(IER) & 0x40:
            self.put(IER, ier | 0x40)
            if self.get(IER) & 0x40:
                return "XScale"
        self.put(IER, ier)
        return "16550A" if self.fifo_size() != 64 else "U6 16550A"

    def start_up(self) -> set[str]:
        """serial8250_do_startup(). Returns the bugs that it believes in."""
        bugs = set()
        self.put(FCR, 1, 7, 0)
        for register in (LSR, DATA, IIR, MSR):
            self.get(register)
        if self.get(LSR) == 0xFF:
            bugs.add("no UART")
        assert self.get(LSR) & 0x20
        interrupts = []
        for _ in range(2):
            self.put(IER, THR_EMPTY)
            interrupts.append(not self.get(IIR) & NO_INTERRUPT)
            self.put(IER, 0)
        if interrupts == [True, False]:
            bugs.add("THRE")
        self.put(LCR, 0x03)
        self.put(MCR, OUT2)
        self.put(IER, THR_EMPTY)
        if self.get(LSR) & 0x40 and self.get(IIR) & NO_INTERRUPT:
            bugs.add("TXEN")
        self.put(IER, 0)
        for register in (LSR, DATA, IIR, MSR):
            self.get(register)
        return bugs

    def set_termios(self, divisor: int) -> None:
        """serial8250_do_set_termios(), for 8N1 and interrupts for data that is received"""
        self.put(IER, 0x05)
        self.put(LCR, 0x13 | MODE_A)
        self.divisor(divisor)
        self.put(LCR, 0x13)
        self.put(FCR, 0x01, 0x81)
        self.put(MCR, 0x0B)

    def interrupt(self, to_send: bytearray) -> bytes:
        """serial8250_handle_irq(), as often as the line is high. Returns what it has received."""
        received = bytearray()
        while self.level(SERIAL_IRQ):
            iir = self.get(IIR)
            assert not iir & NO_INTERRUPT
            status = self.get(LSR)
            if iir & 0x04:
                while status & 0x01:
                    received.append(self.get(DATA))
                    status = self.get(LSR)
            self.get(MSR)
            if status & 0x20:
                self.put(DATA, *to_send[:16])
                del to_send[:16]
                if not to_send:
                    self.put(IER, 0x05)
        return bytes(received)


@pytest.fixture(params=[(False, False), (False, True), (True, True)], ids=["qemu", "out2", "paced"])
def serial(request: pytest.FixtureRequest) -> Serial:
    paced, out2_gates = request.param
    return Serial(paced=paced, out2_gates=out2_gates)


def test_linux_finds_a_16550a_with_a_fifo_of_16(serial: Serial) -> None:
    before = serial.get(LCR), serial.get(MCR)
    assert serial.kind() == "16550A"
    assert serial.fifo_size() == 16
    assert (serial.get(LCR), serial.get(MCR)) == before
    assert not serial.level(SERIAL_IRQ)
    assert serial.sent == b""


def test_linux_opens_the_port_and_sends_and_receives_by_interrupts(serial: Serial) -> None:
    assert serial.kind() == "16550A"
    assert serial.start_up() == set()
    serial.set_termios(1)
    text = bytearray(b"serial8250_tx_chars() fills the FIFO, 16 characters at a time.")
    expected = bytes(text)
    serial.put(IER, 0x07)  # serial8250_start_tx()
    received = b""
    for typed in (b"typed", b"", b"eight ch", b""):
        device = serial.device
        assert isinstance(device, Uart)
        device.receive(typed)
        received += serial.interrupt(text)
        serial.advance(0.01)
    received += serial.interrupt(text)
    assert (bytes(serial.sent), received) == (expected, b"typedeight ch")
    assert serial.get(LSR) & EMPTY == EMPTY


def test_seabios_finds_the_port(serial: Serial) -> None:
    """serial.c detect_serial()"""
    serial.put(IER, 0x02)
    assert serial.get(IER) == 0x02
    assert serial.get(IIR) & 0x3F == 0x02
    serial.put(IER, 0)


def test_linux_autoprobes_the_interrupt(serial: Serial) -> None:
    """autoconfig_irq(): the line is high when OUT2 is, after it was low."""
    serial.put(MCR, 0x0C)
    serial.put(MCR, 0)
    serial.put(MCR, 0x0B)
    serial.edges.clear()
    serial.put(IER, 0x0F)
    for register in (LSR, DATA, IIR, MSR):
        serial.get(register)
    serial.put(DATA, 0xFF)
    serial.advance(0.02)
    assert (SERIAL_IRQ, True) in serial.edges


# Keyboard and mouse: i8042.c, atkbd.c, psmouse-base.c; ps2port.c.

DATA_PORT, COMMAND_PORT = 0x60, 0x64
KEYBOARD_IRQ, MOUSE_IRQ = 1, 12
OBF, IBF, KEYLOCK, FROM_MOUSE = 0x01, 0x02, 0x10, 0x20  # status
KEYBOARD_INTERRUPT, MOUSE_INTERRUPT, KEYBOARD_OFF, MOUSE_OFF, TRANSLATE = 0x01, 0x02, 0x10, 0x20, 0x40
READ_CTR, WRITE_CTR, AUX_DISABLE, AUX_ENABLE, AUX_LOOP, AUX_SEND, SELF_TEST = 0x20, 0x60, 0xA7, 0xA8, 0xD3, 0xD4, 0xAA
BUFFER = 16
ACK = 0xFA


class Controller(Bench):
    """An i8042, and its driver. ctr is the command byte that the driver believes in."""

    def __init__(self) -> None:
        self.ctr = 0
        super().__init__(I8042())

    def flush(self) -> int:
        count = 0
        while self.read(COMMAND_PORT) & OBF and count < BUFFER:
            self.read(DATA_PORT)
            count += 1
        return count

    def command(self, command: int, *sent: int, answers: int = 0) -> list[int]:
        """__i8042_command()"""
        assert not self.read(COMMAND_PORT) & IBF
        self.write(COMMAND_PORT, command)
        for byte in sent:
            assert not self.read(COMMAND_PORT) & IBF
            self.write(DATA_PORT, byte)
        taken = []
        for _ in range(answers):
            status = self.read(COMMAND_PORT)
            assert status & OBF
            assert command != AUX_LOOP or status & FROM_MOUSE
            taken.append(self.read(DATA_PORT))
        return taken

    def write_ctr(self, off: int = 0, on: int = 0) -> None:
        self.ctr = self.ctr & ~off | on
        self.command(WRITE_CTR, self.ctr)

    def toggle_mouse(self, on: bool) -> bool:
        """i8042_toggle_aux()"""
        self.command(AUX_ENABLE if on else AUX_DISABLE)
        (ctr,) = self.command(READ_CTR, answers=1)
        return bool(ctr & MOUSE_OFF) is not on

    def initialise(self) -> None:
        """i8042_controller_check(), _selftest() and _init()"""
        assert self.flush() < BUFFER
        assert self.command(SELF_TEST, answers=1) == [0x55]
        first, second = (self.command(READ_CTR, answers=1) for _ in range(2))
        assert first == second
        (self.ctr,) = first
        self.write_ctr(KEYBOARD_INTERRUPT, KEYBOARD_OFF)
        assert self.read(COMMAND_PORT) & KEYLOCK
        assert self.ctr & TRANSLATE
        self.flush()

    def check_mouse(self) -> None:
        """i8042_check_aux()"""
        self.flush()
        assert self.command(AUX_LOOP, 0x5A, answers=1) == [0x5A]
        assert self.toggle_mouse(False)
        assert self.toggle_mouse(True)
        self.write_ctr(MOUSE_OFF, MOUSE_INTERRUPT)
        self.edges.clear()
        self.command(AUX_LOOP, 0xA5)
        assert self.edges == [(MOUSE_IRQ, True)]
        assert self.read(COMMAND_PORT) & (OBF | FROM_MOUSE) == OBF | FROM_MOUSE
        assert self.read(DATA_PORT) == 0xA5
        assert not self.level(MOUSE_IRQ)
        self.write_ctr(MOUSE_INTERRUPT, MOUSE_OFF)

    def has_multiplexer(self) -> bool:
        """i8042_check_mux(): with one, the last byte does not come back."""
        self.flush()
        sent = (0xF0, 0x56, 0xA4)
        return [self.command(AUX_LOOP, byte, answers=1)[0] for byte in sent] != [*sent]

    def enable_ports(self) -> None:
        """i8042_enable_aux_port() and i8042_enable_kbd_port()"""
        self.write_ctr(MOUSE_OFF, MOUSE_INTERRUPT)
        self.write_ctr(KEYBOARD_OFF, KEYBOARD_INTERRUPT)

    def exchange(self, irq: int, sent: tuple[int, ...], answers: int) -> list[int]:
        """ps2_command(): each byte is acknowledged, and the answers come by interrupts."""
        taken = []
        for byte in sent:
            if irq == MOUSE_IRQ:
                self.command(AUX_SEND, byte)
            else:
                self.write(DATA_PORT, byte)
            assert self.interrupt(irq) == ACK
        for _ in range(answers):
            taken.append(self.interrupt(irq))
        assert not self.read(COMMAND_PORT) & OBF
        return taken

    def interrupt(self, irq: int) -> int:
        """i8042_interrupt()"""
        assert self.level(irq)
        assert not self.level(KEYBOARD_IRQ + MOUSE_IRQ - irq)
        status = self.read(COMMAND_PORT)
        assert status & OBF
        assert bool(status & FROM_MOUSE) is (irq == MOUSE_IRQ)
        return self.read(DATA_PORT)


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def linux(controller: Controller) -> Controller:
    """After i8042_probe()."""
    controller.initialise()
    controller.check_mouse()
    assert not controller.has_multiplexer()
    controller.enable_ports()
    return controller


def test_linux_finds_the_keyboard(linux: Controller) -> None:
    """atkbd_probe() and atkbd_activate(), with translation: the identity is that of a translated keyboard."""
    assert linux.exchange(KEYBOARD_IRQ, (0xFF,), 1) == [0xAA]
    assert linux.exchange(KEYBOARD_IRQ, (0xF2,), 2) == [0xAB, 0x41]
    assert linux.exchange(KEYBOARD_IRQ, (0xF5,), 0) == []
    assert linux.exchange(KEYBOARD_IRQ, (0xED, 0x00), 0) == []
    assert linux.exchange(KEYBOARD_IRQ, (0xF0, 0x02), 0) == []
    assert linux.exchange(KEYBOARD_IRQ, (0xF3, 0x00), 0) == []
    assert linux.exchange(KEYBOARD_IRQ, (0xF4,), 0) == []
    device = linux.device
    assert isinstance(device, I8042)
    device.press("a")
    device.release("a")
    assert [linux.interrupt(KEYBOARD_IRQ), linux.interrupt(KEYBOARD_IRQ)] == [0x1E, 0x9E]


def test_linux_finds_a_mouse_with_a_wheel(linux: Controller) -> None:
    """psmouse_probe(), psmouse_extensions() with synaptics_detect() and intellimouse_detect(), psmouse_activate()"""
    assert linux.exchange(MOUSE_IRQ, (0xF2,), 1) == [0x00]
    assert linux.exchange(MOUSE_IRQ, (0xF6,), 0) == []
    for _ in range(4):
        assert linux.exchange(MOUSE_IRQ, (0xE8, 0x00), 0) == []
    status = linux.exchange(MOUSE_IRQ, (0xE9,), 3)
    assert status[1] != 0x47  # which a Synaptics touchpad would say
    assert linux.exchange(MOUSE_IRQ, (0xFF,), 2) == [0xAA, 0x00]
    for rate in (200, 100, 80):
        assert linux.exchange(MOUSE_IRQ, (0xF3, rate), 0) == []
    assert linux.exchange(MOUSE_IRQ, (0xF2,), 1) == [0x03]
    for rate in (200, 200, 80):
        assert linux.exchange(MOUSE_IRQ, (0xF3, rate), 0) == []
    assert linux.exchange(MOUSE_IRQ, (0xF2,), 1) == [0x03]  # it has no fourth and fifth button
    assert linux.exchange(MOUSE_IRQ, (0xF3, 100), 0) == []
    assert linux.exchange(MOUSE_IRQ, (0xE8, 0x03), 0) == []
    assert linux.exchange(MOUSE_IRQ, (0xE6,), 0) == []
    assert linux.exchange(MOUSE_IRQ, (0xF4,), 0) == []
    device = linux.device
    assert isinstance(device, I8042)
    device.move(5, -3, 1, 1)
    assert [linux.interrupt(MOUSE_IRQ) for _ in range(4)] == [0x29, 0x05, 0xFD, 0x01]


def test_linux_polls_the_mouse_while_the_keyboard_types(linux: Controller) -> None:
    """A byte of either is never taken for the other's."""
    linux.exchange(MOUSE_IRQ, (0xF4,), 0)
    device = linux.device
    assert isinstance(device, I8042)
    device.press("b")
    device.move(1, 0)
    taken = {KEYBOARD_IRQ: list[int](), MOUSE_IRQ: list[int]()}
    while linux.read(COMMAND_PORT) & OBF:
        irq = MOUSE_IRQ if linux.read(COMMAND_PORT) & FROM_MOUSE else KEYBOARD_IRQ
        taken[irq].append(linux.interrupt(irq))
    assert taken == {KEYBOARD_IRQ: [0x30], MOUSE_IRQ: [0x08, 0x01, 0x00]}


def test_linux_leaves_the_controller_as_it_found_it(linux: Controller) -> None:
    """i8042_controller_reset(): the next kernel finds the same."""
    linux.flush()
    linux.write_ctr(KEYBOARD_INTERRUPT | MOUSE_INTERRUPT, KEYBOARD_OFF | MOUSE_OFF)
    assert linux.command(SELF_TEST, answers=1) == [0x55]
    linux.initialise()
    linux.check_mouse()


def test_seabios_initialises_the_keyboard(controller: Controller) -> None:
    """ps2_keyboard_setup(). Each command has the controller's interrupts and the other port turned off."""
    assert controller.flush() == 0
    controller.command(0xAD)
    controller.command(AUX_DISABLE)
    assert controller.flush() == 0
    assert controller.command(SELF_TEST, answers=1) == [0x55]
    assert controller.command(0xAB, answers=1) == [0x00]
    for sent, answers in (((0xFF,), [0xAA]), ((0xF5,), []), ((0xF0, 0x02), []), ((0xF4,), [])):
        controller.command(WRITE_CTR, 0x30)
        controller.command(WRITE_CTR, 0x20)
        taken = []
        for byte in sent:
            controller.write(DATA_PORT, byte)
            assert controller.read(COMMAND_PORT) & (OBF | FROM_MOUSE) == OBF
            assert controller.read(DATA_PORT) == ACK
        while controller.read(COMMAND_PORT) & OBF:
            taken.append(controller.read(DATA_PORT))
        assert taken == answers
        controller.command(WRITE_CTR, 0x30)
    assert controller.edges == []
    controller.command(WRITE_CTR, 0x61)
    device = controller.device
    assert isinstance(device, I8042)
    device.press("enter")
    assert controller.interrupt(KEYBOARD_IRQ) == 0x1C
    assert controller.command(0xFE) == []  # i8042_reboot(), where nothing resets the machine


# The clock: rtc-mc146818-lib.c, rtc-cmos.c; rtc.c.

INDEX, VALUE = 0x70, 0x71
RTC_IRQ = 8
SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, A, B, C, D, CENTURY = 0, 2, 4, 7, 8, 9, 10, 11, 12, 13, 0x32
UIP, SET, PERIODIC, ALARM, UPDATE, BINARY, HOUR_24 = 0x80, 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
WALL = 1_798_761_599.25  # the last second of 2026, UTC
Time = tuple[int, int, int, int, int, int]  # year, month, day, hours, minutes, seconds


class Clock(Bench):
    """An RTC, and its drivers."""

    def __init__(self, wall: float = WALL) -> None:
        self.time = start = 1000.0
        super().__init__(Rtc(clock=lambda: wall + self.time - start), now=start)

    def get(self, register: int) -> int:
        self.write(INDEX, register)
        return self.read(VALUE)

    def put(self, register: int, value: int) -> None:
        self.write(INDEX, register)
        self.write(VALUE, value)

    def stable(self) -> Iterator[None]:
        """mc146818_avoid_UIP(): yields where the registers can be read, and again if they changed meanwhile."""
        for _ in range(11_000):
            seconds = self.get(SECONDS)
            if self.get(A) & UIP:
                self.advance(100e-6)
                continue
            if seconds != self.get(SECONDS):
                continue
            yield
            if not self.get(A) & UIP and seconds == self.get(SECONDS):
                return
        raise AssertionError("UIP has not been clear for a second")

    def time_of_day(self) -> Time:
        """mc146818_get_time(), with the century of ACPI's FADT"""
        for _ in self.stable():
            values = [self.get(register) for register in (YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, CENTURY)]
            control = self.get(B)
        if not control & BINARY:
            values = [(value >> 4) * 10 + (value & 0x0F) for value in values]
        year, month, day, hours, minutes, seconds, century = values
        return century * 100 + year, month, day, hours, minutes, seconds

    def set_time(self, time: Time) -> None:
        """mc146818_set_time()"""
        control = self.get(B)
        values = (*time, time[0] // 100)
        registers = (YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, CENTURY)
        self.put(B, control | SET)
        frequency = self.get(A)
        self.put(A, frequency & ~0x70 | 0x60)
        for register, value in zip(registers, values, strict=True):
            value %= 100
            self.put(register, value if control & BINARY else value // 10 << 4 | value % 10)
        self.put(B, control)
        self.put(A, frequency)

    def probe(self) -> None:
        """cmos_do_probe()"""
        for _ in self.stable():  # mc146818_does_rtc_work()
            pass
        self.put(A, 0x26)
        self.put(B, self.get(B) & ~(PERIODIC | ALARM | UPDATE))
        self.get(C)
        assert self.get(B) & HOUR_24
        assert self.get(D) & 0x80

    def enable(self, interrupt: int) -> None:
        """cmos_irq_enable()"""
        control = self.get(B)
        self.get(C)
        self.put(B, control | interrupt)
        self.get(C)

    def interrupts(self, seconds: float) -> list[int]:
        """cmos_interrupt(), for a while. Returns register C of each."""
        causes = []
        end = self.time + seconds
        while (due := self.due) is not None and due <= end:
            self.advance(due - self.time)
            if self.level(RTC_IRQ):
                causes.append(self.get(C))
                assert not self.level(RTC_IRQ)
        self.advance(end - self.time)
        return causes


def test_linux_reads_the_time_across_the_end_of_a_year() -> None:
    clock = Clock()
    clock.probe()
    assert clock.time_of_day() == (2026, 12, 31, 23, 59, 59)
    clock.advance(0.74977)  # UIP is set
    assert clock.get(A) & UIP
    assert clock.time_of_day() == (2027, 1, 1, 0, 0, 0)


def test_linux_sets_the_time_and_it_goes_on_half_a_second_later() -> None:
    clock = Clock()
    clock.probe()
    clock.set_time((2099, 2, 28, 23, 59, 59))
    clock.advance(0.49)
    assert clock.time_of_day() == (2099, 2, 28, 23, 59, 59)
    clock.advance(0.02)
    assert clock.time_of_day() == (2099, 3, 1, 0, 0, 0)


def test_linux_takes_periodic_update_and_alarm_interrupts() -> None:
    clock = Clock()
    clock.probe()
    clock.enable(PERIODIC)
    assert clock.interrupts(0.25) == [0x80 | PERIODIC] * 256
    clock.put(B, clock.get(B) & ~PERIODIC)
    clock.enable(UPDATE)
    assert [cause & (0x80 | UPDATE) for cause in clock.interrupts(3)] == [0x80 | UPDATE] * 3
    clock.put(B, clock.get(B) & ~UPDATE)
    *_, hours, minutes, seconds = clock.time_of_day()
    for register, value in ((HOURS + 1, hours), (MINUTES + 1, minutes), (SECONDS + 1, seconds + 2)):
        clock.put(register, value // 10 << 4 | value % 10)
    clock.enable(ALARM)
    assert [cause & (0x80 | ALARM) for cause in clock.interrupts(5)] == [0x80 | ALARM]


def test_linux_finds_114_bytes_of_nvram() -> None:
    """cmos_nvram_read() and _write(): the memory behind the registers, in one bank; nothing answers at 72h."""
    clock = Clock()
    assert [region.length for region in clock.device.regions] == [2]
    for offset in range(14, 128):
        if offset not in (CENTURY, 0x37):
            clock.put(offset, offset ^ 0x5A)
    read = {offset: clock.get(offset) for offset in range(14, 128) if offset not in (CENTURY, 0x37)}
    assert read == {offset: offset ^ 0x5A for offset in read}
    assert clock.time_of_day()[0] == 2026


def test_seabios_sets_the_clock_up_and_reads_what_it_knows_of_the_machine() -> None:
    """rtc_setup() and rtc_updating(); the memory's bytes that it reads on QEMU. Bit 7 of the index masks NMIs."""
    clock = Clock()
    clock.put(B | 0x80, PERIODIC | ALARM | UPDATE | HOUR_24)
    clock.put(A | 0x80, 0x26)
    clock.write(INDEX, B | 0x80)
    clock.write(VALUE, clock.read(VALUE) & 0x01 | HOUR_24)
    clock.get(C)
    assert clock.get(D) & 0x80
    assert clock.interrupts(2) == []
    reset_code, floppies, boot_flags, cpus = clock.get(0x0F), clock.get(0x10), clock.get(0x38), clock.get(0x5F)
    assert (reset_code, floppies, boot_flags, cpus) == (0, 0, 0, 0)  # none, none, the default order, 1
