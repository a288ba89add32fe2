"""GSI routing: which inputs of which chips, or which MSI, a GSI leads to. KVM: virt/kvm/irqchip.c, x86 irq_comm.c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from irqchipd.vm.errors import invalid

MAX_GSIS: Final = 4096  # KVM_MAX_IRQ_ROUTES, of both GSIs and entries
MSI_VALID_DEVID: Final = 1  # KVM_MSI_VALID_DEVID, the one flag KVM knows


class ChipId(IntEnum):
    """KVM_IRQCHIP_*."""

    PIC_PRIMARY = 0
    PIC_SECONDARY = 1
    IOAPIC = 2


PINS: dict[int, int] = {ChipId.PIC_PRIMARY: 8, ChipId.PIC_SECONDARY: 8, ChipId.IOAPIC: 24}


@dataclass(frozen=True, slots=True)
class PinRoute:
    """A GSI leads to an input of a chip."""

    gsi: int
    chip: int
    pin: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """A GSI leads to a message. Its address is 64 bits wide, its data 32."""

    gsi: int
    address: int
    data: int
    flags: int = 0


Route = PinRoute | MsiRoute


def default_routes() -> tuple[Route, ...]:
    """What KVM_CREATE_IRQCHIP sets: GSI 0-15 to the IOAPIC and a PIC, 16-23 to the IOAPIC. KVM: default_routing."""
    routes: list[Route] = []
    for gsi in range(PINS[ChipId.IOAPIC]):
        routes.append(PinRoute(gsi, ChipId.IOAPIC, gsi))
        if gsi < 16:
            routes.append(PinRoute(gsi, gsi >> 3, gsi & 7))
    return tuple(routes)


# All inputs in a row: the PICs' lines 0 to 15, then the IOAPIC's pins.
IOAPIC_INPUTS: Final = 16
INPUTS: Final = IOAPIC_INPUTS + PINS[ChipId.IOAPIC]

# What each GSI leads to: inputs, or an MSI.
Table = Mapping[int, Sequence[int | MsiRoute]]


def table_of(routes: Sequence[Route]) -> Table:
    """What each GSI leads to, by routes that have been checked."""
    table: dict[int, list[int | MsiRoute]] = {}
    for route in routes:
        end = route if isinstance(route, MsiRoute) else 8 * route.chip + route.pin
        table.setdefault(route.gsi, []).append(end)
    return table


def gsi_of(routes: Sequence[Route]) -> dict[int, int]:
    """Which GSI leads to each input, the last one if there are several. KVM: irqchip.c setup_routing_entry."""
    return {8 * route.chip + route.pin: route.gsi for route in routes if isinstance(route, PinRoute)}


DEFAULT_ROUTES: Final = default_routes()
DEFAULT_TABLE: Final = table_of(DEFAULT_ROUTES)
DEFAULT_GSI_OF: Final = gsi_of(DEFAULT_ROUTES)


def check_routes(routes: Sequence[Route]) -> None:
    """Refuse what KVM refuses: EINVAL. KVM: irqchip.c setup_routing_entry, irq_comm.c kvm_set_routing_entry."""
    if len(routes) > MAX_GSIS:
        raise invalid(f"{len(routes)} routing entries; at most {MAX_GSIS} are allowed")
    led: set[tuple[int, int | None]] = set()  # where each GSI leads so far: to chips, or to None for an MSI
    for route in routes:
        gsi = route.gsi
        if gsi >= MAX_GSIS:
            raise invalid(f"GSI {gsi} is out of range: use 0 to {MAX_GSIS - 1}")
        chip = _check_route(route)
        if (gsi, chip) in led and chip is not None:
            raise invalid(f"GSI {gsi} leads to chip {chip} twice; one entry per chip is allowed")
        others = [(gsi, None)] if chip is not None else [(gsi, chip) for chip in (None, *PINS)]
        if not led.isdisjoint(others):
            raise invalid(f"GSI {gsi} leads to an MSI and elsewhere; an MSI must be the only entry of its GSI")
        led.add((gsi, chip))


def _check_route(route: Route) -> int | None:
    """Refuse what is wrong by itself; return the chip, or None for an MSI."""
    if isinstance(route, MsiRoute):
        if route.flags & ~MSI_VALID_DEVID:
            raise invalid(f"GSI {route.gsi}: flags {route.flags:#x} of an MSI: use 0 or {MSI_VALID_DEVID}")
        return None
    if route.flags:
        raise invalid(f"GSI {route.gsi}: flags {route.flags:#x} of a pin; only 0 is allowed")
    pins = PINS.get(route.chip)
    if pins is None:
        raise invalid(f"GSI {route.gsi}: chip {route.chip} is invalid; 0 and 1 are the PICs, 2 the IOAPIC")
    if route.pin >= pins:
        raise invalid(f"GSI {route.gsi}: chip {route.chip} has pins 0 to {pins - 1}, not {route.pin}: use one of these")
    return route.chip
