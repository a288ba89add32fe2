"""The questions that a VMM asks when it starts, and how it resets its machine."""

from __future__ import annotations

import pytest

from irqchip_client import Chip, Client, Interrupt, InterruptSource, IrqchipMode, MpState, Signal, SignalKind, Vm
from tests.service.test_sessions import high, write_entry
from tests.waiting import PATIENCE

LAPIC = 0xFEE0_0000
IRQCHIP, PIT2, IRQ_ROUTING, SIGNAL_MSI, IRQFD, IRQFD_RESAMPLE, MP_STATE, SPLIT = 0, 33, 25, 77, 32, 82, 14, 121


def test_qemus_probe_succeeds(irqchip_client: Client) -> None:
    """The calls and their order are QEMU's: accel/kvm/kvm-all.c kvm_init, kvm_irqchip_create."""
    ask = irqchip_client.check_extension
    assert ask(MP_STATE) == 1
    assert ask(IRQCHIP) == 1
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    assert ask(IRQFD) == 1
    assert ask(IRQFD_RESAMPLE) == 1
    assert ask(IRQ_ROUTING) == 4096
    assert ask(SIGNAL_MSI) == 1
    assert ask(PIT2) == 1
    vm.create_pit()
    vm.create_vcpu(0)


@pytest.mark.parametrize(
    ("capability", "value"),
    [
        *((number, 1) for number in (0, 1, 11, 14, 22, 24, 26, 32, 33, 34, 35, 41, 61, 72, 77, 82, 97, 98, 121, 237)),
        (9, 288),
        (25, 4096),
        (66, 288),
        (116, 1),
        (128, 4096),
        (129, 3),  # KVM_CAP_X2APIC_API
        (213, 5),  # KVM_CAP_DISABLE_QUIRKS2
        (2, 0),
        ((1 << 32) - 1, 0),
    ],
)
def test_capabilities(irqchip_client: Client, capability: int, value: int) -> None:
    assert irqchip_client.check_extension(capability) == value


def test_vm_info_reports_what_the_vm_has(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()

    def said() -> tuple[object, ...]:
        info = vm.info()
        return info.irqchip_mode, info.irqchip, info.asynchronous_interrupts, info.halt_in_kernel, info.pit

    assert said() == (IrqchipMode.NONE, False, False, False, False)
    vm.create_irqchip()
    assert said() == (IrqchipMode.FULL, True, True, True, False)
    vm.create_pit()
    assert said() == (IrqchipMode.FULL, True, True, True, True)
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip()
    assert said() == (IrqchipMode.SPLIT, False, True, True, False)


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM in use: interrupts in service and pending, a running PIT, a vCPU that was started."""
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    vm.create_pit()
    for number in range(2):
        cpu = vm.create_vcpu(number)
        cpu.set_mp_state(MpState.RUNNABLE)
        cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    write_entry(vm, 20, 0x60 | 1 << 15)
    vm.line(20).raise_()
    vm.vcpu(0).acknowledge()
    vm.signal_msi(LAPIC | 1 << 12, 0x41)
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E), (0x21, 0xFF)):
        vm.vcpu(0).pio_write(port, value)
    vm.advance(5_000_000)
    vm.vcpu(1).nmi()
    return vm


def test_a_reset_restores_the_initial_state(irqchip_client: Client, vm: Vm) -> None:
    fresh = irqchip_client.create_vm(virtual_clock=True)
    fresh.create_irqchip()
    fresh.create_pit()
    for number in range(2):
        fresh.create_vcpu(number)
    vm.reset()
    vm.line(20).lower()
    fresh.advance(5_000_000)
    for one, other in ((vm, fresh), (fresh, vm)):
        for chip in (Chip.PIC_PRIMARY, Chip.PIC_SECONDARY):
            assert one.get_irqchip(chip) == other.get_irqchip(chip)
        assert one.get_irqchip(Chip.IOAPIC) == other.get_irqchip(Chip.IOAPIC)
        for number in range(2):
            assert one.vcpu(number).lapic() == other.vcpu(number).lapic()
            assert one.vcpu(number).mp_state() == other.vcpu(number).mp_state()
        assert one.info().next_timer_ns is other.info().next_timer_ns is None
    assert vm.vcpu(1).mp_state() is MpState.UNINITIALIZED
    assert vm.vcpu(1).take_signal() is None


def test_a_reset_leaves_sessions_and_their_lines(vm: Vm) -> None:
    with vm.session("device") as session:
        session.line(21).raise_()
        vm.reset()
        assert vm.info().now_ns == 5_000_000
        assert vm.info().asserted_gsis == (20,)
        assert vm.info().sessions[0].asserted_gsis == (21,)
        assert high(vm, 20)
        assert high(vm, 21)
        vm.vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
        write_entry(vm, 21, 0x61 | 1 << 15)
        assert session.vcpu(0).halt(timeout=PATIENCE) == Interrupt(0x61, InterruptSource.LAPIC)
    assert not high(vm, 21)


def test_a_vcpu_is_reset_by_init_and_started_by_sipi(vm: Vm) -> None:
    boot, other = vm.vcpu(0), vm.vcpu(1)
    for low in (0x4500, 0x4699):
        boot.mmio_write(LAPIC + 0x310, 1 << 24)
        boot.mmio_write(LAPIC + 0x300, low)
    assert other.lapic().irr == ()
    assert [other.take_signal() for _ in range(3)] == [
        Signal(SignalKind.INIT),
        Signal(SignalKind.SIPI, 0x99),
        None,
    ]
    assert other.mp_state() is MpState.RUNNABLE
