"""GSI routing: the tables that are accepted, and where they lead."""

from __future__ import annotations

import pytest

from irqchipd.vm.errors import VmError
from irqchipd.vm.routing import MAX_GSIS, MsiRoute, PinRoute, Route, check_routes
from irqchipd.vm.x86.routing import DEFAULT_ROUTES, PINS, ChipId
from tests.vm.pc import LEVEL, PRIMARY, SECONDARY, Pc, refused

IOAPIC, PIC0, PIC1 = ChipId.IOAPIC, ChipId.PIC_PRIMARY, ChipId.PIC_SECONDARY
MSI = 0xFEE0_0000


# What a table may contain.


@pytest.mark.parametrize(
    "routes",
    [
        [PinRoute(4096, IOAPIC, 0)],
        [PinRoute(0, PIC0, 8)],
        [PinRoute(0, PIC1, 8)],
        [PinRoute(0, IOAPIC, 24)],
        [PinRoute(0, 3, 0)],
        [PinRoute(0, IOAPIC, 0, flags=1)],
        [MsiRoute(0, MSI, 0x31, flags=2)],
        [MsiRoute(0, MSI, 0x31, flags=3)],
        [PinRoute(5, IOAPIC, 5), PinRoute(5, IOAPIC, 6)],
        [PinRoute(5, IOAPIC, 5), PinRoute(6, IOAPIC, 5), PinRoute(5, IOAPIC, 5)],
        [PinRoute(5, PIC0, 5), MsiRoute(5, MSI, 0x31)],
        [MsiRoute(5, MSI, 0x31), PinRoute(5, PIC0, 5)],
        [MsiRoute(5, MSI, 0x31), MsiRoute(5, MSI, 0x32)],
        [PinRoute(gsi, IOAPIC, 0) for gsi in range(MAX_GSIS)] + [PinRoute(0, PIC0, 0)],
    ],
)
def test_a_table_that_kvm_refuses_is_refused_and_the_old_one_stays(routes: list[Route]) -> None:
    pc = Pc()
    before = pc.vm.routing()
    with refused("EINVAL"):
        pc.vm.set_routing([PinRoute(99, IOAPIC, 1), *routes])
    assert pc.vm.routing() == before
    assert pc.line(1, 1) == [1]
    assert pc.line(99, 1) == [-1]


@pytest.mark.parametrize(
    "routes",
    [
        [],
        [PinRoute(4095, IOAPIC, 23)],
        [PinRoute(5, PIC0, 5), PinRoute(5, PIC1, 5), PinRoute(5, IOAPIC, 5)],
        [PinRoute(5, IOAPIC, 5), PinRoute(6, IOAPIC, 5)],
        [MsiRoute(5, 0, 0, flags=1)],
        [MsiRoute(5, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF)],
        [PinRoute(gsi, IOAPIC, 0) for gsi in range(MAX_GSIS)],
    ],
)
def test_a_table_that_kvm_accepts_is_accepted(routes: list[Route]) -> None:
    check_routes(routes, PINS)


def test_an_error_says_which_gsi() -> None:
    with pytest.raises(VmError, match="GSI 77: chip 1 has pins 0 to 7, not 12"):
        check_routes([PinRoute(3, IOAPIC, 3), PinRoute(77, PIC1, 12)], PINS)


# Where it leads.


@pytest.mark.parametrize("gsi", range(24))
def test_by_default_a_gsi_leads_to_the_pin_of_its_number(gsi: int) -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.program(gsi, 0x40 + gsi)
    pc.line(gsi, 1)
    taken = [pc.take(), pc.take()]
    if gsi == 2:  # the cascade input: the secondary has no request
        assert taken == [SECONDARY + 7, 0x42]
    elif gsi < 16:
        assert taken == [PRIMARY + gsi, 0x40 + gsi]
    else:
        assert taken == [0x40 + gsi, None]


def test_the_default_routes_can_be_read_back() -> None:
    assert list(Pc().vm.routing()) == list(DEFAULT_ROUTES)
    assert len(DEFAULT_ROUTES) == 24 + 16


def test_a_new_table_replaces_the_old_one_whole() -> None:
    pc = Pc()
    pc.program(20, 0x31)
    routes = [PinRoute(1000, IOAPIC, 20)]
    pc.vm.set_routing(routes)
    routes.clear()  # the table is a copy
    assert pc.line(1, 1) == [-1]
    assert pc.line(1000, 1) == [1]
    assert pc.take() == 0x31
    assert list(pc.vm.routing()) == [PinRoute(1000, IOAPIC, 20, flags=0)]
    pc.vm.set_routing([MsiRoute(1001, MSI, 0x31)])
    assert list(pc.vm.routing()) == [MsiRoute(1001, MSI, 0x31, flags=0)]


def test_one_gsi_can_lead_to_all_three_chips() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.program(7, 0x37)
    pc.vm.set_routing([PinRoute(50, PIC0, 1), PinRoute(50, PIC1, 3), PinRoute(50, IOAPIC, 7)])
    assert pc.line(50, 1) == [3]
    assert pc.take() == PRIMARY + 1
    pc.out(0x20, 0x20)
    assert [pc.take(), pc.take()] == [SECONDARY + 3, 0x37]


def test_replacing_the_routes_does_not_lower_high_lines() -> None:
    pc = Pc()
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    pc.vm.set_routing([])
    for _ in range(2):
        assert pc.take() == 0x31
        pc.eoi()
    pc.vm.set_routing(DEFAULT_ROUTES)
    assert pc.take() == 0x31
    pc.line(16, 0)
    pc.eoi()
    assert pc.take() is None


# MSIs.


def test_a_gsi_that_leads_to_an_msi_sends_it_when_raised() -> None:
    pc = Pc(2)
    pc.vm.set_routing([MsiRoute(60, MSI | 1 << 12, 0x41), MsiRoute(61, 0x1234_5678_FEE0_0000, 0x42, flags=1)])
    assert pc.line(60, 1, 0) == [1, -1]
    assert pc.line(61, 1) == [1]  # the high half of the address is ignored
    assert pc.takers() == {0: 0x42, 1: 0x41}


@pytest.mark.parametrize(
    ("address", "data", "status", "vector"),
    [
        (MSI, 0x31, 1, 0x31),
        (0x1230_0000, 0x31, 1, 0x31),  # the address need not be FEEh
        (0xABCD_0000_FEE0_0000, 0x31, 1, 0x31),
        (MSI, 0x05, 1, None),  # accepted, but never above any priority
        (MSI | 9 << 12, 0x31, 0, None),  # no such vCPU
        (MSI, 0x331, 1, None),  # remote read
        (MSI, 0x631, 1, None),  # start-up
        (MSI, 0x731, 0, None),  # ExtINT
    ],
)
def test_the_status_of_signalling_an_msi(address: int, data: int, status: int, vector: int | None) -> None:
    pc = Pc()
    assert pc.vm.signal_msi(address, data) == status
    assert pc.take() == vector


def test_an_msi_sent_twice_is_not_called_coalesced() -> None:
    pc = Pc()
    assert [pc.vm.signal_msi(MSI, 0x31) for _ in range(2)] == [1, 1]
    assert pc.serve_all() == [0x31]


def test_an_msis_flags() -> None:
    pc = Pc()
    assert pc.vm.signal_msi(MSI, 0x31, flags=1) == 1
    pc.serve_all()
    for flags in (2, 3, 1 << 31):
        with refused("EINVAL"):
            pc.vm.signal_msi(MSI, 0x31, flags)
    assert pc.take() is None
