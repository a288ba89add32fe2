"""Deliberate mistakes: each gets a message that says what was wrong and what is allowed, and most also what to do.

A row has a command line of irqchipctl or irqchipd, or a call of the SDK; a part of the message that names what is
wrong; one that says what is allowed; and one that says what to do, where there is something.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from irqchip_client import Chip, Client, IrqchipError, PinRoute, Space, Vm, VmSnapshot, connect, ops
from irqchip_client._daemon import Daemon
from irqchip_client.cli import main
from irqchip_client.devices import Device, Rtc, run_device

Call = Callable[[Client, Vm], object]
HERE = str(Path(__file__))

COMMANDS: list[tuple[list[str], str, str, str]] = [
    (["crate"], "no command 'crate'", "create", "did you mean"),
    (["frobnicate"], "no command 'frobnicate'", "there are create, list, show", "irqchipctl --help"),
    (["list", "--jsno"], "'--jsno'", "'--json'", "Did you mean"),
    (["create", ""], "VM: it is empty", "or none", "give the VM a name"),
    (["create", "a b"], "'a b' is no VM name", "1 to 64 of A-Z a-z 0-9 . _ -", ""),
    (["create", "vm1"], "a VM 'vm1' already", "another name", "delete that VM first"),
    (["create", "x", "--vcpus", "300"], "'--vcpus': 300", "0 to 255", ""),
    (["create", "x", "--cpus", "2"], "'--cpus'", "'--vcpus'", "Did you mean"),
    (
        ["create", "x", "--pit", "--no-irqchip"],
        "--pit",
        "needs the whole irqchip",
        "leave --split and --no-irqchip out",
    ),
    (["create", "x", "--split", "24", "--no-irqchip"], "--split", "of an irqchip", "give one of them"),
    (["show"], "VM", "the first argument", "`irqchipctl list`"),
    (["show", "vm2"], "no VM 'vm2'", "vm1", "did you mean"),
    (["show", "VM1"], "no VM 'VM1'", "vm1", "did you mean"),
    (["delete"], "name the VMs", "--all", "say --all"),
    (["pulse", "vm1"], "'GSI'", "VM GSI", "pulse --help"),
    (["pulse", "vm1", "-1"], "-1 is negative", "0 or more", "16 or 0x10"),
    (["pulse", "vm1", "four"], "'GSI': 'four' is no number", "16, 0x10 or 0b10000", "write"),
    (["in", "vm1", "3f8"], "'PORT': '3f8' is no number", "16, 0x10 or 0b10000", "0x3f8 is hexadecimal"),
    (["in", "vm1", "70000"], "'PORT': 70000", "0 to 65535", "in --help"),
    (["in", "vm1", "0x20", "--size", "3"], "'--size': '3'", "'1', '2', '4'", "in --help"),
    (["in", "vm1", "0x20", "--vcpu", "7"], "no vCPU 7", "it has 0", ""),
    (["out", "vm1", "0x20", "300"], "VALUE: 0x12c", "0 to 0xff", "--size 2"),
    (["ack", "vm1", "--source", "apic"], "'--source': 'apic'", "'any', 'pic', 'lapic'", "ack --help"),
    (["advance", "vm1", "10ms"], "clock of VM 'vm1' is real", "only one that was made virtual", "--virtual-clock"),
    (["advance", "vm1", "10minutes"], "'10minutes'", "1.5s, 10ms, 500us or 20ns", "write"),
    (["advance", "vm1", "1.5"], "'1.5'", "a whole number of ns", "write 1.5s"),
    (["regs", "vm1", "--chip", "pit"], "has no PIT", "a VM that has one", "irqchipctl create --pit"),
    (["watch", "vm1", "kvm_nope"], "'kvm_nope' is no tracepoint", "there are kvm_pio, ", ""),
    (["save", "vm1", "/nonexistent/file"], "/nonexistent/file", "the folder /nonexistent", "make it first"),
    (["restore", HERE], HERE, "no snapshot of a VM", "`irqchipctl save`"),
    (["replay", HERE], f"{HERE}:1: is not JSON", "one object a line", ""),
    (["replay", "x", "--in-process", "--jobs", "2"], "--jobs", "for a daemon", "--help"),
    (["run", "--kernel", "/nonexistent"], "'--kernel'", "/nonexistent", "run --help"),
    (["run", "--kernel", HERE, "--timeout", "0"], "'--timeout': 0", "more than 0", "run --help"),
    (["run", "--kernel", HERE, "--memory", "1"], "'--memory': 1", "2 to 3072", "run --help"),
    (["--target", "localhost:80", "list"], "'localhost:80' is no target", "unix:///absolute/path", "write"),
    (["--target", "unix:///nonexistent", "list"], "no irqchipd answers at", "--target", "start it with `irqchipd`"),
    (["shell", "vm2"], "no VM 'vm2'", "vm1", "did you mean"),
    (["run", HERE], "--kernel is missing", "A multiboot image, or a flat binary", "run --help"),
    (["run", "--kernel", "/dev/null"], "is empty", "a multiboot image, or a flat binary", "give"),
    (["run", "--kernel", sys.executable], "an ELF file without a multiboot header", "8 KiB", "objcopy -O binary"),
    (["device", "Rtc"], "--vm is missing", "The VM of the device", "`irqchipctl list`"),
    (["device", "Rtc", "--vm", "vm2", "--wait", "1"], "no VM 'vm2'", "waited for 1 s", "`irqchipctl create vm2`"),
    (["device", "nofile.py:Timer", "--vm", "vm1"], "there is no nofile.py", "No such file", "device --help"),
    (["device", f"{HERE}:Hasty", "--vm", "vm1"], "no attribute 'lines'", "super().__init__(name)", "call"),
    (["watch", "vm1", "--gsi", "5000"], "'--gsi': 5000", "0 to 4095", "watch --help"),
]

DAEMON: list[tuple[list[str], str, str, str]] = [
    (["--listen", "here"], "'here'", "unix:///PATH or tcp://HOST:PORT", "use"),
    (["--listen", "unix:///nonexistent/socket"], "directory /nonexistent does not exist", "another", "make it"),
    (["--listen", f"unix://{HERE}"], "exists and is not a socket", "another path", "remove it"),
    (["--listen", "tcp://0.0.0.0:0"], "0.0.0.0", "listen on loopback", "--allow-insecure"),
    (["--max-message", "9999999999999"], "'--max-message'", "4096<=x<=2147483647", "--help"),
    (["--poll", "99999999999999999999"], "'--poll'", "0<=x<=", "--help"),
    (["--max-vms", "0"], "'--max-vms'", "1<=x<=", "--help"),
]

CALLS: dict[str, tuple[Call, str, str, str]] = {
    "a text for a port": (
        *(lambda _, vm: vm.vcpu(0).pio_write(wrong("0x20"), 1), "port is '0x20'", "0 to 0xffff"),
        "write 0x20 without quotes",
    ),
    "an address of 70 bits": (
        *(lambda _, vm: vm.signal_msi(1 << 70, 5), "address is 11805916", "0 to 0xffffffffffffffff"),
        "",
    ),
    "an access of 3 bytes": (lambda _, vm: vm.vcpu(0).pio_read(0x20, 3), "not 3", "1, 2, 4 bytes", ""),
    "a port out of range": (lambda _, vm: vm.vcpu(0).pio_read(70000), "port 0x11170", "0 to 0xffff", ""),
    "a second vCPU 0": (lambda _, vm: vm.create_vcpu(0), "has a vCPU 0 already", "another id", "choose"),
    "a route that is none": (
        *(lambda _, vm: vm.set_routing([wrong(5)]), "routes[0] is 5", "PinRoute or an MsiRoute"),
        "",
    ),
    "a pin that is none": (
        *(lambda _, vm: vm.set_routing([PinRoute(1, Chip.IOAPIC, 99)]), "GSI 1", "pins 0 to 23"),
        "",
    ),
    "a chip that is none": (lambda _, vm: vm.get_irqchip(wrong("x")), "chip is 'x'", "Chip.PIC_PRIMARY, ", ""),
    "vCPUs that are no list": (
        *(lambda _, vm: vm.session("x", vcpus=wrong(5)), "vcpus is 5", "a list of ids of vCPUs"),
        "write [5]",
    ),
    "a text for tracepoints": (
        *(lambda _, vm: vm.watch("kvm_pio"), "tracepoints is 'kvm_pio'", "a list of tracepoints' names"),
        "write ['kvm_pio']",
    ),
    "a client's name that is too long": (lambda _, vm: vm.session("x" * 65), "has 65", "at most 64 characters", ""),
    "ports of a chip": (
        *(lambda _, vm: vm.session("x").register_region(Space.PIO, 0x20, 2), "0x20 to 0x21 is claimed", "others"),
        "choose",
    ),
    "what is no operation": (
        *(lambda _, vm: vm.session("x").run([wrong(5)]), "5 is no operation", "irqchip_client.ops makes"),
        "ops.pio_read(0, 0x20)",
    ),
    "a halt in the middle": (
        *(lambda _, vm: vm.session("x").run([ops.halt(0), ops.nmi(0)]), "halt", "the last operation of its batch"),
        "submit the rest by itself",
    ),
    "bytes for a snapshot": (
        *(lambda client, _: client.restore_vm(wrong(b"x")), "of type bytes", "VmSnapshot"),
        "VmSnapshot.from_bytes()",
    ),
    "bytes that are no snapshot": (
        *(lambda _, __: VmSnapshot.from_bytes(b"abc"), "these 3 bytes", "snapshot of a VM"),
        "`irqchipctl save` and Vm.snapshot()",
    ),
    "a negative timeout": (lambda _, __: connect(timeout=-1), "timeout is -1", "0 to 1,000,000,000", ""),
    "a target without a path": (
        *(lambda _, __: connect("unix://here"), "'unix://here' is no target", "unix:///absolute/path"),
        "write",
    ),
    "a text in place of a list": (
        *(lambda _, vm: vm.session("x", gsis=wrong("4")), "gsis is '4'", "a list of GSIs"),
        "write [4]",
    ),
    "an operation in place of a list": (
        *(lambda _, vm: vm.session("x").run(wrong(ops.nmi(0))), "is no list of operations", "operations"),
        "write [...]",
    ),
    "half a GSI": (lambda _, vm: vm.line(wrong(4.5)).pulse(), "gsi is 4.5", "no whole number; a GSI is 0 to", ""),
    "routes that are None": (
        *(lambda _, vm: vm.set_routing(wrong(None)), "routes is None", "list of PinRoute and MsiRoute"),
        "",
    ),
    "a reason that is none": (
        *(lambda _, vm: vm.reset(wrong("guest")), "reason is 'guest'", "ResetReason.OPERATOR, ResetReason.GUEST"),
        "",
    ),
    "a class for a device": (
        *(lambda _, __: run_device(wrong(Rtc), "vm1"), "Rtc", "and no Device"),
        "make one, Rtc(...)",
    ),
    "a VM for its name": (lambda _, vm: run_device(Rtc(), wrong(vm)), "of type Vm", "a text", "write its .name"),
    "a VM without a name": (lambda client, _: client.vm(""), "name is empty", "the VMs that there are", "vms()"),
}


class Hasty(Device):
    """A device whose constructor has forgotten Device's."""

    def __init__(self) -> None:
        self.line(4)


def wrong(value: Any) -> Any:
    """A value of a type that is not allowed."""
    return value


@pytest.fixture
def vm1(irqchip_client: Client) -> Vm:
    vm = irqchip_client.create_vm("vm1")
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


def test_there_are_fifty_and_most_say_what_to_do() -> None:
    rows = [*(row[1:] for row in (*COMMANDS, *DAEMON)), *(row[1:] for row in CALLS.values())]
    assert len(rows) >= 50
    assert all(what and allowed for what, allowed, _ in rows)
    assert sum(bool(advice) for *_, advice in rows) >= 40


@pytest.mark.parametrize(("arguments", "what", "allowed", "advice"), COMMANDS, ids=lambda value: " ".join(value)[-40:])
def test_a_command(irqchip_server: Daemon, vm1: Vm, arguments: list[str], what: str, allowed: str, advice: str) -> None:
    result = CliRunner(env={"IRQCHIP_TARGET": irqchip_server.target}).invoke(main, arguments, prog_name="irqchipctl")
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    said = " ".join(result.stderr.split())
    for words in (what, allowed, advice):
        assert words in said
    assert vm1.info().vcpus == (0,)


@pytest.mark.parametrize(("arguments", "what", "allowed", "advice"), DAEMON, ids=lambda value: " ".join(value)[-40:])
def test_the_daemon(arguments: list[str], what: str, allowed: str, advice: str) -> None:
    command = [sys.executable, "-m", "irqchipd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    for words in (what, allowed, advice):
        assert words in said


@pytest.mark.parametrize(("call", "what", "allowed", "advice"), CALLS.values(), ids=CALLS)
def test_a_call(irqchip_client: Client, vm1: Vm, call: Call, what: str, allowed: str, advice: str) -> None:
    with pytest.raises(IrqchipError) as raised:
        call(irqchip_client, vm1)
    for words in (what, allowed, advice):
        assert words in raised.value.message
