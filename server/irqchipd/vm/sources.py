"""Who drives lines."""

from __future__ import annotations

from collections.abc import Callable

from irqchipd.vm.events import Listener

# Line sources that are nobody's Session. KVM: kvm_host.h KVM_USERSPACE_IRQ_SOURCE_ID and its like.
SHARED = 0
PIT = 62
RESAMPLERS = 63

MAX_CLIENT_NAME = 64  # printable characters


class LineSource:
    """Something that drives lines: source 0 is shared by all, every other is one Session's.

    Its fields are for others to read, except dropped_events, which its Session counts.
    """

    __slots__ = (
        "asserted",
        "client",
        "closed",
        "detached",
        "dropped_events",
        "listener",
        "number",
        "on_deleted",
        "resampled",
    )

    def __init__(
        self,
        number: int,
        client: str = "",
        on_deleted: Callable[[], None] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.number = number
        self.client = client
        self.on_deleted = on_deleted
        self.listener = listener
        # The GSIs that it drives high.
        self.asserted: set[int] = set()
        # The GSIs that it resamples, and how many of its GsiResampled nobody was there to be told.
        self.resampled: dict[int, int] = {}
        self.dropped_events = 0
        self.closed = False
        # It was restored, and its Session is yet to come.
        self.detached = False
