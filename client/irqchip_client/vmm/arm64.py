"""An arm64 machine: its layout, its creation, and its boot images (an ELF file, or Linux's Image)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from irqchip_client import Architecture, GicHost
from irqchip_client._errors import NotFound, Unavailable
from irqchip_client._sync.client import Client, Vm
from irqchip_client.arm64 import CPU_INTERFACE, DISTRIBUTOR, POWER_OFF, PSCI_0_2, REDISTRIBUTORS, spi
from irqchip_client.devices.virtio.mmio import LENGTH
from irqchip_client.devices.virtio.places import ARM64, Place

from .boot.elf import elf_segments, is_elf
from .boot.segments import Segment, bad_image, load_segments
from .device_tree import Node, Value, address, flatten
from .memory import PAGE, GuestMemory
from .start import Arm64Start

# The addresses of QEMU's virt board; the serial port is a 16550A, and not a PL011. The GIC: irqchip_client.arm64.
RAM: Final = 0x4000_0000
SERIAL: Final = 0x0900_0000
SERIAL_LINE: Final = spi(1)
DISK: Final = 0x0A00_0000
DISK_LINE: Final = spi(2)

TREE_ROOM: Final = 0x1_0000  # bytes for the device tree
CONTROLLER: Final = 1  # the handle of the interrupt controller in the device tree
SPI, PPI, LEVEL_HIGH = 0, 1, 4  # the cells of an interrupt

# Linux: Documentation/arch/arm64/booting.rst.
IMAGE_HEADER: Final = struct.Struct("<2I3Q24xI")  # code, code, text_offset, image_size, flags; magic
IMAGE_MAGIC: Final = 0x644D_5241
ELF_MACHINE: Final = struct.Struct("<16xHH")
EM_AARCH64: Final = 183


def is_arm64(image: bytes) -> bool:
    """Whether the image is an arm64 ELF file or Linux's Image for arm64."""
    if is_elf(image):
        return len(image) >= ELF_MACHINE.size and ELF_MACHINE.unpack_from(image)[1] == EM_AARCH64
    return len(image) >= IMAGE_HEADER.size and IMAGE_HEADER.unpack_from(image)[-1] == IMAGE_MAGIC


def load_arm64(
    memory: GuestMemory,
    image: bytes,
    *,
    command_line: str = "",
    initrd: bytes | None = None,
    vcpus: int = 1,
    gic: int = 3,
    virtio: Sequence[Place] = (),
) -> Arm64Start:
    """Puts an image into a guest's memory, and returns how the vCPU starts: with a device tree's address in x0.

    vcpus, gic, virtio  the machine that the device tree describes; virtio_places() finds its virtio devices

    The device tree is at the end of the memory, and the initrd before it. InvalidArgument for another format, and for
    too little memory.
    """
    if not is_arm64(image):
        raise bad_image("it is neither an ELF file for arm64 nor Linux's Image for arm64")
    if is_elf(image):
        entry, segments = elf_segments(image)
    else:
        _, _, offset, size, _, _ = IMAGE_HEADER.unpack_from(image)
        entry = memory.start + offset
        segments = (Segment(entry, image, max(size, len(image))),)
    end = memory.end - TREE_ROOM
    initrd_at = (end - len(initrd or b"")) // PAGE * PAGE
    if any(segment.end > initrd_at for segment in segments):
        raise bad_image(
            f"it needs more memory than the machine's {memory.size:#x} bytes, with {TREE_ROOM:#x} for the device tree"
            f"{' and the initrd' if initrd else ''}; give the machine more (--memory)"
        )
    load_segments(memory, segments)
    memory.write(initrd_at, initrd or b"")
    chosen: dict[str, Value] = {"bootargs": command_line, "stdout-path": f"/serial@{SERIAL:x}"}
    if initrd is not None:
        chosen |= {"linux,initrd-start": address(initrd_at), "linux,initrd-end": address(initrd_at + len(initrd))}
    tree = flatten(_machine(memory, chosen, vcpus, gic, virtio))
    if len(tree) > TREE_ROOM:
        raise bad_image(f"its command line is too long: the device tree has {len(tree)} bytes of {TREE_ROOM}")
    memory.write(end, tree)
    return Arm64Start(entry, x0=end)


def virtio_places(vm: Vm) -> list[Place]:
    """The default places of the SDK's virtio devices at which a device has claimed its registers."""
    claimed = {region.address for session in vm.info().sessions for region in session.regions}
    return [place for place in ARM64 if place.address in claimed]


def _machine(memory: GuestMemory, chosen: dict[str, Value], vcpus: int, gic: int, virtio: Sequence[Place]) -> Node:
    """The device tree. Linux: Documentation/devicetree/bindings."""
    controller = Node(
        f"interrupt-controller@{DISTRIBUTOR:x}",
        {
            "compatible": "arm,gic-v3" if gic == 3 else "arm,cortex-a15-gic",
            "reg": (
                *address(DISTRIBUTOR, 0x1_0000),
                *(address(REDISTRIBUTORS, 0x2_0000 * vcpus) if gic == 3 else address(CPU_INTERFACE, 0x2000)),
            ),
            "#interrupt-cells": 3,
            "#address-cells": 0,
            "interrupt-controller": None,
            "phandle": CONTROLLER,
        },
    )
    cpus = [
        Node(f"cpu@{n:x}", {"device_type": "cpu", "compatible": "arm,cortex-a72", "reg": n, "enable-method": "psci"})
        for n in range(vcpus)
    ]
    timers = (PPI, 13, LEVEL_HIGH, PPI, 14, LEVEL_HIGH, PPI, 11, LEVEL_HIGH, PPI, 10, LEVEL_HIGH)
    serial: dict[str, Value] = {"compatible": "ns16550a", "reg": address(SERIAL, 8), "interrupts": (SPI, 1, LEVEL_HIGH)}
    return Node(
        "",
        {
            "compatible": "linux,dummy-virt",
            "model": "irqchipd",
            "#address-cells": 2,
            "#size-cells": 2,
            "interrupt-parent": CONTROLLER,
        },
        [
            Node("chosen", chosen),
            Node(f"memory@{memory.start:x}", {"device_type": "memory", "reg": address(memory.start, memory.size)}),
            Node("cpus", {"#address-cells": 1, "#size-cells": 0}, cpus),
            Node("psci", {"compatible": ("arm,psci-1.0", "arm,psci-0.2"), "method": "hvc"}),
            Node("timer", {"compatible": "arm,armv8-timer", "interrupts": timers, "always-on": None}),
            controller,
            Node(f"serial@{SERIAL:x}", {**serial, "clock-frequency": 1_843_200}),
            *map(_virtio, virtio),
        ],
    )


def _virtio(place: Place) -> Node:
    """Linux: Documentation/devicetree/bindings/virtio/mmio.yaml."""
    where: dict[str, Value] = {"reg": address(place.address, LENGTH)}
    interrupt = (SPI, place.gsi - spi(0), LEVEL_HIGH)
    return Node(
        f"virtio_mmio@{place.address:x}",
        {"compatible": "virtio,mmio", **where, "interrupts": interrupt, "dma-coherent": None},
    )


@contextmanager
def create_arm64_machine(client: Client, name: str = "", vcpus: int = 1, gic: int = 3) -> Iterator[Vm]:
    """A VM with vCPUs (only the first is on) and a GICv2 or a GICv3. The end of the `with` deletes the VM.

    AlreadyExists if another VM has the name.
    """
    vm = client.create_vm(name, ephemeral=True, architecture=Architecture.ARM64, gic=GicHost(version=gic))
    try:
        for vcpu in range(vcpus):
            vm.create_vcpu(vcpu).init(PSCI_0_2 | POWER_OFF if vcpu else PSCI_0_2)  # the guest turns the others on
        vm.create_gic(version=gic)
        yield vm
    finally:
        with suppress(NotFound, Unavailable):  # another client deleted the VM, or the daemon has ended
            vm.delete()
