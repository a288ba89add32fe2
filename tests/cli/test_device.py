"""irqchipctl device: models of the package, and a user's own."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from irqchip_client import Access, Client, ResetReason, Vm, VmReset
from tests.waiting import PATIENCE, eventually

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]

OWN = """
from typing import ClassVar
from irqchip_client.devices import Device

class Constant(Device):
    def __init__(self, base: int, value: int = 1, name: str = "constant", loud: bool = False) -> None:
        super().__init__(name)
        assert loud in (True, False)
        self.pio(base, 1, lambda offset, size: value, lambda offset, value, size: None)

class Broken(Device):
    def __init__(self, base: int):
        super().__init__("broken")
        self.pio(base, 1, self.read, self.read)

    def read(self, offset, size):
        raise ZeroDivisionError("no")

class Loose(Constant):
    def __init__(self, port):
        super().__init__(port)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def claimed(vm: Vm, port: int) -> Access:
    deadline = time.monotonic() + PATIENCE
    while not (access := vm.vcpu(0).pio_read(port)).claimed:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return access


def test_a_users_class_runs_until_it_is_stopped(start: Start, vm: Vm, model: Path) -> None:
    with start(
        "device", f"{model}:Constant", "base=0x300", "value=0x55", "name=mine", "loud=true", "--vm", vm.name
    ) as process:
        assert claimed(vm, 0x300) == Access(True, 0x55)
        assert [session.client for session in vm.info().sessions] == ["mine"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not vm.vcpu(0).pio_read(0x300).claimed


def test_a_model_of_the_package_prints_its_ports_and_lines(start: Start, vm: Vm) -> None:
    with start("device", "Rtc", "--vm", vm.name) as process:
        claimed(vm, 0x71)
        vm.delete()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert said.splitlines()[0] == "MC146818: PIO 0x70-0x71, GSI 8"


def test_ports_that_are_taken_are_refused(start: Start, vm: Vm, model: Path) -> None:
    with start("device", f"{model}:Constant", "base=0x20", "--vm", vm.name) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "part of 0x20 to 0x20 is claimed" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["Nope"],
            "there is no 'Nope'. Use BlockDevice, Crtc, DebugExit, FwCfg, I8042, Ide, LinePorts, PowerManagement,",
        ),
        (["rtc"], "Did you mean Rtc?"),
        (["Uarts"], "Did you mean Uart?"),
        (["run_device"], "there is no 'run_device'"),
        (["OWN"], "OWN names no class. Its devices: OWN:Constant, OWN:Broken, OWN:Loose."),
        (["OWN:Constants"], "OWN has no Constants. Its devices: OWN:Constant, OWN:Broken, OWN:Loose. Did you"),
        (["OWN:ClassVar"], "OWN:ClassVar is no class of irqchip_client.devices.Device. Its devices: OWN:Constant"),
        (["json:JSONDecoder"], "It has no class of irqchip_client.devices.Device"),
        (["no_such_module:Thing"], "there is no module no_such_module"),
        (["/nonexistent.py:Thing"], "/nonexistent.py can't be read: No such file or directory; check the path"),
        (["Rtc", "base"], "'base' is no NAME=VALUE: write one. Arguments of Rtc: base=0x70 gsi=8"),
        (["Rtc", "colour=red"], "Rtc takes no colour=. Arguments of Rtc: base=0x70 gsi=8."),
        (["Rtc", "bas=1"], "Did you mean base?"),
        (["Rtc", "clock=1"], "Rtc takes no clock="),
        (["Rtc", "base=abc"], "value for base=: 'abc' is not a whole number: write 16, 0x10"),
        (["Rtc", "base=0x10000"], "the first port of a region is 65536: use a number from 0 to 0xffff"),
        (["Rtc", "gsi=-1"], "a line's GSI is -1: use a number from 0 on"),
        (["Rtc", "base=1", "base=2"], "value for base=: given twice"),
        (["I8042", "interval=soon"], "value for interval=: 'soon' is not a number: write 0.5 or 2"),
        (["Uart", "paced=perhaps"], "value for paced=: 'perhaps' is not true or false"),
        (
            ["BlockDevice"],
            "BlockDevice needs path=: add path=VALUE. Arguments of BlockDevice: path= base=0x620 gsi=11 mmio=false",
        ),
        (["OWN:Constant", "value=x"], "value for value=: 'x' is not a whole number"),
        (["OWN:Loose", "port=abc"], "base is 'abc': write a whole number"),
        (["Rtc", "--listen", "/tmp/x"], "--listen: this is an option of Uart, I8042 and VirtioConsole, and not of Rtc"),
        (["Uart", "--create", "64K"], "--create: this is an option of BlockDevice and VirtioBlock, and not of Uart"),
        (["Uart", "--delete-vm"], "--delete-vm: this is an option of DebugExit and PowerManagement, and not of Uart"),
        (["BlockDevice", "path=x", "--create", "1000"], "a multiple of 512 bytes, as 1048576, 64K, 10M or 1G"),
        (["Uart", "--listen", "/nonexistent/socket"], "--listen: /nonexistent/socket: No such file"),
    ],
)
def test_an_unknown_device_is_refused_with_a_hint(run: Run, model: Path, arguments: list[str], why: str) -> None:
    result = run("device", *(argument.replace("OWN", str(model)) for argument in arguments), "--vm", "vm")
    assert result.exit_code == 2
    assert why.replace("OWN", str(model)) in result.stderr


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("1 // 0", ["can't be loaded:", "ZeroDivisionError"]),
        ("def f(:", ["can't be loaded:", "SyntaxError"]),
        ("import no_such_module", ["can't be loaded:", "No module named 'no_such_module'"]),
    ],
)
def test_a_file_that_does_not_load_shows_its_own_lines_alone(
    run: Run, tmp_path: Path, source: str, lines: list[str]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(source)
    result = run("device", f"{path}:Thing", "--vm", "vm")
    assert result.exit_code == 1
    assert all(line in result.stderr for line in lines)
    assert "device_models" not in result.stderr
    assert "runpy" not in result.stderr


def test_an_exception_of_a_device_is_reported_with_its_own_lines_alone(start: Start, vm: Vm, model: Path) -> None:
    with start("device", f"{model}:Broken", "base=0x300", "--vm", vm.name) as process:
        assert claimed(vm, 0x300) == Access(True, 0xFF, unanswered=True)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    _, first, *frames, last = said.splitlines()
    assert first == "Error: Broken failed in a read of 1 byte at port 0x300:"
    assert last == "ZeroDivisionError: no"
    assert [line.split(",")[0] for line in frames if "File" in line] == [f'  File "{model}"']


def test_wait_limits_how_long_a_device_waits_for_its_vm(run: Run, start: Start, irqchip_client: Client) -> None:
    began = time.monotonic()
    result = run("device", "Rtc", "--vm", "late", "--wait", "1")
    assert result.exit_code == 1
    assert "there is no VM 'late'; waited for 1 s" in result.stderr
    assert time.monotonic() - began < 10
    with start("device", "Rtc", "--vm", "late", "--wait", "20") as process:
        time.sleep(0.3)
        vm = irqchip_client.create_vm("late")
        vm.create_irqchip()
        vm.create_vcpu(0)
        claimed(vm, 0x71)
        vm.delete()
        assert process.wait(PATIENCE) == 0


def test_a_serial_port_listens_at_a_path(start: Start, vm: Vm, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    with start("device", "Uart", "--listen", str(path), "--vm", vm.name, "--name", "com1") as process:
        claimed(vm, 0x3FD)
        assert [session.client for session in vm.info().sessions] == ["com1"]
        vm.vcpu(0).pio_write(0x3F8, 0x41)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(1) == b"A"
            client.sendall(b"B")
            eventually(lambda: vm.vcpu(0).pio_read(0x3FD).data & 1 == 1)
            assert vm.vcpu(0).pio_read(0x3F8).data == 0x42
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_serial_port_uses_its_standard_streams_by_default(start: Start, vm: Vm, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_text("hi")
    with typed.open() as stdin, start("device", "Uart", "--vm", vm.name, stdin=stdin) as process:
        claimed(vm, 0x3FD)
        eventually(lambda: vm.vcpu(0).pio_read(0x3FD).data & 1 == 1)
        assert vm.vcpu(0).pio_read(0x3F8).data == ord("h")
        vm.vcpu(0).pio_write(0x3F8, ord("x"))
        process.terminate()
        said, _ = process.communicate(timeout=PATIENCE)
        assert said == "x"


def test_on_a_terminal_it_says_how_to_leave(start: Start, vm: Vm) -> None:
    main, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin, start("device", "I8042", "--vm", vm.name, stdin=stdin) as process:
        claimed(vm, 0x64)
        os.write(main, b"a")
        eventually(lambda: vm.vcpu(0).pio_read(0x64).data & 1 == 1)
        os.write(main, b"\x1d")
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert said.splitlines()[0] == "this terminal is the device's other end: Ctrl-] leaves"
    os.close(main)


def test_a_keyboard_sends_what_is_typed_and_resets_the_vm(start: Start, vm: Vm, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_text("a")
    cpu = vm.vcpu(0)
    with typed.open() as stdin, start("device", "I8042", "--vm", vm.name, stdin=stdin) as process:
        claimed(vm, 0x64)
        eventually(lambda: cpu.pio_read(0x64).data & 1 == 1)
        assert cpu.pio_read(0x60).data == 0x1E
        with vm.session() as session:
            cpu.pio_write(0x64, 0xFE)
            assert session.next_event(PATIENCE) == VmReset(ResetReason.GUEST)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_missing_disk_is_created(start: Start, vm: Vm, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    for size in ("64K", "1M"):  # the second has no effect
        with start("device", "BlockDevice", f"path={image}", "--create", size, "--vm", vm.name) as process:
            claimed(vm, 0x624)
            assert vm.vcpu(0).pio_read(0x62C, 4).data == 128
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert image.stat().st_size == 64 << 10


def test_a_debug_exit_ends_with_the_guests_status(start: Start, vm: Vm, irqchip_client: Client) -> None:
    with start("device", "DebugExit", "--delete-vm", "--vm", vm.name) as process:
        claimed(vm, 0xF4)
        assert vm.vcpu(0).pio_write(0xF4, 0x10)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0x21
    assert "the guest has ended with status 33" in said
    assert vm.name not in [info.name for info in irqchip_client.vms()]


def test_a_power_off_ends_with_status_0(start: Start, vm: Vm) -> None:
    with start("device", "PowerManagement", "--vm", vm.name) as process:
        claimed(vm, 0x600)
        assert vm.vcpu(0).pio_write(0x604, 5 << 10 | 1 << 13, 2)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "the guest has ended with status 0" in said


def test_a_device_goes_on_from_what_it_saved_in_a_vm_that_has_moved(
    start: Start, irqchip_client: Client, vm: Vm, tmp_path: Path
) -> None:
    state = tmp_path / "uart.json"
    cpu = vm.vcpu(0)
    listening = ("--listen", str(tmp_path / "serial"), "--state", str(state))
    with start("device", "Uart", *listening, "--vm", vm.name) as process:
        claimed(vm, 0x3FD)
        cpu.pio_write(0x3FF, 0x5A)
        cpu.pio_write(0x3F9, 2)  # THR is empty: the line is high
        snapshot = vm.snapshot()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    moved = irqchip_client.restore_vm(snapshot)
    assert [(each.detached, each.asserted_gsis) for each in moved.info().sessions] == [(True, (4,))]
    with start("device", "Uart", *listening, "--vm", moved.name) as process:
        assert claimed(moved, 0x3FF) == Access(True, 0x5A)
        assert [(each.detached, each.asserted_gsis) for each in moved.info().sessions] == [(False, (4,))]
        moved.delete()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is no device's state: Expecting"),
        ("[" * 100_000, "is no device's state"),
        ("{}", "a device's state: it is {}, and not an object of model"),
        ('{"model": "Uart", "version": 1, "lines": [], "timers": [], "state": {}}', "model is 'Uart', and not 'Rtc'"),
    ],
)
def test_an_invalid_state_file_is_refused(
    run: Run, fails: Callable[[Result], str], tmp_path: Path, content: str, why: str
) -> None:
    state = tmp_path / "state"
    state.write_text(content)
    said = fails(run("device", "Rtc", "--vm", "vm", "--state", state))
    assert said.startswith(str(state))
    assert why in said
    assert state.read_text() == content
