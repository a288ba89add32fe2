"""The demo guest on an independent PC: QEMU's devices and interrupt controllers."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from examples.guest.build import BINARY
from tests.waiting import PATIENCE

QEMU = next((path for name in ("i386", "x86_64") if (path := shutil.which(f"qemu-system-{name}"))), None)
COMMAND_LINES = ["irq=pic", "irq=ioapic", "irq=pic timer=apic", "irq=ioapic timer=pit"]

pytestmark = pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")


class Guest:
    """A running guest, at its prompt."""

    def __init__(self, qemu: subprocess.Popen[bytes], keyboard: socket.socket) -> None:
        self._qemu = qemu
        self._keyboard = keyboard
        self.banner = self.wait_for("\n> ")

    def wait_for(self, ending: str) -> str:
        """The guest's output up to this ending; lines end in \\n."""
        assert self._qemu.stdout is not None
        said, deadline = b"", time.monotonic() + PATIENCE
        wanted = ending.replace("\n", "\r\n").encode()
        while not said.endswith(wanted):
            ready, _, _ = select.select([self._qemu.stdout], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._qemu.stdout.fileno(), 1) if ready else b""
            assert data, f"the guest said only {said!r}"
            said += data
        return said.decode().replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Type at the serial port."""
        assert self._qemu.stdin is not None
        self._qemu.stdin.write(text.encode())

    def ask(self, command: str) -> list[str]:
        """Type a command; returns the lines of its answer."""
        self.type(command + "\r")
        return self.wait_for("\n> ").removesuffix("> ").splitlines()[1:]

    def press(self, *keys: str) -> None:
        """Press keys of the keyboard, by QEMU's names."""
        for key in keys:
            self._keyboard.sendall(f"sendkey {key} 10\n".encode())
            time.sleep(0.05)  # longer than the 10 ms that each key is held: keys held together arrive in another order

    def pause(self, seconds: float) -> None:
        """Stop the guest's execution for a while; its time goes on."""
        self._qemu.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._qemu.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait for the exit status."""
        return self._qemu.wait(timeout=PATIENCE)


@contextmanager
def running(append: str) -> Iterator[Guest]:
    here, qemus = socket.socketpair()
    command = [str(QEMU), "-kernel", str(BINARY), "-append", append, "-accel", "tcg", "-m", "16", "-no-reboot"]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio"]
    command += ["-chardev", f"socket,id=keys,fd={qemus.fileno()}", "-mon", "chardev=keys"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    pipe = subprocess.PIPE
    with (
        here,
        qemus,
        subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, pass_fds=[qemus.fileno()]) as qemu,
    ):
        try:
            yield Guest(qemu, here)
        finally:
            qemu.kill()


def counts(guest: Guest) -> dict[str, int]:
    return {name: int(count) for name, count in map(str.split, guest.ask("irqs"))}


@pytest.mark.parametrize("append", COMMAND_LINES)
def test_every_source_interrupts(append: str) -> None:
    with running(append) as guest:
        assert (", PIC mode" in guest.banner) == append.startswith("irq=pic")
        before = counts(guest)
        assert guest.ask("rtc 8 256") == ["rtc: 8 interrupts"]
        ticks, *_ = guest.ask("ticks 20")
        found = re.match(r"ticks: (\d+) came", ticks)
        assert found is not None
        assert int(found[1]) >= 20  # more on a busy machine, where some are late
        guest.type("keys\r")
        guest.wait_for("keyboard: ")
        guest.press("shift-h", "e", "x", "backspace", "y", "shift-1", "ret")
        assert guest.wait_for("\n> ").splitlines()[1] == "keyboard: Hey!"
        after = counts(guest)
        assert after["timer"] >= before["timer"] + 20
        assert after["keyboard"] > before["keyboard"]  # a slow guest reads several codes in one interrupt
        assert after["serial"] > before["serial"]
        assert after["rtc"] >= before["rtc"] + 8
        assert after["disk"] == after["spurious"] == after["other"] == 0
        guest.type("exit 3\r")
        assert guest.wait() == 3 << 1 | 1


@pytest.mark.parametrize("append", ["irq=pic", "irq=ioapic"])
def test_ticks_and_lost_ticks_add_up_to_the_elapsed_time(append: str) -> None:
    with running(append) as guest:
        asked = time.monotonic()
        came, lost, took = timed_ticks(guest.ask("ticks 100 200"))
        waited = (time.monotonic() - asked) * 1000
        assert 100 <= came <= 200
        # If the host stopped QEMU before the first tick, the other ticks come early and none is lost.
        assert (came + lost) * 5 >= took - 20
        assert lost == 0 or (came + lost) * 5 <= took + 20
        assert took <= waited + 20


def test_a_pause_counts_as_elapsed_time() -> None:
    with running("irq=ioapic") as guest:
        guest.type("ticks 200 200\r")
        guest.wait_for("\n")
        time.sleep(0.3)
        guest.pause(0.6)
        came, lost, took = timed_ticks(guest.wait_for("\n> ").splitlines())
        assert took >= 900  # QEMU then delivers the late ticks
        assert (came + lost) * 5 >= took - 20


def timed_ticks(lines: list[str]) -> tuple[int, int, int]:
    """The ticks that came, the ticks that were lost, and the milliseconds."""
    came, lost = map(int, re.findall(r"\d+", lines[0]))
    took = next(line for line in lines if line.startswith("in "))
    return came, lost, int(took.split()[1])


def test_lines_are_edited_and_commands_answer() -> None:
    with running("") as guest:
        assert "IOAPIC mode" in guest.banner
        assert guest.ask("echo one  two") == ["one  two"]
        assert guest.ask("echp\x7fo\x08\x7fho yes") == ["yes"]
        assert guest.ask("nonsense\x15echo no") == ["no"]
        assert guest.ask("dance") == ["dance: no such command; `help` lists them"]
        assert guest.ask("read one") == ["usage: read SECTOR"]
        assert guest.ask("") == []
        assert {line.split()[0] for line in guest.ask("help")} >= {"help", "time", "irqs", "read", "exit"}
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", guest.ask("time")[0])
        assert guest.ask("cmdline")[0].startswith(str(BINARY))


def test_typed_ahead_commands_are_not_lost() -> None:
    with running("") as guest:
        guest.type("".join(f"echo {number}\r" for number in range(100)) + "exit\r")
        said = guest.wait_for("exit 0\n")
        assert [int(line) for line in said.splitlines() if line.isdigit()] == list(range(100))
        assert guest.wait() == 1


def test_ctrl_c_ends_a_waiting_command() -> None:
    with running("") as guest:
        guest.type("keys\r")
        guest.wait_for("keyboard: ")
        guest.type("\x03")
        guest.wait_for("^C\n> ")
        guest.type("ticks 1000000\r")
        guest.wait_for("\n")
        guest.type("\x03")
        assert re.match(r"ticks: \d+ came", guest.wait_for("\n> "))


def test_without_the_disk_its_commands_say_so_at_once() -> None:
    with running("") as guest:
        assert guest.ask("disk") == guest.ask("read 0") == guest.ask("write 0 text") == ["disk: none"]
        assert guest.ask("sum 0 10") == ["", "disk: none at sector 0"]


def test_an_exception_reports_its_place_and_fails() -> None:
    with running("") as guest:
        guest.type("crash\r")
        said = guest.wait_for("panic: an exception\n")
        assert re.search(r"exception 6, error code 0, EIP 0010[0-9a-f]{4}, ", said)
        assert guest.wait() == 0xFF
