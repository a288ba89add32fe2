"""The 16550A: its registers, FIFOs and interrupts, its two ends, and the features that drivers probe."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_client.devices.uart import Uart
from tests.devices.bench import Bench

BASE, GSI = 0x3F8, 4
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
RECEIVED, THR_EMPTY, LINE_STATUS, MODEM_STATUS = 1, 2, 4, 8  # IER
NONE = 1  # IIR
OUT2 = 8
FIFOS = 0xC0


class Port(Bench):
    """A UART with its output, which may be blocked."""

    def __init__(self, *, paced: bool = False, out2_gates: bool = True) -> None:
        self.sent = bytearray()
        self.stuck = False
        self.uart = Uart(self.take, base=BASE, gsi=GSI, paced=paced, out2_gates=out2_gates)
        super().__init__(self.uart)

    def take(self, data: bytes) -> bool:
        if not self.stuck:
            self.sent += data
        return not self.stuck

    def put(self, register: int, *values: int) -> None:
        for value in values:
            self.write(BASE + register, value)

    def get(self, register: int) -> int:
        return self.read(BASE + register)

    def interrupt(self) -> int | None:
        """IIR's bits 3:0; checks that the line agrees."""
        level = self.level(GSI)
        cause = self.get(IIR) & 0x0F
        assert level == (cause != NONE)
        return cause

    def drain(self) -> bytes:
        data = bytearray()
        while self.get(LSR) & 1:
            data.append(self.get(DATA))
        return bytes(data)


@pytest.fixture
def port() -> Port:
    return Port()


# Data.


def test_a_written_character_is_sent_at_once(port: Port) -> None:
    for byte in b"hello":
        assert port.get(LSR) == 0x60
        port.put(DATA, byte)
    assert port.sent == b"hello"
    assert port.due is None


def test_received_characters_are_read_in_order(port: Port) -> None:
    port.put(FCR, 1)
    port.uart.receive(b"sixteen letters!")
    assert port.drain() == b"sixteen letters!"
    assert port.get(LSR) == 0x60
    assert port.get(DATA) == 0


def test_without_fifos_the_last_character_is_read_again(port: Port) -> None:
    port.uart.receive(b"a")
    assert bytes((port.get(DATA), port.get(DATA))) == b"aa"


@pytest.mark.parametrize(("lcr", "mask"), [(0, 0x1F), (1, 0x3F), (2, 0x7F), (3, 0xFF)])
def test_characters_are_as_long_as_lcr_says(port: Port, lcr: int, mask: int) -> None:
    port.put(LCR, lcr)
    port.put(DATA, 0xFF)
    port.uart.receive(b"\xff")
    assert (port.sent[0], port.get(DATA)) == (mask, mask)


def test_a_paced_character_takes_its_bits_of_time_and_thr_is_free_before_it_ends() -> None:
    port = Port(paced=True)
    port.put(LCR, 0x83)
    port.put(DATA, 96)  # 1200 baud
    port.put(LCR, 0x03)
    port.put(DATA, 0x41)
    assert port.get(LSR) == 0x20
    port.put(DATA, 0x42)
    assert port.get(LSR) == 0
    port.advance(10 / 1200 * 0.99)
    assert (bytes(port.sent), port.get(LSR)) == (b"", 0)
    port.advance(10 / 1200 * 0.02)
    assert (bytes(port.sent), port.get(LSR)) == (b"A", 0x20)
    port.advance(10 / 1200)
    assert (bytes(port.sent), port.get(LSR)) == (b"AB", 0x60)


# Blocked output.


def test_while_output_is_blocked_thr_stays_full_and_nothing_is_lost(port: Port) -> None:
    port.put(FCR, 1)
    port.put(IER, THR_EMPTY)
    assert port.interrupt() == 2
    port.stuck = True
    port.put(DATA, *b"0123456789abcdefg")  # one character is in the shift register
    assert port.get(LSR) == 0
    assert port.interrupt() == NONE
    port.advance(1)
    assert port.get(LSR) == 0
    port.stuck = False
    port.advance(0.02)
    assert port.sent == b"0123456789abcdefg"
    assert port.get(LSR) == 0x60
    assert port.interrupt() == 2
    assert port.due is None


def test_a_pipe_that_is_full_is_waited_for() -> None:
    reader, writer = os.pipe()  # blocking
    bench = Bench(Uart(writer, base=BASE))
    count = 0
    while bench.read(BASE + LSR) & 0x20:
        bench.write(BASE, count & 0xFF)
        count += 1
    assert count > 60_000
    received = bytearray()
    while bench.due is not None:
        received += os.read(reader, 1 << 16)
        bench.advance(0.02)
    os.close(writer)
    while data := os.read(reader, 1 << 16):
        received += data
    assert received == bytes(at & 0xFF for at in range(count))
    os.close(reader)


def test_a_pipe_without_a_reader_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    bench = Bench(Uart(writer, base=BASE))
    bench.write(BASE, 1)
    bench.write(BASE, 2)
    bench.advance(1)
    assert bench.read(BASE + LSR) == 0
    os.close(writer)


# Input from a descriptor.


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_descriptor_is_read_as_the_fifo_has_room(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    text = bytes(range(100))
    os.write(writer, text)
    bench = Bench(Uart(lambda _: True, reader, BASE, GSI))
    bench.look()
    assert bench.watched == {}
    assert bench.read(BASE + LSR) == 0x61  # no overrun
    bench.write(BASE + FCR, 0x01)  # this discards the receiver buffer
    received = bytearray()
    for _ in text:
        bench.look()
        if bench.read(BASE + LSR) & 1:
            received.append(bench.read(BASE))
    assert received == text[1:]
    assert reader in bench.watched


def test_in_loopback_input_waits_outside(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"A")
    bench = Bench(Uart(lambda _: True, reader, BASE, GSI))
    bench.write(BASE + MCR, 0x10)
    bench.look()
    assert bench.read(BASE + LSR) == 0x60
    bench.write(BASE + MCR, 0)
    bench.look()
    assert bench.read(BASE) == ord("A")


def test_at_the_end_of_input_watching_stops() -> None:
    reader, writer = os.pipe()
    bench = Bench(Uart(lambda _: True, reader, BASE, GSI))
    os.write(writer, b"A")
    os.close(writer)
    bench.look()
    assert bench.read(BASE) == ord("A")
    bench.look()
    assert bench.watched == {}
    assert bench.read(BASE + LSR) == 0x60
    os.close(reader)


def test_a_terminal_is_input_and_output() -> None:
    main, terminal = pty.openpty()
    tty.setraw(terminal)
    bench = Bench(Uart(terminal, terminal, BASE, GSI))
    os.write(main, b"x")
    bench.look()
    assert bench.read(BASE) == ord("x")
    bench.write(BASE, ord("y"))
    assert os.read(main, 10) == b"y"
    os.close(main)
    bench.look()  # a hangup
    assert bench.watched == {}
    os.close(terminal)


# Interrupts.


@pytest.mark.parametrize(("fcr", "level"), [(0x00, 1), (0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_received_data_interrupt_at_the_trigger_level_and_not_below(port: Port, fcr: int, level: int) -> None:
    port.put(FCR, fcr)
    port.put(IER, RECEIVED)
    port.uart.receive(bytes(level - 1))
    assert port.interrupt() == NONE
    port.uart.receive(b"!")
    assert port.interrupt() == 4
    port.get(DATA)
    assert port.interrupt() == NONE


def test_data_below_the_trigger_level_times_out_after_four_characters(port: Port) -> None:
    character = 10 / 9600
    port.put(FCR, 0xC1)
    port.put(IER, RECEIVED)
    port.uart.receive(b"abc")
    port.advance(3 * character)
    port.uart.receive(b"d")  # the timeout starts here
    port.advance(3.9 * character)
    assert port.interrupt() == NONE
    port.advance(0.2 * character)
    assert port.interrupt() == 0x0C
    port.get(DATA)
    assert port.interrupt() == NONE
    port.advance(4.1 * character)
    assert port.interrupt() == 0x0C
    assert port.drain() == b"bcd"
    assert port.interrupt() == NONE
    assert port.due is None


def test_a_timeout_is_pending_if_the_interrupt_is_enabled_later(port: Port) -> None:
    port.put(FCR, 0xC1)
    port.uart.receive(b"a")
    assert port.due is None
    port.put(IER, RECEIVED)
    port.advance(0.005)
    assert port.interrupt() == 0x0C


def test_reading_iir_clears_thr_empty_only_if_it_is_the_cause(port: Port) -> None:
    port.put(IER, THR_EMPTY | RECEIVED)
    port.uart.receive(b"a")
    assert [port.interrupt(), port.interrupt()] == [4, 4]
    port.get(DATA)
    assert [port.interrupt(), port.interrupt()] == [2, NONE]
    port.put(DATA, 1)
    assert port.interrupt() == 2


def test_writing_thr_ends_thr_empty() -> None:
    port = Port(paced=True)
    port.put(IER, THR_EMPTY)
    port.put(DATA, 1)  # goes to the shift register
    assert port.level(GSI)
    port.put(DATA, 2)
    assert port.interrupt() == NONE


def test_every_character_that_leaves_is_an_edge(port: Port) -> None:
    port.put(IER, THR_EMPTY)
    port.edges.clear()
    port.put(DATA, 1, 2)
    assert port.edges == [(GSI, False), (GSI, True)] * 2


def test_enabling_thr_empty_again_interrupts_again(port: Port) -> None:
    for _ in range(2):
        port.put(IER, THR_EMPTY)
        assert [port.interrupt(), port.interrupt()] == [2, NONE]
        port.put(IER, THR_EMPTY)  # no change
        assert port.interrupt() == NONE
        port.put(IER, 0)


def test_an_overrun_keeps_the_fifo_and_is_reported_until_lsr_is_read(port: Port) -> None:
    port.put(FCR, 1)
    port.put(IER, LINE_STATUS)
    port.uart.receive(b"0123456789abcdefX")
    assert port.interrupt() == 6
    assert [port.get(LSR), port.get(LSR)] == [0x63, 0x61]
    assert port.interrupt() == NONE
    assert port.drain() == b"0123456789abcdef"


def test_without_fifos_an_overrun_keeps_the_newer_character(port: Port) -> None:
    port.uart.receive(b"ab")
    assert port.get(LSR) == 0x63
    assert port.drain() == b"b"


def test_errors_are_shown_with_their_character_and_bit_7_while_in_the_fifo(port: Port) -> None:
    port.put(FCR, 1)
    port.put(IER, LINE_STATUS)
    port.uart.receive(b"a")
    port.uart.receive(b"b", 0x04)
    port.uart.receive_break()
    assert port.interrupt() == NONE
    seen = []
    for _ in range(3):
        seen.append((port.get(LSR), port.get(DATA)))
    assert seen == [(0xE1, ord("a")), (0xE5, ord("b")), (0xF1, 0)]
    assert port.get(LSR) == 0x60


def test_modem_status_interrupts_on_changes_until_it_is_read(port: Port) -> None:
    port.put(IER, MODEM_STATUS)
    assert port.get(MSR) == 0xB0
    port.uart.set_modem(0x20)
    assert port.interrupt() == 0
    assert [port.get(MSR), port.get(MSR)] == [0x29, 0x20]
    assert port.interrupt() == NONE
    port.uart.set_modem(0x60)  # the start of a ring is not a change yet
    assert port.interrupt() == NONE
    port.uart.set_modem(0x20)
    assert port.get(MSR) == 0x24


def test_causes_are_reported_by_priority(port: Port) -> None:
    port.put(FCR, 0x41)
    port.put(IER, 0x0F)
    port.uart.set_modem(0)
    port.uart.receive(b"abcd")
    port.uart.receive(b"e" * 13)
    seen = [port.interrupt()]
    port.get(LSR)
    seen.append(port.interrupt())
    port.drain()
    seen += [port.interrupt(), port.interrupt()]
    port.get(MSR)
    seen.append(port.interrupt())
    assert seen == [6, 4, 2, 0, NONE]


def test_out2_gates_the_line_and_not_iir(port: Port) -> None:
    port.put(IER, THR_EMPTY)
    port.put(MCR, 0)
    assert not port.level(GSI)
    port.put(MCR, OUT2)
    assert port.level(GSI)
    port.put(MCR, 0)
    assert port.get(IIR) == 2
    ungated = Port(out2_gates=False)
    ungated.put(MCR, 0)
    ungated.put(IER, THR_EMPTY)
    assert ungated.level(GSI)


# The features that drivers probe; test_drivers.py has the drivers.


def test_loopback_wires_every_output_to_an_input(port: Port) -> None:
    port.put(MCR, 0x10)
    port.get(MSR)
    for mcr, msr in ((0x12, 0x11), (0x10, 0x01), (0x11, 0x22), (0x14, 0x42), (0x18, 0x8C), (0x10, 0x08)):
        port.put(MCR, mcr)
        assert port.get(MSR) == msr
    port.put(LCR, 0x43)
    assert port.get(LSR) & 0x10


def test_without_its_enable_bit_fcr_changes_nothing(port: Port) -> None:
    port.put(FCR, 1)
    port.uart.receive(b"ab")
    port.put(FCR, 0xC0)  # turns the FIFOs off, which empties them
    assert (port.get(IIR), port.get(LSR)) == (NONE, 0x60)
    port.uart.receive(b"a")
    port.put(FCR, 0x02)
    assert port.drain() == b"a"


# Properties.

Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("receive"), st.integers(0, 20), st.integers(0, 0xFF)),
        st.tuples(st.just("modem"), st.integers(0, 255), st.just(0)),
        st.tuples(st.just("advance"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("stuck"), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(steps=STEPS, paced=st.booleans(), wide=st.sampled_from((1, 2, 4)))
def test_the_line_is_iirs_cause_gated_by_out2(steps: list[Step], paced: bool, wide: int) -> None:
    port = Port(paced=paced)
    for name, first, second in steps:
        match name:
            case "write":
                port.write(BASE + first, second * 0x01010101 & (1 << 8 * wide) - 1, wide)
            case "read":
                port.read(BASE + first, wide)
            case "receive":
                port.uart.receive(bytes((second,)) * first, second)
            case "modem":
                port.uart.set_modem(first)
            case "advance":
                port.advance(first / 1000)
            case "stuck":
                port.stuck = bool(first)
        out2 = port.get(MCR) & OUT2
        level = port.level(GSI)
        assert level == bool(not port.get(IIR) & NONE and out2)


@settings(max_examples=50)
@given(
    data=st.binary(max_size=300), reads=st.lists(st.integers(1, 20), max_size=300), fcr=st.sampled_from((0, 1, 0xC1))
)
def test_with_flow_control_all_input_is_read_in_order(data: bytes, reads: list[int], fcr: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    uart = Uart(lambda _: True, reader, BASE, GSI)
    bench = Bench(uart)
    bench.write(BASE + FCR, fcr)
    received = bytearray()
    for count in [*reads, *[16] * 300]:
        bench.look()
        for _ in range(count):
            if bench.read(BASE + LSR) & 1:
                received.append(bench.read(BASE))
    assert received == data
    os.close(reader)


@pytest.fixture
def patient() -> Iterator[tuple[Port, int]]:
    """A port whose input waits for the guest, and the descriptor to write input to."""
    reader, writer = os.pipe()
    port = Port()
    port.uart = Uart(port.take, reader, BASE, GSI, patient=True)
    Bench.__init__(port, port.uart)
    yield port, writer
    os.close(reader)
    os.close(writer)


def test_input_waits_for_a_guest_that_sets_the_port_up(patient: tuple[Port, int]) -> None:
    port, writer = patient
    os.write(writer, b"early")
    port.put(IER, 0)
    port.put(FCR, 7)  # this clears the FIFOs
    port.get(LSR)
    port.get(DATA)
    port.get(LSR)
    assert not port.watched
    port.put(IER, RECEIVED)
    port.look()
    assert port.drain() == b"early"


def test_input_waits_for_a_guest_that_polls(patient: tuple[Port, int]) -> None:
    port, writer = patient
    os.write(writer, b"x")
    port.put(DATA, ord("a"))
    port.get(LSR)  # as a driver does before every character it sends
    port.put(DATA, ord("b"))
    port.get(LSR)
    assert not port.watched
    port.get(LSR)
    port.look()
    assert port.drain() == b"x"
