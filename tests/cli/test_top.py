"""top: its rates, and its live screen, on a pseudoterminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from irqchip_client import Client, InterruptCount, InterruptCounts, InterruptKind, Vm
from irqchip_client._daemon import Daemon
from irqchip_client.cli.top import History, sparkline
from tests.cli.test_interrupts import MSI, busy, latency, pc
from tests.waiting import PATIENCE

ROWS = 6  # of the terminal
ENTER, HOME, LEAVE = "\x1b[?1049h", "\x1b[H", "\x1b[?1049l"  # the terminal's other screen


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self.output = ""

    def read_until(self, enough: str, times: int = 1) -> None:
        """Read until there is a text, several times."""
        deadline = time.monotonic() + PATIENCE
        while self.output.count(enough) < times:
            assert select.select([self._screen], [], [], max(deadline - time.monotonic(), 0))[0], self.output
            self.output += os.read(self._screen, 1 << 16).decode()

    def press(self, key: bytes) -> None:
        os.write(self._screen, key)

    @property
    def frames(self) -> list[list[str]]:
        """The lines of each update, without colours."""
        shown = self.output.partition(ENTER)[2].partition(LEAVE)[0]
        plain = [re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", frame) for frame in shown.split(HOME)]
        return [[line.rstrip() for line in frame.splitlines()] for frame in plain if frame.strip()]


@contextmanager
def top(daemon: Daemon, width: int, *arguments: str) -> Iterator[Terminal]:
    """irqchipctl top on a terminal."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", ROWS, width, 0, 0))
    modes = termios.tcgetattr(terminal)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    process = subprocess.Popen(
        [sys.executable, "-m", "irqchip_client.cli", "--target", daemon.target, "top", "--interval", "0.1", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "", "LINES": ""},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    return pc(irqchip_client)


def is_of_a_busy_vm(frame: list[str]) -> bool:
    """Whether the most frequent interrupt is first, with bars for two updates; a busy machine may delay some."""
    rows = [row.split() for row in frame[2:4]]
    return (
        [row[:2] for row in rows] == [["vm", f"V{MSI}"], ["vm", "16"]] and len(rows[0][3]) > 1 and rows[0][4].isdigit()
    )


def test_the_screen_is_live_until_ctrl_c(irqchip_server: Daemon, vm: Vm) -> None:
    vm.interrupts()  # the counting begins while no interrupt is on its way
    with top(irqchip_server, 120) as terminal, busy(vm):
        updates = 5
        while len(good := [frame for frame in terminal.frames[1:-1] if is_of_a_busy_vm(frame)]) < 2:
            terminal.read_until(HOME, updates)  # the last one may not be whole
            updates += 1
        terminal.press(b"\x03")
        terminal.read_until(LEAVE)
        assert terminal.process.wait(PATIENCE) == 0
    assert terminal.output.startswith(ENTER)
    assert terminal.output.endswith(LEAVE), "the terminal is as it was, without a traceback"
    title, headers, _, second, *rest = good[-1]
    assert re.fullmatch(r"1 VM, \d+\.\d interrupts a second, \d\d:\d\d:\d\d", title)
    assert headers.split() == ["VM", "IRQ", "RATE/S", "TOTAL", "ACCEPT", "EOI", "CHIP", "CLIENTS"]
    assert second.split()[-1] == "nic"
    assert not any(rest)
    totals = [int(frame[2].split()[4]) for frame in good]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_a_row_is_a_line_on_a_small_terminal(irqchip_server: Daemon, vm: Vm) -> None:
    for gsi in range(16, 16 + ROWS):  # more than there is room for
        for register, value in ((0x10 + 2 * gsi, 0x40 + gsi), (0x11 + 2 * gsi, 0)):
            vm.vcpu(0).mmio_write(0xFEC0_0000, register)
            vm.vcpu(0).mmio_write(0xFEC0_0010, value)
    vm.interrupts()
    for gsi in range(16, 16 + ROWS):
        vm.line(gsi).pulse()
        vm.vcpu(0).acknowledge()
        vm.vcpu(0).mmio_write(0xFEE0_00B0, 0)
    with top(irqchip_server, 40, "--count", "2") as terminal:
        terminal.read_until(LEAVE)
        assert terminal.process.wait(PATIENCE) == 0
    for frame in terminal.frames:
        assert len(frame) <= ROWS
        assert all(len(line) <= 40 for line in frame)
        assert [line.split()[0] for line in frame[2:] if line] == ["vm"] * (ROWS - 2)


def test_rates_are_those_since_the_last_update_and_begin_anew_with_the_daemon() -> None:
    def asked(seconds: int, count: int) -> dict[str, InterruptCounts]:
        one = InterruptCount(InterruptKind.MSI, None, 1, False, [], {0: count}, latency(), latency())
        return {"vm": InterruptCounts(seconds * 10**9, [0], [one])}

    history = History()
    rates = [history.rows(asked(*at))[0].rates[-1] for at in ((1, 100), (3, 400), (4, 400), (2, 10))]
    assert rates == [100, 150, 0, 5]
    assert history.rows({}) == []


def test_a_sparkline_has_a_bar_for_each_rate() -> None:
    assert sparkline([0.0, 1.0, 50.0, 100.0]) == " \u2581\u2584\u2588"
    assert sparkline([0.0, 0.0]) == "  "
