"""Events for devices: their interrupt was acknowledged, masked, resampled; and for a VMM with an IOAPIC of its own."""

from __future__ import annotations

import pytest

from irqchip_client import (
    AlreadyExists,
    Client,
    GsiAcknowledged,
    GsiMasked,
    GsiResampled,
    Interrupt,
    InterruptPending,
    InterruptSource,
    InvalidArgument,
    IoapicEoi,
    MsiRoute,
    Session,
    Vm,
    ops,
)
from tests.service.test_sessions import high, write_entry
from tests.waiting import PATIENCE

LAPIC = 0xFEE0_0000
GSI, VECTOR = 20, 0x60
LEVEL, MASKED = 1 << 15, 1 << 16


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with one vCPU, its local APIC enabled, and pin 20 level-triggered to vector 60h."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    write_entry(vm, GSI, VECTOR | LEVEL)
    return vm


def take(vm: Vm) -> int | None:
    """Take an interrupt and return its vector; it is not ended."""
    interrupt = vm.vcpu(0).acknowledge()
    return None if interrupt is None else interrupt.vector


def end(vm: Vm) -> None:
    """End the interrupt that was taken last."""
    vm.vcpu(0).mmio_write(LAPIC + 0xB0, 0)


def received(session: Session) -> list[object]:
    """The events that have arrived."""
    return list(session.events(timeout=0.2))


def test_subscribers_are_notified_of_a_gsis_acknowledgements(vm: Vm) -> None:
    with vm.session("asks", gsis=[GSI, 4]) as asks, vm.session("does not", gsis=[21]) as other:
        vm.line(GSI).raise_()
        assert take(vm) == VECTOR
        assert received(asks) == []
        vm.line(GSI).lower()
        end(vm)
        assert asks.next_event(PATIENCE) == GsiAcknowledged(GSI, 1)
        assert (received(asks), received(other)) == ([], [])


def test_unread_acknowledgements_add_up(vm: Vm) -> None:
    with vm.session("asks", gsis=[GSI]) as session:
        take_and_end = [ops.ack_interrupt(0), ops.mmio_write(0, LAPIC + 0xB0, 0)]
        session.run([ops.irq_line(GSI, True), *take_and_end * 500])
        count = 0
        while count < 500:
            event = session.next_event(PATIENCE)
            assert isinstance(event, GsiAcknowledged)
            count += event.count
        assert count == 500
        assert session.dropped_events == 0


def test_the_pic_acknowledges_too(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0x00)):
        cpu.pio_write(port, value)
    with vm.session("asks", gsis=[4]) as session:
        vm.line(4).pulse()
        assert cpu.acknowledge() == Interrupt(0x24, InterruptSource.PIC)
        assert received(session) == []
        cpu.pio_write(0x20, 0x20)
        assert session.next_event(PATIENCE) == GsiAcknowledged(4, 1)


def test_masking_is_reported_with_the_last_state(vm: Vm) -> None:
    with vm.session("asks", gsis=[GSI]) as session:
        write_entry(vm, GSI, VECTOR | LEVEL | MASKED)
        assert session.next_event(PATIENCE) == GsiMasked(GSI, True)
        write_entry(vm, GSI, VECTOR | LEVEL)
        assert session.next_event(PATIENCE) == GsiMasked(GSI, False)
        assert received(session) == []


def test_a_closed_session_is_not_notified(vm: Vm) -> None:
    vm.session("gone", vcpus=[0], gsis=[GSI], resampled_gsis=[GSI]).close()
    vm.line(GSI).pulse()
    assert take(vm) == VECTOR
    end(vm)
    assert vm.info().sessions == ()


# Resampling.


def test_a_resampled_line_is_held_until_acknowledged_and_both_devices_are_notified(vm: Vm) -> None:
    with vm.session("one", resampled_gsis=[GSI, GSI]) as one, vm.session("two", resampled_gsis=[GSI]) as two:
        one.line(GSI).raise_()
        two.line(GSI).raise_()
        with pytest.raises(InvalidArgument, match="resampled"):
            one.line(GSI).lower()
        assert high(vm, GSI)
        assert take(vm) == VECTOR
        assert high(vm, GSI)
        end(vm)
        assert not high(vm, GSI)
        assert (received(one), received(two)) == ([GsiResampled(GSI, 1)],) * 2
        assert take(vm) is None

        two.line(GSI).raise_()  # its device still needs service
        assert take(vm) == VECTOR
        end(vm)
        assert (received(one), received(two)) == ([GsiResampled(GSI, 1)],) * 2
        assert take(vm) is None


def test_a_resampled_line_falls_when_its_last_resampler_ends(vm: Vm) -> None:
    one, two = vm.session("one", resampled_gsis=[GSI]), vm.session("two", resampled_gsis=[GSI])
    one.line(GSI).raise_()
    one.close()
    assert high(vm, GSI)
    two.close()
    assert not high(vm, GSI)


def test_another_source_keeps_a_resampled_line_high(vm: Vm) -> None:
    with vm.session("resamples", resampled_gsis=[GSI]) as session:
        vm.line(GSI).raise_()
        session.line(GSI).raise_()
        assert take(vm) == VECTOR
        end(vm)
        assert session.next_event(PATIENCE) == GsiResampled(GSI, 1)
        assert high(vm, GSI)
        assert take(vm) == VECTOR


# A split irqchip.


@pytest.fixture
def split(irqchip_client: Client) -> Vm:
    """A VM with a split irqchip and one vCPU; GSI 5 is a level-triggered route of the VMM's IOAPIC to vector 51h."""
    vm = irqchip_client.create_vm()
    vm.enable_split_irqchip(24)
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    vm.set_routing([MsiRoute(5, LAPIC, 0x51 | LEVEL), MsiRoute(24, LAPIC, 0x52 | LEVEL), MsiRoute(6, LAPIC, 0x53)])
    return vm


def test_the_vmms_ioapic_is_notified_of_its_own_eois_alone(split: Vm) -> None:
    with split.session("vmm", vcpus=[0]) as session:
        for gsi, vector, events in ((5, 0x51, [IoapicEoi(0, 0x51)]), (24, 0x52, []), (6, 0x53, [])):
            assert split.line(gsi).raise_() == 1
            assert session.next_event(PATIENCE) == InterruptPending(0)
            assert take(split) == vector
            end(split)
            assert [session.next_event(PATIENCE) for _ in events] == events
            assert received(session) == []


def test_the_vmms_pic_interrupts(split: Vm) -> None:
    with split.session("vmm", vcpus=[0]) as session:
        waiting = session.submit([ops.halt(0)])
        split.vcpu(0).interrupt(0x20)
        assert waiting.result(PATIENCE) == [Interrupt(0x20, InterruptSource.PIC)]
        split.vcpu(0).interrupt(0x21)
        with pytest.raises(AlreadyExists, match="33"):
            split.vcpu(0).interrupt(0x22)
        assert split.vcpu(0).acknowledge() == Interrupt(0x21, InterruptSource.PIC)
        split.vcpu(0).interrupt(0x22)
