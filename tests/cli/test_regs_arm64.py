"""regs of an arm64 VM."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from irqchip_client import Architecture, Client, DeviceType, GicHost, Vm
from irqchip_client.arm64 import CPU_INTERFACE, DISTRIBUTOR, SYSREGS, Address, Group, spi
from tests.cli.conftest import Run

Fails = Callable[[Result], str]

V3 = """\
gicd: GICv3 at 0x8000000, enabled, 64 INTIDs
     32-35 SPI 0-3      disabled group 1 priority 0x00 level affinity 0.0.0.0 (vCPU 0)
        36 SPI 4        enabled  group 1 priority 0xa0 level affinity 0.0.0.0 (vCPU 0), pending, active, line high
        37 SPI 5        disabled group 1 priority 0x00 level affinity 0.0.1.0 (no vCPU)
     38-47 SPI 6-15     disabled group 1 priority 0x00 level affinity 0.0.0.0 (vCPU 0)
     48-63 SPI 16-31    disabled group 1 priority 0x00 edge  affinity 0.0.0.0 (vCPU 0)
gicr0: SGIs and PPIs of vCPU 0, affinity 0.0.0.0, at 0x80a0000
      0-15 SGI          enabled  group 1 priority 0x00 edge
     16-31 PPI          disabled group 1 priority 0x00 level
gicc0: CPU interface of vCPU 0, runnable; groups enabled: 1
  PMR 0xf0 RPR 0xa0 (in service) BPR 2 3
  active priorities: group 0 (none), group 1 0xa0
  queued: 36
gicr1: SGIs and PPIs of vCPU 1, affinity 0.0.0.1, at 0x80c0000
       0-4 SGI          enabled  group 1 priority 0x00 edge
         5 SGI          enabled  group 1 priority 0x00 edge, pending
      6-15 SGI          enabled  group 1 priority 0x00 edge
     16-31 PPI          disabled group 1 priority 0x00 level
gicc1: CPU interface of vCPU 1, runnable; groups enabled: none
  PMR 0x00 RPR 0xff (idle) BPR 0 0
  active priorities: group 0 (none), group 1 (none)
  queued: 5
timer0: generic timers of vCPU 0
  CNTV PPI 27: expires in 65.536us, CVAL 0x1000
  CNTP PPI 30: expired, masked, CVAL 0x0
timer1: generic timers of vCPU 1
  CNTV PPI 27: disabled, CVAL 0x0
  CNTP PPI 30: disabled, CVAL 0x0
"""

V2 = """\
gicd: GICv2 at 0x8000000, enabled, 64 INTIDs
     32-35 SPI 0-3      disabled group 0 priority 0x00 edge  targets 0x00 (vCPU 0)
        36 SPI 4        enabled  group 0 priority 0x00 edge  targets 0x02 (vCPU 1), pending
     37-63 SPI 5-31     disabled group 0 priority 0x00 edge  targets 0x00 (vCPU 0)
gicd0: SGIs and PPIs of vCPU 0
       0-4 SGI          enabled  group 0 priority 0x00 edge
         5 SGI          enabled  group 0 priority 0x00 edge, active from vCPU 1
      6-15 SGI          enabled  group 0 priority 0x00 edge
     16-31 PPI          disabled group 0 priority 0x00 level
gicc0: CPU interface of vCPU 0, runnable; groups enabled: 0
  PMR 0xf8 RPR 0x00 (in service) BPR 2 3, EOImode 1: DIR deactivates, FIQEn
  active priorities: group 0 0x00, group 1 (none)
  queued: 5
gicd1: SGIs and PPIs of vCPU 1
       0-4 SGI          enabled  group 0 priority 0x00 edge
         5 SGI          enabled  group 0 priority 0x00 edge, pending from vCPU 0 1
      6-15 SGI          enabled  group 0 priority 0x00 edge
     16-31 PPI          disabled group 0 priority 0x00 level
gicc1: CPU interface of vCPU 1, runnable; groups enabled: none
  PMR 0x00 RPR 0xff (idle) BPR 2 3
  active priorities: group 0 (none), group 1 (none)
  queued: 5 36
"""


def made(client: Client, version: int) -> Vm:
    vm = client.create_vm("guest", architecture=Architecture.ARM64, gic=GicHost(version), virtual_clock=True)
    for vcpu in range(2):
        vm.create_vcpu(vcpu).init()
    gic = vm.create_gic(version, 64)
    gic.set(Group.DIST_REGS, 0, 3)  # GICD_CTLR
    gic.set(Group.DIST_REGS, 0x104, 0x10)  # GICD_ISENABLER1
    return vm


@pytest.fixture
def v3(irqchip_client: Client) -> Vm:
    """vCPU 0 has acknowledged SPI 4, and vCPU 1 is sent SGI 5."""
    vm = made(irqchip_client, 3)
    gic, cpu = vm.device(0), vm.vcpu(0)
    gic.set(Group.DIST_REGS, 0xC08, 0)  # GICD_ICFGR2
    gic.set(Group.DIST_REGS, 0x424, 0xA0)  # GICD_IPRIORITYR9
    gic.set(Group.DIST_REGS, 0x6000 + 8 * 37, 0x100)  # GICD_IROUTER37
    vm.line(spi(4)).raise_()
    registers = {"ICC_PMR_EL1": 0xF0, "ICC_IGRPEN1_EL1": 1, "CNTV_CVAL_EL0": 0x1000, "CNTV_CTL_EL0": 1}
    for name, value in (registers | {"CNTP_CTL_EL0": 3}).items():
        cpu.sysreg_write(SYSREGS[name], value)
    assert cpu.sysreg_read(SYSREGS["ICC_IAR1_EL1"]).data == 36
    cpu.sysreg_write(SYSREGS["ICC_SGI1R_EL1"], 5 << 24 | 1 << 1)
    return vm


@pytest.fixture
def v2(irqchip_client: Client) -> Vm:
    """vCPU 0 has acknowledged vCPU 1's SGI 5; both have sent it to vCPU 1, which also gets SPI 4."""
    vm = made(irqchip_client, 2)
    vm.vcpu(1).mmio_write(DISTRIBUTOR + 0xF00, 0x30005)
    vm.vcpu(0).mmio_write(DISTRIBUTOR + 0xF00, 0x20005)
    vm.vcpu(0).mmio_write(DISTRIBUTOR + 0x824, 0x02, 1)  # GICD_ITARGETSR9
    vm.line(spi(4)).pulse()
    cpu = vm.vcpu(0)
    cpu.mmio_write(CPU_INTERFACE, 0x209)
    cpu.mmio_write(CPU_INTERFACE + 4, 0xFF)
    assert cpu.mmio_read(CPU_INTERFACE + 0xC).data == 1 << 10 | 5
    return vm


@pytest.mark.usefixtures("v3")
def test_a_gicv3(run: Run) -> None:
    assert run("regs", "guest").stdout == V3


@pytest.mark.usefixtures("v2")
def test_a_gicv2(run: Run) -> None:
    assert run("regs", "guest", "--chip", "gicd", "--chip", "gicc").stdout == V2


def test_nothing_changes(run: Run, v3: Vm) -> None:
    before = v3.snapshot().to_bytes()
    for options in ([], ["--json"], ["--raw"], ["--raw", "--json"]):
        assert run("regs", "guest", *options).exit_code == 0
    assert v3.snapshot().to_bytes() == before


@pytest.mark.usefixtures("v3")
def test_json_of_a_gicv3(run: Run) -> None:
    shown = json.loads(run("regs", "guest", "--json").stdout)
    assert list(shown) == ["gicd", "gicr0", "gicc0", "gicr1", "gicc1", "timer0", "timer1"]
    distributor = shown["gicd"]
    spis = distributor.pop("interrupts")
    assert distributor == {
        "version": 3,
        "address": DISTRIBUTOR,
        "initialised": True,
        "enabled": True,
        "intids": 64,
    }
    assert len(spis) == 32
    assert spis[4] == {
        "intid": 36,
        "enabled": True,
        "pending": True,
        "active": True,
        "line": True,
        "group": 1,
        "priority": 0xA0,
        "trigger": "level",
        "vcpu": 0,
        "targets": None,
        "affinity": "0.0.0.0",
        "sources": [],
        "active_source": None,
    }
    assert shown["gicr1"]["affinity"] == "0.0.0.1"
    assert shown["gicr1"]["interrupts"][5]["pending"]
    assert shown["gicc0"]["active_priorities1"] == [0xA0]
    assert shown["timer0"]["timers"][0] == {
        "name": "CNTV",
        "ppi": 27,
        "enabled": True,
        "masked": False,
        "expired": False,
        "compare": 0x1000,
        "expires_ns": 0x10000,
    }


@pytest.mark.usefixtures("v2")
def test_json_of_a_gicv2(run: Run) -> None:
    shown = json.loads(run("regs", "guest", "--json").stdout)
    assert list(shown) == ["gicd", "gicd0", "gicc0", "gicd1", "gicc1", "timer0", "timer1"]
    assert shown["gicd"]["interrupts"][4]["targets"] == 2
    assert shown["gicd1"]["interrupts"][5]["sources"] == [0, 1]
    assert shown["gicd0"]["interrupts"][5]["active_source"] == 1


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_active_priorities_by_priority_bits(run: Run, irqchip_client: Client, bits: int) -> None:
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64, gic=GicHost(3, priority_bits=bits))
    vm.create_vcpu(0).init()
    gic = vm.create_gic(3, 64)
    last = (1 << bits - 5) - 1  # the last register
    gic.set(Group.CPU_SYSREGS, SYSREGS[f"ICC_AP1R{last}_EL1"], 1 << 31)
    gic.set(Group.CPU_SYSREGS, SYSREGS["ICC_AP0R0_EL1"], 1 << 1)
    shown = json.loads(run("regs", "guest", "--chip", "gicc", "--json").stdout)["gicc0"]
    assert shown["active_priorities1"] == [256 - (1 << 8 - bits)]
    assert shown["active_priorities0"] == [1 << 8 - bits]
    assert shown["rpr"] == 1 << 8 - bits


@pytest.mark.usefixtures("v3")
def test_raw_of_a_gicv3(run: Run) -> None:
    lines = run("regs", "guest", "--raw").stdout.splitlines()
    assert lines[:6] == [
        "gicd:",
        "  GICD_CTLR          00000052",
        "  GICD_TYPER         00480001",
        "  GICD_IIDR          4b00343b",
        "  GICD_IGROUPR1      ffffffff",
        "  GICD_ISENABLER1    00000010",
    ]
    assert "  LEVEL_INFO1        00000010" in lines
    assert "  GICR_TYPER0        00000110 00000001" in lines
    assert "  ICC_AP1R0_EL1      00100000" in lines
    shown = json.loads(run("regs", "guest", "--raw", "--json", "--chip", "gicc").stdout)
    assert list(shown) == ["gicc0", "gicc1"]
    assert shown["gicc0"]["ICC_PMR_EL1"] == 0xF0


@pytest.mark.usefixtures("v2")
def test_raw_of_a_gicv2(run: Run) -> None:
    shown = json.loads(run("regs", "guest", "--raw", "--json").stdout)
    assert list(shown) == ["gicd", "gicd0", "gicc0", "gicd1", "gicc1"]
    assert shown["gicd"]["GICD_ITARGETSR9"] == 2
    assert shown["gicd1"]["GICD_SPENDSGIR1"] == 3 << 8
    assert shown["gicc0"]["GICC_PMR"] == 0x1F


def test_raw_of_many_vcpus(run: Run, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64)
    for vcpu in range(200):
        vm.create_vcpu(vcpu).init()
    vm.create_gic(3, 992)
    shown = json.loads(run("regs", "guest", "--raw", "--json").stdout)
    assert len(shown) == 1 + 2 * 200
    assert shown["gicr199"]["GICR_TYPER1"] == 0xC07  # affinity 0.0.12.7
    assert shown["gicd"]["GICD_IROUTER991"] == 0


def test_a_gic_that_create_irqchip_made(run: Run, fails: Fails, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64)
    vm.create_irqchip()
    assert run("regs", "guest").stdout == "gicd: GICv2, disabled, not initialised\n"
    assert "because CreateIrqchip made it: leave --raw out" in fails(run("regs", "guest", "--raw"))
    vm.set_device_addr(Address.V2_DIST, DISTRIBUTOR)
    assert run("regs", "guest").stdout == "gicd: GICv2 at 0x8000000, disabled, not initialised\n"


def test_a_gic_that_is_not_initialised(run: Run, fails: Fails, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64)
    vm.create_device(DeviceType.ARM_VGIC_V2)
    before = vm.info()
    assert "`irqchipctl attr-set guest gic ctrl init`" in fails(run("regs", "guest", "--raw"))
    assert vm.info() == before


def test_a_vm_without_a_gic(run: Run, fails: Fails, irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("guest", architecture=Architecture.ARM64, virtual_clock=True)
    vm.create_vcpu(0)
    assert "has no GIC: use --chip timer alone, or make" in fails(run("regs", "guest"))
    assert run("regs", "guest", "--chip", "timer").stdout.startswith("timer0: generic timers of vCPU 0\n")


def test_chips_of_other_architectures(run: Run, fails: Fails, v2: Vm, irqchip_client: Client) -> None:
    assert fails(run("regs", v2.name, "--chip", "pic")) == (
        "an arm64 VM has no pic: use --chip with one of gicd, gicr, gicc, timer"
    )
    assert fails(run("regs", v2.name, "--chip", "gicr")).startswith("a GICv2 has no redistributors: use --chip gicd")
    other = irqchip_client.create_vm()
    assert fails(run("regs", other.name, "--chip", "gicd")) == (
        "an x86 VM has no gicd: use --chip with one of pic, ioapic, lapic, pit"
    )
