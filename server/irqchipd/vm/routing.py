"""GSI routing: what a GSI leads to. KVM: virt/kvm/irqchip.c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from irqchipd.vm.errors import invalid

MAX_GSIS: Final = 4096  # KVM_MAX_IRQ_ROUTES, of both GSIs and entries
MSI_VALID_DEVID: Final = 1  # KVM_MSI_VALID_DEVID, the one flag KVM knows


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


@dataclass(frozen=True, slots=True)
class S390Route:
    """A GSI leads to an s390 adapter: struct kvm_irq_routing_s390_adapter."""

    gsi: int
    indicator_address: int
    summary_address: int
    indicator_offset: int
    summary_offset: int
    adapter: int
    flags: int = 0


Route = PinRoute | MsiRoute | S390Route


def check_routes(routes: Sequence[Route], pins: Mapping[int, int]) -> None:
    """Refuse routes that KVM refuses: EINVAL. pins has each chip's number. KVM: irqchip.c setup_routing_entry."""
    if len(routes) > MAX_GSIS:
        raise invalid(f"{len(routes)} routing entries; at most {MAX_GSIS} are allowed")
    led: set[tuple[int, int | None]] = set()  # where each GSI leads so far: to chips, or to None for an MSI
    for route in routes:
        gsi = route.gsi
        if gsi >= MAX_GSIS:
            raise invalid(f"GSI {gsi} is out of range: use 0 to {MAX_GSIS - 1}")
        chip = _check_route(route, pins)
        if (gsi, chip) in led and chip is not None:
            raise invalid(f"GSI {gsi} leads to chip {chip} twice; one entry per chip is allowed")
        others = [(gsi, None)] if chip is not None else [(gsi, chip) for chip in (None, *pins)]
        if not led.isdisjoint(others):
            raise invalid(f"GSI {gsi} leads to an MSI and elsewhere; an MSI must be the only entry of its GSI")
        led.add((gsi, chip))


def _check_route(route: Route, chips: Mapping[int, int]) -> int | None:
    """Refuse an invalid entry; return its chip, or None for an MSI. KVM: kvm_set_routing_entry."""
    if isinstance(route, MsiRoute):
        if route.flags & ~MSI_VALID_DEVID:
            raise invalid(f"GSI {route.gsi}: flags {route.flags:#x} of an MSI: use 0 or {MSI_VALID_DEVID}")
        return None
    if isinstance(route, S390Route):
        raise invalid(f"GSI {route.gsi} leads to an s390 adapter, which this VM can't have: use a pin or an MSI")
    if route.flags:
        raise invalid(f"GSI {route.gsi}: flags {route.flags:#x} of a pin; only 0 is allowed")
    pins = chips.get(route.chip)
    if pins is None:
        raise invalid(
            f"GSI {route.gsi}: chip {route.chip} is invalid; there are {', '.join(map(str, map(int, chips)))}"
        )
    if route.pin >= pins:
        raise invalid(f"GSI {route.gsi}: chip {route.chip} has pins 0 to {pins - 1}, not {route.pin}: use one of these")
    return route.chip
