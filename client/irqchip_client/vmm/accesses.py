"""The way of a vCPU's accesses: to devices in this process, to its local APIC's shared registers, or to the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from irqchip_client._sync.machine import Vcpu

from .local_apic import LocalApic


class LocalDevices(Protocol):
    """Devices in this process. An access that they claim does not go to the daemon."""

    def pio_read(self, port: int, size: int) -> int | None:
        """Returns the value, or None if no device here has the port."""

    def pio_write(self, port: int, value: int, size: int) -> bool:
        """Returns whether a device here has the port."""

    def mmio_read(self, address: int, size: int) -> int | None:
        """Returns the value, or None if no device here has the address."""

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        """Returns whether a device here has the address."""


@runtime_checkable
class LocalStrings(Protocol):
    """Local devices that take a whole string at once, as INS and OUTS with REP move it. LocalDevices need not do so."""

    def pio_read_string(self, port: int, size: int, count: int) -> list[int] | None:
        """Returns `count` values, or None if no device here has the port."""

    def pio_write_string(self, port: int, values: Sequence[int], size: int) -> bool:
        """Returns whether a device here has the port."""


class Accesses:
    """A vCPU's IN, OUT, loads and stores. A read that no device claims returns all ones."""

    def __init__(self, vcpu: Vcpu, local: LocalDevices | None = None) -> None:
        self._vcpu = vcpu
        self._local = local

    def pio_read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if self._local is not None and (value := self._local.pio_read(port, size)) is not None:
            return value
        access = self._vcpu.pio_read(port, size)
        return access.data if access.claimed else (1 << 8 * size) - 1

    def pio_write(self, port: int, value: int, size: int) -> None:
        """OUT of 1, 2 or 4 bytes."""
        if self._local is None or not self._local.pio_write(port, value, size):
            self._vcpu.pio_write(port, value, size)

    def mmio_read(self, address: int, size: int) -> int:
        """A load of 1, 2, 4 or 8 bytes."""
        if self._local is not None and (value := self._local.mmio_read(address, size)) is not None:
            return value
        return self._read(address, size)

    def mmio_write(self, address: int, value: int, size: int) -> None:
        """A store of 1, 2, 4 or 8 bytes."""
        if self._local is None or not self._local.mmio_write(address, value, size):
            self._vcpu.mmio_write(address, value, size)

    def _read(self, address: int, size: int) -> int:
        access = self._vcpu.mmio_read(address, size)
        return access.data if access.claimed else (1 << 8 * size) - 1


class ApicAccesses(Accesses):
    """The accesses of an x86 vCPU, some of whose loads its local APIC's shared registers answer."""

    def __init__(self, vcpu: Vcpu, apic: LocalApic, local: LocalDevices | None = None) -> None:
        super().__init__(vcpu, local)
        self._apic = apic

    def _read(self, address: int, size: int) -> int:
        value = self._apic.read(address, size)
        return super()._read(address, size) if value is None else value
