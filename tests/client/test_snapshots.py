"""Snapshots, resets and split irqchips, through the SDK."""

import asyncio
from dataclasses import replace

import pytest

import irqchip_client as irqchip
from irqchip_client import Client, Interrupt, InterruptSource, IrqchipMode, Vm, VmSnapshot, aio, ops
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE

from .guest import IRQ_BASE, init_pics

PIC = InterruptSource.PIC


def test_a_vm_moves_to_another_daemon_and_goes_on(vm: Vm) -> None:
    init_pics(vm)
    vm.line(4).raise_()
    saved = VmSnapshot.from_bytes(vm.snapshot().to_bytes())
    with start_daemon() as elsewhere, elsewhere.connect() as client:
        moved = client.restore_vm(saved, "moved")
        assert (moved.name, moved.info().asserted_gsis) == ("moved", (4,))
        assert moved.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, PIC)
    assert vm.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, PIC)


def test_a_restored_vm_has_the_saved_state(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    vm.create_pit()
    vm.create_vcpu(0)
    init_pics(vm)
    vm.advance(12345)
    saved = vm.snapshot()
    assert vm.snapshot() == saved
    again = irqchip_client.restore_vm(saved)
    assert again.snapshot() == saved
    vm.advance(1)
    assert vm.snapshot() != saved


def test_a_session_resumes_its_lines(irqchip_client: Client, vm: Vm) -> None:
    with vm.session("uart") as session:
        session.line(4).raise_()
        saved = vm.snapshot()
    moved = irqchip_client.restore_vm(saved)
    [waiting] = moved.info().sessions
    assert (waiting.client, waiting.asserted_gsis, waiting.detached) == ("uart", (4,), True)
    with pytest.raises(irqchip.NotFound):
        moved.session("disk", resume=True)
    with moved.session("uart", resume=True) as session:
        [info] = moved.info().sessions
        assert (info.source, info.asserted_gsis, info.detached) == (session.source, (4,), False)
    assert moved.info().sessions == ()
    assert moved.get_irqchip(irqchip.Chip.PIC_PRIMARY).last_irr == 0


def test_an_impossible_state_is_not_restored(irqchip_client: Client, vm: Vm) -> None:
    saved = vm.snapshot()
    with pytest.raises(irqchip.AlreadyExists):
        irqchip_client.restore_vm(saved, vm.name)
    message = saved.to_proto()
    message.version = 99
    with pytest.raises(irqchip.InvalidArgument):
        irqchip_client.restore_vm(VmSnapshot.from_proto(message))


def test_a_reset_leaves_lines_and_routes(vm: Vm) -> None:
    init_pics(vm)
    vm.set_routing([irqchip.PinRoute(4, irqchip.Chip.PIC_PRIMARY, 4)])
    vm.line(4).raise_()
    vm.reset()
    pic = vm.get_irqchip(irqchip.Chip.PIC_PRIMARY)
    assert (pic.irq_base, pic.last_irr) == (0, 1 << 4)
    assert vm.info().asserted_gsis == (4,)
    assert len(vm.routing()) == 1


@pytest.fixture
def split(irqchip_client: Client) -> Vm:
    """A VM with a split irqchip and vCPU 0, whose local APIC is enabled."""
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip()
    vm.create_vcpu(0).mmio_write(0xFEE000F0, 0x1FF)
    return vm


def test_a_split_irqchip_accepts_the_vmms_interrupts(split: Vm) -> None:
    info = split.info()
    assert (info.irqchip_mode, info.asynchronous_interrupts) == (IrqchipMode.SPLIT, True)
    cpu = split.vcpu(0)
    cpu.set_lapic(replace(cpu.lapic(), lvt_lint0=0x700))
    cpu.interrupt(0x21)
    with pytest.raises(irqchip.AlreadyExists):
        cpu.interrupt(0x22)
    assert cpu.acknowledge() == Interrupt(0x21, PIC)
    with pytest.raises(irqchip.NotReady):
        split.get_irqchip(irqchip.Chip.IOAPIC)


def test_a_split_irqchip_reports_eois(split: Vm) -> None:
    split.set_routing([irqchip.MsiRoute(3, 0xFEE00000, 0x8041)])  # Level-triggered.
    cpu = split.vcpu(0)
    with split.session(vcpus=[0]) as session:
        split.signal_msi(0xFEE00000, 0x8041)
        assert session.next_event(PATIENCE) == irqchip.InterruptPending(0)
        assert cpu.acknowledge() == Interrupt(0x41, InterruptSource.LAPIC)
        cpu.mmio_write(0xFEE000B0, 0)
        assert session.next_event(PATIENCE) == irqchip.IoapicEoi(0, 0x41)


def test_capabilities_are_enabled_by_number(irqchip_client: Client, vm: Vm) -> None:
    other = irqchip_client.create_vm()
    other.enable_cap(121, 24)
    assert other.info().irqchip_mode is IrqchipMode.SPLIT
    for capability, arguments in [(121, (4097,)), (9999, ())]:
        with pytest.raises(irqchip.InvalidArgument):
            irqchip_client.create_vm().enable_cap(capability, *arguments)
    with pytest.raises(irqchip.AlreadyExists):
        vm.enable_split_irqchip()


def test_acknowledgements_and_masks_are_reported(vm: Vm) -> None:
    init_pics(vm)
    with vm.session("device", gsis=[4]) as session:
        session.line(4).pulse()
        assert vm.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, PIC)
        vm.vcpu(0).pio_write(0x20, 0x20)
        assert session.next_event(PATIENCE) == irqchip.GsiAcknowledged(4, 1)
        vm.vcpu(0).mmio_write(0xFEC00000, 0x10 + 2 * 4)
        vm.vcpu(0).mmio_write(0xFEC00010, 0x41)  # Unmasks the IOAPIC's pin.
        assert session.next_event(PATIENCE) == irqchip.GsiMasked(4, False)


def test_a_resampled_line_falls_when_it_is_acknowledged(vm: Vm) -> None:
    init_pics(vm)
    with vm.session("device", resampled_gsis=[10]) as session:
        session.run([ops.irq_line(10, True)])
        assert vm.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 10, PIC)
        vm.vcpu(0).pio_write(0xA0, 0x20)
        vm.vcpu(0).pio_write(0x20, 0x20)
        assert session.next_event(PATIENCE) == irqchip.GsiResampled(10, 1)


def test_a_resampled_line_can_be_held_and_is_not_lowered(irqchip_server: Daemon, vm: Vm) -> None:
    with vm.session("device", resampled_gsis=[10]) as session:
        with session.line(10):
            pass
        with pytest.raises(ZeroDivisionError), session.line(10):
            raise ZeroDivisionError
        for call in (session.line(10).lower, session.line(10).pulse):
            with pytest.raises(irqchip.InvalidArgument, match="is resampled"):
                call()
    assert vm.get_irqchip(irqchip.Chip.PIC_SECONDARY).last_irr == 0  # The end of the Session lowered it.

    async def hold() -> None:
        async with (
            aio.connect(irqchip_server.target) as client,
            client.vm(vm.name).session(resampled_gsis=[10]) as session,
        ):
            async with session.line(10):
                pass
            with pytest.raises(ZeroDivisionError):
                async with session.line(10):
                    raise ZeroDivisionError

    asyncio.run(hold())
