"""Every error is one line that says what to do, and never a traceback."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Architecture, Vm
from irqchip_client.cli import main
from irqchip_client.cli.vms import ARCHITECTURES
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE

# Every command but replay --in-process connects to the daemon.
COMMANDS = [
    ["create", "vm"],
    ["list"],
    ["show", "vm"],
    ["delete", "vm"],
    ["advance", "vm", "1"],
    ["reset", "vm"],
    ["save", "vm", "-"],
    ["restore", "-"],
    ["raise", "vm", "1"],
    ["lower", "vm", "1"],
    ["pulse", "vm", "1"],
    ["msi", "vm", "1", "1"],
    ["routes", "vm"],
    ["in", "vm", "1"],
    ["out", "vm", "1", "1"],
    ["read", "vm", "1"],
    ["write", "vm", "1", "1"],
    ["msr-read", "vm", "1"],
    ["msr-write", "vm", "1", "1"],
    ["ack", "vm"],
    ["sysreg-read", "vm", "1"],
    ["sysreg-write", "vm", "1", "1"],
    ["regs", "vm"],
    ["attr-get", "vm", "gic", "0", "0"],
    ["attr-set", "vm", "gic", "0", "0"],
    ["attr-has", "vm", "gic", "0", "0"],
    ["watch", "vm"],
    ["interrupts", "vm"],
    ["top", "vm"],
    ["trace", "vm"],
    ["record", "vm", "--perfetto", "/dev/null"],
]


def test_these_are_all_commands() -> None:
    assert main.list_commands(click.Context(main)) == [
        *(command[0] for command in COMMANDS),
        "replay",
        "run",
        "device",
        "shell",
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_no_daemon(fails: Callable[[Result], str], command: list[str]) -> None:
    snapshot = pb.VmSnapshot(version=2).SerializeToString()  # For restore.
    line = fails(CliRunner().invoke(main, ["--target", "unix:///nonexistent/socket", *command], input=snapshot))
    assert line == (
        "no irqchipd answers at unix:///nonexistent/socket (No such file or directory): start it with `irqchipd`, or "
        "name another with --target or IRQCHIP_TARGET (ECONNREFUSED)"
    )


OF_A_VM = [command for command in COMMANDS if command[0] not in ("create", "list", "restore")]


@pytest.mark.parametrize("command", OF_A_VM, ids=lambda command: str(command[0]))
def test_no_such_vm(run: Run, fails: Callable[[Result], str], command: list[str]) -> None:
    name, _, *arguments = command
    why = "there is no VM 'missing'; there are no VMs: `irqchipctl create` makes one (ENOENT)"
    assert fails(run(name, "missing", *arguments)) == why


def test_the_target_may_come_from_the_environment(fails: Callable[[Result], str]) -> None:
    result = CliRunner(env={"IRQCHIP_TARGET": "localhost:80"}).invoke(main, ["list"])
    assert fails(result).startswith("'localhost:80' is no target: write unix:///absolute/path or tcp://host:port")


def test_the_target_may_stand_behind_the_command(fails: Callable[[Result], str]) -> None:
    result = CliRunner().invoke(main, ["--target", "unix:///before", "show", "--target", "unix:///behind", "vm"])
    assert fails(result).startswith("no irqchipd answers at unix:///behind (")


def test_a_reader_that_leaves_is_no_error(start: Start, vm: Vm) -> None:
    with start("regs", vm.name, "--raw") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_full_disk(start: Start, vm: Vm) -> None:
    with Path("/dev/full").open("w") as full, start("show", vm.name, stdout=full) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == "Error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("more", ["", "; main(['--help'], standalone_mode=False)"], ids=["the group", "all commands"])
def test_help_does_not_wait_for_grpc(more: str) -> None:
    unwanted = ("grpc", "rich") if more else ("grpc", "google.protobuf", "rich")
    program = (
        f"import sys; from irqchip_client.cli import main{more};"
        f"sys.exit(str([module for module in {unwanted} if module in sys.modules]))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert shown.stderr == "[]\n"


def test_every_architecture_can_be_chosen() -> None:
    assert [name.upper() for name in ARCHITECTURES] == [known.name for known in Architecture]


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], *([command[0], "-h"] for command in COMMANDS)])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize("command", OF_A_VM, ids=lambda command: str(command[0]))
def test_a_long_name_is_refused_and_not_repeated(fails: Callable[[Result], str], command: list[str]) -> None:
    arguments = [command[0], "a" * 9000, *command[2:]]
    line = fails(CliRunner().invoke(main, ["--target", "unix:///nonexistent/socket", *arguments]))
    assert line == f"a VM's name has at most 64 characters: shorten {'a' * 32!r}..., which has 9000 (EINVAL)"


@pytest.mark.parametrize("command", [["raise", "vm"], ["advance", "vm"], ["create", "vm", "--tsc-khz"]])
def test_a_long_invalid_number_is_not_repeated(run: Run, command: list[str]) -> None:
    result = run(*command, "a" * 9000)
    assert result.exit_code == 2
    assert len(result.stderr) < 1000


def test_a_default_socket_that_others_can_reach_is_refused(
    fails: Callable[[Result], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IRQCHIP_TARGET", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:  # Its name is short, as a socket's must be.
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder = Path(runtime) / "irqchipd"
        folder.mkdir()
        folder.chmod(0o755)
        line = fails(CliRunner().invoke(main, ["list"]))
    assert line == (
        f"{folder} can be entered by others, so another user's process may answer there: set XDG_RUNTIME_DIR to a "
        "directory of yours, or name the daemon with --target or IRQCHIP_TARGET (EACCES)"
    )
