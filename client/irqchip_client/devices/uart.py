"""The 16550A UART of a PC's serial port.

National Semiconductor PC16550D datasheet (TL/C/8652), section 8, "Registers". Its clock is 1.8432 MHz and its OUT2 pin
gates the interrupt, as on an IBM PC/AT. Where real parts differ, this UART behaves as QEMU's (hw/char/serial.c), which
most software knows.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

from irqchip_client._errors import InvalidArgument

from .device import Device
from .output import Output, output_to
from .saving import BYTE, FLAG, Bits, Fields, Number, OrNone, Queue, TupleOf, refused

PORTS = 8
CLOCK = 1_843_200  # Hz
FIFO = 16  # characters
RETRY = 0.01  # seconds before refused output is tried again


class Register(IntEnum):
    """Offsets; with DLAB the first two are the divisor latch."""

    DATA = DLL = 0
    IER = DLM = 1
    IIR = FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


# 8.1 Line control register.
LCR_WORD_LENGTH = 0x03  # less 5 bits
LCR_STOP_BITS = 0x04
LCR_PARITY = 0x08
LCR_BREAK = 0x40
LCR_DLAB = 0x80
LCR_8N1 = 0x03

# 8.3 Line status register.
LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_PARITY, LSR_FRAMING, LSR_BREAK = 0x04, 0x08, 0x10  # errors of a character, kept with it in the FIFO
LSR_THR_EMPTY = 0x20
LSR_EMPTY = 0x40
LSR_FIFO_ERROR = 0x80
LSR_CHARACTER = LSR_PARITY | LSR_FRAMING | LSR_BREAK

# 8.4 FIFO control register.
FCR_ENABLE = 0x01
FCR_CLEAR_RECEIVER, FCR_CLEAR_TRANSMITTER = 0x02, 0x04
FCR_DMA = 0x08
FCR_TRIGGER = (1, 4, 8, 14)  # characters, by bits 7:6

# 8.5 Interrupt identification register, highest priority first.
IIR_LINE_STATUS = 0x06
IIR_TIMEOUT = 0x0C
IIR_RECEIVED = 0x04
IIR_THR_EMPTY = 0x02
IIR_MODEM_STATUS = 0x00
IIR_NONE = 0x01
IIR_FIFOS = 0xC0

# 8.6 Interrupt enable register.
IER_RECEIVED, IER_THR_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 0x01, 0x02, 0x04, 0x08
IER_BITS = 0x0F

# 8.7 Modem control register.
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_BITS = 0x1F

# 8.8 Modem status register. Bits 3:0 report changes of bits 7:4; for RI, only its end.
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TRAILING_RI = 0x04


class Uart(Device):
    """A serial port. The public attributes are its registers, at first as a PC's firmware leaves them.

    output      a descriptor, or a function, that gets the transmitted characters; while it accepts nothing (a pipe that
                is full or has no reader), the transmitter waits, and nothing is lost
    input_fd    a descriptor, from which the device receives characters while the FIFO has room
    base, gsi   the first port, and the line
    mmio        base is an address, and not a port
    paced       a character takes its time on the wire; otherwise it takes none
    out2_gates  the line needs MCR's OUT2, as on a PC; QEMU's 16550A does not need it
    patient     input waits until the guest is ready, that is, until it enables the interrupt or polls; otherwise a
                guest loses the input that comes before it has set the port up
    """

    STATE: ClassVar[Fields] = {
        "lcr": BYTE,
        "divisor": Number(0, 0xFFFF),
        "errors": Bits(LSR_OVERRUN | LSR_CHARACTER),
        "fcr": Bits(FCR_ENABLE | FCR_DMA | 0xF0),
        "ier": Bits(IER_BITS),
        "mcr": Bits(MCR_BITS),
        "scr": BYTE,
        "modem": Bits(0xF0),
        "changes": Bits(0x0F),
        "received": Queue(TupleOf(BYTE, Bits(LSR_CHARACTER)), FIFO),
        "last": BYTE,
        "timeout": FLAG,
        "transmitted": Queue(BYTE, FIFO),
        "shifting": OrNone(BYTE),
        "thr_emptied": FLAG,
    }

    def __init__(
        self,
        output: Output | int,
        input_fd: int | None = None,
        base: int = 0x3F8,
        gsi: int = 4,
        *,
        mmio: bool = False,
        paced: bool = False,
        out2_gates: bool = True,
        patient: bool = False,
    ) -> None:
        super().__init__("16550A")
        if not callable(output) and not isinstance(output, int):
            raise InvalidArgument(errno.EINVAL, f"Uart: output is {output!r:.100}: write a descriptor or a function")
        self._output = output_to(output) if isinstance(output, int) else output
        self.input_fd = input_fd
        self.paced = paced
        self.out2_gates = out2_gates
        (self.mmio if mmio else self.pio)(base, PORTS, self.read, self.write, width=1)
        self._line = self.line(gsi)
        self._sent = self.timer(self._character_sent)
        self._quiet = self.timer(self._nothing_came)
        self._watching = False
        self._ready = not patient
        self._looked = False  # The last access was a read of LSR that showed no character.
        self._power_on()

    def _power_on(self) -> None:
        self.lcr = LCR_8N1
        self.divisor = 12  # 9600 baud
        # The errors that LSR shows, until it is read.
        self.errors = 0
        self.fcr = 0
        self.ier = 0
        self.mcr = MCR_OUT2
        self.scr = 0
        # The inputs, as MSR's bits 7:4, and the changes in its bits 3:0.
        self.modem = MSR_CTS | MSR_DSR | MSR_DCD
        self.changes = 0
        # Receiver FIFO: characters, each with its errors. Without FIFOs it holds one: the receiver buffer register.
        self.received: deque[tuple[int, int]] = deque()
        self.last = 0
        self.timeout = False
        # Transmitter FIFO, or holding register, and shift register.
        self.transmitted: deque[int] = deque()
        self.shifting: int | None = None
        # The interrupt is not a level of LSR's: reading IIR takes it back.
        self.thr_emptied = False

    def started(self) -> None:
        self._watching = False  # no host has watched yet
        self._settle()

    def reset(self) -> None:
        """Sets the registers as firmware leaves them. Characters that wait to be sent or read are lost."""
        self._sent.stop()
        self._quiet.stop()
        self._power_on()
        self._settle()

    def check_state(self, values: Mapping[str, Any]) -> None:
        fcr = values["fcr"]
        if fcr and not fcr & FCR_ENABLE:
            raise refused("state.fcr", fcr, "0 without FIFOs")
        room = FIFO if fcr else 1
        for name in ("received", "transmitted"):
            if len(values[name]) > room:
                raise refused(f"state.{name}", list(values[name]), f"at most {room} characters, by state.fcr")
        if values["transmitted"] and values["shifting"] is None:
            raise refused("state.shifting", None, "a character while others wait to be transmitted")

    def restored(self) -> None:
        if self.shifting is not None and self._sent.due is None:
            self._sent.start(RETRY)
        self._settle()

    # Registers.

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - all registers are bytes
        """A guest's IN."""
        looked, self._looked = self._looked, False
        match offset:
            case Register.DLL if self.lcr & LCR_DLAB:
                return self.divisor & 0xFF
            case Register.DLM if self.lcr & LCR_DLAB:
                return self.divisor >> 8
            case Register.DATA:
                return self._read_data()
            case Register.IER:
                return self.ier
            case Register.IIR:
                return self._read_iir()
            case Register.LCR:
                return self.lcr
            case Register.MCR:
                return self.mcr
            case Register.LSR:
                value = self._read_lsr()
                self._looked = not value & LSR_DATA_READY and bool(value & LSR_THR_EMPTY)
                if looked and self._looked:  # Twice in a row: the guest waits for a character.
                    self._be_ready()
                return value
            case Register.MSR:
                value, self.changes = self._modem_lines() | self.changes, 0
                self._settle()
                return value
            case _:
                return self.scr

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - all registers are bytes
        """A guest's OUT."""
        self._looked = False
        match offset:
            case Register.DLL if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF00 | value
            case Register.DLM if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF | value << 8
            case Register.DATA:
                self._write_data(value)
            case Register.IER:
                self._write_ier(value & IER_BITS)
            case Register.FCR:
                self._write_fcr(value)
            case Register.LCR:
                started = value & ~self.lcr & LCR_BREAK
                self.lcr = value
                if started and self.mcr & MCR_LOOP:
                    self._receive(0, LSR_BREAK)
            case Register.MCR:
                before, self.mcr = self._modem_lines(), value & MCR_BITS
                self._modem_changed(before)
            case Register.SCR:
                self.scr = value
        self._settle()

    # 8.3 Line status.

    def _read_lsr(self) -> int:
        value = self.errors
        if self.received:
            value |= LSR_DATA_READY
        if self.fcr & FCR_ENABLE and (self.errors & LSR_CHARACTER or any(errors for _, errors in self.received)):
            value |= LSR_FIFO_ERROR
        if not self.transmitted:
            value |= LSR_THR_EMPTY
            if self.shifting is None:
                value |= LSR_EMPTY
        self.errors = 0
        self._settle()
        return value

    # 8.4 FIFOs.

    @property
    def _room(self) -> int:
        """The number of further characters that the receiver can hold."""
        return (FIFO if self.fcr & FCR_ENABLE else 1) - len(self.received)

    def _write_fcr(self, value: int) -> None:
        if (value ^ self.fcr) & FCR_ENABLE:
            value |= FCR_CLEAR_RECEIVER | FCR_CLEAR_TRANSMITTER
        elif not value & FCR_ENABLE:  # Without this bit the others have no effect.
            return
        if value & FCR_CLEAR_RECEIVER:
            self.received.clear()
            self.timeout = False
            self._quiet.stop()
        if value & FCR_CLEAR_TRANSMITTER:
            self.transmitted.clear()
            self.thr_emptied = True  # QEMU: hw/char/serial.c; even if it was empty
        self.fcr = value & ~(FCR_CLEAR_RECEIVER | FCR_CLEAR_TRANSMITTER) if value & FCR_ENABLE else 0

    @property
    def _triggered(self) -> bool:
        return len(self.received) >= (FCR_TRIGGER[self.fcr >> 6] if self.fcr & FCR_ENABLE else 1)

    @property
    def character_time(self) -> float:
        """Returns how many seconds a character takes on the wire: start, data, parity and stop bits."""
        bits = 1 + 5 + (self.lcr & LCR_WORD_LENGTH) + bool(self.lcr & LCR_PARITY) + 1 + bool(self.lcr & LCR_STOP_BITS)
        return bits * 16 * max(self.divisor, 1) / CLOCK

    # 8.5, 8.6 Interrupts.

    @property
    def _cause(self) -> int:
        """Bits 3:0 of IIR."""
        if self.ier & IER_LINE_STATUS and self.errors:
            return IIR_LINE_STATUS
        if self.ier & IER_RECEIVED and self.timeout:
            return IIR_TIMEOUT
        if self.ier & IER_RECEIVED and self._triggered:
            return IIR_RECEIVED
        if self.ier & IER_THR_EMPTY and self.thr_emptied:
            return IIR_THR_EMPTY
        if self.ier & IER_MODEM_STATUS and self.changes:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _read_iir(self) -> int:
        cause = self._cause
        if cause == IIR_THR_EMPTY:
            self.thr_emptied = False
            self._settle()
        return cause | (IIR_FIFOS if self.fcr & FCR_ENABLE else 0)

    def _write_ier(self, value: int) -> None:
        # Enabling this interrupt again raises it if THR is empty. Linux tests for it; the datasheet leaves it out.
        if (value ^ self.ier) & IER_THR_EMPTY:
            self.thr_emptied = bool(value & IER_THR_EMPTY) and not self.transmitted
        # The timeout was not enabled before.
        if value & ~self.ier & IER_RECEIVED:
            self._be_ready()
            self.ier = value
            self._await_more()
        self.ier = value

    def _settle(self) -> None:
        """After any change: drives the line, and watches the input if there is room."""
        self._line.set(self._cause != IIR_NONE and bool(self.mcr & MCR_OUT2 or not self.out2_gates))
        # In loopback SIN is disconnected: input waits outside.
        watching = self.input_fd is not None and self._ready and self._room > 0 and not self.mcr & MCR_LOOP
        if self.input_fd is not None and watching != self._watching:
            self._watching = watching
            self.host.watch(self.input_fd, self._input_ready if watching else None)

    def _be_ready(self) -> None:
        """The guest is ready for input."""
        if not self._ready:
            self._ready = True
            self._settle()

    # 8.7, 8.8 Modem lines.

    def _modem_lines(self) -> int:
        """MSR's bits 7:4; in loopback they are the outputs."""
        if not self.mcr & MCR_LOOP:
            return self.modem
        loops = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(status for control, status in loops if self.mcr & control)

    def _modem_changed(self, before: int) -> None:
        now = self._modem_lines()
        changes = (before ^ now) >> 4
        if now & MSR_RI:
            changes &= ~MSR_TRAILING_RI
        self.changes |= changes

    def set_modem(self, lines: int) -> None:
        """Sets the modem lines CTS, DSR, RI and DCD, in the order of MSR's bits 7:4."""
        before, self.modem = self._modem_lines(), lines & 0xF0
        self._modem_changed(before)
        self._settle()

    # Receiver.

    def receive(self, data: bytes, errors: int = 0) -> None:
        """Receives characters, even without room (an overrun). `errors` is LSR's bits for parity, framing, break."""
        for character in data:
            self._receive(character, errors & LSR_CHARACTER)
        self._settle()

    def receive_break(self) -> None:
        """Receives a break: one character, 0."""
        self.receive(b"\0", LSR_BREAK)

    def _receive(self, character: int, errors: int) -> None:
        character &= self._mask
        if self._room > 0:
            self.received.append((character, errors))
        else:
            self.errors |= LSR_OVERRUN
            if not self.fcr & FCR_ENABLE:  # The receiver buffer is overwritten; the FIFO is not.
                self.received[-1] = character, errors
        self._show_errors()
        self._await_more()

    def _show_errors(self) -> None:
        """Moves the errors of the next character to LSR."""
        if self.received and self.received[0][1]:
            character, errors = self.received[0]
            self.received[0] = character, 0
            self.errors |= errors

    def _read_data(self) -> int:
        """RBR. Without a new character, the last one again; from an empty FIFO, 0."""
        if self.received:
            self.last, _ = self.received.popleft()
        elif self.fcr & FCR_ENABLE:
            self.last = 0
        character = self.last
        self.timeout = False
        self._show_errors()
        self._await_more()
        self._settle()
        return character

    def _await_more(self) -> None:
        """Restarts the timeout of four character times, after the FIFO was written or read."""
        if self.fcr & FCR_ENABLE and self.received and self.ier & IER_RECEIVED:
            self._quiet.start(4 * self.character_time)
        elif self._quiet.due is not None:
            self._quiet.stop()

    def _nothing_came(self) -> None:
        if self.received:
            self.timeout = True
            self._settle()

    def attach(self, input_fd: int | None) -> None:
        """Receives from another descriptor; with None, from no descriptor."""
        if self.input_fd is not None and self._watching:
            self.host.watch(self.input_fd, None)
        self._watching = False
        self.input_fd = input_fd
        self._settle()

    def _input_ready(self) -> None:
        if self.input_fd is None or self._room <= 0:
            return
        try:
            data = os.read(self.input_fd, self._room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # The terminal's other end is closed.
            data = b""
        if data:
            self.receive(data)
        else:
            self.attach(None)

    # Transmitter.

    @property
    def _mask(self) -> int:
        """The bits of a character that go over the wire."""
        return (1 << 5 + (self.lcr & LCR_WORD_LENGTH)) - 1

    def _write_data(self, value: int) -> None:
        """THR. If the FIFO is full, the character replaces the oldest, as in QEMU."""
        if len(self.transmitted) >= (FIFO if self.fcr & FCR_ENABLE else 1):
            self.transmitted.popleft()
        self.transmitted.append(value)
        self.thr_emptied = False
        # The line goes low in between, also if the character leaves at once: an edge per character.
        self._settle()
        self._transmit()

    def _transmit(self) -> None:
        """Moves characters to the shift register, while it is empty."""
        while self.shifting is None and self.transmitted:
            self.shifting = self.transmitted.popleft()
            if not self.transmitted:
                self.thr_emptied = True
            if self.paced:
                self._sent.start(self.character_time)
            else:
                self._send()

    def _send(self) -> None:
        """Sends the shift register's character, or waits if the output refuses it."""
        assert self.shifting is not None
        character = self.shifting & self._mask
        if self.mcr & MCR_LOOP:
            self._receive(character, 0)
        elif self._output(bytes((character,))) is False:
            self._sent.start(RETRY)
            return
        self.shifting = None

    def _character_sent(self) -> None:
        """The end of a character's time on the wire, or of the wait before another try."""
        if self.shifting is not None:
            self._send()
            self._transmit()
            self._settle()
