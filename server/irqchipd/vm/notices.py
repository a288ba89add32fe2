"""Notifications that a GSI's interrupt was ended, or its pin masked: the kernel's notifiers and resamplers.

KVM: virt/kvm/eventfd.c. Everything here runs under the lock of the VM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from irqchipd.vm.agenda import Agenda
from irqchipd.vm.events import Event, GsiAcknowledged, GsiResampled, Listener
from irqchipd.vm.sources import LineSource

MAX_UNREPORTED: Final = (1 << 62) - 1  # acknowledgements that a source without a Session counts


class Notices:
    """Subscriptions by GSI. An architecture decides which GSI an ended interrupt belongs to."""

    def __init__(self, agenda: Agenda, lower: Callable[[int], None]) -> None:
        self._agenda = agenda
        self._lower = lower  # lowers a GSI from the source that resamplers share
        # The GSIs of each listener, and of all, one bit per GSI: a listener may subscribe to thousands.
        self._listeners: dict[Listener, int] = {}
        self._subscribed = 0
        self._resamplers: dict[int, list[LineSource]] = {}

    def changed(self) -> None:
        """Subscriptions have changed."""

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
        """A source resamples a GSI. KVM: eventfd.c kvm_irqfd_assign; only the first one concerns the chip."""
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

    # Notifications.

    def lower_resampled(self, gsi: int) -> None:
        """A GSI's interrupt was ended: where it is resampled, the line falls. KVM: eventfd.c irqfd_resampler_ack."""
        if gsi in self._resamplers:
            self._lower(gsi)
            self.notify_resamplers(gsi)

    def report_acknowledged(self, gsi: int) -> None:
        """Notify the listeners of a GSI whose interrupt was ended."""
        if self._subscribed >> gsi & 1:
            self.report(gsi, GsiAcknowledged(gsi))

    def report(self, gsi: int, event: Event) -> None:
        """Notify the listeners of a GSI."""
        for listener, gsis in self._listeners.items():
            if gsis >> gsi & 1:
                self._agenda.notify((listener,), event)

    def notify_resamplers(self, gsi: int) -> None:
        """Notify a GSI's resamplers that it was acknowledged."""
        for source in self._resamplers[gsi]:
            if source.listener is None:
                source.resampled[gsi] = min(source.resampled[gsi] + 1, MAX_UNREPORTED)
            else:
                self._agenda.notify((source.listener,), GsiResampled(gsi, 1))
