"""What the same calls do per architecture: the table of docs/exactness.md, whose cells name these tests.

Each test runs on a real daemon, through the SDK.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from irqchip_client import (
    AdapterRoute,
    Architecture,
    Chip,
    Client,
    DeviceType,
    GicHost,
    IrqchipError,
    MsiRoute,
    PinRoute,
    Route,
    Vm,
)
from irqchip_client.arm64 import Address, Group, irq, ppi, spi
from irqchip_client.s390 import KVM_CAP_S390_IRQCHIP, FlicGroup, adapter_registration
from tests.client.guest import init_pics

PAGE = 4096
GICV2, GICV3 = GicHost(2), GicHost(3)
CREATE_DEVICE_TEST = 1
# KVM_CAP_* of <linux/kvm.h>.
IRQCHIP, IRQ_ROUTING, MAX_VCPUS, DEVICE_CTRL, MSI_DEVID = 0, 25, 66, 89, 131
NISV_TO_USER, S390_AIS, SPLIT_IRQCHIP, LINE_LAYOUT_2 = 177, 141, 121, 174
SPI_PENDING, PPI_PENDING = 0x204, 0x200  # GICD_ISPENDR1, GICD_ISPENDR0

Make = Callable[..., Vm]


@pytest.fixture
def make(irqchip_client: Client) -> Make:
    """Makes an empty VM of an architecture."""

    def make(architecture: Architecture, gic: GicHost | None = None) -> Vm:
        return irqchip_client.create_vm(architecture=architecture, gic=gic or GicHost())

    return make


@pytest.fixture
def x86(make: Make) -> Vm:
    return make(Architecture.X86)


@pytest.fixture
def arm64(make: Make) -> Vm:
    """A VM with two vCPUs, whose host can make either GIC."""
    vm = make(Architecture.ARM64)
    for vcpu in range(2):
        vm.create_vcpu(vcpu).init()
    return vm


@pytest.fixture
def s390(make: Make) -> Vm:
    return make(Architecture.S390)


@pytest.fixture
def memory(s390: Vm) -> Iterator[int]:
    """A memfd that is the s390 guest's memory."""
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 4 * PAGE)
    with s390.session("vmm") as vmm:
        vmm.share_memory(descriptor, 0, 4 * PAGE)
        yield descriptor
    os.close(descriptor)


def refused(call: Callable[[], object]) -> str:
    """The errno with which a call is refused."""
    with pytest.raises(IrqchipError) as error:
        call()
    return error.value.reason


# CreateIrqchip.


def test_create_irqchip_of_x86(x86: Vm) -> None:
    x86.create_irqchip()
    assert len(x86.get_irqchip(Chip.IOAPIC).entries) == 24
    assert refused(x86.create_irqchip) == "EEXIST"


def test_create_irqchip_after_vcpus_of_x86(x86: Vm) -> None:
    x86.create_vcpu(0)
    assert refused(x86.create_irqchip) == "EINVAL"
    assert not x86.info().irqchip


def test_create_irqchip_of_arm64(arm64: Vm, make: Make) -> None:
    assert refused(make(Architecture.ARM64, GICV3).create_irqchip) == "ENODEV"
    arm64.create_irqchip()
    info = arm64.info()
    assert info.gic is not None
    assert (info.gic.version, info.gic.initialised, info.devices) == (2, False, ())
    assert refused(arm64.create_irqchip) == "EEXIST"
    arm64.set_device_addr(Address.V2_DIST, 0x0800_0000)
    arm64.set_device_addr(Address.V2_CPU, 0x0801_0000)
    assert arm64.vcpu(0).mmio_read(0x0800_0008).data == 0x4B00_343B  # GICD_IIDR


def test_create_irqchip_after_vcpus_of_arm64(arm64: Vm) -> None:
    arm64.vcpu(0).mmio_read(0)
    assert refused(arm64.create_irqchip) == "EBUSY"


def test_create_irqchip_of_s390(s390: Vm) -> None:
    assert refused(s390.create_irqchip) == "EINVAL"
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)
    s390.create_irqchip()
    s390.create_irqchip()
    assert s390.routing() == []


def test_create_irqchip_after_vcpus_of_s390(s390: Vm) -> None:
    s390.create_vcpu(0)
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)
    s390.create_irqchip()
    assert s390.info().irqchip


# CreateDevice.


def test_create_device_of_x86(x86: Vm) -> None:
    for kind in DeviceType:
        assert refused(lambda kind=kind: x86.create_device(kind)) == "ENODEV"  # type: ignore[misc]
        assert refused(lambda kind=kind: x86.create_device(kind, CREATE_DEVICE_TEST)) == "ENODEV"  # type: ignore[misc]


def test_create_device_of_arm64(arm64: Vm, make: Make) -> None:
    assert refused(lambda: arm64.create_device(DeviceType.FLIC)) == "ENODEV"
    for host, other in ((GICV2, DeviceType.ARM_VGIC_V3), (GICV3, DeviceType.ARM_VGIC_V2)):
        vm = make(Architecture.ARM64, host)
        assert refused(lambda vm=vm, other=other: vm.create_device(other)) == "ENODEV"  # type: ignore[misc]
    arm64.create_device(DeviceType.ARM_VGIC_V3, CREATE_DEVICE_TEST)
    assert arm64.info().devices == ()
    arm64.create_device(DeviceType.ARM_VGIC_V3, 2)  # other flags are ignored
    assert refused(lambda: arm64.create_device(DeviceType.ARM_VGIC_V2)) == "EEXIST"
    assert arm64.info().devices == (7,)


def test_create_device_of_s390(s390: Vm) -> None:
    assert refused(lambda: s390.create_device(DeviceType.ARM_VGIC_V3)) == "ENODEV"
    s390.create_device(DeviceType.FLIC, CREATE_DEVICE_TEST)
    assert s390.info().devices == ()
    s390.create_device(DeviceType.FLIC)
    assert refused(lambda: s390.create_device(DeviceType.FLIC)) == "EINVAL"
    assert s390.info().devices == (6,)


# SetDeviceAttr, GetDeviceAttr, HasDeviceAttr.


def test_attributes_of_x86(x86: Vm) -> None:
    x86.create_vcpu(0)
    assert refused(lambda: x86.device(0).set(0, 0)) == "EBADF"
    assert refused(lambda: x86.vcpu(0).attributes().get(0, 0)) == "ENXIO"
    assert not x86.vcpu(0).attributes().has(0, 0)


def test_attributes_of_arm64(arm64: Vm) -> None:
    assert refused(lambda: arm64.device(0).set(0, 0)) == "EBADF"
    gic = arm64.create_device(DeviceType.ARM_VGIC_V3)
    for call in (lambda: gic.get(99, 0), lambda: gic.set(99, 0)):
        assert refused(call) == "ENXIO"
    assert not gic.has(99, 0)
    assert refused(lambda: gic.get(Group.DIST_REGS, 0)) == "EBUSY"  # before CTRL_INIT
    assert arm64.vcpu(0).attributes().get(1, 0) == 27  # the virtual timer's interrupt


def test_attributes_of_s390(s390: Vm) -> None:
    s390.create_vcpu(0)
    assert refused(lambda: s390.device(0).set(FlicGroup.CLEAR_IRQS, 0)) == "EBADF"
    flic = s390.create_device(DeviceType.FLIC)
    for call in (lambda: flic.get(99, 0), lambda: flic.set(99, 0)):
        assert refused(call) == "EINVAL"
    assert not flic.has(99, 0)
    assert refused(lambda: s390.vcpu(0).attributes().get(0, 0)) == "ENOTTY"


# EnableCap.


def test_enable_cap_of_x86(x86: Vm) -> None:
    assert refused(lambda: x86.enable_cap(KVM_CAP_S390_IRQCHIP)) == "EINVAL"
    x86.enable_cap(SPLIT_IRQCHIP, 24)
    assert x86.info().irqchip_mode == "split"


def test_enable_cap_of_arm64(arm64: Vm) -> None:
    for other in (SPLIT_IRQCHIP, KVM_CAP_S390_IRQCHIP):
        assert refused(lambda other=other: arm64.enable_cap(other)) == "EINVAL"  # type: ignore[misc]
    before = arm64.info()
    arm64.enable_cap(NISV_TO_USER)
    assert arm64.info() == before


def test_enable_cap_of_s390(s390: Vm) -> None:
    assert refused(lambda: s390.enable_cap(SPLIT_IRQCHIP)) == "EINVAL"
    s390.enable_cap(S390_AIS)
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)
    s390.create_vcpu(0)
    assert refused(lambda: s390.enable_cap(S390_AIS)) == "EBUSY"
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)


# CheckExtension.


def test_check_extension_of_x86(irqchip_client: Client, x86: Vm) -> None:
    answers = {IRQCHIP: 1, IRQ_ROUTING: 4096, DEVICE_CTRL: 0, LINE_LAYOUT_2: 0, KVM_CAP_S390_IRQCHIP: 0}
    for capability, value in answers.items():
        assert irqchip_client.check_extension(capability) == x86.check_vm_extension(capability) == value
    assert irqchip_client.check_extension(SPLIT_IRQCHIP) == 1


def test_check_extension_of_arm64(irqchip_client: Client, make: Make) -> None:
    answers = {IRQCHIP: 1, IRQ_ROUTING: 4096, DEVICE_CTRL: 1, LINE_LAYOUT_2: 1, KVM_CAP_S390_IRQCHIP: 0}
    vm = make(Architecture.ARM64)
    for capability, value in answers.items():
        assert irqchip_client.check_extension(capability, Architecture.ARM64) == value
        assert vm.check_vm_extension(capability) == value
    for host, most in ((GICV2, 8), (GICV3, 512)):
        assert irqchip_client.check_extension(MAX_VCPUS, Architecture.ARM64, host) == most
    assert vm.check_vm_extension(MAX_VCPUS) == 512
    vm.create_device(DeviceType.ARM_VGIC_V2)
    assert vm.check_vm_extension(MAX_VCPUS) == 8


def test_check_extension_of_s390(irqchip_client: Client, s390: Vm) -> None:
    answers = {IRQCHIP: 0, IRQ_ROUTING: 4096, DEVICE_CTRL: 1, LINE_LAYOUT_2: 0, KVM_CAP_S390_IRQCHIP: 1}
    for capability, value in answers.items():
        assert irqchip_client.check_extension(capability, Architecture.S390) == value
        assert s390.check_vm_extension(capability) == value


# IrqLine.


def test_irq_line_of_x86(x86: Vm) -> None:
    assert refused(lambda: x86.line(4).raise_()) == "ENXIO"
    x86.create_irqchip()
    x86.create_vcpu(0)
    init_pics(x86)
    assert (x86.line(4).raise_(), x86.line(4).raise_(), x86.line(4).lower()) == (1, 1, 2)
    assert x86.line(5000).raise_() == -1
    assert x86.vcpu(0).acknowledge() is not None


def test_irq_line_of_arm64(arm64: Vm) -> None:
    assert arm64.line(irq(0)).raise_() == 0
    assert refused(lambda: arm64.line(spi(4)).raise_()) == "ENXIO"
    arm64.line(irq(0)).lower()
    gic = arm64.create_gic(2)
    assert refused(lambda: arm64.line(irq(0)).raise_()) == "ENXIO"
    assert (arm64.line(spi(4)).pulse(), arm64.line(ppi(1, 20)).raise_()) == (0, 0)
    assert gic.get(Group.DIST_REGS, SPI_PENDING) == 1 << 4
    assert gic.get(Group.DIST_REGS, 1 << 32 | PPI_PENDING) == 1 << 20
    for other in (spi(224), ppi(2, 20), ppi(0, 5), 3 << 24):
        assert refused(lambda other=other: arm64.line(other).raise_()) == "EINVAL"  # type: ignore[misc]
    assert arm64.info().asserted_gsis == (ppi(1, 20),)


def test_irq_line_of_s390(s390: Vm, memory: int) -> None:
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)
    s390.create_irqchip()
    flic = s390.create_device(DeviceType.FLIC)
    flic.set(FlicGroup.ADAPTER_REGISTER, 0, adapter_registration(1, isc=3, swap=True))
    s390.set_routing([AdapterRoute(5, 0x1000, 0x2000, 0, 0, 1)])
    s390.line(5).pulse()
    assert (os.pread(memory, 1, 0x1000), os.pread(memory, 1, 0x2000)) == (b"\x80", b"\x80")
    assert s390.line(6).raise_() == -1


# Routing.


def test_default_routing_of_x86(x86: Vm) -> None:
    assert refused(x86.routing) == "ENXIO"
    x86.create_irqchip()
    routes = x86.routing()
    assert len(routes) == 40
    assert [r.chip for r in routes if isinstance(r, PinRoute) and r.gsi == 4] == [Chip.IOAPIC, Chip.PIC_PRIMARY]


def test_default_routing_of_arm64(arm64: Vm) -> None:
    gic = arm64.create_device(DeviceType.ARM_VGIC_V3)
    assert arm64.routing() == []
    gic.set(Group.CTRL, 0)
    assert arm64.routing() == [PinRoute(n, Chip.GIC, n) for n in range(224)]


def test_default_routing_of_s390(s390: Vm) -> None:
    s390.enable_cap(KVM_CAP_S390_IRQCHIP)
    s390.create_irqchip()
    assert s390.routing() == []


def test_set_gsi_routing_of_x86(x86: Vm) -> None:
    x86.create_irqchip()
    table: list[PinRoute | MsiRoute] = [
        PinRoute(4, Chip.IOAPIC, 23),
        PinRoute(4, Chip.PIC_PRIMARY, 4),
        MsiRoute(24, 0xFEE0_0000, 0x31),
    ]
    x86.set_routing(table)
    routes: list[Route] = [PinRoute(4, Chip.IOAPIC, 24), AdapterRoute(5, 0x1000, 0x2000, 0, 0, 1)]
    for route in routes:
        assert refused(lambda route=route: x86.set_routing([route])) == "EINVAL"  # type: ignore[misc]
    assert x86.routing() == table


def test_set_gsi_routing_of_arm64(arm64: Vm) -> None:
    gic = arm64.create_gic(2)
    table: list[Route] = [PinRoute(4, Chip.GIC, 9), PinRoute(5, Chip.GIC, 987), MsiRoute(24, 0x802_0040, 1)]
    arm64.set_routing(table)
    routes: list[Route] = [
        PinRoute(4, Chip.GIC, 988),
        PinRoute(4, Chip.IOAPIC, 4),
        AdapterRoute(5, 0x1000, 0x2000, 0, 0, 1),
    ]
    for route in routes:
        assert refused(lambda route=route: arm64.set_routing([route])) == "EINVAL"  # type: ignore[misc]
    assert refused(lambda: arm64.set_routing([PinRoute(4, Chip.GIC, 9), PinRoute(4, Chip.GIC, 8)])) == "EINVAL"
    assert arm64.routing() == table
    arm64.line(spi(4)).pulse()  # IrqLine does not go by the table
    assert gic.get(Group.DIST_REGS, SPI_PENDING) == 1 << 4


def test_set_gsi_routing_of_s390(s390: Vm, memory: int) -> None:
    assert memory
    table = [AdapterRoute(5, 0x1000, 0x2000, 3, 1, 1)]
    s390.set_routing(table)
    for route in (PinRoute(4, Chip.GIC, 4), MsiRoute(24, 0xFEE0_0000, 0x31)):
        assert refused(lambda route=route: s390.set_routing([route])) == "EINVAL"  # type: ignore[misc]
    assert refused(lambda: s390.set_routing([AdapterRoute(5, 0x8000, 0x2000, 3, 1, 1)])) == "EFAULT"
    assert s390.routing() == table


# SignalMsi, and the rest.


def test_signal_msi_of_x86(x86: Vm) -> None:
    assert refused(lambda: x86.signal_msi(0xFEE0_0000, 0x31)) == "EINVAL"
    x86.create_irqchip()
    x86.create_vcpu(0).mmio_write(0xFEE0_00F0, 0x1FF)
    assert x86.signal_msi(0xFEE0_0000, 0x31) == 1


def test_signal_msi_of_arm64(arm64: Vm) -> None:
    assert refused(lambda: arm64.signal_msi(0x802_0040, 1)) == "EINVAL"
    arm64.create_gic(3)
    assert refused(lambda: arm64.signal_msi(0x802_0040, 1)) == "ENODEV"


def test_signal_msi_of_s390(s390: Vm) -> None:
    assert refused(lambda: s390.signal_msi(0xFEE0_0000, 0x31)) == "ENOTTY"


def test_other_architectures_calls_of_x86(x86: Vm) -> None:
    x86.create_irqchip()
    cpu = x86.create_vcpu(0)
    for call in (lambda: cpu.sysreg_read(0), cpu.init, cpu.take_irq, lambda: x86.set_device_addr(0, 0)):
        assert refused(call) == "ENOTTY"


def test_other_architectures_calls_of_arm64(arm64: Vm) -> None:
    cpu = arm64.vcpu(0)
    for call in (cpu.lapic, lambda: cpu.msr_read(0x1B), cpu.acknowledge, cpu.take_irq, arm64.create_pit):
        assert refused(call) == "EINVAL"


def test_other_architectures_calls_of_s390(s390: Vm) -> None:
    cpu = s390.create_vcpu(0)
    for call in (cpu.lapic, lambda: cpu.msr_read(0x1B), cpu.acknowledge, cpu.init, s390.create_pit):
        assert refused(call) == "ENOTTY"


# The table.

TEXT = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text()


def test_each_cell_of_the_table_has_its_test_here() -> None:
    (section,) = re.findall(r"^## Differences between architectures\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"
    ]
    assert head == ["", "x86", "arm64", "s390"]
    named = []
    for _, *cells in rows:
        for cell, architecture in zip(cells, head[1:], strict=True):
            (name,) = re.findall(r"`(test_\w+)`", cell)
            assert name.endswith(f"_of_{architecture}")
            named.append(name)
    here = [name for name in globals() if re.fullmatch(r"test_.*_of_(x86|arm64|s390)", name)]
    assert sorted(named) == sorted(here)
