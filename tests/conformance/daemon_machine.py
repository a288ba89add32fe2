"""irqchipd as a machine: a VM in this process, whose time moves only when the test moves it."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from irqchip_client.replay.in_process import executors
from irqchip_client.replay.x86 import msr_answer, pit_answer
from irqchipd.chips.fault import FAULT
from irqchipd.chips.i8254_state import CHANNELS_SIZE
from irqchipd.chips.i8259 import I8259
from irqchipd.chips.lapic import Features, Msr
from irqchipd.chips.lapic_registers import BASE_ENABLED
from irqchipd.chips.lapic_timer import KHZ
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.clock import Deadlines, RealClock, VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, GsiResampled, IoapicEoi
from irqchipd.vm.regions import Access
from irqchipd.vm.sources import LineSource
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86 import board
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.vcpu_state import VcpuEvents
from tests.conformance.guest import HANDLER_PORT
from tests.conformance.hosts import PLAIN, Host
from tests.conformance.machines import EOI_MSR, UNCLAIMED, Answer, Op, comparable_page, eoi_address

TICK = 1_000_000  # nanoseconds; a tick that is due in a microsecond comes within this time


class DaemonMachine:
    """A Machine of irqchipd: a VM in this process."""

    tsc_khz = KHZ

    def __init__(self, host: Host = PLAIN, *, real_clock: bool = False) -> None:
        self._host = host
        # The time of a real clock, which stands still until the test sets it; alarms due by then ring late.
        self._time = Deadlines()
        self._clock = RealClock(self._time) if real_clock else VirtualClock()
        self.vm = X86Vm("conformance", clock=self._clock)
        self._resamplers: list[LineSource] = []
        self._resampled: list[int] = []
        self._ended: dict[int, list[int]] = {}
        self._operations: dict[str, Callable[..., Answer]] = {
            **executors(self.vm),
            "pio_read": lambda *access: _read(self.vm.pio_read(*access)),
            "pio_write": lambda *access: _written(self.vm.pio_write(*access)),
            "mmio_read": lambda *access: _read(self.vm.mmio_read(*access)),
            "mmio_write": lambda *access: _written(self.vm.mmio_write(*access)),
            "get_lapic_page": lambda vcpu: comparable_page(self.vm.get_lapic(vcpu).pack()).hex(),
            "get_mp_state": lambda vcpu: int(self.vm.get_mp_state(vcpu)),
            "irq_line_without_status": self._irq_line_without_status,
            "host_msr_read": self._host_msr_read,
            "host_msr_write": self._host_msr_write,
            "cr8_read": self.vm.cr8_read,
            "cr8_write": self.vm.cr8_write,
            "get_events": self._get_events,
            "get_old_pit": lambda: pit_answer(self.vm.get_pit().channels, 0),
            "pio_touch": self._touch,
            "take_nmis": self._take_nmis,
            "await_tick": self._await_tick,
            "take": self._take,
            "take_if_enabled": self._take_if_enabled,
            "visit": self._enter,  # its timer's expiry is always handled at once
            "ended": self._take_ended,
            "start_page": self._start_page,
            "resampler": self._resampler,
            "assert_gsi": self._assert_gsi,
            "resampled": self._take_resampled,
            "drop": lambda number: self.vm.close_source(self._resamplers[number]),
        }
        # The answer of these is 0.
        self._procedures: dict[str, Callable[..., object]] = {
            "create_irqchip": self.vm.create_irqchip,
            "enable_cap": lambda capability, *args: self.vm.enable_cap(capability, 0, args),
            "create_vcpu": self._create_vcpu,
            "set_lapic": lambda vcpu, page: self.vm.set_lapic(vcpu, bytes.fromhex(page)),
            "set_pit": lambda state: self.vm.set_pit(bytes.fromhex(state)),
            "pit_reinject": lambda reinject: self.vm.set_pit_reinject(bool(reinject)),
            "set_mp_state": self.vm.set_mp_state,
            "interrupt": self.vm.interrupt,
            "nmi": self.vm.nmi,
            "set_boot_cpu_id": self.vm.set_boot_vcpu,
            "create_bare_vcpu": self._create_bare_vcpu,
            "set_cpuid": self._set_cpuid,
            "set_events": self._set_events,
            "set_old_pit": self._set_old_pit,
        }

    def close(self) -> None:
        """Nothing to release."""

    def advance_to(self, time: int) -> None:
        """Advance the time, in nanoseconds from the machine's creation."""
        if isinstance(self._clock, RealClock):
            self._time.time = time
            self._time.move(0)
        else:
            self.vm.advance(time - self._clock.now())

    def perform(self, op: Op) -> Answer:
        name, *arguments = op
        try:
            if name in self._procedures:
                self._procedures[name](*arguments)
                return 0
            return self._operations[name](*arguments)
        except VmError as error:
            return "-" + error.reason

    def _create_bare_vcpu(self, vcpu: int) -> None:
        with patch.multiple(board, Cpu=self._host.cpu, Lapic=self._host.lapic):
            self.vm.create_vcpu(vcpu)

    def _create_vcpu(self, vcpu: int) -> None:
        self._create_bare_vcpu(vcpu)
        self.vm.set_mp_state(vcpu, MpState.RUNNABLE)
        self._ended[vcpu] = []
        self.vm.subscribe([vcpu], self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, IoapicEoi):
            self._ended[event.vcpu].append(event.vector)

    def _take(self, vcpu: int) -> Answer:
        taken = self.vm.ack_interrupt(vcpu)
        if taken is None:
            return None
        if self.vm.msr_write(vcpu, EOI_MSR, 0) == FAULT:
            self.vm.mmio_write(vcpu, eoi_address(self.vm.msr_read(vcpu, Msr.APIC_BASE)), 4, 0)
        return taken[0]

    def _take_if_enabled(self, vcpu: int) -> Answer:
        base = self.vm.msr_read(vcpu, Msr.APIC_BASE)
        assert base is not None
        return self._take(vcpu) if base & BASE_ENABLED else None

    def _irq_line_without_status(self, gsi: int, level: int) -> None:
        self.vm.irq_line(gsi, bool(level), line_status=False)

    def _host_msr_read(self, vcpu: int, msr: int) -> Answer:
        value = self.vm.msr_read(vcpu, msr, host=True)
        return msr_answer(value is not None, value == FAULT, value)

    def _host_msr_write(self, vcpu: int, msr: int, value: int) -> Answer:
        written = self.vm.msr_write(vcpu, msr, value, host=True)
        return msr_answer(written is not None, written == FAULT, None)

    def _set_cpuid(self, vcpu: int, lacks: list[str], address_bits: int) -> None:
        self.vm.set_cpuid(vcpu, Features(**dict.fromkeys(lacks, False), address_bits=address_bits))

    def _get_events(self, vcpu: int) -> Answer:
        events = self.vm.get_events(vcpu)
        nmi = events.nmi_injected, events.nmi_pending, events.nmi_masked
        return [int(value or 0) for value in (events.interrupt_injected, events.interrupt_vector, *nmi)]

    def _set_events(
        self, vcpu: int, interrupt: list[int], injected: int, pending: int | None, masked: int, sipi: int | None
    ) -> None:
        events = VcpuEvents(
            nmi_injected=bool(injected),
            nmi_pending=pending,
            nmi_masked=bool(masked),
            interrupt_injected=bool(interrupt[0]),
            interrupt_vector=interrupt[1],
            sipi_vector=sipi,
        )
        self.vm.set_events(vcpu, events)

    def _set_old_pit(self, state: str) -> None:
        if len(bytes.fromhex(state)) != CHANNELS_SIZE:
            raise AssertionError("that is no struct kvm_pit_state")
        self.vm.set_pit(bytes.fromhex(state))

    def _touch(self, vcpu: int, port: int, size: int) -> None:
        self.vm.pio_read(vcpu, port, size)

    def _take_nmis(self, vcpu: int) -> Answer:
        nmis = 0
        while signal := self.vm.take_signal(vcpu):
            nmis += signal.delivery_mode == DeliveryMode.NMI
        return nmis

    def _await_tick(self) -> Answer:
        self.advance_to(self._clock.now() + TICK)
        state = self.vm.get_irqchip(0)
        assert isinstance(state, I8259)
        return state.irr & 1

    def _enter(self, vcpu: int) -> None:
        assert self.vm.pio_read(vcpu, HANDLER_PORT, 1) is None

    def _take_ended(self, vcpu: int) -> Answer:
        self._enter(vcpu)
        ended, self._ended[vcpu] = self._ended[vcpu], []
        return ended

    def _start_page(self, vcpu: int) -> Answer:
        page = None
        while signal := self.vm.take_signal(vcpu):
            page = signal.vector
        return page

    def _resampler(self, gsi: int) -> Answer:
        number = len(self._resamplers)

        def hear(event: Event) -> None:
            assert isinstance(event, GsiResampled)
            self._resampled[number] += event.count

        self._resampled.append(0)
        self._resamplers.append(self.vm.open_source("resampler", resampled=[gsi], listener=hear))
        return number

    def _assert_gsi(self, number: int) -> None:
        source = self._resamplers[number]
        self.vm.irq_line(next(iter(source.resampled)), True, source)

    def _take_resampled(self, number: int) -> Answer:
        resampled, self._resampled[number] = self._resampled[number], 0
        return resampled


def _read(value: Access | int | None) -> Answer:
    assert not isinstance(value, Access), "the VM has no regions"
    return UNCLAIMED if value is None else value


def _written(claimed: Access | bool) -> Answer:
    return None if claimed else UNCLAIMED
