"""A PC's tables as kernels read them. ACPI 6.5, chapter 5.2; Intel MultiProcessor Specification 1.4, chapter 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_client import Chip, Client, InvalidArgument, PinRoute, RegionInfo, Space, embedded
from irqchip_client.devices import I8042, PowerManagement, Rtc, Uart
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.pc.board import Board, read_board
from irqchip_client.vmm.pc.tables import write_tables
from irqchip_client.vmm.run import create_machine

from . import reader
from .reader import Override, number

MIB = 1 << 20
LEVEL_ACTIVE_HIGH = 0xD
POWER = RegionInfo(Space.PIO, 0x600, 12)
BOARD = Board(
    apic_ids=(0, 1, 2),
    apic_version=0x14,
    ioapic_id=0,
    ioapic_address=0xFEC00000,
    pins={0: 2, **{gsi: gsi for gsi in (1, *range(3, 24))}},
    regions=(POWER,),
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(MIB) as memory:
        yield memory


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with embedded() as client:
        yield client


def test_the_root_tables_lead_to_the_same_tables(memory: GuestMemory) -> None:
    assert write_tables(memory, BOARD) == 0xE0000
    by_xsdt, by_rsdt = reader.acpi(memory), reader.acpi(memory, by_xsdt=False)
    assert by_xsdt == by_rsdt
    assert set(by_xsdt) == {"FACP", "APIC", "DSDT", "FACS"}
    assert (len(by_xsdt["FACS"]), by_xsdt["FACS"][:4]) == (64, b"FACS")


def test_the_madt_has_every_vcpu_and_the_ioapic(memory: GuestMemory) -> None:
    write_tables(memory, BOARD)
    madt = reader.acpi(memory)["APIC"]
    assert (number(madt, 36, 4), number(madt, 40, 4)) == (0xFEE00000, 1)  # PCs' PICs are there
    processors = [entry for entry in reader.controllers(madt) if entry[0] == 0]
    assert [(entry[2], entry[3], number(entry, 4, 4)) for entry in processors] == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    (ioapic,) = (entry for entry in reader.controllers(madt) if entry[0] == 1)
    assert (ioapic[2], number(ioapic, 4, 4), number(ioapic, 8, 4)) == (0, 0xFEC00000, 0)
    (nmi,) = (entry for entry in reader.controllers(madt) if entry[0] == 4)
    assert (nmi[2], nmi[5]) == (0xFF, 1)  # LINT1 of all processors


def test_ids_from_255_on_have_x2apic_entries(memory: GuestMemory) -> None:
    write_tables(memory, replace(BOARD, apic_ids=(0, 254, 255, 300)))
    entries = list(reader.controllers(reader.acpi(memory)["APIC"]))
    assert [entry[3] for entry in entries if entry[0] == 0] == [0, 254]
    wide = [entry for entry in entries if entry[0] == 9]
    assert [(number(entry, 4, 4), number(entry, 8, 4), number(entry, 12, 4)) for entry in wide] == [
        (255, 1, 2),
        (300, 1, 3),
    ]
    (nmi,) = (entry for entry in entries if entry[0] == 10)
    assert (number(nmi, 4, 4), nmi[8]) == (0xFFFF_FFFF, 1)
    assert [entry[1] for entry in reader.mp_table(memory).entries[0]] == [0, 254]


def test_the_timer_and_acpis_interrupt_have_overrides(memory: GuestMemory) -> None:
    write_tables(memory, BOARD)
    assert reader.overrides(reader.acpi(memory)["APIC"]) == {
        0: Override(0, 2, 0),
        9: Override(9, 9, LEVEL_ACTIVE_HIGH),
    }


def test_the_fadt_has_power_managements_ports(memory: GuestMemory) -> None:
    write_tables(memory, BOARD)
    fadt = reader.acpi(memory)["FACP"]
    assert (len(fadt), fadt[8]) == (276, 6)
    assert [number(fadt, at, 4) for at in (56, 64, 76)] == [0x600, 0x604, 0x608]
    assert [number(fadt, at + 4, 8) for at in (148, 172, 208)] == [0x600, 0x604, 0x608]
    assert tuple(fadt[88:92]) == (4, 2, 0, 4)
    assert (number(fadt, 46, 2), number(fadt, 48, 4)) == (9, 0)  # the SCI, and no port that would enable ACPI
    assert (fadt[116], number(fadt, 120, 8), fadt[128]) == (1, 0xCF9, 6)
    flags = number(fadt, 112, 4)
    assert flags >> 20 & 1 == 0  # not hardware-reduced
    assert flags >> 10 & 1 == 1  # the reset register is there


@pytest.mark.parametrize(
    ("regions", "boot_flags", "century"),
    [
        ((), 1 << 5, 0),
        ((RegionInfo(Space.PIO, 0x60, 1), RegionInfo(Space.PIO, 0x64, 1)), 1 << 5 | 1 << 1, 0),
        ((RegionInfo(Space.PIO, 0x70, 2),), 0, 0x32),
    ],
)
def test_the_fadt_says_which_devices_are_missing(
    memory: GuestMemory, regions: tuple[RegionInfo, ...], boot_flags: int, century: int
) -> None:
    write_tables(memory, replace(BOARD, regions=(POWER, *regions)))
    fadt = reader.acpi(memory)["FACP"]
    assert number(fadt, 109, 2) & (1 << 5 | 1 << 1) == boot_flags
    assert fadt[108] == century


def test_without_power_management_there_is_no_acpi(memory: GuestMemory) -> None:
    assert write_tables(memory, replace(BOARD, regions=())) is None
    assert reader.look_for(memory, b"RSD PTR ", 0xE0000, MIB) is None
    assert reader.mp_table(memory).entries


def test_more_vcpus_than_there_is_room_for_are_refused(memory: GuestMemory) -> None:
    with pytest.raises(InvalidArgument, match="no room for the tables of 4096 vCPUs"):
        write_tables(memory, replace(BOARD, apic_ids=tuple(range(4096))))
    with GuestMemory(MIB // 2) as small, pytest.raises(InvalidArgument, match="need 1 MiB of RAM"):
        write_tables(small, BOARD)


def test_the_mp_table_has_processors_bus_ioapic_and_interrupts(memory: GuestMemory) -> None:
    write_tables(memory, BOARD)
    table = reader.mp_table(memory)
    assert table.local_apic == 0xFEE00000
    # An APIC's id and version; enabled, and the first is the boot processor.
    assert [tuple(entry[1:4]) for entry in table.entries[0]] == [(0, 0x14, 3), (1, 0x14, 1), (2, 0x14, 1)]
    assert table.entries[1] == [b"\1\0ISA   "]
    assert table.entries[2] == [b"\2\0\x11\1" + 0xFEC00000.to_bytes(4, "little")]
    pins = {entry[5]: entry[7] for entry in table.entries[3]}
    assert pins == {0: 2, **{irq: irq for irq in (1, *range(3, 16))}}
    assert {entry[5]: number(entry, 2, 2) for entry in table.entries[3] if number(entry, 2, 2)} == {
        9: LEVEL_ACTIVE_HIGH
    }
    local = [(entry[1], entry[6], entry[7]) for entry in table.entries[4]]
    assert local == [(3, 0xFF, 0), (1, 0xFF, 1)]  # ExtINT at LINT0, NMI at LINT1


def test_a_machines_board_is_read_from_its_vm_and_its_devices(client: Client) -> None:
    with create_machine(client, vcpus=3) as vm, vm.session("device") as session:
        session.register_region(Space.MMIO, 0xD0000000, 0x1000)
        devices = [Uart(1), PowerManagement(lambda: None, lambda: None)]
        board = read_board(vm, (region for device in devices for region in device.regions))
    assert replace(board, regions=(POWER,)) == BOARD
    assert board.has(Space.MMIO, 0xD0000000)
    assert [board.has(Space.PIO, port) for port in (0x3F8, 0x600, 0xCF9, 0x64)] == [True, True, True, False]


def test_the_dsdt_names_the_devices_that_are_there(memory: GuestMemory) -> None:
    pnp = {"PNP0501": b"\x41\xd0\x05\x01", "PNP0303": b"\x41\xd0\x03\x03", "PNP0B00": b"\x41\xd0\x0b\x00"}

    def named(*devices: Uart | I8042 | Rtc) -> set[str]:
        regions = [RegionInfo(each.space, each.start, each.length) for device in devices for each in device.regions]
        write_tables(memory, replace(BOARD, regions=(POWER, *regions)))
        dsdt = reader.acpi(memory)["DSDT"]
        return {name for name, number in pnp.items() if number in dsdt}

    assert named() == set()
    assert named(Uart(1)) == {"PNP0501"}
    assert named(Uart(1), I8042(), Rtc()) == set(pnp)


def test_a_virtio_device_has_the_pin_of_its_gsi(memory: GuestMemory) -> None:
    region = RegionInfo(Space.MMIO, 0xD0001000, 0x1000)
    write_tables(memory, replace(BOARD, pins={**BOARD.pins, 17: 21}, regions=(POWER, region)))
    dsdt = reader.acpi(memory)["DSDT"]
    at = dsdt.index(b"LNRO0005")
    # Memory32Fixed, then Interrupt: consumer, level, active high, exclusive; one number.
    where = dsdt.index(b"\x86\x09\x00\x01" + 0xD0001000.to_bytes(4, "little") + 0x1000.to_bytes(4, "little"), at)
    assert dsdt[where + 12 : where + 21] == b"\x89\x06\x00\x01\x01" + (21).to_bytes(4, "little")
    assert dsdt.count(b"LNRO0005") == 1


PIN_ROUTES = st.lists(
    st.builds(PinRoute, st.integers(0, 15), st.just(Chip.IOAPIC), st.integers(0, 23)),
    unique_by=lambda route: route.gsi,
)


@given(PIN_ROUTES)
def test_tables_and_ioapic_agree_whatever_the_routes_are(client: Client, routes: list[PinRoute]) -> None:
    """An ISA interrupt drives the pin that the tables name."""
    with create_machine(client) as vm, GuestMemory(MIB) as memory:
        vm.set_routing(routes)
        write_tables(memory, read_board(vm, [*PowerManagement(lambda: None, lambda: None).regions]))
        overrides = reader.overrides(reader.acpi(memory)["APIC"])
        mp_pins = {entry[5]: entry[7] for entry in reader.mp_table(memory).entries.get(3, [])}
        for irq in range(16):
            with vm.line(irq):
                driven = vm.get_irqchip(Chip.IOAPIC).irr
            if irq in {route.gsi for route in routes}:
                assert driven == 1 << (overrides[irq].pin if irq in overrides else irq) == 1 << mp_pins[irq]
            else:
                assert driven == 0
                assert irq not in overrides
                assert irq not in mp_pins
