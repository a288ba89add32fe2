"""The examples of docs/vcpu.md run."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from irqchip_client import Claim, Client, Interrupt, InterruptSource, InvalidArgument, NotFound, Session, Vcpu, Vm, ops
from irqchip_client._daemon import Daemon
from irqchip_client.devices import Device, LocalHost, Rtc, Uart
from irqchipd.edge.errors import details
from irqchipd.vm.errors import VmError
from tests.client.guest import IRQ_BASE, init_pics
from tests.client.test_halt import wait_until_halted
from tests.waiting import PATIENCE

TEXT = (Path(__file__).parent.parent / "docs" / "vcpu.md").read_text()
LOOP, BATCH, ENDED, BEFORE, OF_A_VCPU, RESAMPLING, RETURNING, MOVING = re.findall(
    r"```python\n(.*?)```", TEXT, re.DOTALL
)
(CREATE, ENABLE, MSI, AGAIN, END, DONE, _, DEVICE, SAVE, DELETE, RESTORE, GOES_ON) = re.findall(
    r"^    (irqchipctl .*?)(?: &)?$", TEXT, re.MULTILINE
)


@pytest.fixture
def vm1(irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """The VM that `irqchipctl create vm1` makes, on the daemon that the snippets connect to."""
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    with suppress(NotFound):
        irqchip_client.delete_vm("vm1")
    irqchipctl(CREATE)
    yield irqchip_client.vm("vm1")
    with suppress(NotFound):
        irqchip_client.delete_vm("vm1")


def irqchipctl(line: str) -> None:
    subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "irqchipctl"), *line.split()[1:]],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )


def test_the_loop_delivers_what_the_other_terminal_sends(vm1: Vm) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as loop:
        assert loop.stdout is not None
        try:
            for commands in ([ENABLE, MSI], [AGAIN, END]):
                wait_until_halted(vm1)  # before its halt, the loop takes interrupts silently
                for command in commands:
                    irqchipctl(command)
                assert loop.stdout.readline() == "deliver 64\n"
            loop.send_signal(signal.SIGINT)
            assert loop.stderr is not None
            assert (loop.wait(PATIENCE), loop.stderr.read()) == (0, "")
        finally:
            loop.kill()
    irqchipctl(DONE)


def test_the_vmms_calls_are_accepted(irqchip_client: Client) -> None:
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


def test_a_halt_is_ended(vm1: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    with vm1.session() as session:
        exec(ENDED, {"session": session})
    assert capsys.readouterr().out == "None\n"


class DeviceIsDone(Exception):  # noqa: N818 - it is no error
    """Raised by a test to leave an endless loop."""


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
            assert cpu.halt(timeout=PATIENCE) == Interrupt(IRQ_BASE + 11, InterruptSource.PIC)
            cpu.pio_write(0xA0, 0x20)
            cpu.pio_write(0x20, 0x20)

    executing = threading.Thread(target=guest)
    executing.start()
    with pytest.raises(DeviceIsDone):
        exec(RESAMPLING, {"vm": vm1, "device_still_asks": device_still_asks})
    executing.join(PATIENCE)
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


def test_a_vm_moves_with_its_devices_by_commands(
    vm1: Vm, irqchip_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with started(DEVICE) as device:
        claimed(vm1, 0x3FF)
        vm1.vcpu(0).pio_write(0x3FF, 0x5A)
        irqchipctl(SAVE)
        device.terminate()
        assert device.wait(PATIENCE) == 0
    irqchipctl(DELETE)
    irqchipctl(RESTORE)
    moved = irqchip_client.vm("vm2")
    irqchipctl(CREATE)  # for the fixture's end
    with started(GOES_ON) as device:
        assert claimed(moved, 0x3FF) == 0x5A
        moved.delete()
        assert device.wait(PATIENCE) == 0


def started(line: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(Path(sysconfig.get_path("scripts")) / "irqchipctl"), *line.split()[1:]])


def claimed(vm: Vm, port: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while not (access := vm.vcpu(0).pio_read(port)).claimed:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return access.data


def test_a_vm_moves_with_its_devices_in_a_vmm(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    sent: list[bytes] = []
    moves: list[Vm] = []

    def make_devices() -> list[Device]:
        return [Uart(sent.append), Rtc()]

    def run_vcpus(moved: Vm, host: LocalHost) -> None:
        moves.append(moved)
        assert host.pio_read(0x3FF, 1) == 0x5A
        assert [info.asserted_gsis for info in moved.info().sessions] == [(4,)]

    with vm.session("devices") as session:
        host = LocalHost(session, make_devices())
        host.start()
        host.pio_write(0x3FF, 0x5A, 1)
        host.pio_write(0x3F9, 2, 1)
        exec(
            MOVING,
            {
                "vm": vm,
                "client": irqchip_client,
                "host": host,
                "LocalHost": LocalHost,
                "make_devices": make_devices,
                "run_vcpus": run_vcpus,
            },
        )
        host.stop()
    (moved,) = moves
    moved.delete()


def test_every_method_it_names_exists() -> None:
    owners = {"vm": Vm, "client": Client, "session": Session, "cpu": Vcpu, "ops": ops}
    found = re.findall(rf"\b({'|'.join(owners)})\.(\w+)", TEXT)
    assert len(found) > 20
    for owner, name in found:
        assert hasattr(owners[owner], name), f"{owner}.{name}"


DOCS = Path(__file__).parent.parent / "docs"
OF_ARM64 = (DOCS / "arm64.md").read_text()


def test_an_errno_is_read_without_the_sdk(irqchip_server: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "errors.md").read_text(), re.DOTALL)
    exec(code, {"target": irqchip_server.target})
    assert capsys.readouterr().out == "NOT_FOUND ENOENT there is no VM 'missing'\n"


def test_an_errno_is_at_the_documented_bytes() -> None:
    def fields(data: bytes) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while data:
            tag, length = data[0], data[1]
            if tag & 7 == 0:  # A varint, and a small one.
                found[tag >> 3], data = data[1:2], data[2:]
            else:
                found[tag >> 3], data = data[2 : 2 + length], data[2 + length :]
        return found

    status = fields(details(VmError(errno.ENXIO, "why")))
    info = fields(fields(status[3])[2])
    assert (status[2], info[1], info[2]) == (b"why", b"ENXIO", b"irqchipd")


def test_an_ephemeral_vm_of_the_command_line_s_page(
    irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "irqchipctl.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "1\n"
    assert irqchip_client.vms() == []


@pytest.mark.usefixtures("vm1")
def test_the_shell_s_line() -> None:
    (line,) = re.findall(r"^    (printf .*)$", (DOCS / "irqchipctl.md").read_text(), re.MULTILINE)
    scripts = sysconfig.get_path("scripts")
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment
    )
    assert done.stdout.splitlines()[0] == "1 delivered"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_made_for(shell: str) -> None:
    assert f"_IRQCHIPCTL_COMPLETE={shell}_source irqchipctl" in (DOCS / "irqchipctl.md").read_text()
    environment = os.environ | {"_IRQCHIPCTL_COMPLETE": f"{shell}_source"}
    command = [str(Path(sysconfig.get_path("scripts")) / "irqchipctl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
    assert "irqchipctl" in done.stdout


@pytest.mark.usefixtures("vm1")
def test_completion_completes_commands_and_vms() -> None:
    def complete(*words: str) -> list[str]:
        environment = os.environ | {
            "_IRQCHIPCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["irqchipctl", *words]),
            "COMP_CWORD": str(len(words)),
        }
        command = [str(Path(sysconfig.get_path("scripts")) / "irqchipctl")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("sho") == ["show"]
    assert complete("show", "vm") == ["vm1"]


def test_arm64_in_python(
    irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", OF_ARM64, re.DOTALL):
        exec(code, names)
        assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*?  # (.*)$", code, re.MULTILINE)
    irqchip_client.delete_vm("guest")


def test_arm64_by_commands(irqchip_server: Daemon, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_server.target)
    lines = re.findall(r"^    irqchipctl (.*?)(?: +# (.*))?$", OF_ARM64, re.MULTILINE)
    assert len(lines) == 11
    for line, comment in lines:
        command = [str(Path(sysconfig.get_path("scripts")) / "irqchipctl"), *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        _, prints, expected = comment.partition("prints ")
        if prints:
            assert done.stdout == f"{expected}\n", line
        assert done.stdout or line.split()[0] in ("write", "sysreg-write"), line
    irqchip_client.delete_vm("vm1")
