"""irqchipctl and arm64 VMs: show, list, lines, attributes, system registers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import Result

from irqchip_client import Architecture, Client, DeviceType, GicHost, Vm
from irqchip_client.arm64 import Group, ppi, spi
from tests.cli.conftest import Run, Start

Fails = Callable[[Result], str]


@pytest.fixture(autouse=True)
def _nothing_left(irqchip_client: Client) -> Iterator[None]:
    """Deletes the VMs that commands made."""
    yield
    for vm in irqchip_client.vms():
        irqchip_client.delete_vm(vm.name)


@pytest.fixture(params=[2, 3])
def version(request: pytest.FixtureRequest) -> int:
    """The version of the GIC."""
    return int(request.param)


@pytest.fixture
def guest(irqchip_client: Client, version: int) -> Vm:
    """An arm64 VM with two vCPUs, whose GIC delivers group 1 at all priorities."""
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64, gic=GicHost(version))
    for vcpu in range(2):
        vm.create_vcpu(vcpu).init()
    gic = vm.create_gic(version)
    gic.set(Group.DIST_REGS, 0, 3)
    return vm


def test_create_and_show(run: Run, version: int) -> None:
    assert run("create", "guest", "--arch", "arm64", "--gic", version, "--vcpus", 2).stdout == "guest\n"
    lines = run("show", "guest").stdout.splitlines()
    assert lines.pop(3).startswith("clock     real, at ")
    assert lines == [
        "VM        guest",
        "arch      arm64",
        f"irqchip   GICv{version}, 256 INTIDs; 4 list registers{', 5 priority bits' if version == 3 else ''}",
        "vCPU ids  0 1",
        f"devices   0 ARM_VGIC_V{version}",
        "source 0  asserted lines (none)",
        "sessions  (none)",
    ]
    assert run("list").stdout == f"guest\tGICv{version}\t2\t0\treal\tarm64\n"


def test_create_with_the_host_s_properties(run: Run, irqchip_client: Client) -> None:
    run("create", "guest", "--arch", "arm64", "--list-registers", 8, "--priority-bits", 7)
    gic = irqchip_client.vm("guest").info().gic
    assert gic is not None
    assert gic.host == GicHost(3, 8, 7)


def test_show_before_there_is_a_gic(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("bare", architecture=Architecture.ARM64, gic=GicHost(list_registers=16))
    host = "; the host has a GICv3 that can be a GICv2, 16 list registers, 5 priority bits"
    assert f"irqchip   none{host}\n" in run("show", "bare").stdout
    vm.create_device(DeviceType.ARM_VGIC_V3)
    assert "irqchip   GICv3, not initialised; 16 list registers" in run("show", "bare").stdout
    shown = json.loads(run("show", "bare", "--json").stdout)
    host_as_json = {"version": 0, "list_registers": 16, "priority_bits": 5}
    assert shown["gic"] == {"version": 3, "initialised": False, "interrupts": 0, "host": host_as_json}
    assert shown["devices"] == [7]


def test_show_of_s390_has_its_device(run: Run) -> None:
    run("create", "main", "--arch", "s390")
    lines = run("show", "main").stdout.splitlines()
    assert lines[1] == "arch      s390"
    assert "devices   0 FLIC" in lines
    assert run("list").stdout == "main\tfull\t1\t0\treal\ts390\n"


@pytest.mark.parametrize(
    ("name", "line"), [("spi:4", spi(4)), ("SPI:0x4", spi(4)), ("ppi:1:20", ppi(1, 20)), (str(spi(9)), spi(9))]
)
def test_lines_by_name(run: Run, guest: Vm, name: str, line: int) -> None:
    assert run("raise", "guest", name).stdout == "0 done\n"
    assert guest.info().asserted_gsis == (line,)
    assert run("lower", "guest", name).stdout == "0 done\n"
    assert guest.info().asserted_gsis == ()
    assert run("pulse", "guest", name, "--count", 2).stdout == "2 of 2: 0 done\n"
    assert json.loads(run("pulse", "guest", name, "--json").stdout) == {"status": 0, "meaning": "done"}


def test_show_names_lines(run: Run, guest: Vm) -> None:
    run("raise", "guest", "ppi:1:20")
    run("raise", "guest", "spi:4")
    with guest.session("uart", resampled_gsis=[5]) as uart:
        uart.line(spi(9)).raise_()
        lines = run("show", "guest").stdout.splitlines()
    assert "source 0  asserted lines spi:4 ppi:1:20" in lines
    assert "  source 1: uart; asserted lines spi:9; resampled GSIs 5; dropped events 0" in lines


def test_lines_of_a_vcpu_without_a_gic(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("bare", architecture=Architecture.ARM64)
    vm.create_vcpu(1).init()
    assert run("raise", "bare", "irq:1").stdout == "0 done\n"
    assert run("raise", "bare", "fiq:1").stdout == "0 done\n"
    assert run("sysreg-read", "bare", "isr_el1", "--vcpu", 1).stdout == "0x00000000000000c0\n"
    assert "source 0  asserted lines irq:1 fiq:1\n" in run("show", "bare").stdout


@pytest.mark.parametrize("name", ["ppi:1:20", str(ppi(1, 20))])
def test_a_line_is_watched_by_its_name_and_its_number(start: Start, guest: Vm, name: str) -> None:
    with start("watch", guest.name, "irq_line", "vgic_update_irq_pending", "--gsi", name) as watcher:
        assert watcher.stdout is not None
        seen = threading.Event()

        def pulse_until_seen() -> None:
            while not seen.wait(0.05):
                guest.line(spi(3)).pulse()
                guest.line(ppi(0, 20)).pulse()
                guest.line(ppi(1, 20)).pulse()

        thread = threading.Thread(target=pulse_until_seen)
        thread.start()
        try:
            lines = [watcher.stdout.readline().split(": ", 2)[1:] for _ in range(4)]
        finally:
            seen.set()
            thread.join()
            watcher.kill()
    assert {line[0] for line in lines} == {"kvm_irq_line", "vgic_update_irq_pending"}
    numbers = "vcpu->idx: 1, num: 20", "VCPU: 1, IRQ 20"
    assert all(any(number in body for number in numbers) for _, body in lines)


@pytest.mark.usefixtures("guest")
def test_routes(run: Run) -> None:
    assert run("routes", "guest").stdout.splitlines()[:2] == ["0\tgic\tSPI 0", "1\tgic\tSPI 1"]
    assert json.loads(run("routes", "guest", "--json").stdout)[4] == {"gsi": 4, "chip": "gic", "pin": 4, "flags": 0}


def test_attributes(run: Run, guest: Vm, version: int) -> None:
    assert run("attr-has", "guest", "gic", "addr", "v3-dist").stdout == ("yes\n" if version == 3 else "no\n")
    assert run("attr-get", "guest", "gic", "addr", f"v{version}-dist").stdout == "0x8000000\n"
    assert run("attr-get", "guest", "gic", "addr", f"V{version}_DIST", "--bytes", 8).stdout == "0000000800000000\n"
    assert json.loads(run("attr-get", "guest", "0", "nr-irqs", "0", "--json").stdout) == {"value": 256}
    assert run("attr-set", "guest", "gic", "ctrl", "init").output == ""
    assert run("attr-set", "guest", "gic", "dist-regs", "GICD_ISENABLER1", "0x10").output == ""
    assert run("attr-set", "guest", "gic", "1", "0x104", "20000000", "--bytes").output == ""
    assert run("attr-get", "guest", "gic", "dist-regs", "isenabler1").stdout == "0x30\n"
    assert run("attr-get", "guest", "vcpu:1", "timer", "ptimer").stdout == "0x1e\n"
    assert json.loads(run("attr-has", "guest", "vcpu:1", "timer", "7", "--json").stdout) == {"has": False}
    assert guest.info().devices == (5 if version == 2 else 7,)


def test_a_vcpu_s_registers_by_attributes(run: Run, guest: Vm, version: int) -> None:
    if version == 2:
        assert run("attr-get", "guest", "gic", "dist-regs", "GICD_ITARGETSR0", "--vcpu", 1).stdout == "0x2020202\n"
        assert run("attr-set", "guest", "gic", "cpu-regs", "GICC_PMR", "0x1e", "--vcpu", 1).output == ""
        assert guest.vcpu(1).mmio_read(0x0801_0004).data == 0xF0
        return
    assert run("attr-get", "guest", "gic", "redist-regs", "GICR_TYPER", "--vcpu", 1).stdout == "0x110\n"
    assert run("attr-set", "guest", "gic", "cpu-sysregs", "ICC_PMR_EL1", "0xf0", "--vcpu", 1).output == ""
    assert run("sysreg-read", "guest", "ICC_PMR_EL1", "--vcpu", 1).stdout == "0x00000000000000f0\n"
    assert run("attr-get", "guest", "gic", "cpu-sysregs", "ICC_PMR_EL1").stdout == "0x0\n"


def test_a_flic_s_attributes(run: Run, fails: Fails) -> None:
    run("create", "main", "--arch", "s390")
    assert run("attr-has", "main", "flic", "1", "0").stdout == "yes\n"
    assert fails(run("attr-set", "main", "flic", "99", "0")).endswith("(EINVAL)")


@pytest.mark.parametrize("version", [3], indirect=True)
@pytest.mark.usefixtures("guest")
def test_system_registers(run: Run) -> None:
    assert run("sysreg-write", "guest", "ICC_PMR_EL1", "0xf0").output == ""
    for name in ("icc_pmr_el1", "S3_0_C4_C6_0", "0xc230"):
        assert run("sysreg-read", "guest", name).stdout == "0x00000000000000f0\n"
    assert run("sysreg-read", "guest", "ICC_SGI1R_EL1").stdout == "UNDEF\n"
    assert run("sysreg-write", "guest", "ICC_IAR1_EL1", "0").stdout == "UNDEF\n"
    assert run("sysreg-read", "guest", "S3_0_C1_C0_0").stdout == "unclaimed\n"
    assert json.loads(run("sysreg-read", "guest", "CNTFRQ_EL0", "--json").stdout) == {
        "claimed": True,
        "fault": False,
        "data": 62_500_000,
    }
    assert json.loads(run("sysreg-write", "guest", "CNTV_CTL_EL0", "1", "--json").stdout) == {
        "claimed": True,
        "fault": False,
    }


@pytest.mark.parametrize("version", [3], indirect=True)
@pytest.mark.usefixtures("guest")
def test_an_interrupt_by_commands(run: Run) -> None:
    """docs/arm64.md."""
    for attribute in ("GICD_ISENABLER1 0x10", "GICD_ICFGR2 0", "GICD_IPRIORITYR9 0xa0"):
        assert run("attr-set", "guest", "gic", "dist-regs", *attribute.split()).exit_code == 0
    run("sysreg-write", "guest", "ICC_PMR_EL1", "0xff")
    run("sysreg-write", "guest", "ICC_IGRPEN1_EL1", "1")
    run("raise", "guest", "spi:4")
    assert run("sysreg-read", "guest", "ICC_IAR1_EL1").stdout == "0x0000000000000024\n"
    run("lower", "guest", "spi:4")
    run("sysreg-write", "guest", "ICC_EOIR1_EL1", "36")
    assert run("sysreg-read", "guest", "ICC_IAR1_EL1").stdout == "0x00000000000003ff\n"
