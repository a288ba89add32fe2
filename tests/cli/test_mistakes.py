"""Deliberate mistakes: each message says what was wrong, what is allowed, and what to do.

A row has a command line of irqchipctl or irqchipd, or a call of the SDK, and three parts that the message must contain:
one names the mistake, one says what is allowed, and one says what to do. The lines that click puts above each message,
the usage and "Try '... --help' for help.", do not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import Context, Group
from click.testing import CliRunner

from irqchip_client import Architecture, Chip, Client, IrqchipError, PinRoute, Space, Vm, VmSnapshot, connect, ops
from irqchip_client._daemon import Daemon
from irqchip_client.arm64 import Group as Groups
from irqchip_client.cli import main
from irqchip_client.devices import BlockDevice, Device, Rtc, Uart, run_device
from tests.waiting import PATIENCE

Call = Callable[[Client, Vm], object]
HERE = str(Path(__file__))

COMMANDS: list[tuple[list[str], str, str, str]] = [
    (["crate"], "no command 'crate'", "create", "did you mean"),
    (["frobnicate"], "no command 'frobnicate'", "create, list, show", "use one of"),
    (["list", "--jsno"], "'--jsno'", "'--json'", "Did you mean"),
    (["create", ""], "VM: the name is empty", "leave VM out", "give the VM a name"),
    (["create", "a b"], "'a b' is no VM name", "64 of A-Z a-z 0-9 . _ -", "use 1 to"),
    (["create", "vm1"], "a VM 'vm1' already", "another name", "delete that VM first"),
    (
        ["create", "x", "--vcpus", "300"],
        "'--vcpus': 300",
        "0 to 255",
        "Write, for example: irqchipctl create vm1 --vcpus 2",
    ),
    (["create", "x", "--cpus", "2"], "'--cpus'", "'--vcpus'", "Did you mean"),
    (
        ["create", "x", "--pit", "--no-irqchip"],
        "--pit",
        "needs the whole irqchip",
        "leave --split and --no-irqchip out",
    ),
    (["create", "x", "--split", "24", "--no-irqchip"], "--split", "makes an irqchip", "leave one out"),
    (["show"], "VM", "the first argument", "`irqchipctl list`"),
    (["show", "vm2"], "no VM 'vm2'", "vm1", "did you mean"),
    (["show", "VM1"], "no VM 'VM1'", "vm1", "did you mean"),
    (["delete"], "name the VMs", "--all", "or give --all"),
    (["pulse", "vm1"], "GSI is missing", "VM GSI", "irqchipctl pulse vm1 4"),
    (["pulse", "vm1", "-1"], "-1 is negative", "0 or more", "write 16 or 0x10"),
    (["pulse", "vm1", "four"], "'GSI': 'four' is no number", "16, 0x10 or 0b10000", "write"),
    (["in", "vm1", "3f8"], "'PORT': '3f8' is no number", "16, 0x10 or 0b10000", "0x3f8 is hexadecimal"),
    (["in", "vm1", "70000"], "'PORT': 70000", "0 to 65535", "irqchipctl in vm1 0x3f8"),
    (["in", "vm1", "0x20", "--size", "3"], "'--size': '3'", "'1', '2', '4'", "irqchipctl in vm1 0x3f8 --size 1"),
    (
        ["in", "vm1", "0x20", "--vcpu", "7"],
        "no vCPU 7",
        "it has 0",
        "use one of these, or create vCPU 7 first; `irqchipctl create --vcpus",
    ),
    (["out", "vm1", "0x20", "300"], "VALUE: 0x12c", "0 to 0xff", "--size 2"),
    (
        ["ack", "vm1", "--source", "apic"],
        "'--source': 'apic'",
        "'any', 'pic', 'lapic'",
        "irqchipctl ack vm1 --source any",
    ),
    (["advance", "vm1", "10ms"], "clock of VM 'vm1' is real", "only a virtual clock can be", "--virtual-clock"),
    (["advance", "vm1", "10minutes"], "'10minutes'", "1.5s, 10ms, 500us or 20ns", "write"),
    (["advance", "vm1", "1.5"], "'1.5'", "a whole number of ns", "write 1.5s"),
    (["regs", "vm1", "--chip", "pit"], "has no PIT", "a VM that has one", "irqchipctl create --pit"),
    (["watch", "vm1", "kvm_nope"], "'kvm_nope' is not a tracepoint", "kvm_pio, kvm_mmio", "use one of"),
    (["save", "vm1", "/nonexistent/file"], "/nonexistent/file", "the folder /nonexistent", "make it first"),
    (["restore", HERE], HERE, "no snapshot of a VM", "give what `irqchipctl save` or"),
    (["replay", HERE], f"{HERE}:1: is not JSON", "one object a line", "write"),
    (["replay", "x", "--in-process", "--jobs", "2"], "--jobs", "for a daemon", "leave one of them out"),
    (["run", "--kernel", "/nonexistent"], "'--kernel'", "does not exist", "irqchipctl run --kernel guest.elf"),
    (
        ["run", "--kernel", HERE, "--timeout", "0"],
        "'--timeout': 0",
        "more than 0",
        "irqchipctl run --kernel guest.elf --timeout 10",
    ),
    (
        ["run", "--kernel", HERE, "--memory", "1"],
        "'--memory': 1",
        "2 to 3072",
        "irqchipctl run --kernel guest.elf --memory 128",
    ),
    (["--target", "localhost:80", "list"], "'localhost:80' is no target", "unix:///absolute/path", "write"),
    (["--target", "unix:///nonexistent", "list"], "no irqchipd answers at", "--target", "start it with `irqchipd`"),
    (["shell", "vm2"], "no VM 'vm2'", "vm1", "did you mean"),
    (
        ["run", HERE],
        "is one argument too many",
        "leave it out",
        "Write, for example: irqchipctl run --kernel guest.elf",
    ),
    (
        ["run"],
        "no kernel and no firmware is given",
        "give either",
        "--kernel FILE or --firmware FILE",
    ),
    (["run", "--kernel", "/dev/null"], "is empty", "a multiboot image or a flat binary", "give"),
    (["run", "--kernel", sys.executable], "an ELF file without a multiboot header", "8 KiB", "objcopy -O binary"),
    (["device", "Rtc"], "--vm is missing", "The VM of the device", "`irqchipctl list`"),
    (["device", "Rtc", "--vm", "vm2", "--wait", "1"], "no VM 'vm2'", "waited for 1 s", "`irqchipctl create vm2`"),
    (
        ["device", "nofile.py:Timer", "--vm", "vm1"],
        "nofile.py can't be read",
        "FILE.py:CLASS",
        "check the path. Use BlockDevice, ",
    ),
    (["device", f"{HERE}:Hasty", "--vm", "vm1"], "no attribute 'lines'", "super().__init__(name)", "call"),
    (["create", "vm5", "vm6"], "'vm6' is one argument too many", "leave it out", "run the command once for each"),
    (["advance", "vm1"], "DURATION is missing", "VM DURATION", "irqchipctl advance vm1 10ms"),
    (["pulse", "vm1", "4", "--count", "0"], "'--count': 0", "use 1 to", "irqchipctl pulse vm1 4 --count 1"),
    (["msi", "vm1", "0xfee00000"], "DATA is missing", "VM ADDRESS DATA", "irqchipctl msi vm1 0xfee00000 0x31"),
    (["msi", "vm1", "0xfee00000", "0x1ffffffff"], "'DATA': 0x1ffffffff", "0 to 0xffffffff", "msi vm1 0xfee00000 0x31"),
    (["read", "vm1", "0xfee00000", "--size", "16"], "'16'", "'4', '8'", "irqchipctl read vm1 0xfee00030 --size 4"),
    (["regs", "vm1", "--chip", "lapic9"], "'lapic9'", "'lapic', 'pit'", "irqchipctl regs vm1 --chip lapic"),
    (["save", "vm1", "/tmp"], "'/tmp' is a directory", "FILE", "irqchipctl save vm1 vm1.state"),
    (["run", "--kernel", HERE, "--without", "uart"], "'uart'", "'serial', 'exit'", "guest.elf --without serial"),
    (["device", "Rtc", "--vm", "vm1", "base=0xffff"], "port 0xffff has a length of 2", "use 1 to", "begin lower"),
    (["device", "Uart", "--vm", "vm1", "--wait", "-1"], "'--wait': -1.0", "x>=0", "device Rtc --vm vm1 --wait 30"),
    (
        ["device", "BlockDevice", "--vm", "vm1", "path=/nope"],
        "/nope",
        "No such file",
        "check the path, or make the file",
    ),
    (["device", "Rtc", "--vm", "vm1", "--state", "UART"], "model is 'Uart'", "'Rtc'", "name another file, or remove"),
    (["list", "--target"], "'--target'", "requires an argument", "Write, for example: irqchipctl list --target"),
    (["list", "-x"], "'-x'", "--json, --target", "leave it out, or use"),
    (["--target"], "'--target'", "requires an argument", "Write, for example: irqchipctl --target unix:///"),
    (["watch", "vm1", "--gsi", "5000"], "'--gsi': 5000", "0 to 4095", "irqchipctl watch vm1 kvm_set_irq --gsi 1"),
    (["watch", "vm1", "--gsi", "spi:4"], "VM 'vm1' is of x86", "only an arm64 VM", "write a GSI"),
    (["trace", "vm1", "--gsi", "16777252"], "VM 'vm1' is of x86", "only an arm64 VM", "write a GSI"),
]

# With an x86 VM vm1, and an arm64 VM guest.
ARM64: list[tuple[list[str], str, str, str]] = [
    (["create", "x", "--arch", "arm"], "'--arch': 'arm'", "'x86', 'arm64', 's390'", "Write, for example"),
    (["create", "x", "--arch", "arm64", "--gic", "4"], "'--gic': '4'", "'2', '3'", "Write, for example"),
    (["create", "x", "--arch", "arm64", "--pit"], "--pit", "are for x86", "leave them out, or leave --arch out"),
    (["create", "x", "--list-registers", "4"], "--list-registers", "is for arm64", "add --arch arm64, or leave"),
    (["create", "x", "--arch", "arm64", "--list-registers", "1"], "'--list-registers': 1", "2 to 16", "use 2 to 16"),
    (["create", "x", "--arch", "arm64", "--priority-bits", "8"], "'--priority-bits': 8", "5 to 7", "use 5 to 7"),
    (["pulse", "guest", "spi:500"], "line spi:500", "32 to 255 are allowed", "number 532"),
    (["pulse", "guest", "ppi:7:20"], "line ppi:7:20", "vCPU 7 does not exist", "create it first"),
    (["create", "x", "--gic", "3"], "--gic", "is for arm64", "add --arch arm64, or leave --gic out"),
    (
        ["create", "x", "--arch", "arm64", "--gic", "2", "--vcpus", "9"],
        "VM 'x' has 8 vCPUs",
        "at most 8 are allowed",
        "with its GIC",
    ),
    (["pulse", "guest", "4"], "has a GIC, which drives", "those of KVM_IRQ_LINE", "write spi:N for an SPI"),
    (["pulse", "guest", "spi:2000"], "'spi:2000' is no line", "N from 0 to 987", "write spi:N"),
    (["pulse", "guest", "ppi:0:4"], "'ppi:0:4' is no line", "INTID from 16 to 31", "ppi:VCPU:INTID"),
    (["raise", "vm1", "spi:4"], "VM 'vm1' is of x86", "only an arm64 VM has such lines", "write a GSI"),
    (["msr-read", "guest", "0x1b"], "msr_read", "an arm64 VM", "use `irqchipctl sysreg-read`"),
    (["msr-write", "guest", "0x1b", "0"], "msr_write", "an arm64 VM", "use `irqchipctl sysreg-write`"),
    (["ack", "guest"], "ack_interrupt", "an arm64 VM", "read ICC_IAR1_EL1 with `irqchipctl sysreg-read`"),
    (["sysreg-read", "vm1", "ICC_PMR_EL1"], "sysreg_read", "an x86 VM", "use `irqchipctl msr-read`"),
    (["sysreg-write", "vm1", "ICC_PMR_EL1", "0"], "sysreg_write", "an x86 VM", "use `irqchipctl msr-write`"),
    (["sysreg-read", "guest", "ICC_IAR9"], "'ICC_IAR9' is not known", "did you mean ICC_IAR1_EL1", "write a number"),
    (["sysreg-read", "guest", "-1"], "-1 is negative", "0 or more", "write 16 or 0x10"),
    (["sysreg-write", "guest", "ICC_PMR_EL1"], "VALUE is missing", "SYSREG VALUE", "ICC_EOIR1_EL1 36"),
    (["attr-get", "guest", "gic", "dist-reg", "0"], "'dist-reg' is not known", "addr, dist-regs", "did you mean dist-"),
    (["attr-get", "guest", "gic", "addr", "dist"], "'dist' is not known", "v3-dist", "write a number, or a name as"),
    (
        ["attr-get", "guest", "gic", "dist-regs", "GICD_TYPR"],
        "'GICD_TYPR' is not known",
        "GICD_CTLR, ",
        "did you mean GICD_TYPER?",
    ),
    (["attr-get", "guest", "gic", "dist-regs", "GICD_ISENABLER32"], "GICD_ISENABLER32 is not there", "0 to 31", "use"),
    (["attr-get", "guest", "gic", "addr", "0x10000000000000000"], "is out of range", "0 to 0xffffffffffffffff", "use"),
    (["attr-get", "guest", "timer", "0", "0"], "'timer' is no device", "gic, flic", "write gic"),
    (["attr-get", "vm1", "gic", "0", "0"], "has no device that is a GIC", "a VM that has one", "--arch arm64"),
    (["attr-get", "guest", "1", "0", "0"], "has no device 1", "device", "create it first"),
    (
        ["attr-get", "guest", "gic", "redist-regs", "GICR_TYPER", "--vcpu", "7"],
        "no vCPU 7",
        "it has 0",
        "use one of these",
    ),
    (["attr-get", "guest", "vcpu:0", "timer", "0", "--vcpu", "0"], "--vcpu", "for registers of a GIC", "leave --vcpu"),
    (["attr-set", "guest", "gic", "ctrl", "init", "now"], "'now' is no number", "16, 0x10 or 0b10000", "write"),
    (["attr-set", "guest", "gic", "ctrl", "init", "0x1", "--bytes"], "'0x1' is not bytes", "two hex", "as 0100ff"),
    (
        ["attr-get", "guest", "gic", "addr", "0", "--bytes", "1", "--before", "256"],
        "--before: 0x100",
        "1 byte",
        "use more --bytes",
    ),
]

DAEMON: list[tuple[list[str], str, str, str]] = [
    (["--listen", "here"], "'here'", "unix:///PATH or tcp://HOST:PORT", "use"),
    (["--listen", "unix:///nonexistent/socket"], "directory /nonexistent does not exist", "another", "make it"),
    (["--listen", f"unix://{HERE}"], "exists and is not a socket", "another path", "remove it"),
    (["--listen", "tcp://0.0.0.0:0"], "0.0.0.0", "listen on loopback", "--allow-insecure"),
    (
        ["--max-message", "9999999999999"],
        "'--max-message'",
        "4096<=x<=2147483647",
        "Write, for example: --max-message 1",
    ),
    (["--poll", "99999999999999999999"], "'--poll'", "0<=x<=", "Write, for example: --poll "),
    (["--port", "5000"], "no --port", "--listen", "write --listen tcp://127.0.0.1:5000"),
    (["--socket=/tmp/sock"], "no --socket", "unix:///PATH or --listen tcp", "where to listen is --listen"),
    (["/tmp/sock"], "'/tmp/sock'", "only options", "write --listen unix:///tmp/sock"),
    (["--max-vms", "0"], "'--max-vms'", "1<=x<=", "Write, for example: --max-vms "),
]

CALLS: dict[str, tuple[Call, str, str, str]] = {
    "a text for a port": (
        *(lambda _, vm: vm.vcpu(0).pio_write(wrong("0x20"), 1), "port is '0x20'", "0 to 0xffff"),
        "write 0x20 without quotes",
    ),
    "an address of 70 bits": (
        *(lambda _, vm: vm.signal_msi(1 << 70, 5), "address is 11805916", "0 to 0xffffffffffffffff"),
        "use an address",
    ),
    "an access of 3 bytes": (lambda _, vm: vm.vcpu(0).pio_read(0x20, 3), "of 3 bytes", "invalid", "use 1, 2, 4"),
    "a port out of range": (lambda _, vm: vm.vcpu(0).pio_read(70000), "port 0x11170", "0 to 0xffff", "use"),
    "a second vCPU 0": (lambda _, vm: vm.create_vcpu(0), "has a vCPU 0 already", "another id", "choose"),
    "an invalid route": (
        *(lambda _, vm: vm.set_routing([wrong(5)]), "routes[0] is 5", "PinRoute, MsiRoute or AdapterRoute"),
        "use a",
    ),
    "an invalid pin": (
        *(lambda _, vm: vm.set_routing([PinRoute(1, Chip.IOAPIC, 99)]), "GSI 1", "pins 0 to 23"),
        "use one of these",
    ),
    "an invalid chip": (
        lambda _, vm: vm.get_irqchip(wrong("x")),
        "chip is 'x'",
        "Chip.PIC_PRIMARY, ",
        "use one of",
    ),
    "vCPUs that are no list": (
        *(lambda _, vm: vm.session("x", vcpus=wrong(5)), "vcpus is 5", "a list of ids of vCPUs"),
        "write [5]",
    ),
    "a text for tracepoints": (
        *(lambda _, vm: vm.watch("kvm_pio"), "tracepoints is 'kvm_pio'", "a list of tracepoints' names"),
        "write ['kvm_pio']",
    ),
    "a client's name that is too long": (
        lambda _, vm: vm.session("x" * 65),
        "has 65",
        "at most 64 characters",
        "shorten",
    ),
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
        "give what `irqchipctl save` or Vm.snapshot() made",
    ),
    "a negative timeout": (
        lambda _, __: connect(timeout=-1),
        "timeout is -1",
        "0 to 1,000,000,000",
        "use a number of seconds",
    ),
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
    "half a GSI": (lambda _, vm: vm.line(wrong(4.5)).pulse(), "gsi is 4.5", "no whole number", "use a GSI from 0 to"),
    "routes that are None": (
        *(lambda _, vm: vm.set_routing(wrong(None)), "routes is None", "list of routes"),
        "write [PinRoute(...)]",
    ),
    "an invalid reason": (
        *(lambda _, vm: vm.reset(wrong("guest")), "reason is 'guest'", "ResetReason.OPERATOR, ResetReason.GUEST"),
        "use one of",
    ),
    "a class for a device": (
        *(lambda _, __: run_device(wrong(Rtc), "vm1"), "Rtc", "and no Device"),
        "make one, Rtc(...)",
    ),
    "a VM for its name": (
        lambda _, vm: run_device(Rtc(), wrong(vm)),
        "the name of a VM",
        "of type Vm",
        "write its .name",
    ),
    "a float for a GSI": (lambda _, vm: vm.line(wrong(4.0)).pulse(), "gsi is 4.0", "0 to 0xffffffff", "write 4"),
    "a text for a choice": (
        *(
            lambda client, _: client.create_vm("x", virtual_clock=wrong("yes")),
            "virtual_clock is 'yes'",
            "True or False",
        ),
        "write",
    ),
    "a UART that is given nothing": (
        *(lambda _, __: Uart(), "'output'", "Uart(output, input_fd=None"),  # type: ignore[call-arg]
        "write",
    ),
    "a text for a device's choice": (
        *(lambda _, __: BlockDevice("/nope", read_only=wrong("no")), "read_only is 'no'", "True or False"),
        "write",
    ),
    "a disk without a file": (
        lambda _, __: BlockDevice("/nope"),
        "/nope",
        "No such file",
        "make the file with `truncate",
    ),
    "a port above the last": (lambda _, __: Rtc(0xFFFF), "port 0xffff", "use 1 to 0x1", "begin lower"),
    "a VM without a name": (lambda client, _: client.vm(""), "name is empty", "vms() lists", "the VMs"),
}


class Hasty(Device):
    """A device whose constructor does not call Device's."""

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


def test_there_are_fifty_and_each_says_what_to_do() -> None:
    rows = [*(row[1:] for row in (*COMMANDS, *ARM64, *DAEMON)), *(row[1:] for row in CALLS.values())]
    assert len(rows) >= 50
    for row in rows:
        assert all(row)
        assert "--help" not in " ".join(row)


def shown(value: list[str] | str) -> str:
    """A row's command line, as part of its test's name."""
    return " ".join(value)[-40:] if isinstance(value, list) else ""


def said(output: str) -> str:
    """A message as one line: the text that follows "Error:"."""
    _, error, message = output.partition("Error: ")
    assert error
    return " ".join(message.split())


@pytest.mark.parametrize(("arguments", "what", "allowed", "advice"), COMMANDS, ids=shown)
def test_a_command(
    irqchip_server: Daemon, vm1: Vm, tmp_path: Path, arguments: list[str], what: str, allowed: str, advice: str
) -> None:
    (state := tmp_path / "uart").write_text(json.dumps(Uart(1).save()))
    arguments = [str(state) if argument == "UART" else argument for argument in arguments]
    result = CliRunner(env={"IRQCHIP_TARGET": irqchip_server.target}).invoke(main, arguments, prog_name="irqchipctl")
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    for words in (what, allowed, advice):
        assert words in said(result.stderr)
    assert vm1.info().vcpus == (0,)


@pytest.mark.parametrize(("arguments", "what", "allowed", "advice"), ARM64, ids=shown)
def test_a_command_and_architectures(
    irqchip_server: Daemon,
    irqchip_client: Client,
    vm1: Vm,
    arguments: list[str],
    what: str,
    allowed: str,
    advice: str,
) -> None:
    guest = irqchip_client.create_vm("guest", architecture=Architecture.ARM64)
    guest.create_vcpu(0).init()
    gic = guest.create_gic()
    result = CliRunner(env={"IRQCHIP_TARGET": irqchip_server.target}).invoke(main, arguments, prog_name="irqchipctl")
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    for words in (what, allowed, advice):
        assert words in said(result.stderr)
    assert gic.get(Groups.DIST_REGS, 0x208) == gic.get(Groups.DIST_REGS, 0) & 2 == 0  # ISPENDR2, CTLR.Enable
    assert [vm.name for vm in irqchip_client.vms()] == ["guest", "vm1"]
    assert vm1.info().vcpus == (0,)


@pytest.mark.parametrize(("arguments", "what", "allowed", "advice"), DAEMON, ids=shown)
def test_the_daemon(arguments: list[str], what: str, allowed: str, advice: str) -> None:
    command = [sys.executable, "-m", "irqchipd", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for words in (what, allowed, advice):
        assert words in said(done.stderr)


@pytest.mark.parametrize(("call", "what", "allowed", "advice"), CALLS.values(), ids=CALLS)
def test_a_call(irqchip_client: Client, vm1: Vm, call: Call, what: str, allowed: str, advice: str) -> None:
    with pytest.raises(IrqchipError) as raised:
        call(irqchip_client, vm1)
    for words in (what, allowed, advice):
        assert words in raised.value.message


def test_the_example_of_each_command_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--help shows the example that messages end with."""
    assert isinstance(main, Group)
    monkeypatch.chdir(tmp_path)
    for name in ("guest.elf", "vm1.state", "trace.jsonl"):
        Path(name).touch()
    for name in main.list_commands(Context(main)):
        help_text = CliRunner().invoke(main, [name, "--help"], prog_name="irqchipctl").stdout
        program, *example = help_text.partition("Example:")[2].split()
        assert (program, example[0]) == ("irqchipctl", name)
        command = main.get_command(Context(main), name)
        assert command is not None
        command.make_context(name, example[1:])
