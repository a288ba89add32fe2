"""The kernel and irqchipd behind one vocabulary: the operations of the golden traces, and their answers.

An operation is a list of its name and arguments, an answer whatever JSON can hold; an errno is "-EINVAL" and its like.
Beyond the golden traces there are

    create_irqchip                  0 or an errno
    create_vcpu     vcpu            0 or an errno
    set_lapic       vcpu, hex       0 or an errno; struct kvm_lapic_state
    get_lapic_page  vcpu            struct kvm_lapic_state, hex, without what depends on time (see comparable_page)

    take            vcpu            the vector that it gets when it opens its interrupt window once, or null; its
                                    local APIC is told EOI

and an access that is not claimed answers "unclaimed". Of the golden traces' operations, take_extint is not here: not
every kernel's KVM could do it alone (see KernelMachine.take).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from irqchip_client.cli.replay_in_process import executors
from irqchipd.chips.lapic import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic import LapicRegisters, Reg
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from tests.conformance.guest import Guest, add_memory
from tests.conformance.kvm import Kvm, KvmVm, route_to_msi, route_to_pin

Op = list[Any]
Answer = Any

UNCLAIMED = "unclaimed"
EOI = LAPIC_BASE + Reg.EOI


class Machine(Protocol):
    """A VM that performs operations."""

    def perform(self, op: Op) -> Answer:
        """Perform one and give its answer."""

    def close(self) -> None:
        """It is no longer needed."""


def comparable_page(page: bytes) -> bytes:
    """A local APIC's registers without those that depend on when they are read.

    PPR is what it was when the kernel last looked, which is at every entry of the guest and some others (lapic.c
    apic_update_ppr); a guest that reads it always gets it fresh. A running timer's current count is time.
    """
    words = bytearray(page)
    words[Reg.PPR : Reg.PPR + 4] = bytes(4)
    if any(words[Reg.TIMER_INITIAL_COUNT : Reg.TIMER_INITIAL_COUNT + 4]):
        words[Reg.TIMER_CURRENT_COUNT : Reg.TIMER_CURRENT_COUNT + 4] = bytes(4)
    return bytes(words)


@cache
def ends_what_it_delivers(kvm: Kvm) -> bool:
    """Whether this kernel's KVM ends an interrupt as it delivers it; a flavour without the hardware's help does."""
    with KvmVm(kvm) as vm:
        vm.create_irqchip()
        add_memory(vm)
        guest = Guest(vm.create_vcpu(0))
        guest.vcpu.set_lapic(LapicRegisters(svr=0x1FF, irr=1 << 0x31).pack())
        assert guest.take_interrupt() == 0x31
        return not LapicRegisters.unpack(guest.vcpu.get_lapic()).isr


def _errno(number: int) -> str:
    return "-" + errno.errorcode[number]


class KernelMachine:
    """A VM of the kernel's, whose accesses real vCPUs execute."""

    def __init__(self, kvm: Kvm) -> None:
        self.vm = KvmVm(kvm)
        add_memory(self.vm)
        self.guests: dict[int, Guest] = {}

    def close(self) -> None:
        """The VM is no more."""
        self.vm.close()

    def perform(self, op: Op) -> Answer:
        """See Machine."""
        name, *arguments = op
        operation: Callable[..., Answer] = getattr(self, name)
        try:
            return operation(*arguments)
        except OSError as error:
            return _errno(error.errno or 0)

    def create_irqchip(self) -> Answer:
        self.vm.create_irqchip()
        return 0

    def create_vcpu(self, vcpu: int) -> Answer:
        self.guests[vcpu] = Guest(self.vm.create_vcpu(vcpu))
        return 0

    def pio_read(self, vcpu: int, port: int, size: int) -> Answer:
        return _read(self.guests[vcpu].pio_read(port, size))

    def pio_write(self, vcpu: int, port: int, size: int, value: int) -> Answer:
        return _written(self.guests[vcpu].pio_write(port, size, value))

    def mmio_read(self, vcpu: int, address: int, size: int) -> Answer:
        return _read(self.guests[vcpu].mmio_read(address, size))

    def mmio_write(self, vcpu: int, address: int, size: int, value: int) -> Answer:
        return _written(self.guests[vcpu].mmio_write(address, size, value))

    def irq_line(self, gsi: int, level: int) -> Answer:
        return self.vm.irq_line(gsi, level)

    def signal_msi(self, address: int, data: int, flags: int) -> Answer:
        return self.vm.signal_msi(address, data, flags)

    def set_gsi_routing(self, table: list[list[Any]]) -> Answer:
        entries = []
        for gsi, kind, *rest in table:
            entries.append(route_to_pin(gsi, *rest) if kind == "irqchip" else route_to_msi(gsi, *rest))
        self.vm.set_routing(entries)
        return 0

    def take(self, vcpu: int) -> Answer:
        guest = self.guests[vcpu]
        vector = guest.take_interrupt()
        if vector is not None and not ends_what_it_delivers(self.vm.kvm):
            guest.mmio_write(EOI, 4, 0)
        return vector

    def ack_lapic(self, vcpu: int) -> Answer:
        # Not by delivering it to the guest, which not every kernel's KVM could do without ending it.
        kernel = self.guests[vcpu].vcpu
        registers = LapicRegisters.unpack(kernel.get_lapic())
        vector = registers.take()
        if vector < 0:
            return None
        kernel.set_lapic(registers.pack())
        return vector

    def get_irqchip(self, chip: int) -> Answer:
        return self.vm.get_irqchip(chip).hex()

    def set_irqchip(self, chip: int, state: str) -> Answer:
        self.vm.set_irqchip(chip, bytes.fromhex(state))
        return 0

    def get_lapic_page(self, vcpu: int) -> Answer:
        return comparable_page(self.guests[vcpu].vcpu.get_lapic()).hex()

    def set_lapic(self, vcpu: int, page: str) -> Answer:
        self.guests[vcpu].vcpu.set_lapic(bytes.fromhex(page))
        return 0


class DaemonMachine:
    """A VM of irqchipd's, in this process."""

    def __init__(self) -> None:
        self.vm = Vm("conformance")
        self._operations: dict[str, Callable[..., Answer]] = {
            **executors(self.vm),
            "create_irqchip": self._create_irqchip,
            "create_vcpu": self._create_vcpu,
            "pio_read": lambda *access: _read(self.vm.pio_read(*access)),
            "pio_write": lambda *access: _written(self.vm.pio_write(*access)),
            "mmio_read": lambda *access: _read(self.vm.mmio_read(*access)),
            "mmio_write": lambda *access: _written(self.vm.mmio_write(*access)),
            "take": self._take,
            "set_lapic": self._set_lapic,
            "get_lapic_page": lambda vcpu: comparable_page(self.vm.get_lapic(vcpu).pack()).hex(),
        }

    def close(self) -> None:
        """Nothing to let go of."""

    def perform(self, op: Op) -> Answer:
        """See Machine."""
        name, *arguments = op
        try:
            return self._operations[name](*arguments)
        except VmError as error:
            return "-" + error.reason

    def _create_irqchip(self) -> Answer:
        self.vm.create_irqchip()
        return 0

    def _create_vcpu(self, vcpu: int) -> Answer:
        self.vm.create_vcpu(vcpu)
        return 0

    def _take(self, vcpu: int) -> Answer:
        taken = self.vm.ack_interrupt(vcpu)
        if taken is None:
            return None
        self.vm.mmio_write(vcpu, EOI, 4, 0)
        return taken[0]

    def _set_lapic(self, vcpu: int, page: str) -> Answer:
        self.vm.set_lapic(vcpu, bytes.fromhex(page))
        return 0


def _read(value: int | None) -> Answer:
    return UNCLAIMED if value is None else value


def _written(claimed: bool) -> Answer:
    return None if claimed else UNCLAIMED
