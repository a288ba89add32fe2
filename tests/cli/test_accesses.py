"""in, out, read, write, msr-read, msr-write, ack."""

from collections.abc import Callable

import pytest
from click.testing import Result

from irqchip_client import Vm
from tests.cli.conftest import Run


def test_ports(run: Run, vm: Vm) -> None:
    result = run("out", vm.name, "0x21", "0b1011")
    assert (result.exit_code, result.stdout) == (0, "")
    assert run("in", vm.name, 33).stdout == "0x0b\n"


def test_memory_is_shown_in_the_width_of_the_access(run: Run, vm: Vm) -> None:
    assert run("write", vm.name, "0xfec00000", "0x10").stdout == ""
    assert run("read", vm.name, "0xfec00000").stdout == "0x00000010\n"
    assert run("read", vm.name, "0xfec00000", "--size", 1).stdout == "0x10\n"
    assert run("read", vm.name, "0xfec00000", "--size", 8).stdout == "0x0000000000000010\n"


def test_another_vcpu(run: Run, vm: Vm) -> None:
    assert run("read", vm.name, "0xfee00020", "--vcpu", 1).stdout == "0x01000000\n"


@pytest.mark.parametrize(
    "command",
    [
        *[("in", 0x80), ("out", 0x80, 1), ("read", 0x1000), ("write", 0x1000, 1)],
        *[("msr-read", 0xC0000080), ("msr-write", 0xC0000080, 1)],
    ],
    ids=lambda c: str(c[0]),
)
def test_unclaimed_is_a_result_and_not_an_error(run: Run, vm: Vm, command: tuple[object, ...]) -> None:
    name, *arguments = command
    result = run(name, vm.name, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "unclaimed\n", "")


def test_msrs(run: Run, vm: Vm) -> None:
    assert run("msr-read", vm.name, "0x1b").stdout == "0x00000000fee00900\n"
    assert run("msr-read", vm.name, "0x1b", "--vcpu", 1).stdout == "0x00000000fee00800\n"
    result = run("msr-write", vm.name, "0x1b", "0xfee00d00")
    assert (result.exit_code, result.stdout) == (0, "")
    assert run("msr-read", vm.name, "0x1b").stdout == "0x00000000fee00d00\n"


def test_msrs_with_a_vmms_rights(run: Run, vm: Vm) -> None:
    run("msr-write", vm.name, "0x1b", "0xfee00d00")
    assert run("msr-write", vm.name, "0x1b", "0xfee00900").stdout == "#GP\n"
    assert run("msr-write", vm.name, "0x1b", "0xfee00900", "--host").stdout == ""
    assert run("msr-read", vm.name, "0x1b", "--host").stdout == "0x00000000fee00900\n"


@pytest.mark.parametrize("command", [("msr-read", "0x802"), ("msr-write", "0x808", 1)], ids=lambda c: str(c[0]))
def test_a_fault_of_the_guest_is_a_result_and_not_an_error(run: Run, vm: Vm, command: tuple[object, ...]) -> None:
    name, *arguments = command  # x2APIC registers, while the APIC is not in x2APIC mode.
    result = run(name, vm.name, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "#GP\n", "")


def test_ack_asks_only_the_named_source(run: Run, vm: Vm) -> None:
    vm.line(4).pulse()
    assert run("ack", vm.name, "--source", "lapic").stdout == "none\n"
    assert run("ack", vm.name, "--source", "pic").stdout == "0x04 pic\n"


def test_values_that_do_not_fit_are_refused(run: Run, fails: Callable[[Result], str], vm: Vm) -> None:
    assert fails(run("in", vm.name, "0x20", "--vcpu", 7)) == (
        f"VM '{vm.name}' has no vCPU 7; it has 0, 1: use one of these, or create vCPU 7 first; "
        "`irqchipctl create --vcpus N` makes a VM with N (ENOENT)"
    )
    for arguments, why in (
        (("out", vm.name, "0x21", "0x100"), "0x100 does not fit into 1 byte, 0 to 0xff; --size 2 is wide enough"),
        (("write", vm.name, "0xfee000b0", 1 << 32), "does not fit into 4 bytes, 0 to 0xffffffff; --size 8 is"),
        (("read", vm.name, "0x1ffffffffffffffff"), "'ADDRESS': 0x1ffffffffffffffff is out of range"),
        (("in", vm.name, "0x20", "--vcpu", "-1"), "'--vcpu': -1 is out of range: use 0 to"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert why in " ".join(result.stderr.split())


@pytest.mark.parametrize("text", ["x", "", "0x", "1.5"])
def test_an_invalid_number_is_refused_with_the_allowed_forms(run: Run, vm: Vm, text: str) -> None:
    result = run("in", vm.name, text)
    assert result.exit_code == 2
    assert f"{text!r} is no number: write 16, 0x10 or 0b10000" in result.stderr
