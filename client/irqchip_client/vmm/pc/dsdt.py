"""The differentiated system description table's terms: those devices of a PC without PCI that the machine has.

ACPI Specification 6.5, chapters 5.6, 6.1, 7.4.2 and 9; the plug and play ids of PC devices: Microsoft, "Plug and Play
Device IDs".
"""

from __future__ import annotations

from collections.abc import Iterator

from irqchip_client import Space
from irqchip_client.devices import power
from irqchip_client.devices.fw_cfg import SELECTOR
from irqchip_client.devices.virtio.places import PAGE, PC, Place

from .aml import (
    device,
    eisa_id,
    integer,
    interrupt,
    isa_interrupt,
    memory,
    name,
    package,
    ports,
    resources,
    scope,
    string,
)
from .board import Board

COM1, I8042_DATA, I8042_COMMAND, RTC = 0x3F8, 0x60, 0x64, 0x70
IDE, IDE_CONTROL = 0x1F0, 0x3F6
FW_CFG_PORTS = 12  # with the DMA interface. QEMU: docs/specs/fw_cfg.rst
# 6.3.7, _STA: present, enabled and functioning; not shown to a user.
PRESENT_HIDDEN = 0xB


def dsdt_terms(board: Board) -> bytes:
    """The table's body."""
    return name("\\_S5", package(integer(power.POWER_OFF), integer(0), integer(0), integer(0))) + scope(
        "\\_SB", *_processors(board), *_chips(board), *_isa_devices(board), *_virtio_devices(board)
    )


def _processors(board: Board) -> Iterator[bytes]:
    """8.4: _UID is the processor's UID in the MADT."""
    for number in range(len(board.apic_ids)):
        yield device(f"C{number:03X}", name("_HID", string("ACPI0007")), name("_UID", integer(number)))


def _chips(board: Board) -> Iterator[bytes]:
    """The daemon's chips, and power management."""
    yield _device("PIC", "PNP0000", ports(0x20, 2), ports(0xA0, 2), ports(0x4D0, 2), isa_interrupt(2))
    if board.pit:
        yield _device("PIT", "PNP0100", ports(0x40, 4), isa_interrupt(0))
        yield _device("SPKR", "PNP0800", ports(0x61, 1))
    yield _device("PWR", "PNP0C02", ports(power.BASE, power.LENGTH), ports(power.RESET_PORT, 1))


def _isa_devices(board: Board) -> Iterator[bytes]:
    if board.has(Space.PIO, COM1):
        yield _device("COM1", "PNP0501", ports(COM1, 8), isa_interrupt(4), uid=1)
    if board.has(Space.PIO, I8042_COMMAND):
        yield _device("KBD", "PNP0303", ports(I8042_DATA, 1), ports(I8042_COMMAND, 1), isa_interrupt(1))
        yield _device("MOU", "PNP0F13", isa_interrupt(12))
    if board.has(Space.PIO, RTC):
        yield _device("RTC", "PNP0B00", ports(RTC, 2), isa_interrupt(8))
    if board.has(Space.PIO, IDE):
        yield _device("IDE", "PNP0600", ports(IDE, 8), ports(IDE_CONTROL, 1), isa_interrupt(14))
    if board.has(Space.PIO, SELECTOR):
        yield device(
            "FWCF",
            name("_HID", string("QEMU0002")),
            name("_STA", integer(PRESENT_HIDDEN)),
            name("_CRS", resources(ports(SELECTOR, FW_CFG_PORTS))),
        )


def _virtio_devices(board: Board) -> Iterator[bytes]:
    """Virtio 1.2, 4.2, and Linux: drivers/virtio/virtio_mmio.c virtio_mmio_acpi_match."""
    for number, place in enumerate(PC):
        if board.has(Space.MMIO, place.address) and place.gsi in board.pins:
            yield _virtio_device(number, place, board.pins[place.gsi])


def _virtio_device(number: int, place: Place, pin: int) -> bytes:
    where = resources(memory(place.address, PAGE), interrupt(pin))
    return device(
        f"VR{number:02X}", name("_HID", string("LNRO0005")), name("_UID", integer(number)), name("_CRS", where)
    )


def _device(segment: str, pnp: str, *descriptors: bytes, uid: int | None = None) -> bytes:
    unique = () if uid is None else (name("_UID", integer(uid)),)
    return device(segment, name("_HID", eisa_id(pnp)), *unique, name("_CRS", resources(*descriptors)))
