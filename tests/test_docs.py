"""What docs/vcpu.md says has been run."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from irqchip_client import Claim, Client, Interrupt, InterruptSource, InvalidArgument, NotFound, Session, Vcpu, Vm, ops
from irqchip_client._daemon import Daemon
from tests.client.guest import IRQ_BASE, init_pics

TEXT = (Path(__file__).parent.parent / "docs" / "vcpu.md").read_text()
LOOP, BATCH, BEFORE, OF_A_VCPU, RESAMPLING, RETURNING = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(CREATE, *COMMANDS) = re.findall(r"^    (irqchipctl .*)$", TEXT, re.MULTILINE)


@pytest.fixture
def vm1(irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """What `irqchipctl create vm1` makes, of the daemon that the snippets find."""
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    with suppress(NotFound):
        irqchip_client.delete_vm("vm1")
    irqchipctl(CREATE)
    yield irqchip_client.vm("vm1")
    irqchip_client.delete_vm("vm1")


def irqchipctl(line: str) -> None:
    subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "irqchipctl"), *line.split()[1:]],
        capture_output=True,
        check=True,
        timeout=30,
    )


def test_the_loop_delivers_what_the_other_terminal_sends(vm1: Vm) -> None:
    with subprocess.Popen([sys.executable, "-u", "-c", LOOP], stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        try:
            enable, msi, again, end = COMMANDS
            irqchipctl(enable)
            for commands in ([msi], [again, end]):
                for command in commands:
                    irqchipctl(command)
                assert loop.stdout.readline() == "deliver 64\n"
        finally:
            loop.kill()
    assert vm1.info().vcpus == (0,)


def test_what_a_vmm_says_is_taken(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    exec(BEFORE, {"vm": vm})
    cpu = vm.create_vcpu(1)
    exec(OF_A_VCPU, {"cpu": cpu})
    assert cpu.host_msr_read(0x1B).data == 0xFEE0_0C00
    assert cpu.events().nmi_masked
    for capability in (128, 213, 129, 237):
        assert irqchip_client.check_extension(capability)
    with pytest.raises(InvalidArgument):
        vm.create_vcpu(8)


def test_a_batch_ends_an_interrupt_and_waits_for_the_next(vm1: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    vm1.vcpu(0).mmio_write(0xFEE0_00F0, 0x1FF)
    vm1.signal_msi(0xFEE0_0000, 0x40)
    with vm1.session() as session:
        assert session.vcpu(0).acknowledge() == Interrupt(0x40, InterruptSource.LAPIC)
        vm1.signal_msi(0xFEE0_0000, 0x40)
        exec(BATCH, {"session": session})
    assert capsys.readouterr().out == f"{[Claim.DEVICE, Interrupt(0x40, InterruptSource.LAPIC)]}\n"


class DeviceIsDone(Exception):  # noqa: N818 - it is no error
    """How the test leaves a loop that has no end."""


def test_a_resampled_line_is_raised_as_long_as_the_device_asks(vm1: Vm) -> None:
    init_pics(vm1)
    asked: list[int] = []

    def device_still_asks() -> bool:
        asked.append(1)
        if len(asked) == 3:
            raise DeviceIsDone
        return True

    def guest() -> None:
        cpu = vm1.vcpu(0)
        for _ in range(3):
            assert cpu.halt(timeout=10) == Interrupt(IRQ_BASE + 11, InterruptSource.PIC)
            cpu.pio_write(0xA0, 0x20)
            cpu.pio_write(0x20, 0x20)

    executing = threading.Thread(target=guest)
    executing.start()
    with pytest.raises(DeviceIsDone):
        exec(RESAMPLING, {"vm": vm1, "device_still_asks": device_still_asks})
    executing.join(10)
    assert len(asked) == 3


def test_the_levels_of_a_client_that_never_returns_are_dropped(vm1: Vm, irqchip_client: Client) -> None:
    with vm1.session("disk") as session:
        session.line(11).raise_()
        saved = vm1.snapshot()
    moved = irqchip_client.restore_vm(saved)
    with moved.session("disk"):
        assert [info.asserted_gsis for info in moved.info().sessions] == [(11,), ()]
    exec(RETURNING, {"vm": moved})
    assert moved.info().sessions == ()


def test_every_method_it_names_exists() -> None:
    owners = {"vm": Vm, "client": Client, "session": Session, "cpu": Vcpu, "ops": ops}
    found = re.findall(rf"\b({'|'.join(owners)})\.(\w+)", TEXT)
    assert len(found) > 20
    for owner, name in found:
        assert hasattr(owners[owner], name), f"{owner}.{name}"
