"""Clocks, the PIT and the timers of local APICs, through the SDK."""

from dataclasses import replace

import pytest

import irqchip_client as irqchip
from irqchip_client import Advance, Client, Interrupt, InterruptSource, MsrAccess, Vm, ops

from .guest import IRQ_BASE, init_pics

MS = 1_000_000
PIT_COUNT = 11932  # 100 Hz.
IA32_TSC, IA32_APIC_BASE, X2APIC_ID = 0x10, 0x1B, 0x802
X2APIC_ENABLED = 0xFEE00D00
PROGRAM = [
    ops.pio_write(0, 0x43, 0x34),
    ops.pio_write(0, 0x40, PIT_COUNT & 0xFF),
    ops.pio_write(0, 0x40, PIT_COUNT >> 8),
]


@pytest.fixture
def virtual(irqchip_client: Client) -> Vm:
    """A VM on a virtual clock, with an irqchip, a PIT and vCPU 0."""
    vm = irqchip_client.create_vm(virtual_clock=True, tsc_khz=2_000_000)
    vm.create_irqchip()
    vm.create_pit()
    vm.create_vcpu(0)
    return vm


def test_a_virtual_clock_moves_only_by_advance(virtual: Vm) -> None:
    info = virtual.info()
    assert (info.virtual, info.now_ns, info.next_timer_ns, info.tsc_khz) == (True, 0, None, 2_000_000)
    assert virtual.advance(5) == Advance(5)
    with virtual.session() as session:
        assert session.advance(7) == Advance(12)
    assert virtual.info().now_ns == 12
    assert virtual.vcpu(0).msr_read(IA32_TSC) == MsrAccess(True, False, 24)


def test_a_real_clock_goes_by_itself(vm: Vm) -> None:
    before = vm.info()
    assert not before.virtual
    assert vm.info().now_ns > before.now_ns
    with pytest.raises(irqchip.InvalidArgument):
        vm.advance(1)


def test_advance_repeats_its_call_until_the_time_is_reached(virtual: Vm) -> None:
    """One call handles 10,000 expirations at most."""
    cpu = virtual.vcpu(0)
    cpu.set_lapic(replace(cpu.lapic(), svr=0x1FF, lvt_timer=0x20031, timer_divide=0xB))
    cpu.mmio_write(0xFEE00380, MS)  # A tick a millisecond.
    with virtual.session() as session:
        [short] = session.run([ops.advance_clock(15_000 * MS)])
    assert short == Advance(10_000 * MS, 5_000 * MS, 10_001 * MS)
    assert virtual.advance(short.remaining_ns) == Advance(15_000 * MS, 0, 15_001 * MS)
    assert virtual.advance(25_000 * MS) == Advance(40_000 * MS, 0, 40_001 * MS)
    assert cpu.acknowledge() == Interrupt(0x31, InterruptSource.LAPIC)


def test_the_pit_interrupts(virtual: Vm) -> None:
    init_pics(virtual)
    virtual._run(PROGRAM)
    due = virtual.info().next_timer_ns
    assert due is not None
    assert 9.9 * MS < due < 10.1 * MS
    virtual.advance(due - 1)
    cpu = virtual.vcpu(0)
    assert cpu.acknowledge() is None
    virtual.advance(1)
    assert cpu.acknowledge() == Interrupt(IRQ_BASE, InterruptSource.PIC)


def test_a_pits_state_goes_out_and_comes_back(virtual: Vm) -> None:
    virtual._run(PROGRAM)
    pit = virtual.pit()
    assert (pit.channels[0].mode, pit.channels[0].count) == (2, PIT_COUNT)
    assert [channel.gate for channel in pit.channels] == [1, 1, 0]
    changed = replace(pit, flags=2)
    virtual.set_pit(changed)
    assert virtual.pit() == changed
    virtual.set_pit(pit.kvm_struct)
    assert virtual.pit() == pit
    virtual.set_pit_reinject(False)


def test_errors_without_a_pit_and_without_an_irqchip_for_it(irqchip_client: Client, vm: Vm) -> None:
    for call in (vm.pit, lambda: vm.set_pit(irqchip.PitState()), lambda: vm.set_pit_reinject(True)):
        with pytest.raises(irqchip.NotReady):
            call()
    vm.create_pit(speaker=False)
    assert vm.vcpu(0).pio_read(0x61).claimed is False
    with pytest.raises(irqchip.AlreadyExists):
        vm.create_pit()
    with pytest.raises(irqchip.NotFound):
        irqchip_client.create_vm().create_pit()
    with pytest.raises(irqchip.InvalidArgument):
        vm.set_pit(bytes(111))


def test_msrs(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    assert cpu.msr_read(0xC0000080) == MsrAccess(claimed=False, fault=False)
    assert cpu.msr_read(X2APIC_ID) == MsrAccess(claimed=True, fault=True)
    assert cpu.msr_write(IA32_APIC_BASE, X2APIC_ENABLED) == MsrAccess(claimed=True, fault=False)
    assert cpu.msr_read(IA32_APIC_BASE) == MsrAccess(True, False, X2APIC_ENABLED)
    assert cpu.msr_write(X2APIC_ID, 1) == MsrAccess(claimed=True, fault=True)
    with pytest.raises(irqchip.InvalidArgument):
        cpu.msr_write(IA32_APIC_BASE, 1 << 64)


@pytest.mark.only_daemon
def test_the_sdk_decodes_a_pit_as_the_daemon_does(virtual: Vm, irqchip_client: Client) -> None:
    from irqchip.v1 import irqchip_pb2 as pb

    virtual._run(PROGRAM)
    answer = irqchip_client._connection.rpcs.GetPit(pb.GetPitRequest(vm=virtual.name))
    pit = virtual.pit()
    assert pit.kvm_struct == answer.kvm_struct
    assert pit.flags == answer.pit.flags
    for ours, theirs in zip(pit.channels, answer.pit.channels, strict=True):
        for field in theirs.DESCRIPTOR.fields:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
