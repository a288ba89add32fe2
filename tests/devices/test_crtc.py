"""The CRT controller: the cursor's registers, and the protection of the first ones."""

from __future__ import annotations

from irqchip_client.devices import Crtc
from tests.devices.bench import Bench

INDEX, DATA = 0x3D4, 0x3D5
START, OVERFLOW, CURSOR_HIGH, CURSOR_LOW, RETRACE_END = 0x00, 0x07, 0x0E, 0x0F, 0x11


class Display(Bench):
    """A text driver."""

    def __init__(self) -> None:
        super().__init__(Crtc())

    def put(self, register: int, value: int) -> None:
        self.write(INDEX, register)
        self.write(DATA, value)

    def get(self, register: int) -> int:
        self.write(INDEX, register)
        return self.read(DATA)


def test_the_cursor_is_kept_and_starts_in_the_corner() -> None:
    display = Display()
    assert (display.get(CURSOR_HIGH), display.get(CURSOR_LOW)) == (0, 0)
    display.put(CURSOR_HIGH, 0x07)
    display.put(CURSOR_LOW, 0xD0)
    assert (display.get(CURSOR_HIGH), display.get(CURSOR_LOW)) == (0x07, 0xD0)
    display.device.reset()
    assert (display.get(CURSOR_HIGH), display.read(INDEX)) == (0, CURSOR_HIGH)


def test_an_access_of_two_bytes_is_index_and_register() -> None:
    display = Display()
    display.write(INDEX, 0x42 << 8 | CURSOR_LOW, 2)
    assert display.read(INDEX, 2) == 0x42 << 8 | CURSOR_LOW


def test_protected_registers_keep_their_values_but_for_the_line_compare_bit() -> None:
    display = Display()
    display.put(START, 0x5F)
    display.put(OVERFLOW, 0x0F)
    display.put(RETRACE_END, 0x80)
    display.put(START, 0)
    display.put(OVERFLOW, 0xF0)
    assert (display.get(START), display.get(OVERFLOW)) == (0x5F, 0x1F)
    display.put(RETRACE_END, 0)
    display.put(START, 1)
    assert display.get(START) == 1


def test_registers_that_do_not_exist_read_0() -> None:
    display = Display()
    display.put(0x1F, 0xFF)
    display.put(0xFE, 0xAA)  # only five bits of the index exist
    assert (display.get(0x1F), display.read(INDEX)) == (0, 0x1F)
