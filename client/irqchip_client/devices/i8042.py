"""The keyboard controller of a PC/AT, an 8042, with the mouse port of a PS/2.

IBM PS/2 Hardware Interface Technical Reference, "Keyboard and auxiliary device controller": the status register, the
commands in the order of their numbers, the output buffer of one byte. Its interrupts are high while that is full.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar

from .device import Device
from .keys import SET_1, strokes
from .ps2 import BREAK, SET_1_BREAK, Keyboard, Mouse
from .saving import BYTE, FLAG, Bits, Choice, Fields, Octets, OrNone, Part, Text, TupleOf

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08  # the last byte from the host was to the command port
STATUS_UNLOCKED = 0x10
STATUS_MOUSE = 0x20  # the output buffer's byte is the mouse's

# The command byte, at 0 of the controller's memory.
KEYBOARD_INTERRUPT, MOUSE_INTERRUPT = 0x01, 0x02
SYSTEM = 0x04
KEYBOARD_OFF, MOUSE_OFF = 0x10, 0x20
TRANSLATE = 0x40


class Command(IntEnum):
    """Commands; 20h to 3fh read the controller's memory, 60h to 7fh write it, f0h to ffh pulse its outputs."""

    READ_MEMORY = 0x20
    WRITE_MEMORY = 0x60
    PASSWORD_TEST = 0xA4
    MOUSE_OFF = 0xA7
    MOUSE_ON = 0xA8
    MOUSE_TEST = 0xA9
    SELF_TEST = 0xAA
    KEYBOARD_TEST = 0xAB
    KEYBOARD_OFF = 0xAD
    KEYBOARD_ON = 0xAE
    READ_INPUTS = 0xC0
    READ_OUTPUTS = 0xD0
    WRITE_OUTPUTS = 0xD1
    WRITE_KEYBOARD_BUFFER = 0xD2
    WRITE_MOUSE_BUFFER = 0xD3
    WRITE_MOUSE = 0xD4
    PULSE = 0xF0


MEMORY = 0x20  # bytes
NO_PASSWORD = 0xF1
SELF_TEST_PASSED = 0x55
PORT_TEST_PASSED = 0x00
INPUTS_UNLOCKED = 0x80
OUTPUTS_NOT_RESET, OUTPUTS_KEYBOARD_FULL, OUTPUTS_MOUSE_FULL = 0x01, 0x10, 0x20
OUTPUTS = 0xCF  # at power-on: no reset, A20 on, clocks and data high

# Commands that have an argument.
AWAITED = (
    *range(Command.WRITE_MEMORY, Command.WRITE_MEMORY + MEMORY),
    *range(Command.WRITE_OUTPUTS, Command.WRITE_MOUSE + 1),
)

TYPED = 64  # bytes to read from a descriptor at once


class I8042(Device):
    """Keyboard and mouse at ports 60h and 64h, at first as a PC's firmware leaves them: translating, mouse off.

    gsi_keyboard, gsi_mouse  its lines
    data, command            its ports
    reset                    called when the guest resets the machine (FEh)
    input_fd                 a descriptor; the device types the characters that it reads from the descriptor
    interval                 the least seconds between typed characters
    """

    STATE: ClassVar[Fields] = {
        "memory": Octets(MEMORY),
        "outputs": Bits(OUTPUTS),
        "output": BYTE,
        "full": Choice((0, STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL | STATUS_MOUSE)),
        "_reply": OrNone(TupleOf(BYTE, FLAG)),
        "_awaits": OrNone(Choice(AWAITED)),
        "_last_was_command": FLAG,
        "_breaks": FLAG,
        "_text": Text(),
        "_typed": FLAG,
        "keyboard": Part(Keyboard.STATE),
        "mouse": Part(Mouse.STATE),
    }

    def __init__(
        self,
        gsi_keyboard: int = 1,
        gsi_mouse: int = 12,
        data: int = 0x60,
        command: int = 0x64,
        *,
        reset: Callable[[], None] | None = None,
        input_fd: int | None = None,
        interval: float = 0.01,
    ) -> None:
        super().__init__("i8042")
        self._reset = reset
        self.input_fd = input_fd
        self.interval = interval
        self.pio(data, 1, self._read_data, self._write_data)
        self.pio(command, 1, self._read_status, self._write_command)
        self._keyboard_line = self.line(gsi_keyboard)
        self._mouse_line = self.line(gsi_mouse)
        self._pause = self.timer(self._settle)
        self._watching = False
        self._text: deque[str] = deque()
        self._power_on()

    def _power_on(self) -> None:
        self._typed = False
        self.keyboard = Keyboard()
        self.mouse = Mouse()
        self.memory = bytearray(MEMORY)
        self.memory[0] = KEYBOARD_INTERRUPT | SYSTEM | MOUSE_OFF | TRANSLATE
        self.outputs = OUTPUTS
        # The output buffer: its byte, and the status bits OBF and MOUSE.
        self.output = 0
        self.full = 0
        # The byte that the controller itself puts there next, and whether it counts as the mouse's.
        self._reply: tuple[int, bool] | None = None
        # The command whose argument is the next byte to the data port.
        self._awaits: int | None = None
        self._last_was_command = False
        # The translation has seen a BREAK.
        self._breaks = False

    def started(self) -> None:
        self._watching = False  # no host has watched yet
        self._settle()

    def reset(self) -> None:
        """Resets controller, keyboard and mouse. Text that waits to be typed is typed afterwards."""
        self._pause.stop()
        self._power_on()
        self._settle()

    def restored(self) -> None:
        self._settle()

    # Ports.

    def _read_status(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        return (
            self.full
            | (STATUS_SYSTEM if self.memory[0] & SYSTEM else 0)
            | (STATUS_COMMAND if self._last_was_command else 0)
            | STATUS_UNLOCKED
        )

    def _read_data(self, offset: int, size: int) -> int:  # noqa: ARG002 - a region's signature
        """The output buffer; if it is empty, the last byte again."""
        value = self.output
        if self.full:
            self.full = 0
            self._drive()  # The next byte is an edge of its own.
            self._settle()
        return value

    def _write_data(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        command, self._awaits = self._awaits, None
        self._last_was_command = False
        match command:
            case None:
                self.memory[0] &= ~KEYBOARD_OFF
                self.keyboard.write(value)
            case Command.WRITE_OUTPUTS:
                self._write_outputs(value)
            case Command.WRITE_KEYBOARD_BUFFER | Command.WRITE_MOUSE_BUFFER:
                self._reply = value, command == Command.WRITE_MOUSE_BUFFER
            case Command.WRITE_MOUSE:
                self.memory[0] &= ~MOUSE_OFF
                self.mouse.write(value)
            case _:
                self.memory[command - Command.WRITE_MEMORY] = value
        self._settle()

    def _write_command(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - a region's signature
        self._awaits = None
        self._last_was_command = True
        match value:
            case _ if Command.READ_MEMORY <= value < Command.READ_MEMORY + MEMORY:
                self._answer(self.memory[value - Command.READ_MEMORY])
            case _ if Command.WRITE_MEMORY <= value < Command.WRITE_MEMORY + MEMORY:
                self._awaits = value
            case Command.PASSWORD_TEST:
                self._answer(NO_PASSWORD)
            case Command.MOUSE_OFF:
                self.memory[0] |= MOUSE_OFF
            case Command.MOUSE_ON:
                self.memory[0] &= ~MOUSE_OFF
            case Command.MOUSE_TEST | Command.KEYBOARD_TEST:
                self._answer(PORT_TEST_PASSED)
            case Command.SELF_TEST:
                self.memory[0] |= SYSTEM
                self._answer(SELF_TEST_PASSED)
            case Command.KEYBOARD_OFF:
                self.memory[0] |= KEYBOARD_OFF
            case Command.KEYBOARD_ON:
                self.memory[0] &= ~KEYBOARD_OFF
            case Command.READ_INPUTS:
                self._answer(INPUTS_UNLOCKED)
            case Command.READ_OUTPUTS:
                self._answer(self._outputs)
            case (
                Command.WRITE_OUTPUTS | Command.WRITE_KEYBOARD_BUFFER | Command.WRITE_MOUSE_BUFFER | Command.WRITE_MOUSE
            ):
                self._awaits = value
            case _ if value >= Command.PULSE and not value & OUTPUTS_NOT_RESET:
                self._reset_machine()
        self._settle()

    # The output buffer.

    def _answer(self, value: int) -> None:
        self._reply = value, False

    def _settle(self) -> None:
        """After any change: sends the next byte, and drives the lines."""
        self._type()
        if not self.full:
            self._fill()
        self._drive()

    def _fill(self) -> None:
        if self._reply is not None:
            self.output, mouse = self._reply
            self._reply = None
            self.full = STATUS_OUTPUT_FULL | (STATUS_MOUSE if mouse else 0)
            return
        if not self.memory[0] & KEYBOARD_OFF:
            while (byte := self.keyboard.take()) is not None:
                if (code := self._translated(byte)) is not None:
                    self.output, self.full = code, STATUS_OUTPUT_FULL
                    return
        if not self.memory[0] & MOUSE_OFF and (byte := self.mouse.take()) is not None:
            self.output, self.full = byte, STATUS_OUTPUT_FULL | STATUS_MOUSE

    def _translated(self, byte: int) -> int | None:
        """The keyboard's byte as the host sees it; None for BREAK, which becomes a bit of the next byte."""
        if not self.memory[0] & TRANSLATE:
            return byte
        if byte == BREAK:
            self._breaks = True
            return None
        breaks, self._breaks = self._breaks, False
        return SET_1[byte] | (SET_1_BREAK if breaks else 0)

    def _drive(self) -> None:
        mode = self.memory[0]
        mouse = bool(self.full & STATUS_MOUSE)
        self._keyboard_line.set(bool(self.full and not mouse and mode & KEYBOARD_INTERRUPT and not mode & KEYBOARD_OFF))
        self._mouse_line.set(bool(mouse and mode & MOUSE_INTERRUPT))

    # The output port.

    @property
    def _outputs(self) -> int:
        if not self.full:
            return self.outputs
        return self.outputs | (OUTPUTS_MOUSE_FULL if self.full & STATUS_MOUSE else OUTPUTS_KEYBOARD_FULL)

    def _write_outputs(self, value: int) -> None:
        """A20 is kept and gates nothing."""
        self.outputs = (value | OUTPUTS_NOT_RESET) & ~(OUTPUTS_KEYBOARD_FULL | OUTPUTS_MOUSE_FULL)
        if not value & OUTPUTS_NOT_RESET:
            self._reset_machine()

    def _reset_machine(self) -> None:
        if self._reset is not None:
            self._reset()

    # The user.

    def press(self, key: str) -> None:
        """Presses a key. keys.KEYS has the names; KeyError for any other name."""
        self.keyboard.press(key)
        self._settle()

    def release(self, key: str) -> None:
        """Releases a key."""
        self.keyboard.release(key)
        self._settle()

    def move(self, dx: int, dy: int, buttons: int = 0, wheel: int = 0) -> None:
        """Moves the mouse to the right and up, in counts.

        buttons  the buttons that are down: 1 left, 2 right, 4 middle
        wheel    the steps that the wheel turns down
        """
        self.mouse.move(dx, dy, buttons, wheel)
        self._settle()

    def type_text(self, text: str) -> None:
        """Types on a US keyboard, as fast as the guest reads. Skips characters without a key."""
        self._text.extend(text)
        self._settle()

    def _type(self) -> None:
        """Types the next character, a while after the guest read the last: a loop that empties the buffer ends."""
        taken = self.keyboard.idle and not self.full and not self.memory[0] & KEYBOARD_OFF
        if taken and self._typed:
            self._typed = False
            self._pause.start(self.interval)
        elif taken and self._pause.due is None:
            while self._text and not self._typed:
                keys = strokes(self._text.popleft())
                for key in keys:
                    self.keyboard.press(key)
                for key in reversed(keys):
                    self.keyboard.release(key)
                self._typed = bool(keys)
        watching = self.input_fd is not None and not self._text
        if self.input_fd is not None and watching != self._watching:
            self._watching = watching
            self.host.watch(self.input_fd, self._input_ready if watching else None)

    def attach(self, input_fd: int | None) -> None:
        """Types from another descriptor; with None, from no descriptor."""
        if self.input_fd is not None and self._watching:
            self.host.watch(self.input_fd, None)
        self._watching = False
        self.input_fd = input_fd
        self._settle()

    def _input_ready(self) -> None:
        if self.input_fd is None:
            return
        try:
            data = os.read(self.input_fd, TYPED)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # The terminal's other end is closed.
            data = b""
        if data:
            self.type_text(data.decode("latin-1"))
        else:
            self.attach(None)
