"""An s390 VM for tests, with guest memory that a client shares, or that a Session answers for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from irqchipd.chips.s390.adapters import register_request
from irqchipd.chips.s390.flic import Group
from irqchipd.chips.s390.irq import Io, Irq, Kind, pack, word_of
from irqchipd.chips.s390.pending import PSW_EXTERNAL, PSW_IO, PSW_MACHINE_CHECK, Masks
from irqchipd.vm.clock import Deadlines, VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, RegionAccess
from irqchipd.vm.regions import Space
from irqchipd.vm.routing import S390Route
from irqchipd.vm.s390.capabilities import Cap
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import Outcome

MEMORY = 0x10_0000
ALL = Masks(PSW_EXTERNAL | PSW_IO | PSW_MACHINE_CHECK, 0xFFFF_FFFF, 0xFF << 24, 0xFFFF_FFFF)
WOKEN = (0, 4)  # what a halt that an interrupt ends is told
INDICATOR, SUMMARY = 0x1000, 0x2000
ROUTE = S390Route(5, INDICATOR, SUMMARY, 3, 1, 1)


def io(isc: int, number: int = 1) -> Irq:
    return Irq(number, Io(1, number, 0, word_of(isc)))


def adapter_irq(isc: int) -> Irq:
    return Irq(Kind.IO_ADAPTER, Io(word=word_of(isc)))


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(VmError) as info:
        call()
    assert info.value.message
    return info.value.number


class Shared:
    """Memory that a client shares."""

    offset = 0

    def __init__(self) -> None:
        self.bytes = bytearray(MEMORY)

    def set_bits(self, offset: int, mask: int) -> int | None:
        before = self.bytes[offset]
        self.bytes[offset] |= mask
        return before

    def send(self, over: int) -> None:
        raise AssertionError(f"nobody asks for it over {over}")


class Owner:
    """A Session that answers for memory."""

    def __init__(self, vm: S390Vm) -> None:
        self.vm = vm
        self.bytes = bytearray(MEMORY)
        self.events: list[Event] = []
        self.source = vm.open_source("memory")
        vm.register_region(self.source, Space.MEMORY, 0, MEMORY, self.events.append)

    def answer(self) -> list[tuple[int, int]]:
        """Answer what waits, and say which bits were set."""
        done = []
        while self.events:
            event = self.events.pop(0)
            assert isinstance(event, RegionAccess)
            assert (event.space, event.size, event.vcpu) == (Space.MEMORY, 1, 0)
            before = self.bytes[event.address]
            self.bytes[event.address] |= event.value
            done.append((event.address, event.value))
            assert self.vm.complete_access(self.source, event.access, before)
        return done


class Machine:
    """An s390 VM with a FLIC."""

    def __init__(self, *, ais: bool = False, deadlines: Deadlines | None = None) -> None:
        self.vm = S390Vm("s390", clock=VirtualClock(), deadlines=deadlines)
        if ais:
            self.vm.enable_cap(Cap.S390_AIS)
        self.vm.enable_cap(Cap.S390_IRQCHIP)
        self.vm.create_irqchip()
        self.vm.create_device(6, 0)
        self.memory = Shared()
        self.source: LineSource | None = None

    def share(self) -> None:
        self.source = self.vm.open_source("memory")
        self.vm.register_region(self.source, Space.MEMORY, 0, MEMORY, print, shared=self.memory)

    def add_vcpus(self, *masks: Masks) -> None:
        for vcpu, mask in enumerate(masks):
            self.vm.create_vcpu(vcpu)
            self.vm.set_masks(vcpu, mask)

    def register(self, number: int = 1, isc: int = 3, *, maskable: bool = True, swap: bool = True) -> None:
        request = register_request(number, isc, maskable=maskable, swap=swap, flags=1)
        self.set_attr(Group.ADAPTER_REGISTER, 0, request)

    def set_attr(self, group: int, attr: int, data: bytes = b"") -> None:
        self.vm.set_device_attr(0, None, group, attr, data)

    def enqueue(self, *irqs: Irq) -> None:
        data = b"".join(map(pack, irqs))
        self.set_attr(Group.ENQUEUE, len(data), data)

    def pending(self) -> bytes:
        return self.vm.get_device_attr(0, None, Group.GET_ALL_IRQS, 1 << 20, b"")

    def halt(self, vcpu: int) -> list[Outcome]:
        """What ends a halt, as soon as something does."""
        ended: list[Outcome] = []
        self.vm.halt(vcpu, ended.append)
        return ended

    def drop_memory(self) -> None:
        with suppress(VmError):
            assert self.source is not None
            self.vm.close_source(self.source)
