"""A PC's GSI routing: the inputs of its chips, and the default routes. KVM: x86 irq_comm.c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

from irqchipd.vm.routing import MsiRoute, PinRoute, Route, S390Route


class ChipId(IntEnum):
    """KVM_IRQCHIP_*."""

    PIC_PRIMARY = 0
    PIC_SECONDARY = 1
    IOAPIC = 2


PINS: dict[int, int] = {ChipId.PIC_PRIMARY: 8, ChipId.PIC_SECONDARY: 8, ChipId.IOAPIC: 24}


def default_routes() -> tuple[Route, ...]:
    """The routes of KVM_CREATE_IRQCHIP: GSI 0-15 to the IOAPIC and a PIC, 16-23 to the IOAPIC. KVM: default_routing."""
    routes: list[Route] = []
    for gsi in range(PINS[ChipId.IOAPIC]):
        routes.append(PinRoute(gsi, ChipId.IOAPIC, gsi))
        if gsi < 16:
            routes.append(PinRoute(gsi, gsi >> 3, gsi & 7))
    return tuple(routes)


# All inputs in a row: the PICs' lines 0 to 15, then the IOAPIC's pins.
IOAPIC_INPUTS: Final = 16
INPUTS: Final = IOAPIC_INPUTS + PINS[ChipId.IOAPIC]

# The targets of each GSI: inputs, or an MSI.
Table = Mapping[int, Sequence[int | MsiRoute]]


def table_of(routes: Sequence[Route]) -> Table:
    """The table of checked routes."""
    table: dict[int, list[int | MsiRoute]] = {}
    for route in routes:
        assert not isinstance(route, S390Route)  # check_routes refuses these
        end = route if isinstance(route, MsiRoute) else 8 * route.chip + route.pin
        table.setdefault(route.gsi, []).append(end)
    return table


def gsi_of(routes: Sequence[Route]) -> dict[int, int]:
    """The GSI that leads to each input, the last if there are several. KVM: irqchip.c setup_routing_entry."""
    return {8 * route.chip + route.pin: route.gsi for route in routes if isinstance(route, PinRoute)}


DEFAULT_ROUTES: Final = default_routes()
DEFAULT_TABLE: Final = table_of(DEFAULT_ROUTES)
DEFAULT_GSI_OF: Final = gsi_of(DEFAULT_ROUTES)
