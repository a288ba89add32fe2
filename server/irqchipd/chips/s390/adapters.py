"""I/O adapters: sources of adapter interrupts, and their indicators in guest memory.

KVM: interrupt.c, struct s390_io_adapter, get_ind_bit, adapter_indicators_set, set_adapter_int.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Protocol

from irqchipd.chips.s390.errors import invalid

MAX_ADAPTERS: Final = 64  # MAX_S390_IO_ADAPTERS
PAGE: Final = 4096
SUPPRESSIBLE: Final = 0x01  # KVM_S390_ADAPTER_SUPPRESSIBLE, KVM's only flag

_REGISTER: Final = struct.Struct(">IBBBB")  # struct kvm_s390_io_adapter
REGISTER_SIZE: Final = _REGISTER.size
_REQUEST: Final = struct.Struct(">IBBHQ")  # struct kvm_s390_io_adapter_req
REQUEST_SIZE: Final = _REQUEST.size


class Request:
    """KVM_S390_IO_ADAPTER_*: the types of modifications. KVM accepts mappings, but does not need them."""

    MASK: Final = 1
    MAP: Final = 2
    UNMAP: Final = 3


class GuestMemory(Protocol):
    """The guest's memory, which holds the indicators."""

    def set_bits(self, address: int, mask: int) -> int | None:
        """Set bits of the byte at a guest address, atomically; return the old byte, or None without memory there."""


class FlicWires(GuestMemory, Protocol):
    """The calls of the FLIC to its VM."""

    def adapter_injected(self, word: int) -> None:
        """An adapter's interrupt, of this interruption word, is pending now."""


@dataclass(slots=True)
class Adapter:
    """struct s390_io_adapter."""

    id: int
    isc: int  # as registered: KVM does not check it, and uses only the lowest three bits
    maskable: bool = False
    swap: bool = False
    suppressible: bool = False
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Indicator:
    """One bit of guest memory: offset bits after the start of the byte at an address."""

    address: int
    offset: int

    @property
    def in_page(self) -> bool:
        """Whether the bit is in the page of the address.

        KVM: kvm_set_routing_entry, where v6.12 lacks this check and writes outside of the page. Later kernels refuse
        such a route, and so does tools/testing/selftests/kvm/s390/irq_routing.c.
        """
        return self.address % PAGE + self.offset // 8 < PAGE

    def byte(self, swap: bool) -> tuple[int, int]:
        """The address of the byte and the mask of the bit. KVM: get_ind_bit, and set_bit on a big-endian host.

        The bits of a page are numbered in its 64-bit words. A word's bit 0 is its last byte's lowest bit, or, for an
        adapter with swap, its first byte's highest.
        """
        page, bit = self.address & ~(PAGE - 1), self.offset + self.address % PAGE * 8
        if swap:
            bit ^= 63
        return page + bit // 64 * 8 + 7 - bit % 64 // 8, 1 << bit % 8


@dataclass(frozen=True, slots=True)
class AdapterRoute:
    """The target of a GSI: an adapter's indicator and its summary. struct kvm_irq_routing_s390_adapter."""

    indicator: Indicator
    summary: Indicator
    adapter: int


class Adapters:
    """The adapters of a VM."""

    def __init__(self) -> None:
        self._adapters: dict[int, Adapter] = {}

    def find(self, adapter: int) -> Adapter | None:
        """An adapter by its number. KVM: get_io_adapter."""
        return self._adapters.get(adapter)

    def registered(self, adapter: int) -> Adapter:
        """An adapter by its number: EINVAL for an unknown number."""
        found = self._adapters.get(adapter)
        if found is None:
            raise invalid(f"adapter {adapter} is not registered: register it first")
        return found

    def register(self, data: bytes) -> None:
        """Add an adapter, by struct kvm_s390_io_adapter. KVM: register_io_adapter."""
        number, isc, maskable, swap, flags = _REGISTER.unpack(data)
        if number >= MAX_ADAPTERS:
            raise invalid(f"adapter {number} is out of range: use 0 to {MAX_ADAPTERS - 1}")
        if number in self._adapters:
            raise invalid(f"adapter {number} is already registered: use another number")
        self._adapters[number] = Adapter(number, isc, bool(maskable), bool(swap), bool(flags & SUPPRESSIBLE))

    def modify(self, data: bytes) -> None:
        """Change an adapter, by struct kvm_s390_io_adapter_req. KVM: modify_io_adapter."""
        number, request, mask, _pad, _address = _REQUEST.unpack(data)
        adapter = self.registered(number)
        if request == Request.MASK:
            if not adapter.maskable:
                raise invalid(f"adapter {number} is not maskable: register it as maskable")
            adapter.masked = bool(mask)
        elif request not in (Request.MAP, Request.UNMAP):
            raise invalid(f"type {request} of a request; use 1 to mask, 2 to map or 3 to unmap")

    def save(self) -> tuple[Adapter, ...]:
        """The state, for resume()."""
        return tuple(
            Adapter(a.id, a.isc, a.maskable, a.swap, a.suppressible, a.masked) for a in self._adapters.values()
        )

    def resume(self, saved: tuple[Adapter, ...]) -> None:
        """Take a saved state, which check_flic has accepted."""
        self._adapters = {a.id: Adapter(a.id, a.isc, a.maskable, a.swap, a.suppressible, a.masked) for a in saved}


def register_request(number: int, isc: int, *, maskable: bool, swap: bool, flags: int) -> bytes:
    """struct kvm_s390_io_adapter."""
    return _REGISTER.pack(number, isc, maskable, swap, flags)


def modify_request(number: int, request: int, *, mask: int = 0, address: int = 0) -> bytes:
    """struct kvm_s390_io_adapter_req."""
    return _REQUEST.pack(number, request, mask, 0, address)


def check_route(route: AdapterRoute) -> None:
    """Refuse a route whose bits are outside of their pages: EINVAL. KVM: kvm_set_routing_entry."""
    for what, bit in (("summary", route.summary), ("indicator", route.indicator)):
        if not bit.in_page:
            raise invalid(
                f"the {what} at {bit.address:#x} with offset {bit.offset} is outside of its page: "
                f"use an offset below {(PAGE - bit.address % PAGE) * 8}"
            )


def set_indicators(memory: GuestMemory, adapter: Adapter, route: AdapterRoute) -> int:
    """Set an adapter's indicator, then its summary. KVM: adapter_indicators_set.

    Return 1 when the summary was not set before, 0 when it was, and -1 without memory.
    """
    (byte, bit), (summary, summary_bit) = route.indicator.byte(adapter.swap), route.summary.byte(adapter.swap)
    if memory.set_bits(byte, bit) is None:
        return -1
    before = memory.set_bits(summary, summary_bit)
    if before is None:
        return -1
    return 0 if before & summary_bit else 1
