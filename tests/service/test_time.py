"""Time over the daemon's edges: clocks, timers that end halts, the PIT and model-specific registers."""

from __future__ import annotations

import time

import pytest

from irqchip_client import (
    Advance,
    Client,
    Interrupt,
    InterruptSource,
    InvalidArgument,
    MsrAccess,
    PitChannel,
    PitState,
    TimedOut,
    Vcpu,
    Vm,
    ops,
)
from tests.waiting import PATIENCE

LAPIC = 0xFEE0_0000
LVT_TIMER, INITIAL_COUNT, DIVIDE, EOI = LAPIC + 0x320, LAPIC + 0x380, LAPIC + 0x3E0, LAPIC + 0xB0
IA32_TSC, IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_ID = 0x10, 0x1B, 0x6E0, 0x802
MILLISECOND = 1_000_000
FROM_LAPIC, FROM_PIC = Interrupt(0x31, InterruptSource.LAPIC), Interrupt(0x20, InterruptSource.PIC)


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM on a virtual clock, with a PIT and one vCPU."""
    return timed_vm(irqchip_client, virtual=True)


def timed_vm(client: Client, *, virtual: bool) -> Vm:
    """A VM with a PIT, and one vCPU whose local APIC is enabled."""
    vm = client.create_vm(virtual_clock=virtual)
    vm.create_irqchip()
    vm.create_pit()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


def start_timer(cpu: Vcpu, count: int, *, periodic: bool = False) -> None:
    """Start the local APIC's timer with vector 31h; a count is a nanosecond."""
    cpu.mmio_write(DIVIDE, 0xB)
    cpu.mmio_write(LVT_TIMER, 0x31 | periodic << 17)
    cpu.mmio_write(INITIAL_COUNT, count)


def start_pit(cpu: Vcpu, count: int) -> None:
    """Let channel 0 tick through the PIC, whose vectors begin at 20h."""
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0x00)):
        cpu.pio_write(port, value)
    for port, value in ((0x43, 0x34), (0x40, count & 0xFF), (0x40, count >> 8)):
        cpu.pio_write(port, value)


def test_a_virtual_clock_moves_only_by_advance(vm: Vm) -> None:
    assert vm.info().virtual
    assert vm.info().now_ns == 0
    time.sleep(0.01)
    assert vm.info().now_ns == 0
    assert vm.advance(3) == Advance(3)
    with vm.session() as session:
        assert session.run([ops.advance_clock(4), ops.advance_clock(0)]) == [Advance(7), Advance(7)]
    assert vm.info().now_ns == 7
    with pytest.raises(InvalidArgument):
        vm.advance(1 << 62)
    assert vm.info().now_ns == 7


def test_a_real_clock_runs(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(tsc_khz=2_000_000)
    before = vm.info()
    time.sleep(0.05)
    after = vm.info()
    assert not after.virtual
    assert after.tsc_khz == 2_000_000
    assert 50 * MILLISECOND <= after.now_ns - before.now_ns < PATIENCE * 1000 * MILLISECOND
    with pytest.raises(InvalidArgument, match="real"):
        vm.advance(1)


def test_a_timer_ends_a_halt_when_its_time_comes(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    start_timer(cpu, MILLISECOND)
    assert vm.info().next_timer_ns == MILLISECOND
    with vm.session() as session:
        waiting = session.submit([ops.halt(0)])
        assert vm.advance(MILLISECOND - 1) == Advance(MILLISECOND - 1, next_timer_ns=MILLISECOND)
        session.run([])
        assert not waiting.done()
        assert vm.advance(1) == Advance(MILLISECOND)
        assert waiting.result(PATIENCE) == [FROM_LAPIC]


def test_a_real_timer_ends_a_halt(irqchip_client: Client) -> None:
    cpu = timed_vm(irqchip_client, virtual=False).vcpu(0)
    start_timer(cpu, 50 * MILLISECOND, periodic=True)
    started = time.monotonic()
    for _ in range(4):
        assert cpu.halt(timeout=PATIENCE) == FROM_LAPIC
        cpu.mmio_write(EOI, 0)
    assert 0.19 < time.monotonic() - started < PATIENCE


def test_the_pit_ends_halts(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    start_pit(cpu, 11_932)  # 10 ms
    with vm.session() as session:
        for _ in range(3):
            waiting = session.submit([ops.halt(0)])
            vm.advance(10 * MILLISECOND + 1000)
            assert waiting.result(PATIENCE) == [FROM_PIC]
            cpu.pio_write(0x20, 0x20)


def test_missed_ticks_are_reinjected_or_lost_as_configured(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    start_pit(cpu, 11_932)
    for reinject, taken in ((True, 5), (False, 1)):
        vm.set_pit_reinject(reinject)
        vm.advance(50 * MILLISECOND + 10_000)
        for _ in range(taken):
            assert cpu.halt(timeout=PATIENCE) == FROM_PIC
            cpu.pio_write(0x20, 0x20)
        with pytest.raises(TimedOut):
            cpu.halt(timeout=0.01)


def test_advancing_stops_early_for_other_calls_and_continues(vm: Vm) -> None:
    start_timer(vm.vcpu(0), MILLISECOND, periodic=True)
    with vm.session() as session:
        (advance,) = session.run([ops.advance_clock(10_001 * MILLISECOND)])
        assert (advance.now_ns, advance.remaining_ns) == (10_000 * MILLISECOND, MILLISECOND)
        assert advance.next_timer_ns == 10_001 * MILLISECOND
    assert vm.advance(20_000 * MILLISECOND) == Advance(30_000 * MILLISECOND, next_timer_ns=30_001 * MILLISECOND)


def test_the_pits_state_has_the_kernels_format_and_can_be_set(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    start_pit(cpu, 11_932)
    state = vm.pit()
    assert (state.channels[0].count, state.channels[0].mode, state.channels[0].rw_mode) == (11_932, 2, 3)
    assert PitState.from_kvm_struct(state.kvm_struct) == state
    vm.set_pit(PitState(channels=(PitChannel(count=1000, mode=2), PitChannel(), PitChannel(count=7, gate=1)), flags=2))
    assert [channel.count for channel in vm.pit().channels] == [1000, 0x10000, 7]
    assert cpu.pio_read(0x61).data & 0b10
    vm.set_pit(state.kvm_struct)
    assert vm.pit().channels[0].count == 11_932
    with vm.session() as session:
        assert session.run([ops.get_pit()]) == [vm.pit()]


def test_model_specific_registers(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    assert cpu.msr_read(0x174) == MsrAccess(claimed=False, fault=False)
    assert cpu.msr_write(0x174, 1) == MsrAccess(claimed=False, fault=False)
    vm.advance(1234)
    assert cpu.msr_read(IA32_TSC) == MsrAccess(claimed=True, fault=False, data=1234)
    assert cpu.msr_write(IA32_TSC, 1 << 40) == MsrAccess(claimed=True, fault=False)
    assert cpu.msr_read(IA32_TSC).data == 1 << 40
    assert cpu.msr_read(IA32_APIC_BASE).data == 0xFEE0_0900
    assert cpu.msr_read(X2APIC_ID) == MsrAccess(claimed=True, fault=True)
    assert cpu.msr_write(IA32_APIC_BASE, 0xFEE0_0D00) == MsrAccess(claimed=True, fault=False)
    assert cpu.msr_read(X2APIC_ID) == MsrAccess(claimed=True, fault=False, data=0)
    assert cpu.msr_write(X2APIC_ID, 1) == MsrAccess(claimed=True, fault=True)


def test_a_tsc_deadline_ends_a_halt(vm: Vm) -> None:
    with vm.session() as session:
        cpu = session.vcpu(0)
        cpu.mmio_write(LVT_TIMER, 0x31 | 2 << 17)
        cpu.msr_write(IA32_TSC_DEADLINE, 5000)
        waiting = session.submit([ops.halt(0)])
        session.advance(5000)
        assert waiting.result(PATIENCE) == [FROM_LAPIC]
        assert cpu.msr_read(IA32_TSC_DEADLINE).data == 0
