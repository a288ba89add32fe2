"""irqchipctl run without a daemon: the interrupt controller is in the run's own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from irqchip_client import connect, embedded
from tests.cli.test_run import CPUS, HELLO, SPIN, taken_for_flat
from tests.waiting import PATIENCE, eventually

COMMAND = [sys.executable, "-m", "irqchip_client.cli"]
# 16-bit code: select the RTC's register D, read it, and exit with its value.
RTC_D = "b0 0d e6 70  e4 71  e6 f4 f4"


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def environment(folder: Path) -> Mapping[str, str]:
    """An environment that names no daemon, with no daemon at the default address."""
    return {**{k: v for k, v in os.environ.items() if k != "IRQCHIP_TARGET"}, "XDG_RUNTIME_DIR": str(folder)}


def guest(folder: Path, code: str) -> list[str]:
    kernel = folder / "guest.bin"
    kernel.write_bytes(bytes.fromhex(code))
    return ["--kernel", str(kernel)]


def test_a_guest_needs_one_command(folder: Path, environment: Mapping[str, str], cpu: str) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--cpu", cpu, *guest(folder, HELLO)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "Hi", taken_for_flat(folder / "guest.bin"))
    assert {path.name for path in folder.iterdir()} == {"guest.bin"}


@pytest.mark.parametrize("listen", [True, False], ids=["--listen", "the default"])
def test_devices_of_other_processes_connect(
    folder: Path, environment: Mapping[str, str], cpu: str, listen: bool
) -> None:
    socket = folder / "vmm"
    options = ["--listen", str(socket)] if listen else []
    command = [*COMMAND, "run", "--cpu", cpu, *guest(folder, RTC_D), "--vm", "pc", "--await", "MC146818", *options]
    device = [*COMMAND, *(["--target", f"unix://{socket}"] if listen else []), "device", "Rtc", "--vm", "pc"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as run:
        there = socket if listen else folder / "irqchipd" / "irqchipd.sock"
        eventually(there.exists)
        with subprocess.Popen(device, env=environment) as rtc:
            assert run.wait(PATIENCE) == (0x80 << 1 | 1) & 0xFF
            assert rtc.wait(PATIENCE) == 0
    assert not there.exists()


def test_a_real_time_clock_may_be_in_the_same_process(folder: Path, environment: Mapping[str, str], cpu: str) -> None:
    command = [*COMMAND, "run", "--cpu", cpu, *guest(folder, RTC_D), "--with", "rtc"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == (0x80 << 1 | 1) & 0xFF


def test_a_socket_that_is_in_use_is_refused(folder: Path, environment: Mapping[str, str]) -> None:
    socket = folder / "vmm"
    with embedded(str(socket)):
        done = subprocess.run(
            [*COMMAND, "run", *guest(folder, SPIN), "--listen", str(socket)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert f"--target unix://{socket} uses the daemon that is there" in done.stderr


def test_a_daemon_that_is_named_listens_itself(folder: Path) -> None:
    command = [*COMMAND, "--target", "unix:///nowhere", "run", *guest(folder, SPIN), "--listen", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--listen is for a run without --target" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_leaves_no_socket(
    folder: Path, environment: Mapping[str, str], cpu: str, number: int
) -> None:
    socket = folder / "vmm"
    command = [*COMMAND, "run", "--cpu", cpu, *guest(folder, SPIN), "--listen", str(socket)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as run:
        eventually(socket.exists)
        with connect(f"unix://{socket}") as client:
            eventually(lambda: any("vcpu" in session.client for vm in client.vms() for session in vm.sessions))
        run.send_signal(number)
        assert run.wait(PATIENCE) == -number
    assert not socket.exists()


IN_A_FINALIZER = """
import importlib, os, signal

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        len("the signal's handler has been called by now")

def connect(*arguments):
    Finalized()
    return before(*arguments)

run = importlib.import_module("irqchip_client.cli.run")
before, run._connect = run._connect, connect
importlib.import_module("irqchip_client.cli").main()
"""


@pytest.mark.long
def test_a_signal_in_a_finalizer_ends_the_run_too(folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FINALIZER, "run", *guest(folder, SPIN)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Exception ignored" in done.stderr
    assert done.returncode == -signal.SIGTERM
