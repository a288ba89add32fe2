"""An arm64 machine: where its parts are, what makes it, and its boot images: an ELF file, or Linux's Image."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from irqchip_client import Architecture, GicHost
from irqchip_client._errors import NotFound, Unavailable
from irqchip_client._sync.client import Client, Vm
from irqchip_client.arm64 import spi

from .image import Segment, bad_image, elf_segments, load_segments
from .memory import GuestMemory
from .start import Arm64Start

# Where QEMU's virt board has them; the serial port is a 16550A, and not a PL011. The GIC: irqchip_client.arm64.
RAM: Final = 0x4000_0000
SERIAL: Final = 0x0900_0000
SERIAL_LINE: Final = spi(1)
DISK: Final = 0x0A00_0000
DISK_LINE: Final = spi(2)

# Linux: Documentation/arch/arm64/booting.rst.
IMAGE_HEADER: Final = struct.Struct("<2I3Q24xI")  # code, code, text_offset, image_size, flags; magic
IMAGE_MAGIC: Final = 0x644D_5241
ELF_MACHINE: Final = struct.Struct("<16xHH")
EM_AARCH64: Final = 183


def is_arm64(image: bytes) -> bool:
    """Whether it is an arm64 ELF file or Linux's Image for arm64."""
    if image.startswith(b"\x7fELF"):
        return len(image) >= ELF_MACHINE.size and ELF_MACHINE.unpack_from(image)[1] == EM_AARCH64
    return len(image) >= IMAGE_HEADER.size and IMAGE_HEADER.unpack_from(image)[-1] == IMAGE_MAGIC


def load_arm64(memory: GuestMemory, image: bytes) -> Arm64Start:
    """Puts an image into a guest's memory, and returns how the vCPU starts.

    InvalidArgument for what is no arm64 image, and where the memory has no room for it.
    """
    if not is_arm64(image):
        raise bad_image("it is no ELF file for arm64, and not Linux's Image for it")
    if image.startswith(b"\x7fELF"):
        try:
            entry, segments = elf_segments(image)
        except struct.error:
            raise bad_image("it ends too early") from None
    else:
        _, _, offset, size, _, _ = IMAGE_HEADER.unpack_from(image)
        entry = memory.start + offset
        segments = (Segment(entry, image, max(size, len(image))),)
    load_segments(memory, segments)
    return Arm64Start(entry)


@contextmanager
def create_arm64_machine(client: Client, name: str = "", vcpus: int = 1, gic: int = 3) -> Iterator[Vm]:
    """A VM with vCPUs that are initialised, and a GICv2 or a GICv3. It is deleted in the end.

    AlreadyExists where the name is taken.
    """
    vm = client.create_vm(name, ephemeral=True, architecture=Architecture.ARM64, gic=GicHost(version=gic))
    try:
        for vcpu in range(vcpus):
            vm.create_vcpu(vcpu).init()
        vm.create_gic(version=gic)
        yield vm
    finally:
        with suppress(NotFound, Unavailable):  # as somebody deleted it, or the daemon has gone
            vm.delete()
