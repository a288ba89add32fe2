"""irqchipctl device: models of the package, and a user's own."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from irqchip_client import Access, Vm

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]

OWN = """
from irqchip_client.devices import Device

class Constant(Device):
    def __init__(self, base: int, value: int = 1, name: str = "constant", loud: bool = False) -> None:
        super().__init__(name)
        assert loud in (True, False)
        self.pio(base, 1, lambda offset, size: value, lambda offset, value, size: None)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def claimed(vm: Vm, port: int) -> Access:
    deadline = time.monotonic() + 20
    while not (access := vm.vcpu(0).pio_read(port)).claimed:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return access


def test_a_class_of_ones_own_runs_until_told_to_stop(start: Start, vm: Vm, model: Path) -> None:
    with start(
        "device", f"{model}:Constant", "base=0x300", "value=0x55", "name=mine", "loud=true", "--vm", vm.name
    ) as process:
        assert claimed(vm, 0x300) == Access(True, 0x55)
        assert [session.client for session in vm.info().sessions] == ["mine"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not vm.vcpu(0).pio_read(0x300).claimed


def test_a_model_of_the_package_says_what_it_has(start: Start, vm: Vm) -> None:
    with start("device", "Rtc", "--vm", vm.name) as process:
        claimed(vm, 0x71)
        vm.delete()
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0
    assert said.splitlines()[0] == "MC146818: PIO 0x70-0x71, GSI 8"


def test_ports_that_are_taken_are_refused(start: Start, vm: Vm, model: Path) -> None:
    with start("device", f"{model}:Constant", "base=0x20", "--vm", vm.name) as process:
        _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "part of 0x20 to 0x20 is claimed" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["Nothing"], "there is no Nothing"),
        (["run_device"], "is no class of irqchip_client.devices.Device"),
        (["no_such_module:Thing"], "there is no no_such_module:Thing"),
        (["/nonexistent.py:Thing"], "there is no /nonexistent.py:Thing"),
        (["Rtc", "base"], "'base' is not NAME=VALUE"),
        (["Rtc", "colour=red"], "Rtc can't be made so"),
    ],
)
def test_what_is_no_device_is_refused(run: Run, arguments: list[str], why: str) -> None:
    result = run("device", *arguments, "--vm", "vm")
    assert result.exit_code == 2
    assert why in result.stderr
