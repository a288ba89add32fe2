"""Devices' doorbells. For a device in its own process: eventfds, or events if descriptors can't be passed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
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


def find_doorbells(
    devices: Iterable[Device], address: int, size: int, value: int
) -> list[tuple[Device, DeviceDoorbell]]:
    """The doorbells that a vCPU's write rings."""
    return [
        (device, doorbell)
        for device in devices
        for doorbell in device.doorbells
        if (doorbell.start, doorbell.length, doorbell.value) == (address, size, value)
    ]


def ring(device: Device, doorbell: DeviceDoorbell) -> None:
    """Calls a device whose doorbell rang."""
    call_device(device, f"the doorbell at {doorbell.start:#x}", doorbell.rung)


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
        except BlockingIOError:  # it did not ring, or an access that came later was quicker
            return
        ring(device, doorbell)

    def ring_pending(self) -> None:
        """Calls the devices whose doorbells rang before an access that has come: a vCPU's accesses keep their order."""
        for device, doorbell in self._hung:
            self._ready(device, doorbell, self._eventfds[doorbell])

    def forget_pending(self) -> None:
        """Forgets the rings before the VM's reset."""
        for eventfd in self._eventfds.values():
            with suppress(BlockingIOError):
                os.eventfd_read(eventfd)

    def hang_again(self) -> None:
        """Claims all doorbells again after their Session lost its regions. Rings them, as writes may be lost."""
        for device, doorbell in self._hung:
            with suppress(Busy):
                self._claim(device, doorbell)
            ring(device, doorbell)

    def close(self) -> None:
        """Stops calling the devices."""
        while self._eventfds:
            os.close(self._eventfds.popitem()[1])
