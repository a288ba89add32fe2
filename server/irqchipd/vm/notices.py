"""Who is told that a GSI's interrupt was acknowledged, or its pin masked: the kernel's notifiers, and its resamplers.

KVM: virt/kvm/eventfd.c, ioapic.c kvm_fire_mask_notifiers. Everything here runs under the lock of the VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchipd.vm.events import Event, GsiAcknowledged, GsiMasked, GsiResampled, Listener
from irqchipd.vm.routing import IOAPIC_INPUTS
from irqchipd.vm.sources import RESAMPLERS, LineSource

if TYPE_CHECKING:
    from irqchipd.vm.board import Board

PIT_GSI = 0
MAX_UNHEARD = (1 << 62) - 1  # acknowledgements that nobody was there to be told of


class Notices:
    """Subscriptions by GSI. A pin is that of the GSI that was routed to it last."""

    __slots__ = ("_board", "_heard", "_listeners", "_resamplers", "ioapic_noticed")

    def __init__(self, board: Board) -> None:
        self._board = board
        # The GSIs that each listener hears of, and all of them, one bit each: a listener may hear of thousands.
        self._listeners: dict[Listener, int] = {}
        self._heard = 0
        self._resamplers: dict[int, list[LineSource]] = {}
        # See IoapicWires.
        self.ioapic_noticed = 0

    def update(self) -> None:
        """Somebody came or left, or the routing was replaced."""
        noticed = 0
        pit = self._board.pit
        for pin, gsi in self._board.gsi_of.items():
            if pin >= IOAPIC_INPUTS and (
                self._heard >> gsi & 1
                or gsi in self._resamplers
                or (gsi == PIT_GSI and pit is not None and pit.reinject)
            ):
                noticed |= 1 << pin - IOAPIC_INPUTS
        self.ioapic_noticed = noticed

    def changed(self) -> None:
        """Somebody came or left. KVM: ioapic.c kvm_arch_post_irq_ack_notifier_list_update."""
        self.update()
        self._board.generation += 1

    # Subscriptions.

    def subscribe(self, gsis: int, listener: Listener) -> None:
        """Tell a listener of acknowledgements and masks of some GSIs, one bit each."""
        self._listeners[listener] = self._listeners.get(listener, 0) | gsis
        self._heard |= gsis
        self.changed()

    def unsubscribe(self, gsis: int, listener: Listener) -> None:
        """The reverse of subscribe."""
        left = self._listeners.pop(listener) & ~gsis
        if left:
            self._listeners[listener] = left
        self._heard = 0
        for heard in self._listeners.values():
            self._heard |= heard
        self.changed()

    def resample(self, gsi: int, source: LineSource) -> None:
        """A source resamples a GSI. KVM: eventfd.c kvm_irqfd_assign; only the first is somebody new to the IOAPIC."""
        if sources := self._resamplers.get(gsi):
            sources.append(source)
        else:
            self._resamplers[gsi] = [source]
            self.changed()

    def stop_resampling(self, gsi: int, source: LineSource) -> None:
        """The reverse of resample. KVM: eventfd.c irqfd_resampler_shutdown; with the last one the line falls."""
        sources = self._resamplers[gsi]
        sources.remove(source)
        if not sources:
            del self._resamplers[gsi]
            self.changed()
            self._board.set_irq(gsi, 0, 1 << RESAMPLERS, line_status=False)

    # What happened.

    def acknowledged(self, pin: int) -> None:
        """An input's interrupt was ended. KVM: irqchip.c kvm_notify_acked_irq.

        Called in the middle of the chip's own doing, into which a resampler's line falls at once.
        """
        board = self._board
        gsi = board.gsi_of.get(pin)
        if gsi is None:
            return
        if gsi in self._resamplers:  # KVM: eventfd.c irqfd_resampler_ack
            board.set_irq(gsi, 0, 1 << RESAMPLERS, line_status=False)
            self._tell_resamplers(gsi)
        if gsi == PIT_GSI and board.pit is not None:
            board.pit.irq_acked()
        if self._heard >> gsi & 1:
            self._tell(gsi, GsiAcknowledged(gsi))

    def masked(self, pin: int, masked: bool) -> None:
        """An input was masked or unmasked."""
        board = self._board
        gsi = board.gsi_of.get(pin)
        if gsi is None:
            return
        if gsi == PIT_GSI and board.pit is not None:
            board.pit.gsi_masked(masked)
        if self._heard >> gsi & 1:
            self._tell(gsi, GsiMasked(gsi, masked))

    def _tell(self, gsi: int, event: Event) -> None:
        for listener, gsis in self._listeners.items():
            if gsis >> gsi & 1:
                self._board.post(listener, event)

    def ask_resamplers(self, pin: int) -> bool:
        """See IoapicWires.resample. KVM: eventfd.c kvm_notify_irqfd_resampler."""
        gsi = self._board.gsi_of.get(pin)
        if gsi is None or gsi not in self._resamplers:
            return False
        self._tell_resamplers(gsi)
        return True

    def _tell_resamplers(self, gsi: int) -> None:
        for source in self._resamplers[gsi]:
            if source.listener is None:
                source.resampled[gsi] = min(source.resampled[gsi] + 1, MAX_UNHEARD)
            else:
                self._board.post(source.listener, GsiResampled(gsi, 1))
