"""Eventfds that interrupt."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from irqchip_client import _calls
from irqchip_client._errors import SessionClosed
from irqchip_client._model import Space

from .transport import Transport

KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE = 1, 2  # <linux/kvm.h>


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """A part of a guest's memory. Made by Session.guest_memory().

    memfd    a descriptor of the memory, for the caller to close
    address  the guest physical address of the part's first byte
    length   its bytes
    offset   the offset of its beginning in the memfd
    """

    memfd: int
    address: int
    length: int
    offset: int


class Irqfd:
    """An eventfd that interrupts a GSI: KVM_IRQFD. Made by Session.irqfd(); it ends with its Session.

    Any process that has the descriptor interrupts by writing to it, without a message.

    gsi         the GSI
    resamplefd  the eventfd that the daemon writes when the interrupt is acknowledged; None without `resample`
    """

    def __init__(self, gsi: int, eventfd: int, resamplefd: int | None, close: Callable[[], None]) -> None:
        self.gsi = gsi
        self.resamplefd = resamplefd
        self._eventfd = eventfd
        self._close = close

    def __repr__(self) -> str:
        return f"<Irqfd of GSI {self.gsi}, {'closed' if self._eventfd < 0 else f'descriptor {self._eventfd}'}>"

    def fileno(self) -> int:
        """Returns the eventfd, to write to it or to pass it to another process; -1 once the Irqfd is closed."""
        return self._eventfd

    def trigger(self) -> None:
        """Makes an edge; with `resample`, raises a level that stays until its interrupt is acknowledged."""
        os.eventfd_write(self._eventfd, 1)

    def wait_resampled(self, timeout: float | None = None) -> bool:
        """Waits until the interrupt is acknowledged. Returns at once if that happened since the last call.

        False after `timeout` seconds. If the device still asserts its line, trigger() again. ValueError without
        `resample`.
        """
        if self.resamplefd is None:
            raise ValueError(f"the irqfd of GSI {self.gsi} is not resampled: make it with resample=True")
        if not select.select((self.resamplefd,), (), (), timeout)[0]:
            return False
        os.eventfd_read(self.resamplefd)
        return True

    def close(self) -> None:
        """Deassigns the irqfd, and closes the descriptors."""
        if self._eventfd >= 0:
            eventfd, self._eventfd = self._eventfd, -1
            try:
                self._close()
            finally:
                os.close(eventfd)
                if self.resamplefd is not None:
                    os.close(self.resamplefd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventfdCalls:
    """The calls of a Session that pass descriptors. A Session of asyncio has none: gRPC carries no descriptors."""

    _transport: Transport

    @property
    def closed(self) -> bool:
        """Whether the Session has ended."""
        raise NotImplementedError

    def irqfd(self, gsi: int, *, resample: bool = False) -> Irqfd:
        """KVM_IRQFD: makes an eventfd whose writes interrupt a GSI, without a message.

        With `resample`, a write raises the GSI until its interrupt is acknowledged. Over gRPC:
        IrqchipError(EOPNOTSUPP). NotReady without an irqchip.
        """
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        resamplefd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if resample else None
        try:
            self.assign_irqfd(eventfd, gsi, resamplefd)
        except BaseException:
            os.close(eventfd)
            if resamplefd is not None:
                os.close(resamplefd)
            raise

        def deassign() -> None:
            if not self.closed:
                with suppress(SessionClosed):
                    self.deassign_irqfd(eventfd, gsi)

        return Irqfd(gsi, eventfd, resamplefd, deassign)

    def assign_irqfd(self, eventfd: int, gsi: int, resamplefd: int | None = None) -> None:
        """As irqfd(), with an eventfd of the caller. The daemon holds a copy of the descriptor until the Session ends.

        Busy if it is an irqfd already; InvalidArgument if it is not an eventfd, or the GSI cannot be resampled.
        """
        flags = 0 if resamplefd is None else KVM_IRQFD_FLAG_RESAMPLE
        descriptors = [eventfd] if resamplefd is None else [eventfd, resamplefd]
        self._transport.run_with_descriptors(_calls.irqfd(gsi, flags), descriptors)

    def deassign_irqfd(self, eventfd: int, gsi: int) -> None:
        """Undoes assign_irqfd(). Does nothing if the eventfd is not an irqfd of this GSI and Session."""
        self._transport.run_with_descriptors(_calls.irqfd(gsi, KVM_IRQFD_FLAG_DEASSIGN), [eventfd])

    def share_lapic(self, vcpu: int, memfd: int) -> None:
        """Shares a copy of a local APIC's registers in a memfd, until the Session ends: see docs/port.md.

        Over gRPC: IrqchipError(EOPNOTSUPP). Busy if a Session shares this local APIC already; InvalidArgument if the
        memfd is not one page, or is not sealed; LimitReached at the daemon's limit of eventfds.
        """
        self._transport.run_with_descriptors(_calls.share_lapic(vcpu), [memfd])

    def share_memory(self, memfd: int, address: int, length: int, offset: int = 0) -> None:
        """Shares a part of the guest's memory, which is a memfd, until the Session ends: see guest_memory().

        In an s390 guest's memory the daemon sets adapters' indicators. Others' memfds must be sealed with
        F_SEAL_SHRINK. unregister_region(Space.MEMORY, address) ends the sharing, but not what other processes mapped.
        Over gRPC: IrqchipError(EOPNOTSUPP). AlreadyExists if a part of the range is registered; InvalidArgument if the
        descriptor is no such memfd, or the memfd is too short.
        """
        self._transport.run_with_descriptors(_calls.register_memory(address, length, offset), [memfd])

    def guest_memory(self, address: int = 0) -> MemoryPart:
        """The first part of the guest's memory that a Session shares, and that ends behind an address.

        Close its descriptor, a memfd that keeps its size. Over gRPC: IrqchipError(EOPNOTSUPP). NotFound if no memory is
        shared there; InvalidArgument if the memfd could shrink, as an s390 guest's could.
        """
        ours, daemons = socket.socketpair()
        with ours, daemons:
            part = self._transport.run_with_descriptors(_calls.get_memory(address), [daemons.fileno()])
            # The daemon sends before it answers.
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_DONTWAIT)
        return MemoryPart(descriptors[0], *part)

    def assign_ioeventfd(
        self, eventfd: int, space: Space, address: int, length: int, datamatch: int | None = None
    ) -> None:
        """KVM_IOEVENTFD: makes a doorbell that adds 1 to an eventfd instead of sending an event.

        unregister_region() ends it. Over gRPC: IrqchipError(EOPNOTSUPP). The other errors are those of
        register_region().
        """
        self._transport.run_with_descriptors(
            _calls.register_ioeventfd(space, address, length, datamatch=datamatch), [eventfd]
        )
