"""A PS/2 keyboard and a PS/2 mouse, for a keyboard controller.

IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-key)" and "Mouse". Each is a microcontroller of
its own, which takes commands and has a queue of bytes to send. The answer to a command goes before all other bytes.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import ClassVar

from .keys import EXTENDED, KEYS, SET_1
from .saving import BYTE, FLAG, Bits, Choice, Fields, Number, OrNone, Queue

QUEUE = 16  # bytes
OVERRUN = 0x00
BREAK = 0xF0  # set 2: the next key is released
SET_1_BREAK = 0x80

ACK = 0xFA
RESEND = 0xFE
SELF_TEST_PASSED = 0xAA


class Peripheral:
    """The common parts of keyboard and mouse.

    STATE  see saving.py
    """

    STATE: ClassVar[Fields] = {"replies": Queue(BYTE, QUEUE), "last": BYTE}

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.replies: deque[int] = deque()
        self.last = 0
        # The command that waits for its argument.
        self.awaits: int | None = None

    def take(self) -> int | None:
        """Takes the next byte to send; None if there is no byte."""
        replies = self.replies or self.queue
        if not replies:
            return None
        self.last = replies.popleft()
        return self.last

    def reply(self, *data: int) -> None:
        """Queues an answer, as far as the queue has room."""
        self.replies.extend(data[: QUEUE - len(self.replies)])


class KeyboardCommand(IntEnum):
    """Commands to a keyboard."""

    LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    TYPEMATIC = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


KEYBOARD_ID = (0xAB, 0x83)


class Keyboard(Peripheral):
    """A keyboard of 101 keys, with scan code sets 1 and 2. A held key does not repeat."""

    STATE: ClassVar[Fields] = {
        **Peripheral.STATE,
        "queue": Queue(BYTE, QUEUE + 1),  # with the overrun
        "awaits": OrNone(
            Choice((KeyboardCommand.LEDS, KeyboardCommand.SCAN_CODE_SET, KeyboardCommand.TYPEMATIC)),
        ),
        "scanning": FLAG,
        "scan_code_set": Choice((1, 2)),
        "leds": Bits(7),
    }

    def __init__(self) -> None:
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self.scanning = True
        self.scan_code_set = 2
        self.leds = 0
        self.queue.clear()

    def write(self, value: int) -> None:
        """A byte from the host: a command, or its argument. "Commands from the system"."""
        command, self.awaits = self.awaits, None
        match command:
            case KeyboardCommand.LEDS:
                self.leds = value & 7
                self.reply(ACK)
            case KeyboardCommand.TYPEMATIC:
                self.reply(ACK)
            case KeyboardCommand.SCAN_CODE_SET:
                self._select(value)
            case _:
                self._command(value)

    def _select(self, number: int) -> None:
        if number == 0:
            self.reply(ACK, self.scan_code_set)
        elif number in (1, 2):
            self.scan_code_set = number
            self.reply(ACK)
        else:
            self.reply(RESEND)

    def _command(self, value: int) -> None:
        match value:
            case KeyboardCommand.LEDS | KeyboardCommand.SCAN_CODE_SET | KeyboardCommand.TYPEMATIC:
                self.awaits = value
                self.reply(ACK)
            case KeyboardCommand.ECHO:
                self.reply(KeyboardCommand.ECHO)
            case KeyboardCommand.IDENTIFY:
                self.reply(ACK, *KEYBOARD_ID)
            case KeyboardCommand.ENABLE:
                self.queue.clear()
                self.scanning = True
                self.reply(ACK)
            case KeyboardCommand.DISABLE | KeyboardCommand.DEFAULTS:
                self._reset()
                self.scanning = value == KeyboardCommand.DEFAULTS
                self.reply(ACK)
            case KeyboardCommand.RESEND:
                self.reply(self.last)
            case KeyboardCommand.RESET:
                self._reset()
                self.replies.clear()
                self.reply(ACK, SELF_TEST_PASSED)
            case _:
                self.reply(RESEND)

    @property
    def idle(self) -> bool:
        """Whether a key press would be sent at once."""
        return self.scanning and self.awaits is None and not self.queue and not self.replies

    def press(self, key: str) -> None:
        """A key goes down. KeyError for an unknown name."""
        self._send(KEYS[key], released=False)

    def release(self, key: str) -> None:
        """A key goes up. KeyError for an unknown name."""
        self._send(KEYS[key], released=True)

    def _send(self, key: int, *, released: bool) -> None:
        if not self.scanning:
            return
        codes = [key >> 8] if key >= EXTENDED else []
        if self.scan_code_set == 1:
            codes.append(SET_1[key & 0xFF] | (SET_1_BREAK if released else 0))
        else:
            codes += [BREAK] if released else []
            codes.append(key & 0xFF)
        if len(self.queue) + len(codes) <= QUEUE:
            self.queue.extend(codes)
        elif self.queue[-1] != OVERRUN:  # "Keyboard buffer": it takes the 17th place
            self.queue.append(OVERRUN)


class MouseCommand(IntEnum):
    """Commands to a mouse."""

    SCALING_1_1 = 0xE6
    SCALING_2_1 = 0xE7
    RESOLUTION = 0xE8
    STATUS = 0xE9
    STREAM_MODE = 0xEA
    READ_DATA = 0xEB
    RESET_WRAP = 0xEC
    WRAP = 0xEE
    REMOTE_MODE = 0xF0
    IDENTIFY = 0xF2
    SAMPLE_RATE = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


STATUS_REMOTE, STATUS_REPORTING, STATUS_SCALING = 0x40, 0x20, 0x10
PACKET_ALWAYS, PACKET_X_SIGN, PACKET_Y_SIGN = 0x08, 0x10, 0x20
LEFT, RIGHT, MIDDLE = 0x01, 0x02, 0x04  # buttons
MOUSE_ID, WHEEL_ID = 0x00, 0x03
WHEEL_KNOCK = [200, 100, 80]  # Microsoft: these sample rates in succession turn it into an IntelliMouse
FURTHEST = 127  # counts, in one packet
MOST_COUNTS = 1 << 16  # that are remembered


class Mouse(Peripheral):
    """A mouse of three buttons, with a wheel after WHEEL_KNOCK."""

    STATE: ClassVar[Fields] = {
        **Peripheral.STATE,
        "queue": Queue(BYTE, 4),  # a packet
        "awaits": OrNone(Choice((MouseCommand.RESOLUTION, MouseCommand.SAMPLE_RATE))),
        "buttons": Bits(LEFT | RIGHT | MIDDLE),
        "identity": Choice((MOUSE_ID, WHEEL_ID)),
        "wrap": FLAG,
        "reporting": FLAG,
        "remote": FLAG,
        "scaling": FLAG,
        "resolution": Bits(3),
        "rate": BYTE,
        "_rates": Queue(BYTE, len(WHEEL_KNOCK), keeps=len(WHEEL_KNOCK)),
        **dict.fromkeys(("x", "y", "z"), Number(-MOST_COUNTS, MOST_COUNTS)),
        "_changed": FLAG,
    }

    def __init__(self) -> None:
        super().__init__()
        self.buttons = 0
        self._reset()

    def _reset(self) -> None:
        self.identity = MOUSE_ID
        self.wrap = False
        self._defaults()

    def _defaults(self) -> None:
        self.reporting = False
        self.remote = False
        self.scaling = False
        self.resolution = 2  # 4 counts a mm
        self.rate = 100  # a second
        self._rates: deque[int] = deque(maxlen=len(WHEEL_KNOCK))
        self._forget()

    def _forget(self) -> None:
        """Clears the movement counters."""
        self.x = self.y = self.z = 0
        self._changed = False

    def write(self, value: int) -> None:
        """A byte from the host: a command, or its argument. "Mouse commands"."""
        self.queue.clear()  # Cuts off a packet that is being sent.
        command, self.awaits = self.awaits, None
        if command == MouseCommand.RESOLUTION:
            self.resolution = value & 3
            self.reply(ACK)
        elif command == MouseCommand.SAMPLE_RATE:
            self.rate = value
            self._rates.append(value)
            if list(self._rates) == WHEEL_KNOCK:
                self.identity = WHEEL_ID
            self.reply(ACK)
        elif self.wrap and value not in (MouseCommand.RESET_WRAP, MouseCommand.RESET):
            self.reply(value)
        else:
            self._command(value)

    def _command(self, value: int) -> None:
        match value:
            case MouseCommand.RESET:
                self._reset()
                self.replies.clear()
                self.reply(ACK, SELF_TEST_PASSED, self.identity)
            case MouseCommand.RESEND:
                self.reply(self.last)
            case MouseCommand.IDENTIFY:
                self.reply(ACK, self.identity)
            case MouseCommand.STATUS:
                self.reply(ACK, self._status, self.resolution, self.rate)
            case MouseCommand.READ_DATA:
                self.reply(ACK, *self._packet())
            case value if value in list(MouseCommand):
                self._set(value)
                self.reply(ACK)
            case _:
                self.reply(RESEND)

    def _set(self, command: int) -> None:
        match command:
            case MouseCommand.SCALING_1_1 | MouseCommand.SCALING_2_1:
                self.scaling = command == MouseCommand.SCALING_2_1
            case MouseCommand.RESOLUTION | MouseCommand.SAMPLE_RATE:
                self.awaits = command
            case MouseCommand.RESET_WRAP | MouseCommand.WRAP:
                self.wrap = command == MouseCommand.WRAP
            case MouseCommand.STREAM_MODE | MouseCommand.REMOTE_MODE:
                self.remote = command == MouseCommand.REMOTE_MODE
                self._forget()
            case MouseCommand.ENABLE | MouseCommand.DISABLE:
                self.reporting = command == MouseCommand.ENABLE
                self._forget()
            case MouseCommand.DEFAULTS:
                self._defaults()

    @property
    def _status(self) -> int:
        """The first byte of STATUS; its buttons are in another order than a packet's."""
        return (
            (STATUS_REMOTE if self.remote else 0)
            | (STATUS_REPORTING if self.reporting else 0)
            | (STATUS_SCALING if self.scaling else 0)
            | (self.buttons & LEFT) << 2
            | (self.buttons & MIDDLE) >> 1
            | (self.buttons & RIGHT) >> 1
        )

    def move(self, dx: int, dy: int, buttons: int, wheel: int = 0) -> None:
        """Moves by counts, to the right and up; sets the buttons that are down; turns the wheel down."""
        if self.reporting or self.remote:
            self.x, self.y, self.z = (
                max(-MOST_COUNTS, min(MOST_COUNTS, count)) for count in (self.x + dx, self.y + dy, self.z + wheel)
            )
        if dx or dy or wheel or buttons != self.buttons:
            self._changed = self.reporting
        self.buttons = buttons & (LEFT | RIGHT | MIDDLE)

    def take(self) -> int | None:
        """In stream mode, queues a packet if anything happened and the queue is empty."""
        if self._changed and not self.queue and self.reporting and not (self.remote or self.wrap):
            self.queue.extend(self._packet())
        return super().take()

    def _packet(self) -> list[int]:
        """The packet of the changes since the last one, as far as one packet can hold them."""
        x, y, z = (max(-FURTHEST, min(FURTHEST, count)) for count in (self.x, self.y, self.z))
        self.x, self.y, self.z = self.x - x, self.y - y, (self.z - z if self.identity == WHEEL_ID else 0)
        self._changed = bool(self.x or self.y or self.z)
        signs = (PACKET_X_SIGN if x < 0 else 0) | (PACKET_Y_SIGN if y < 0 else 0)
        packet = [PACKET_ALWAYS | signs | self.buttons, x & 0xFF, y & 0xFF]
        return [*packet, z & 0xFF] if self.identity == WHEEL_ID else packet
