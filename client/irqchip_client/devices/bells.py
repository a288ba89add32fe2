"""The doorbells of devices in a process of their own: eventfds, or events where descriptors can't be passed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from irqchip_client._errors import Busy, IrqchipError
from irqchip_client._model import Space
from irqchip_client._sync.session import Session

from .device import Device, DeviceDoorbell
from .failures import call_device


class _Host(Protocol):
    session: Session

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None: ...


class Bells:
    """Claims doorbells of a host's devices, and calls the devices when they ring."""

    def __init__(self, host: _Host) -> None:
        self._host = host
        self._hung: list[tuple[Device, DeviceDoorbell]] = []
        self._eventfds: dict[DeviceDoorbell, int] = {}

    def hang(self, device: Device, doorbell: DeviceDoorbell) -> None:
        """Claims a doorbell. AlreadyExists."""
        self._hung.append((device, doorbell))
        self._claim(device, doorbell)

    def _claim(self, device: Device, doorbell: DeviceDoorbell) -> None:
        session, where = self._host.session, (Space.MMIO, doorbell.start, doorbell.length)
        eventfd = self._eventfds.get(doorbell)
        if eventfd is None:
            eventfd = self._eventfds[doorbell] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._host.watch(eventfd, partial(self._ready, device, doorbell, eventfd))
        try:
            session.assign_ioeventfd(eventfd, *where, doorbell.value)
        except IrqchipError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            session.register_region(*where, doorbell=True, datamatch=doorbell.value)

    def _ready(self, device: Device, doorbell: DeviceDoorbell, eventfd: int) -> None:
        try:
            os.eventfd_read(eventfd)
        except BlockingIOError:  # an access that came later was quicker
            return
        call_device(device, f"the doorbell at {doorbell.start:#x}", doorbell.rung)

    def ring_pending(self) -> None:
        """Calls the devices for what rang before an access that has come: a vCPU's accesses keep their order."""
        for device, doorbell in self._hung:
            try:
                os.eventfd_read(self._eventfds[doorbell])
            except BlockingIOError:
                continue
            call_device(device, f"the doorbell at {doorbell.start:#x}", doorbell.rung)

    def forget_pending(self) -> None:
        """Forgets what rang before the VM was reset."""
        for eventfd in self._eventfds.values():
            with suppress(BlockingIOError):
                os.eventfd_read(eventfd)

    def hang_again(self) -> None:
        """Claims all doorbells again, which were lost with their Session's regions. Rings them: writes may be lost."""
        for device, doorbell in self._hung:
            with suppress(Busy):
                self._claim(device, doorbell)
            call_device(device, f"the doorbell at {doorbell.start:#x}", doorbell.rung)

    def ring(self, address: int, size: int, value: int) -> None:
        """A vCPU wrote to a doorbell, as an event says."""
        for device, doorbell in self._hung:
            if (doorbell.start, doorbell.length, doorbell.value) == (address, size, value):
                call_device(device, f"the doorbell at {address:#x}", doorbell.rung)

    def close(self) -> None:
        """The host calls no device any more."""
        while self._eventfds:
            os.close(self._eventfds.popitem()[1])
