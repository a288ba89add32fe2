"""The keyboard controller, keyboard and mouse, as Linux's i8042, atkbd and psmouse use them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_client.devices.i8042 import I8042
from irqchip_client.devices.keys import KEYS, SET_1
from tests.devices.bench import Bench

DATA, COMMAND = 0x60, 0x64
KEYBOARD, MOUSE = 1, 12  # GSIs
FULL, FROM_MOUSE = 0x01, 0x20  # status
ACK, RESEND = 0xFA, 0xFE
RAW = 0x03  # command bytes: interrupts, no translation
TRANSLATED = 0x43


class Pc(Bench):
    """A controller, with a count of the machine's resets."""

    def __init__(self, *, input_fd: int | None = None) -> None:
        self.resets = 0
        self.i8042 = I8042(KEYBOARD, MOUSE, DATA, COMMAND, reset=self.reset, input_fd=input_fd)
        super().__init__(self.i8042)

    def reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *data: int) -> list[int]:
        """Send a command with its arguments; returns the bytes then in the output buffer."""
        self.write(COMMAND, command)
        for byte in data:
            self.write(DATA, byte)
        return self.take()

    def take(self) -> list[int]:
        """All bytes in the output buffer, without time passing."""
        data = []
        while self.read(COMMAND) & FULL:
            data.append(self.read(DATA))
        return data

    def keyboard(self, *data: int) -> list[int]:
        for byte in data:
            self.write(DATA, byte)
        return self.take()

    def mouse(self, *data: int) -> list[int]:
        taken: list[int] = []
        for byte in data:
            self.write(COMMAND, 0xD4)
            self.write(DATA, byte)
            while self.read(COMMAND) & FULL:
                assert self.read(COMMAND) & FROM_MOUSE
                taken.append(self.read(DATA))
        return taken


@pytest.fixture
def pc() -> Pc:
    return Pc()


@pytest.fixture
def raw(pc: Pc) -> Pc:
    pc.command(0x60, RAW)
    return pc


# The controller.


@pytest.mark.parametrize(
    ("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0xC0, 0x80), (0xA4, 0xF1), (0xD0, 0xCF)]
)
def test_commands_are_answered(pc: Pc, command: int, answer: int) -> None:
    assert pc.command(command) == [answer]


def test_the_command_byte_and_the_memory_behind_it_are_kept(pc: Pc) -> None:
    assert pc.command(0x20) == [0x65]
    for at in range(0x20):
        assert pc.command(0x60 + at, at ^ 0x47) == []
    assert [pc.command(0x20 + at) for at in range(0x20)] == [[at ^ 0x47] for at in range(0x20)]


def test_the_status_says_which_device_sent_the_last_byte(pc: Pc) -> None:
    pc.write(COMMAND, 0x60)
    assert pc.read(COMMAND) == 0x1C
    pc.write(DATA, 0x40)
    assert pc.read(COMMAND) == 0x10
    pc.command(0xAA)
    assert pc.read(COMMAND) == 0x1C  # the system flag


def test_the_interfaces_are_turned_off_and_on(pc: Pc) -> None:
    """Linux: i8042.c i8042_check_aux() looks for these bits."""
    seen = []
    for command in (0xA7, 0xA8, 0xA7, 0xAD, 0xAE):
        pc.command(command)
        seen += pc.command(0x20)
    assert seen == [0x65, 0x45, 0x65, 0x75, 0x65]


def test_a_keyboard_that_is_off_keeps_its_keys(raw: Pc) -> None:
    raw.command(0xAD)
    raw.i8042.press("a")
    assert raw.take() == []
    raw.write(COMMAND, 0xAE)
    assert raw.level(KEYBOARD)
    assert raw.take() == [0x1C]


def test_bytes_written_to_the_buffers_are_read_as_keyboard_and_mouse_data(pc: Pc) -> None:
    pc.command(0x60, RAW)
    pc.write(COMMAND, 0xD2)
    pc.write(DATA, 0x12)
    assert (pc.read(COMMAND) & 0x21, pc.level(KEYBOARD), pc.level(MOUSE)) == (FULL, True, False)
    assert pc.read(DATA) == 0x12
    pc.write(COMMAND, 0xD3)
    pc.write(DATA, 0xF0)
    assert (pc.read(COMMAND) & 0x21, pc.level(KEYBOARD), pc.level(MOUSE)) == (FULL | FROM_MOUSE, False, True)
    assert pc.read(DATA) == 0xF0
    assert not pc.level(MOUSE)


@pytest.mark.parametrize(
    ("command", "data", "resets"), [(0xFE, [], 1), (0xF0, [], 1), (0xFF, [], 0), (0xD1, [0xFE], 1), (0xD1, [0xDF], 0)]
)
def test_the_machine_is_reset(pc: Pc, command: int, data: list[int], resets: int) -> None:
    pc.command(command, *data)
    assert pc.resets == resets


def test_a_read_of_an_empty_buffer_gives_the_last_byte(raw: Pc) -> None:
    raw.keyboard(0xEE)
    assert [raw.read(DATA), raw.read(DATA)] == [0xEE, 0xEE]


def test_interrupts_are_high_while_the_buffer_is_full_and_every_byte_is_an_edge(raw: Pc) -> None:
    raw.edges.clear()
    raw.i8042.press("up")
    raw.i8042.release("up")
    assert raw.take() == [0xE0, 0x75, 0xE0, 0xF0, 0x75]
    assert raw.edges == [(KEYBOARD, True), (KEYBOARD, False)] * 5


def test_without_its_enable_bit_there_is_no_interrupt(pc: Pc) -> None:
    pc.command(0x60, 0x00)
    pc.keyboard(0xEE)
    pc.mouse(0xF2)
    assert pc.edges == []


# Translation.


def test_set_2_is_translated_to_set_1(pc: Pc) -> None:
    for key, down, up in (("a", [0x1E], [0x9E]), ("up", [0xE0, 0x48], [0xE0, 0xC8]), ("f7", [0x41], [0xC1])):
        pc.i8042.press(key)
        assert pc.take() == down
        pc.i8042.release(key)
        assert pc.take() == up


def test_every_key_has_a_code_of_its_own_in_either_set() -> None:
    assert len(set(KEYS.values())) == len(KEYS)
    in_set_1 = {key & 0xFF00 | SET_1[key & 0xFF] for key in KEYS.values()}
    assert len(in_set_1) == len(KEYS)
    assert all(code & 0xFF < 0x60 for code in in_set_1)


def test_the_keyboard_has_set_1_of_its_own(raw: Pc) -> None:
    assert raw.keyboard(0xF0, 1) == [ACK, ACK]
    raw.i8042.press("up")
    raw.i8042.release("up")
    assert raw.take() == [0xE0, 0x48, 0xE0, 0xC8]
    assert raw.keyboard(0xF0, 0) == [ACK, ACK, 1]
    assert raw.keyboard(0xF0, 3) == [ACK, RESEND]


# The keyboard.


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xEE], [0xEE]),
        ([0xF2], [ACK, 0xAB, 0x83]),
        ([0xED, 0x07], [ACK, ACK]),
        ([0xF3, 0x20], [ACK, ACK]),
        ([0xF4], [ACK]),
        ([0xF5], [ACK]),
        ([0xF6], [ACK]),
        ([0xFF], [ACK, 0xAA]),
        ([0xF0, 0x00], [ACK, ACK, 0x02]),
        ([0xF0, 0x02], [ACK, ACK]),
        ([0x05], [RESEND]),
        ([0xF2, 0xFE], [ACK, 0xAB, 0x83, ACK]),  # nothing was read in between
    ],
)
def test_the_keyboard_answers_its_commands(raw: Pc, sent: list[int], answer: list[int]) -> None:
    assert raw.keyboard(*sent) == answer


def test_its_answers_are_translated_too(pc: Pc) -> None:
    assert pc.keyboard(0xF2) == [ACK, 0xAB, 0x41]
    assert pc.keyboard(0xF0, 0) == [ACK, ACK, 0x41]


def test_leds_have_the_state_that_was_set(pc: Pc) -> None:
    pc.keyboard(0xED, 0x05)
    assert pc.i8042.keyboard.leds == 5


def test_keys_are_scanned_while_scanning_is_enabled(raw: Pc) -> None:
    raw.keyboard(0xF5)
    raw.i8042.press("a")
    assert raw.take() == []
    raw.keyboard(0xF4)
    raw.i8042.press("a")
    assert raw.take() == [0x1C]


def test_a_queue_that_is_full_ends_in_the_overrun_code(raw: Pc) -> None:
    for _ in range(30):
        raw.i8042.press("a")
    assert raw.take() == [0x1C] * 17 + [0x00]  # one byte was in the output buffer
    raw.i8042.press("b")
    assert raw.take() == [0x32]


def test_a_guest_that_never_reads_uses_bounded_memory(raw: Pc) -> None:
    for _ in range(1000):
        raw.write(DATA, 0xF2)
        raw.write(COMMAND, 0xD4)
        raw.write(DATA, 0xE9)
    assert len(raw.take()) < 40


# The mouse.


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], [ACK, 0xAA, 0x00]),
        ([0xF2], [ACK, 0x00]),
        ([0xE9], [ACK, 0x00, 0x02, 100]),
        ([0xE7, 0xE8, 3, 0xF3, 40, 0xF4, 0xE9], [ACK] * 7 + [0x30, 0x03, 40]),
        ([0xF0, 0xE9], [ACK, ACK, 0x40, 0x02, 100]),
        ([0xE7, 0xE6, 0xF0, 0xEA, 0xF4, 0xF5, 0xE9], [ACK] * 7 + [0x00, 0x02, 100]),
        ([0xF3, 40, 0xF6, 0xE9], [ACK] * 4 + [0x00, 0x02, 100]),
        ([0xEB], [ACK, 0x08, 0, 0]),
        ([0xEE, 0xF2, 0xE9, 0xEC, 0xF2], [ACK, 0xF2, 0xE9, ACK, ACK, 0x00]),
        ([0xEE, 0xFF], [ACK, ACK, 0xAA, 0x00]),
        ([0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2], [ACK] * 7 + [0x03]),
        ([0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2], [ACK] * 7 + [0x00]),
        ([0x00], [RESEND]),
    ],
)
def test_the_mouse_answers_its_commands(pc: Pc, sent: list[int], answer: list[int]) -> None:
    assert pc.mouse(*sent) == answer


def test_movement_is_reported_in_packets_while_reporting_is_enabled(raw: Pc) -> None:
    raw.i8042.move(1, 1)
    assert raw.take() == []
    raw.mouse(0xF4)
    raw.i8042.move(5, -3, 0x01)
    assert raw.level(MOUSE)
    assert raw.take() == [0x29, 5, 0xFD]
    raw.i8042.move(0, 0, 0x01)
    assert raw.take() == []
    raw.i8042.move(-1, 0, 0x06)
    assert raw.take() == [0x1E, 0xFF, 0]


def test_large_movement_is_reported_in_several_packets(raw: Pc) -> None:
    raw.mouse(0xF4)
    raw.i8042.move(300, -1)
    assert raw.take() == [0x28, 127, 0xFF, 0x08, 127, 0, 0x08, 46, 0]


def test_in_remote_mode_movement_waits_to_be_asked_for(raw: Pc) -> None:
    raw.mouse(0xF0, 0xF4)
    raw.i8042.move(7, 8, 0x02)
    assert raw.take() == []
    assert raw.mouse(0xEB) == [ACK, 0x0A, 7, 8]


def test_the_rate_sequence_200_100_80_enables_the_wheel(raw: Pc) -> None:
    raw.mouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF4)
    raw.i8042.move(0, 0, 0, wheel=-1)
    assert raw.take() == [0x08, 0, 0, 0xFF]


def test_a_command_discards_the_packet_being_sent(raw: Pc) -> None:
    raw.mouse(0xF4)
    raw.i8042.move(1, 2)
    assert raw.read(DATA) == 0x08
    raw.write(COMMAND, 0xD4)
    raw.write(DATA, 0xF5)
    assert raw.take() == [1, ACK]  # one byte was in the output buffer


# Typing.

LETTERS = {SET_1[code]: key for key, code in KEYS.items() if code < 0x100}
SHIFT, CONTROL = 0x2A, 0x1D


def typed(codes: list[int]) -> str:
    """The text that a guest decodes from set 1: upper case for Shift, ^ for Control."""
    text = ""
    held = set()
    for code in codes:
        if code & 0x80:
            held.discard(code & 0x7F)
            continue
        held.add(code)
        if code not in (SHIFT, CONTROL):
            key = {"enter": "\n", "space": " "}.get(LETTERS[code], LETTERS[code])
            text += ("^" if CONTROL in held else "") + (key.upper() if SHIFT in held else key)
    return text


def test_text_is_typed_as_the_guest_takes_it(pc: Pc) -> None:
    pc.i8042.type_text("Read sector 7\r\x03é")
    codes = pc.take()
    assert typed(codes) == "R"  # the keyboard types no faster than people, however fast the guest reads
    pc.advance(10)
    assert typed(pc.take()) == "e"
    assert pc.take() == []
    for _ in range(20):
        pc.advance(0.01)
        codes += pc.take()
    assert typed(codes) == "Rad sector 7\n^c"
    assert 0xFF not in codes
    assert pc.due is None


def test_shifted_characters(pc: Pc) -> None:
    codes = []
    pc.i8042.type_text('A!{"')
    for _ in range(10):
        codes += pc.take()
        pc.advance(0.01)
    assert codes == [0x2A, 0x1E, 0x9E, 0xAA, 0x2A, 2, 0x82, 0xAA, 0x2A, 0x1A, 0x9A, 0xAA, 0x2A, 0x28, 0xA8, 0xAA]


def test_a_descriptor_is_typed_from_only_as_it_is_taken(pc: Pc) -> None:
    reader, writer = os.pipe()
    pc.i8042.attach(reader)
    text = "the quick brown fox " * 20
    os.write(writer, text.encode())
    pc.look()
    assert pc.watched == {}
    codes = []
    for _ in text:
        codes += pc.take()
        pc.advance(0.01)
        pc.look()
    assert typed(codes) == text
    os.close(writer)
    pc.look()
    assert pc.watched == {}
    os.close(reader)


def test_what_is_typed_waits_while_the_keyboard_is_off(pc: Pc) -> None:
    pc.command(0xAD)
    pc.i8042.type_text("a")
    pc.advance(1)
    pc.keyboard(0xF5)
    pc.advance(1)
    assert pc.take() == []
    assert pc.keyboard(0xF4) == [ACK, 0x1E, 0x9E]


# Properties.


@settings(max_examples=150)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(("data", "command", "mouse")), st.integers(0, 255)),
            st.tuples(st.sampled_from(("read", "press", "release", "move", "type", "advance")), st.integers(0, 102)),
        ),
        max_size=80,
    ),
    size=st.sampled_from((1, 2, 4)),
)
def test_a_line_is_high_exactly_while_its_devices_byte_is_in_the_buffer(
    steps: list[tuple[str, int]], size: int
) -> None:
    pc = Pc()
    keys = list(KEYS)
    for name, value in steps:
        match name:
            case "data":
                pc.write(DATA, value)
            case "command":
                pc.write(COMMAND, value * 0x01010101 & (1 << 8 * size) - 1, size)
            case "mouse":
                pc.write(COMMAND, 0xD4)
                pc.write(DATA, value)
            case "read":
                pc.read(DATA)
            case "press":
                pc.i8042.press(keys[value])
            case "release":
                pc.i8042.release(keys[value])
            case "move":
                pc.i8042.move(value * 9 - 400, 100 - value, value)
            case "type":
                pc.i8042.type_text(chr(value) * 3)
            case "advance":
                pc.advance(value / 1000)
        status, mode = pc.read(COMMAND), pc.i8042.memory[0]
        assert pc.level(MOUSE) == bool(status & FULL and status & FROM_MOUSE and mode & 2)
        assert pc.level(KEYBOARD) == bool(status & FULL and not status & FROM_MOUSE and mode & 1 and not mode & 0x10)
        assert len(pc.i8042.keyboard.queue) <= 17
        assert len(pc.i8042.mouse.queue) <= 16
