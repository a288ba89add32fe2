"""Notifications that a GSI's interrupt was acknowledged, or its pin masked: the kernel's notifiers and resamplers.

KVM: virt/kvm/eventfd.c, ioapic.c kvm_fire_mask_notifiers. Everything here runs under the lock of the VM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from irqchipd.chips.i8254 import Pit
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.apicbus import ApicBus
from irqchipd.vm.events import Event, GsiAcknowledged, GsiMasked, GsiResampled, Listener
from irqchipd.vm.routing import IOAPIC_INPUTS
from irqchipd.vm.sources import LineSource

PIT_GSI: Final = 0
MAX_UNREPORTED: Final = (1 << 62) - 1  # acknowledgements that a source without a Session counts


class Notices:
    """Subscriptions by GSI. Of the GSIs that lead to a pin, the pin's notices are of the one that was routed last."""

    def __init__(self, agenda: Agenda, apics: ApicBus, lower: Callable[[int], None]) -> None:
        self._agenda = agenda
        self._apics = apics
        self._lower = lower  # lowers a GSI from the source that resamplers share
        self._gsi_of: Mapping[int, int] = {}
        self.pit: Pit | None = None
        # The GSIs per listener, and of all listeners, one bit per GSI: a listener may subscribe to thousands.
        self._listeners: dict[Listener, int] = {}
        self._subscribed = 0
        self._resamplers: dict[int, list[LineSource]] = {}
        # The IOAPIC's pins with subscriptions: see IoapicWires.
        self.ioapic_noticed = 0

    def set_routes(self, gsi_of: Mapping[int, int]) -> None:
        """The routing was replaced."""
        self._gsi_of = gsi_of
        self.update()

    def update(self) -> None:
        """Work out again which pins have subscriptions."""
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
        """Subscriptions have changed. KVM: ioapic.c kvm_arch_post_irq_ack_notifier_list_update."""
        self.update()
        self._apics.scans += 1

    # Subscriptions.

    def subscribe(self, gsis: int, listener: Listener) -> None:
        """Notify a listener of acknowledgements and masks of some GSIs, one bit each."""
        self._listeners[listener] = self._listeners.get(listener, 0) | gsis
        self._subscribed |= gsis
        self.changed()

    def unsubscribe(self, gsis: int, listener: Listener) -> None:
        """Undo subscribe."""
        left = self._listeners.pop(listener) & ~gsis
        if left:
            self._listeners[listener] = left
        self._subscribed = 0
        for subscribed in self._listeners.values():
            self._subscribed |= subscribed
        self.changed()

    def resample(self, gsi: int, source: LineSource) -> None:
        """A source resamples a GSI. KVM: eventfd.c kvm_irqfd_assign; the IOAPIC learns of the first alone."""
        if sources := self._resamplers.get(gsi):
            sources.append(source)
        else:
            self._resamplers[gsi] = [source]
            self.changed()

    def stop_resampling(self, gsi: int, source: LineSource) -> None:
        """Undo resample. KVM: eventfd.c irqfd_resampler_shutdown; with the last resampler the line falls."""
        sources = self._resamplers[gsi]
        sources.remove(source)
        if not sources:
            del self._resamplers[gsi]
            self.changed()
            self._lower(gsi)

    # What happened.

    def acknowledged(self, pin: int) -> None:
        """An input's interrupt was ended. KVM: irqchip.c kvm_notify_acked_irq.

        The chip calls this in the middle of its work, into which a resampled line falls at once.
        """
        gsi = self._gsi_of.get(pin)
        if gsi is None:
            return
        if gsi in self._resamplers:  # KVM: eventfd.c irqfd_resampler_ack
            self._lower(gsi)
            self._notify_resamplers(gsi)
        if gsi == PIT_GSI and self.pit is not None:
            self.pit.irq_acked()
        if self._subscribed >> gsi & 1:
            self._notify(gsi, GsiAcknowledged(gsi))

    def masked(self, pin: int, masked: bool) -> None:
        """An input was masked or unmasked."""
        gsi = self._gsi_of.get(pin)
        if gsi is None:
            return
        if gsi == PIT_GSI and self.pit is not None:
            self.pit.gsi_masked(masked)
        if self._subscribed >> gsi & 1:
            self._notify(gsi, GsiMasked(gsi, masked))

    def _notify(self, gsi: int, event: Event) -> None:
        for listener, gsis in self._listeners.items():
            if gsis >> gsi & 1:
                self._agenda.notify((listener,), event)

    def ask_resamplers(self, pin: int) -> bool:
        """Ask an input's resamplers to raise their lines again; False without any. KVM: kvm_notify_irqfd_resampler."""
        gsi = self._gsi_of.get(pin)
        if gsi is None or gsi not in self._resamplers:
            return False
        self._notify_resamplers(gsi)
        return True

    def _notify_resamplers(self, gsi: int) -> None:
        for source in self._resamplers[gsi]:
            if source.listener is None:
                source.resampled[gsi] = min(source.resampled[gsi] + 1, MAX_UNREPORTED)
            else:
                self._agenda.notify((source.listener,), GsiResampled(gsi, 1))
