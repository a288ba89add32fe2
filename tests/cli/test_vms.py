"""create, list, show, reset, delete."""

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import Result

from irqchip_client import Client, IrqchipMode, Space, Vm
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE, eventually

Fails = Callable[[Result], str]


def test_create_makes_an_irqchip_and_a_vcpu(run: Run, irqchip_client: Client) -> None:
    result = run("create", "made")
    assert (result.exit_code, result.stdout) == (0, "made\n")
    info = irqchip_client.vm("made").info()
    assert info.irqchip
    assert info.vcpus == (0,)


def test_create_without_a_name_prints_the_one_that_the_daemon_picked(run: Run, irqchip_client: Client) -> None:
    name = run("create", "--vcpus", "3").stdout.strip()
    assert irqchip_client.vm(name).info().vcpus == (0, 1, 2)


def test_create_without_an_irqchip(run: Run, irqchip_client: Client) -> None:
    assert run("create", "bare", "--no-irqchip", "--vcpus", "0").exit_code == 0
    info = irqchip_client.vm("bare").info()
    assert not info.irqchip
    assert info.vcpus == ()


def test_create_with_a_clock_and_a_pit(run: Run, irqchip_client: Client) -> None:
    assert run("create", "timed", "--pit", "--virtual-clock", "--tsc-khz", "2000000").exit_code == 0
    info = irqchip_client.vm("timed").info()
    assert (info.irqchip_mode, info.pit, info.virtual, info.tsc_khz) == (IrqchipMode.FULL, True, True, 2_000_000)


def test_create_with_a_split_irqchip(run: Run, irqchip_client: Client) -> None:
    assert run("create", "split", "--split", "24").exit_code == 0
    info = irqchip_client.vm("split").info()
    assert (info.irqchip_mode, info.vcpus) == (IrqchipMode.SPLIT, (0,))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--split", "24", "--no-irqchip"], "--split makes an irqchip, and --no-irqchip makes none"),
        (["--split", "4097"], "out of range: use 0 to 4096"),
        (["--split", "24", "--pit"], "--pit needs the whole irqchip"),
        (["--pit", "--no-irqchip"], "--pit needs the whole irqchip"),
        (["--tsc-khz", "100000001"], "out of range: use 0 to 100000000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_create_refuses_options_that_exclude_each_other(
    run: Run, irqchip_client: Client, options: list[str], complaint: str
) -> None:
    result = run("create", "odd", *options)
    assert result.exit_code
    assert complaint in result.stderr
    assert [vm.name for vm in irqchip_client.vms() if vm.name == "odd"] == []


def test_create_that_fails_half_way_leaves_nothing(
    run: Run, irqchip_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_vcpu = Vm.create_vcpu

    def fail_at_two(vm: Vm, vcpu: int) -> object:
        return create_vcpu(vm, 4096 if vcpu == 2 else vcpu)

    monkeypatch.setattr(Vm, "create_vcpu", fail_at_two)
    result = run("create", "half", "--vcpus", "4")
    assert result.exit_code == 1
    assert "vCPU id 4096 is out of range" in result.stderr
    assert [vm.name for vm in irqchip_client.vms() if vm.name == "half"] == []


def test_create_does_not_touch_an_existing_vm(run: Run, fails: Fails, vm: Vm) -> None:
    assert fails(run("create", vm.name)) == (
        f"there is a VM '{vm.name}' already: choose another name, or delete that VM first (EEXIST)"
    )
    assert vm.info().vcpus == (0, 1)


def test_list_into_a_pipe_has_tabs_and_no_headings(run: Run, vm: Vm, irqchip_client: Client) -> None:
    virtual = irqchip_client.create_vm(virtual_clock=True)
    with vm.session("uart"):
        lines = run("list").stdout.splitlines()
    assert f"{vm.name}\tfull\t2\t1\treal\tx86" in lines
    assert f"{virtual.name}\tnone\t0\t0\tvirtual\tx86" in lines


def test_show(run: Run, vm: Vm) -> None:
    vm.line(3).raise_()
    lines = run("show", vm.name).stdout.splitlines()
    assert lines.pop(3).startswith("clock     real, at ")
    assert lines == [
        f"VM        {vm.name}",
        "arch      x86",
        "irqchip   full",
        "TSC       1000000 kHz",
        "vCPU ids  0 1",
        "source 0  asserted GSIs 3",
        "sessions  (none)",
    ]
    with vm.session("uart") as uart, vm.session(resampled_gsis=[11, 5]):
        uart.line(4).raise_()
        uart.line(9).raise_()
        uart.register_region(Space.MMIO, 0xD000_0000, 0x1000)
        uart.register_region(Space.PIO, 0x3F8, 8)
        uart.register_region(Space.PIO, 0xC010, 2, doorbell=True, datamatch=1)
        assert run("show", vm.name).stdout.splitlines()[7:] == [
            "sessions  2",
            "  source 1: uart; asserted GSIs 4 9; resampled GSIs (none); dropped events 0",
            "    PIO  0x3f8-0x3ff",
            "    PIO  0xc010-0xc011, a doorbell of 0x1",
            "    MMIO 0xd0000000-0xd0000fff",
            "  source 2: (no name); asserted GSIs (none); resampled GSIs 5 11; dropped events 0",
        ]


def test_show_prints_the_time_of_a_virtual_clock(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True, tsc_khz=2_000_000)
    vm.create_irqchip()
    vm.create_pit()
    vm.advance(1_500_000)
    assert run("show", vm.name).stdout.splitlines()[2:5] == [
        "irqchip   full, and a PIT",
        "clock     virtual, at 1.5ms; no timer runs",
        "TSC       2000000 kHz",
    ]


def test_show_says_how_late_a_vm_is(run: Run, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "late" not in run("show", vm.name).stdout
    info = replace(vm.info(), now_ns=10**9, lateness_ns=1_500_000)
    monkeypatch.setattr(Vm, "info", lambda _: info)
    assert run("show", vm.name).stdout.splitlines()[3] == "clock     real, at 1s; no timer runs; 1.5ms late"


def test_reset(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFB)
    result = run("reset", vm.name)
    assert (result.exit_code, result.output) == (0, "")
    assert vm.vcpu(0).pio_read(0x21).data == 0


def test_delete(run: Run, fails: Fails, vm: Vm) -> None:
    result = run("delete", vm.name)
    assert (result.exit_code, result.output) == (0, "")
    for command in ("delete", "show"):
        assert fails(run(command, vm.name)) == (
            f"there is no VM '{vm.name}'; there are no VMs: `irqchipctl create` makes one (ENOENT)"
        )


def test_delete_deletes_the_existing_ones_of_several_names(run: Run, fails: Fails, irqchip_client: Client) -> None:
    for name in ("one", "two", "three"):
        irqchip_client.create_vm(name)
    assert fails(run("delete", "one", "tow", "two")) == ("there is no VM 'tow'; there is three (ENOENT)")
    assert [vm.name for vm in irqchip_client.vms()] == ["three"]


def test_delete_all(run: Run, irqchip_client: Client) -> None:
    for name in ("one", "two"):
        irqchip_client.create_vm(name)
    assert run("delete", "--all").exit_code == 0
    assert irqchip_client.vms() == []
    assert run("delete", "--all").exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["one", "--all"]])
def test_delete_wants_names_or_all(run: Run, arguments: list[str]) -> None:
    result = run("delete", *arguments)
    assert result.exit_code == 2
    assert "name the VMs to delete, or give --all" in result.stderr


def test_a_vm_is_named_by_an_argument_or_an_option(run: Run, vm: Vm) -> None:
    shown = run("routes", vm.name).stdout
    for arguments in (["--vm", vm.name], [f"--vm={vm.name}"]):
        assert run("routes", *arguments).stdout == shown
    assert run("pulse", "5000", "--vm", vm.name).stdout.startswith("-1 without a route")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_ephemeral_vm_ends_with_the_command(start: Start, irqchip_client: Client, number: int) -> None:
    with start("create", "brief", "--ephemeral") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "brief\n"
        assert irqchip_client.vm("brief").info().vcpus == (0,)
        process.send_signal(number)
        assert process.wait(PATIENCE) == (-9 if number == signal.SIGKILL else 0)
    eventually(lambda: not irqchip_client.vms())


def test_an_ephemeral_vm_s_command_ends_with_the_vm(start: Start, irqchip_client: Client) -> None:
    with start("create", "brief", "--ephemeral") as process:
        assert process.stdout is not None
        process.stdout.readline()
        irqchip_client.delete_vm("brief")
        assert process.wait(PATIENCE) == 0
