"""GSI routing of an arm64 VM: to SPIs. KVM: arch/arm64/kvm/vgic/vgic-irqfd.c."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from irqchipd.vm.agenda import Agenda
from irqchipd.vm.arm64.numbers import PINS
from irqchipd.vm.notices import Notices
from irqchipd.vm.routing import PinRoute, Route

GIC: Final = 0  # the only chip's number
CHIPS: Final[Mapping[int, int]] = {GIC: PINS}


def default_routes(spis: int) -> tuple[Route, ...]:
    """GSI n leads to SPI n. KVM: kvm_vgic_setup_default_irq_routing."""
    return tuple(PinRoute(gsi, GIC, gsi) for gsi in range(spis))


class SpiNotices(Notices):
    """Subscriptions by GSI. If several GSIs lead to an SPI, its notices are for the GSI that was routed last."""

    def __init__(self, agenda: Agenda, lower: Callable[[int], None]) -> None:
        super().__init__(agenda, lower)
        self._gsi_of: dict[int, int] = {}

    def set_routes(self, routes: Sequence[Route]) -> None:
        """The routing was replaced. KVM: irqchip.c setup_routing_entry."""
        self._gsi_of = {route.pin: route.gsi for route in routes if isinstance(route, PinRoute)}

    def gsi_of(self, spi: int) -> int | None:
        """The GSI that an SPI's notices are for."""
        return self._gsi_of.get(spi)

    def acknowledged(self, spi: int) -> None:
        """The guest ended a level-triggered SPI. KVM: irqchip.c kvm_notify_acked_irq.

        The chip calls this in the middle of its work; a resampled line falls within the call.
        """
        gsi = self._gsi_of.get(spi)
        if gsi is not None:
            self.lower_resampled(gsi)
            self.report_acknowledged(gsi)
