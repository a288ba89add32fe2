"""The kernel as a machine: a VM whose accesses real vCPUs execute."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from irqchip_client.replay.in_process import accept
from irqchip_client.replay.x86 import msr_answer, pit_answer
from irqchipd.chips.i8254_state import PitState
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_ENABLED, LapicRegisters
from tests.conformance.guest import Guest, add_memory
from tests.conformance.kvm import (
    IRQFD_DEASSIGN,
    IRQFD_RESAMPLE,
    PIT_STATE_SIZE,
    SREGS_CS_BASE,
    TSC_ADJUST,
    TSC_DEADLINE_TIMER,
    X2APIC,
    Kvm,
    KvmVcpu,
    KvmVm,
    route_to_msi,
    route_to_pin,
)
from tests.conformance.machines import EOI_MSR, UNCLAIMED, Answer, Op, comparable_page, eoi_address

TICK_PATIENCE = 30.0  # seconds for a tick due in a microsecond: on a busy machine KVM's thread waits

LEAF_1 = {"x2apic": X2APIC, "tsc_deadline": TSC_DEADLINE_TIMER}  # in ECX


@cache
def ends_what_it_delivers(kvm: Kvm) -> bool:
    """Whether this kernel's KVM ends an interrupt as it delivers it, as a flavour without the hardware's help does."""
    with KvmVm(kvm) as vm:
        vm.create_irqchip()
        add_memory(vm)
        guest = Guest(vm.create_vcpu(0))
        guest.vcpu.set_lapic(LapicRegisters(svr=0x1FF, irr=1 << 0x31).pack())
        assert guest.take_interrupt() == 0x31
        return not LapicRegisters.unpack(guest.vcpu.get_lapic()).isr


class KernelMachine:
    """A Machine of the kernel: a KVM VM."""

    def __init__(self, kvm: Kvm) -> None:
        self.vm = KvmVm(kvm)
        add_memory(self.vm)
        self.guests: dict[int, Guest] = {}
        # A GSI, its eventfd and its resamplefd.
        self._resamplers: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Close the VM."""
        self.vm.close()
        for _, *eventfds in self._resamplers:
            for eventfd in eventfds:
                os.close(eventfd)

    @property
    def tsc_khz(self) -> int:
        return self.vm.vcpus[0].tsc_khz

    def perform(self, op: Op) -> Answer:
        name, *arguments = op
        operation: Callable[..., Answer] = getattr(self, name)
        try:
            answer = operation(*arguments)
        except OSError as error:
            answer = "-" + errno.errorcode[error.errno or 0]
        for vcpu in self.vm.vcpus.values():  # reading the state makes an INIT, start-up or NMI take effect
            vcpu.get_mp_state()
            vcpu.get_events()
        return answer

    # Creation.

    def create_irqchip(self) -> Answer:
        self.vm.create_irqchip()
        return 0

    def enable_cap(self, capability: int, *args: int) -> Answer:
        self.vm.enable_cap(capability, 0, args)
        return 0

    def create_vcpu(self, vcpu: int) -> Answer:
        self.guests[vcpu] = Guest(self.vm.create_vcpu(vcpu))
        return 0

    def create_pit(self, flags: int) -> Answer:
        self.vm.create_pit(flags)
        return 0

    def set_boot_cpu_id(self, vcpu: int) -> Answer:
        self.vm.set_boot_cpu_id(vcpu)
        return 0

    def create_bare_vcpu(self, vcpu: int) -> Answer:
        self.vm.create_vcpu(vcpu)
        return 0

    def set_cpuid(self, vcpu: int, lacks: list[str], address_bits: int) -> Answer:
        bits = sum(LEAF_1[name] for name in lacks if name in LEAF_1)
        lacks_7 = TSC_ADJUST if "tsc_adjust" in lacks else 0
        self._vcpu(vcpu).set_other_cpuid(lacks=bits, lacks_7=lacks_7, address_bits=address_bits)
        return 0

    # Accesses.

    def pio_read(self, vcpu: int, port: int, size: int) -> Answer:
        return _read(self.guests[vcpu].pio_read(port, size))

    def pio_write(self, vcpu: int, port: int, size: int, value: int) -> Answer:
        return None if self.guests[vcpu].pio_write(port, size, value) else UNCLAIMED

    def pio_touch(self, vcpu: int, port: int, size: int) -> Answer:
        self.pio_read(vcpu, port, size)
        return None

    def mmio_read(self, vcpu: int, address: int, size: int) -> Answer:
        return _read(self.guests[vcpu].mmio_read(address, size))

    def mmio_write(self, vcpu: int, address: int, size: int, value: int) -> Answer:
        return None if self.guests[vcpu].mmio_write(address, size, value) else UNCLAIMED

    def msr_read(self, vcpu: int, msr: int) -> Answer:
        value = self.guests[vcpu].msr_read(msr)
        return msr_answer(True, value is None, value)

    def msr_write(self, vcpu: int, msr: int, value: int) -> Answer:
        return msr_answer(True, not self.guests[vcpu].msr_write(msr, value), None)

    def host_msr_read(self, vcpu: int, msr: int) -> Answer:
        value = self._vcpu(vcpu).get_msr(msr)
        return msr_answer(True, value is None, value)

    def host_msr_write(self, vcpu: int, msr: int, value: int) -> Answer:
        return msr_answer(True, not self._vcpu(vcpu).set_msr(msr, value), None)

    def cr8_read(self, vcpu: int) -> Answer:
        return self.guests[vcpu].cr8_read()

    def cr8_write(self, vcpu: int, value: int) -> Answer:
        self.guests[vcpu].cr8_write(value)
        return None

    # Lines and messages.

    def irq_line(self, gsi: int, level: int) -> Answer:
        return self.vm.irq_line(gsi, level)

    def irq_line_without_status(self, gsi: int, level: int) -> Answer:
        self.vm.irq_line_without_status(gsi, level)
        return None

    def signal_msi(self, address: int, data: int, flags: int) -> Answer:
        return self.vm.signal_msi(address, data, flags)

    def set_gsi_routing(self, table: list[Op]) -> Answer:
        entries = []
        for gsi, kind, *rest in table:
            entries.append(route_to_pin(gsi, *rest) if kind == "irqchip" else route_to_msi(gsi, *rest))
        self.vm.set_routing(entries)
        return 0

    def resampler(self, gsi: int) -> Answer:
        eventfd, resamplefd = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
        self._resamplers.append((gsi, eventfd, resamplefd))
        self.vm.irqfd(eventfd, gsi, IRQFD_RESAMPLE, resamplefd)
        return len(self._resamplers) - 1

    def assert_gsi(self, number: int) -> Answer:
        # A worker thread of the kernel raises the line in its own time. A second resampler of the GSI asserts the
        # line too, because removing that resampler waits for its worker.
        gsi, *_ = self._resamplers[number]
        eventfd, resamplefd = os.eventfd(0), os.eventfd(0)
        self.vm.irqfd(eventfd, gsi, IRQFD_RESAMPLE, resamplefd)
        os.eventfd_write(eventfd, 1)
        self.vm.irqfd(eventfd, gsi, IRQFD_RESAMPLE | IRQFD_DEASSIGN, resamplefd)
        os.close(eventfd)
        os.close(resamplefd)
        return None

    def resampled(self, number: int) -> Answer:
        with suppress(BlockingIOError):
            return os.eventfd_read(self._resamplers[number][2])
        return 0

    def drop(self, number: int) -> Answer:
        gsi, eventfd, resamplefd = self._resamplers[number]
        self.vm.irqfd(eventfd, gsi, IRQFD_RESAMPLE | IRQFD_DEASSIGN, resamplefd)
        return None

    # The CPU side.

    def take(self, vcpu: int) -> Answer:
        guest = self.guests[vcpu]
        vector = guest.take_interrupt()
        if vector is not None and not ends_what_it_delivers(self.vm.kvm) and not guest.msr_write(EOI_MSR, 0):
            guest.mmio_write(eoi_address(guest.msr_read(Msr.APIC_BASE)), 4, 0)
        return vector

    def take_if_enabled(self, vcpu: int) -> Answer:
        return self.take(vcpu) if self.msr_read(vcpu, Msr.APIC_BASE) & BASE_ENABLED else None

    def ack_lapic(self, vcpu: int) -> Answer:
        # Not by delivering the interrupt to the guest: not every kernel's KVM could do that without ending it.
        kernel = self.guests[vcpu].vcpu
        registers = LapicRegisters.unpack(kernel.get_lapic())
        vector = accept(registers)
        if vector < 0:
            return None
        kernel.set_lapic(registers.pack())
        return vector

    def take_nmis(self, vcpu: int) -> Answer:
        injected, vector, _, pending, _ = self.guests[vcpu].vcpu.get_events()
        if pending:
            self.guests[vcpu].vcpu.set_events((injected, vector), 0, 0, 0, None)
        return pending

    def await_tick(self) -> Answer:
        deadline = time.monotonic() + TICK_PATIENCE
        while not (came := I8259.unpack(self.vm.get_irqchip(0)).irr & 1) and time.monotonic() < deadline:
            time.sleep(0.0001)
        return came

    def visit(self, vcpu: int) -> Answer:
        self.guests[vcpu].visit_kernel()
        return None

    def ended(self, vcpu: int) -> Answer:
        return self.guests[vcpu].ended_vectors()

    def start_page(self, vcpu: int) -> Answer:
        sregs = self._vcpu(vcpu).get_sregs()
        return int.from_bytes(sregs[SREGS_CS_BASE], "little") >> 12

    def interrupt(self, vcpu: int, vector: int) -> Answer:
        self.guests[vcpu].vcpu.interrupt(vector)
        return 0

    def nmi(self, vcpu: int) -> Answer:
        self._vcpu(vcpu).nmi()
        return 0

    def get_events(self, vcpu: int) -> Answer:
        injected, number, *nmi = self._vcpu(vcpu).get_events()
        return [injected, injected * number, *nmi]  # KVM keeps the number of an interrupt that is no longer injected

    def set_events(
        self, vcpu: int, interrupt: list[int], injected: int, pending: int | None, masked: int, sipi: int | None
    ) -> Answer:
        self._vcpu(vcpu).set_events((interrupt[0], interrupt[1]), injected, pending, masked, sipi)
        return 0

    # State.

    def get_irqchip(self, chip: int) -> Answer:
        return self.vm.get_irqchip(chip).hex()

    def set_irqchip(self, chip: int, state: str) -> Answer:
        self.vm.set_irqchip(chip, bytes.fromhex(state))
        return 0

    def get_lapic_page(self, vcpu: int) -> Answer:
        return comparable_page(self._vcpu(vcpu).get_lapic()).hex()

    def set_lapic(self, vcpu: int, page: str) -> Answer:
        self._vcpu(vcpu).set_lapic(bytes.fromhex(page))
        return 0

    def get_pit(self) -> Answer:
        pit = PitState.unpack(self.vm.get_pit())
        return pit_answer(pit.channels, pit.flags)

    def set_pit(self, state: str) -> Answer:
        self.vm.set_pit(bytes.fromhex(state))
        return 0

    def get_old_pit(self) -> Answer:
        pit = PitState.unpack(self.vm.get_old_pit().ljust(PIT_STATE_SIZE, b"\0"))
        return pit_answer(pit.channels, 0)

    def set_old_pit(self, state: str) -> Answer:
        self.vm.set_old_pit(bytes.fromhex(state))
        return 0

    def pit_reinject(self, reinject: int) -> Answer:
        self.vm.set_pit_reinject(bool(reinject))
        return 0

    def get_mp_state(self, vcpu: int) -> Answer:
        return self._vcpu(vcpu).get_mp_state()

    def set_mp_state(self, vcpu: int, state: int) -> Answer:
        self._vcpu(vcpu).set_mp_state(state)
        return 0

    def _vcpu(self, vcpu: int) -> KvmVcpu:
        try:
            return self.vm.vcpus[vcpu]
        except KeyError:
            raise OSError(errno.ENOENT, f"there is no vCPU {vcpu}") from None


def _read(value: int | None) -> Answer:
    return UNCLAIMED if value is None else value
