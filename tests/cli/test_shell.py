"""shell: commands at a prompt, and from a pipe."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from irqchip_client import Client, Vm
from irqchip_client._daemon import Daemon
from irqchip_client.cli import main
from irqchip_client.cli._group import Group
from irqchip_client.cli.shell import _Completer
from tests.waiting import PATIENCE


def piped(daemon: Daemon, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", daemon.target, "shell", *arguments]
    return subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_commands_of_a_pipe_are_run_in_one_process(irqchip_server: Daemon, vm: Vm) -> None:
    done = piped(irqchip_server, "# a comment\n\npulse 4\nack\nlist\n", vm.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"1 delivered\n0x04 pic\n{vm.name}\tfull\t2\t0\treal\tx86\n"


def test_the_first_failure_ends_a_pipe(irqchip_server: Daemon, vm: Vm) -> None:
    done = piped(irqchip_server, "in 0x20 --vcpu 7\nlist\n", vm.name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no vCPU 7" in done.stderr


def test_another_vm_is_named(irqchip_server: Daemon, irqchip_client: Client, vm: Vm) -> None:
    other = irqchip_client.create_vm("other")
    done = piped(irqchip_server, f"show --vm other\nshow --vm={other.name}\n", vm.name)
    assert done.stdout.count("VM        other\n") == 2
    assert piped(irqchip_server, "show other\n").stdout.startswith("VM        other\n")


def test_a_missing_vm_is_reported_at_once(irqchip_server: Daemon, vm: Vm) -> None:
    done = piped(irqchip_server, "list\n", "missing")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no VM 'missing'; there is {vm.name}" in done.stderr


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, daemon: Daemon, state: Path, *arguments: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ |= {"XDG_STATE_HOME": str(state), "IRQCHIP_TARGET": daemon.target, "TERM": "dumb"}
            os.execv(sys.executable, [sys.executable, "-m", "irqchip_client.cli", "shell", *arguments])
        self.said = ""

    def hear(self, text: str) -> str:
        """Read up to some text, and return the output."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert select.select([self.descriptor], [], [], max(deadline - time.monotonic(), 0))[0], self.said
            self.said += os.read(self.descriptor, 4096).decode()
        heard, _, self.said = self.said.partition(text)
        return heard

    def type(self, text: str) -> None:
        """Type a text at the prompt."""
        os.write(self.descriptor, text.encode())

    def status(self) -> int:
        """The shell's exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(irqchip_server: Daemon, vm: Vm, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(irqchip_server, tmp_path, vm.name)
    terminal.hear(f"{vm.name}> ")
    yield terminal
    os.close(terminal.descriptor)


def test_a_prompt_completes_and_remembers_and_survives_mistakes(terminal: Terminal, vm: Vm, tmp_path: Path) -> None:
    pytest.importorskip("readline", reason="this Python has no readline")
    terminal.type("pul\t4\n")
    terminal.hear("1 delivered")
    terminal.type("bogus\n")
    terminal.hear("there is no command 'bogus'")
    terminal.type("watch\n")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.hear(f"{vm.name}> ")
    terminal.type("exit\n")
    assert terminal.status() == 0
    assert (tmp_path / "irqchipctl" / "history").read_text().splitlines()[0] == "pulse 4"


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.type("\x04")
    assert terminal.status() == 0


def test_what_tab_completes(irqchip_client: Client, vm: Vm) -> None:
    assert isinstance(main, Group)
    complete = _Completer(main, irqchip_client).candidates
    assert complete("", "re") == ["reset ", "restore ", "read ", "regs ", "record ", "replay "]
    assert complete("pulse ", "--c") == ["--count "]
    assert complete("pulse --vm ", "") == [vm.name]
    assert complete("delete ", vm.name[:2]) == [vm.name]
    assert complete("bogus ", "--") == []


def test_an_error_at_the_prompt_shows_an_example_for_the_prompt(irqchip_server: Daemon, vm: Vm) -> None:
    assert piped(irqchip_server, "pulse\n", vm.name).stderr.endswith("Write, for example: pulse 4\n")
    assert piped(irqchip_server, f"pulse {vm.name}\n").stderr.endswith("Write, for example: pulse vm1 4\n")
