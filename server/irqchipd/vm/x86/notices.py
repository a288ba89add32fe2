"""The GSI of a pin's acknowledgement. KVM: irqchip.c kvm_notify_acked_irq, ioapic.c kvm_fire_mask_notifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from irqchipd.chips.i8254 import Pit
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.events import GsiMasked
from irqchipd.vm.notices import Notices
from irqchipd.vm.x86.apicbus import ApicBus
from irqchipd.vm.x86.routing import IOAPIC_INPUTS

PIT_GSI: Final = 0


class PinNotices(Notices):
    """Subscriptions by GSI. If several GSIs lead to a pin, the pin's notices are for the GSI that was routed last."""

    def __init__(self, agenda: Agenda, apics: ApicBus, lower: Callable[[int], None]) -> None:
        super().__init__(agenda, lower)
        self._apics = apics
        self._gsi_of: Mapping[int, int] = {}
        self.pit: Pit | None = None
        # The IOAPIC's pins with subscriptions: see IoapicWires.
        self.ioapic_noticed = 0

    def set_routes(self, gsi_of: Mapping[int, int]) -> None:
        """The routing was replaced."""
        self._gsi_of = gsi_of
        self.update()

    def update(self) -> None:
        """Compute again which pins have subscriptions."""
        noticed = 0
        for pin, gsi in self._gsi_of.items():
            if pin >= IOAPIC_INPUTS and (
                self._subscribed >> gsi & 1
                or gsi in self._resamplers
                or (gsi == PIT_GSI and self.pit is not None and self.pit.reinject)
            ):
                noticed |= 1 << pin - IOAPIC_INPUTS
        self.ioapic_noticed = noticed

    def changed(self) -> None:
        """KVM: ioapic.c kvm_arch_post_irq_ack_notifier_list_update."""
        self.update()
        self._apics.scans += 1

    def acknowledged(self, pin: int) -> None:
        """An input's interrupt was ended. KVM: irqchip.c kvm_notify_acked_irq.

        The chip calls this in the middle of its work; a resampled line falls within the call.
        """
        gsi = self._gsi_of.get(pin)
        if gsi is None:
            return
        self.lower_resampled(gsi)
        if gsi == PIT_GSI and self.pit is not None:
            self.pit.irq_acked()
        self.report_acknowledged(gsi)

    def masked(self, pin: int, masked: bool) -> None:
        """An input was masked or unmasked."""
        gsi = self._gsi_of.get(pin)
        if gsi is None:
            return
        if gsi == PIT_GSI and self.pit is not None:
            self.pit.gsi_masked(masked)
        if self._subscribed >> gsi & 1:
            self.report(gsi, GsiMasked(gsi, masked))

    def ask_resamplers(self, pin: int) -> bool:
        """Ask an input's resamplers to raise their lines again; False without any. KVM: kvm_notify_irqfd_resampler."""
        gsi = self._gsi_of.get(pin)
        if gsi is None or gsi not in self._resamplers:
            return False
        self.notify_resamplers(gsi)
        return True
