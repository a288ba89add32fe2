"""The examples of docs/guests.md and docs/devices.md run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from irqchip_client import Access, Client, IrqchipError, Vm
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE, eventually

DOCS = Path(__file__).parent.parent / "docs"
ON_KVM, ON_UNICORN, ON_ARM64, EMBEDDED, COUNTER = re.findall(
    r"```python\n(.*?)```", (DOCS / "guests.md").read_text(), re.DOTALL
)
(DEVICE, SHARING) = re.findall(r"```python\n(.*?)```", (DOCS / "devices.md").read_text(), re.DOTALL)
KERNEL = bytes.fromhex("b0 2a e6 f4 eb fe")  # mov al, 42; out 0xf4, al; jmp $
MULTIBOOT = bytes.fromhex(
    "02 b0 ad 1b  00 00 01 00  fe 4f 51 e4  00 00 10 00  00 00 10 00  00 00 00 00  00 00 00 00  20 00 10 00"
)
# Linux's header for arm64, which begins with a branch to what is behind it; PSCI's SYSTEM_OFF.
ARM64_IMAGE = bytes.fromhex(
    "10000014 1f2003d5  0000000000000000 0010000000000000 0000000000000000" + "00" * 24 + "41524d64 00000000"
    "00018052 0080b072 020000d4"  # mov w0, #8; movk w0, #0x8400, lsl #16; hvc #0
)


class GuestIsDoneError(Exception):
    """Raised by a device of this process to end the run."""


class Devices:
    """A machine with the debug exit alone."""

    def pio_read(self, port: int, size: int) -> int | None:  # noqa: ARG002
        return None

    def pio_write(self, port: int, value: int, size: int) -> bool:
        assert (port, value, size) == (0xF4, 42, 1)
        raise GuestIsDoneError

    def mmio_read(self, address: int, size: int) -> int | None:  # noqa: ARG002
        return None

    def mmio_write(self, address: int, value: int, size: int) -> bool:  # noqa: ARG002
        return False


def test_a_vmm_on_kvm(irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/kvm to use")
    assert irqchip_client.vms() == []
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    with pytest.raises(GuestIsDoneError):
        exec(ON_KVM, {"kernel": MULTIBOOT + KERNEL, "devices": Devices()})


def test_a_vmm_on_unicorn(irqchip_client: Client) -> None:
    pytest.importorskip("unicorn", reason="Unicorn is not installed")
    from irqchip_client.vmm.image import load, parse_image
    from irqchip_client.vmm.memory import GuestMemory

    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    with GuestMemory(1 << 20) as memory:
        start = load(memory, parse_image(KERNEL))
        with pytest.raises(GuestIsDoneError):
            exec(ON_UNICORN, {"memory": memory, "vm": vm, "devices": Devices(), "start": start})


def test_a_vmm_for_arm64(irqchip_client: Client) -> None:
    pytest.importorskip("unicorn", reason="Unicorn is not installed")
    from irqchip_client.vmm.arm64 import RAM
    from irqchip_client.vmm.memory import GuestMemory

    with GuestMemory(1 << 20, start=RAM) as memory:
        exec(ON_ARM64, {"memory": memory, "client": irqchip_client, "devices": Devices(), "kernel": ARM64_IMAGE})
    assert irqchip_client.vms() == []


def test_a_daemon_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    exec(EMBEDDED, {})
    assert capsys.readouterr().out == "0\n"


@pytest.fixture
def vm1(irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch) -> Vm:
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    vm = irqchip_client.create_vm("vm1")
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


def test_a_vmm_shares_its_memory(vm1: Vm) -> None:
    sizes: list[int] = []
    exec(SHARING.replace("...", "look(vm)"), {"vm": vm1, "look": lambda vm: sizes.append(size_of_memory(vm))})
    assert sizes == [16 << 20]


def size_of_memory(vm: Vm) -> int:
    with vm.session() as session:
        part = session.guest_memory()
        os.close(part.memfd)
        return part.length


def claimed(vm: Vm, port: int) -> None:
    eventually(lambda: vm.vcpu(0).pio_read(port).claimed)


def test_a_device_answers_for_its_region(vm1: Vm) -> None:
    def serve() -> None:
        with pytest.raises(IrqchipError, match="deleted"):
            exec(COUNTER, {"vm": vm1})

    owner = threading.Thread(target=serve)
    owner.start()
    claimed(vm1, 0x300)
    assert vm1.vcpu(0).pio_read(0x302) == Access(True, 42)
    assert vm1.vcpu(0).pio_write(0x302, 1)
    vm1.delete()
    owner.join(PATIENCE)
    assert not owner.is_alive()


def test_a_device_is_a_class_and_a_process(vm1: Vm) -> None:
    with subprocess.Popen([sys.executable, "-c", DEVICE]) as process:
        claimed(vm1, 0x300)
        for _ in range(3):
            assert vm1.vcpu(0).pio_write(0x300, 1)
        assert vm1.vcpu(0).pio_read(0x300) == Access(True, 3)
        process.terminate()
        assert process.wait(PATIENCE) == 0
