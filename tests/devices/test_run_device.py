"""run_device(): how the process of a device ends, and the state it can then save."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from irqchip_client import Access, Architecture, Busy, Client, DeviceType, GicHost, Vm, arm64, ops
from irqchip_client._daemon import Daemon
from irqchip_client.devices import Device, run_device
from tests.waiting import PATIENCE, eventually

SLOW = """
import json, sys, time
from irqchip_client.devices import Device, run_device
from irqchip_client.devices.saving import Number

class Slow(Device):
    STATE = {"begun": Number(0, 99), "ended": Number(0, 99)}

    def __init__(self):
        super().__init__("slow")
        self.begun = self.ended = 0
        self.interrupt = self.line(5)
        self.pio(0x300, 1, self.read, self.write)

    def read(self, offset, size):
        return self.ended

    def write(self, offset, value, size):
        self.begun += 1
        print("begun", flush=True)
        if value == 9:
            raise RuntimeError("nine")
        time.sleep(0.1 * value)
        self.ended += 1
        self.interrupt.set(True)

device = Slow()
try:
    run_device(device, sys.argv[1])
finally:
    print(json.dumps(device.save()["state"]))
"""


@contextmanager
def slow(daemon: Daemon, vm: Vm) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"IRQCHIP_TARGET": daemon.target}
    command = [sys.executable, "-c", SLOW, vm.name]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            eventually(lambda: vm.vcpu(0).pio_read(0x300).claimed)
            yield process
        finally:
            process.kill()


def test_a_signal_in_the_middle_of_an_access_waits_for_its_end(irqchip_server: Daemon, vm: Vm) -> None:
    with slow(irqchip_server, vm) as process, vm.session("vcpu") as vcpu:
        written = vcpu.submit([ops.pio_write(0, 0x300, 7)])
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
        assert json.loads(said) == {"begun": 1, "ended": 1}
        assert process.returncode == 0
        assert written.result(PATIENCE)[0], "and it was answered"


def test_a_second_signal_does_not_wait(irqchip_server: Daemon, vm: Vm) -> None:
    with slow(irqchip_server, vm) as process, vm.session("vcpu") as vcpu:
        vcpu.submit([ops.pio_write(0, 0x300, 255)])
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in (signal.SIGTERM, signal.SIGINT):  # not the same: two of one number that are pending are one
            process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE)
        assert json.loads(said) == {"begun": 1, "ended": 0}


def test_an_exception_of_the_device_leaves_run_device(irqchip_server: Daemon, vm: Vm) -> None:
    with slow(irqchip_server, vm) as process:
        vm.vcpu(0).pio_write(0x300, 9)
        _, said = process.communicate(timeout=PATIENCE)
        assert said.splitlines()[-2:] == [
            "RuntimeError: nine",
            "Slow failed in a write of 0x9 to 1 byte at port 0x300",
        ]
        assert process.returncode == 1


def test_a_device_takes_over_the_levels_that_a_moved_vm_keeps_for_it(
    irqchip_server: Daemon, irqchip_client: Client, vm: Vm
) -> None:
    with vm.session("slow") as session:
        session.line(5).raise_()
        snapshot = vm.snapshot()
    moved = irqchip_client.restore_vm(snapshot)
    with slow(irqchip_server, moved):
        assert moved.vcpu(0).pio_read(0x300) == Access(True, 0)
        assert [(info.detached, info.asserted_gsis) for info in moved.info().sessions] == [(False, ())]


class Quick(Device):
    """Ends as soon as it runs."""

    def __init__(self) -> None:
        super().__init__("quick")
        self.out = self.line(arm64.spi(1))

    def started(self) -> None:
        self.out.set(False)
        raise EOFError


@pytest.mark.parametrize("version", [2, 3])
def test_a_device_waits_until_the_gic_that_was_made_is_initialised(
    irqchip_server: Daemon, irqchip_client: Client, version: int
) -> None:
    vm = irqchip_client.create_vm(architecture=Architecture.ARM64, gic=GicHost(version))
    vm.create_vcpu(0)
    gic = vm.create_device(DeviceType.ARM_VGIC_V2 if version == 2 else DeviceType.ARM_VGIC_V3)
    with pytest.raises(Busy, match="is not initialised: set its attribute CTRL_INIT"):
        run_device(Quick(), vm.name, target=irqchip_server.target, start_timeout=0.2)
    assert vm.create_vcpu(1).id == 1  # the device has not initialised the GIC
    gic.set(arm64.Group.CTRL, arm64.Control.INIT)
    with pytest.raises(EOFError):
        run_device(Quick(), vm.name, target=irqchip_server.target)


def test_a_gic_of_create_irqchip_is_initialised_by_its_first_line(
    irqchip_server: Daemon, irqchip_client: Client
) -> None:
    vm = irqchip_client.create_vm(architecture=Architecture.ARM64, gic=GicHost(2))
    vm.create_vcpu(0)
    vm.create_irqchip()
    with pytest.raises(EOFError):
        run_device(Quick(), vm.name, target=irqchip_server.target)
