"""irqchipctl against a real daemon: in this process, and as a process of its own."""

import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner, Result

from irqchip_client import Client, Vm
from irqchip_client._daemon import Daemon
from irqchip_client.cli import main

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fails() -> Callable[[Result], str]:
    """fails(result) is the one line on stderr with which a refused command ends."""

    def check(result: Result) -> str:
        assert result.exit_code == 1
        assert result.stdout == ""
        assert isinstance(result.exception, SystemExit)  # Not a traceback.
        (line,) = result.stderr.splitlines()
        return line.removeprefix("Error: ")

    return check


@pytest.fixture
def run(irqchip_server: Daemon) -> Run:
    """run("list") runs a command."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["--target", irqchip_server.target, *map(str, arguments)])

    return run


@pytest.fixture
def start(irqchip_server: Daemon) -> Start:
    """start("list") starts a command as a process."""

    def start(
        *arguments: str, stdout: int | IO[str] = subprocess.PIPE, stdin: IO[str] | None = None
    ) -> "subprocess.Popen[str]":
        command = [str(Path(sysconfig.get_path("scripts")) / "irqchipctl"), *arguments]
        environment = os.environ | {"IRQCHIP_TARGET": irqchip_server.target}
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, bufsize=1
        )

    return start


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with an irqchip and vCPUs 0 and 1, deleted after the test."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    vm.create_vcpu(1)
    return vm
