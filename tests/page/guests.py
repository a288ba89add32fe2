"""A VM of each architecture with interrupts set up, and a little life in it."""

from __future__ import annotations

from irqchip_client import Architecture, Client, DeviceType, GicHost, InterruptMasks, S390Irq, S390IrqType, Vm
from irqchip_client.arm64 import CPU_INTERFACE, DISTRIBUTOR, ppi, spi
from irqchip_client.s390 import KVM_CAP_S390_IRQCHIP, FlicGroup, adapter_registration
from tests.client.guest import init_pics

SERIAL, DISK = 4, 5  # GSIs, which the IOAPIC sends as vectors
VECTORS = {SERIAL: 0x34, DISK: 0x55}
_IOAPIC, _LAPIC = 0xFEC0_0000, 0xFEE0_0000
_LEVEL, _LOGICAL = 1 << 15, 1 << 11


def x86_vm(client: Client) -> Vm:
    """A PC with two vCPUs, whose serial port has an edge interrupt for vCPU 0, and the disk a level one for vCPU 1."""
    vm = client.create_vm("pc")
    vm.create_irqchip()
    vm.create_pit()
    for vcpu in range(2):
        vm.create_vcpu(vcpu)
        vm.vcpu(vcpu).mmio_write(_LAPIC + 0xF0, 0x1FF)
    init_pics(vm)
    vm.vcpu(0).pio_write(0x21, 0xFE)
    for gsi, low, destination in ((SERIAL, VECTORS[SERIAL], 0), (DISK, VECTORS[DISK] | _LEVEL, 1)):
        for register, value in ((0x11 + 2 * gsi, destination << 24), (0x10 + 2 * gsi, low)):
            vm.vcpu(0).mmio_write(_IOAPIC, register)
            vm.vcpu(0).mmio_write(_IOAPIC + 0x10, value)
    return vm


def eoi(vm: Vm, vcpu: int) -> None:
    """A vCPU of a PC ends the interrupt in service."""
    vm.vcpu(vcpu).mmio_write(_LAPIC + 0xB0, 0)


def arm64_vm(client: Client) -> Vm:
    """Two vCPUs with a GICv2, on which SPI 4 (INTID 36) is open."""
    vm = client.create_vm("arm", architecture=Architecture.ARM64, gic=GicHost(2))
    for vcpu in range(2):
        vm.create_vcpu(vcpu).init()
    vm.create_gic(2)
    cpu = vm.vcpu(0)
    for address, value in ((0x104, 1 << 4 | 1 << 5), (0x824, 0x0101), (0x0, 1), (0x100, 1 << 20)):
        cpu.mmio_write(DISTRIBUTOR + address, value)
    for address, value in ((0x4, 0xF0), (0x0, 1)):
        cpu.mmio_write(CPU_INTERFACE + address, value)
    return vm


def s390_vm(client: Client) -> Vm:
    """A vCPU, the FLIC and an adapter."""
    vm = client.create_vm("mainframe", architecture=Architecture.S390)
    vm.enable_cap(KVM_CAP_S390_IRQCHIP)
    vm.create_irqchip()
    flic = vm.create_device(DeviceType.FLIC)
    flic.set(FlicGroup.ADAPTER_REGISTER, 0, adapter_registration(1, 3, swap=True))
    vm.create_vcpu(0).set_interrupt_masks(InterruptMasks.all())
    return vm


def play(client: Client, name: str) -> None:
    """Some interrupts, the last of which are left in service or pending."""
    vm = client.vm(name)
    if name == "pc":
        vm.line(DISK).lower()
        for _ in range(3):
            vm.line(SERIAL).pulse()
            vm.vcpu(0).acknowledge()
            eoi(vm, 0)
        vm.line(DISK).raise_()
        vm.vcpu(1).acknowledge()
        vm.line(SERIAL).pulse()
    elif name == "arm":
        vm.line(spi(4)).pulse()
        vm.vcpu(0).mmio_read(CPU_INTERFACE + 0xC)
        vm.line(spi(5)).raise_()
        vm.line(ppi(0, 20)).raise_()
    else:
        vm.s390_interrupt(S390IrqType.SERVICE, 0x1000)
        vm.vcpu(0).take_irq()
        vm.s390_interrupt(S390IrqType.VIRTIO, 0x2603, 0x77)
        vm.vcpu(0).s390_irq(S390Irq.make(S390IrqType.EMERGENCY, code=0))
