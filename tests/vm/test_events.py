"""The events of a vCPU's listeners: an interrupt has become pending, or a signal bypassed the IRR."""

from __future__ import annotations

from irqchipd.chips.lapic_registers import Reg
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.events import Event, InterruptPending, VcpuSignal
from irqchipd.vm.x86.machine import X86Vm
from tests.vm.pc import LEVEL, MASKED, PRIMARY, Pc, to

MSI = 0xFEE0_0000


class Ear(list[Event]):
    """A listener that records its events."""

    def __init__(self, vm: X86Vm, *vcpus: int) -> None:
        super().__init__()
        vm.subscribe(vcpus, self.append)

    def heard(self) -> list[Event]:
        """The events since the last call."""
        events = list(self)
        self.clear()
        return events


PENDING = [InterruptPending(0)]


def test_a_listener_is_notified_once_until_the_interrupt_is_taken() -> None:
    pc = Pc()
    ear = Ear(pc.vm, 0)
    assert ear.heard() == []
    pc.vm.signal_msi(MSI, 0x31)
    assert ear.heard() == PENDING
    pc.vm.signal_msi(MSI, 0x41)
    assert ear.heard() == []
    assert pc.serve_all() == [0x41, 0x31]
    assert ear.heard() == [InterruptPending(0)]  # 31h can be taken after the EOI of 41h
    pc.vm.signal_msi(MSI, 0x31)
    assert ear.heard() == PENDING


def test_a_listener_is_notified_of_what_is_left_behind_an_interrupt() -> None:
    pc = Pc()
    pc.initialise_pics()
    ear = Ear(pc.vm, 0)
    pc.line(4, 1)
    pc.vm.signal_msi(MSI, 0x31)
    assert ear.heard() == PENDING
    assert (pc.take(), ear.heard()) == (PRIMARY + 4, PENDING)
    assert (pc.take(), ear.heard()) == (0x31, [])


def test_a_new_listener_is_notified_of_a_pending_interrupt() -> None:
    pc = Pc(2)
    pc.vm.signal_msi(MSI, 0x31)
    assert Ear(pc.vm, 0, 1).heard() == PENDING


def test_a_second_listener_takes_no_event_from_the_first() -> None:
    pc = Pc()
    first = Ear(pc.vm, 0)
    pc.vm.signal_msi(MSI, 0x31)
    second = Ear(pc.vm, 0)
    assert (first.heard(), second.heard()) == (PENDING, PENDING)
    pc.serve_all()
    pc.vm.signal_msi(MSI, 0x31)
    assert (first.heard(), second.heard()) == (PENDING, PENDING)


def test_a_listener_is_notified_about_its_vcpus_alone() -> None:
    pc = Pc(3)
    ear = Ear(pc.vm, 0, 2)
    pc.vm.signal_msi(0xFEEF_F000, 0x31)  # to all
    assert sorted(event.vcpu for event in ear if isinstance(event, InterruptPending)) == [0, 2]


def test_what_the_cpu_may_not_take_is_not_pending_until_it_may() -> None:
    pc = Pc()
    ear = Ear(pc.vm, 0)
    pc.lapic_write(0, Reg.TPR, 0x40)
    pc.vm.signal_msi(MSI, 0x31)
    assert ear.heard() == []
    pc.lapic_write(0, Reg.TPR, 0x20)
    assert ear.heard() == PENDING


def test_an_eoi_notifies_of_the_interrupt_that_waited() -> None:
    pc = Pc()
    ear = Ear(pc.vm, 0)
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    assert pc.take() == 0x31
    ear.heard()
    pc.eoi()  # the line is still high
    assert ear.heard() == PENDING


def test_the_pic_notifies_the_vcpus_it_is_wired_to() -> None:
    pc = Pc(2)
    pc.initialise_pics()
    boot, other = Ear(pc.vm, 0), Ear(pc.vm, 1)
    pc.line(1, 1)
    assert (boot.heard(), other.heard()) == (PENDING, [])
    pc.lapic_write(1, Reg.LVT_LINT0, 0x700)
    assert (boot.heard(), other.heard()) == ([], [InterruptPending(1)])


def test_unmasking_lint0_or_the_pic_notifies_of_a_waiting_interrupt() -> None:
    pc = Pc()
    pc.initialise_pics()
    ear = Ear(pc.vm, 0)
    pc.lapic_write(0, Reg.LVT_LINT0, MASKED | 0x700)
    pc.line(1, 1, 0)
    assert ear.heard() == []
    pc.lapic_write(0, Reg.LVT_LINT0, 0x700)
    assert ear.heard() == PENDING
    assert pc.take() == PRIMARY + 1
    pc.out(0x21, 0xFF)
    pc.out(0x20, 0x20)
    pc.line(1, 1)
    assert ear.heard() == []
    pc.out(0x21, 0x00)
    assert ear.heard() == PENDING


def test_a_vcpu_is_notified_again_after_another_took_the_pics_interrupt() -> None:
    pc = Pc(2)
    pc.initialise_pics()
    pc.lapic_write(1, Reg.LVT_LINT0, 0x700)
    ears = [Ear(pc.vm, vcpu) for vcpu in range(2)]
    pc.line(1, 1, 0)
    assert [ear.heard() for ear in ears] == [PENDING, [InterruptPending(1)]]
    assert pc.take(0) == PRIMARY + 1
    assert pc.take(1) is None
    pc.out(0x20, 0x20)
    pc.line(1, 1)
    assert [ear.heard() for ear in ears] == [PENDING, [InterruptPending(1)]]


def test_a_vcpu_is_notified_again_even_if_it_never_looked() -> None:
    pc = Pc(2)
    pc.initialise_pics()
    pc.lapic_write(1, Reg.LVT_LINT0, 0x700)
    ears = [Ear(pc.vm, vcpu) for vcpu in range(2)]
    pc.line(1, 1, 0)
    assert pc.take(0) == PRIMARY + 1
    for ear in ears:
        ear.heard()
    pc.out(0x20, 0x20)
    pc.line(1, 1)
    assert [ear.heard() for ear in ears] == [PENDING, [InterruptPending(1)]]


def test_a_restored_state_notifies_of_its_pending_interrupt() -> None:
    pc = Pc()
    pc.vm.signal_msi(MSI, 0x31)
    saved = pc.vm.get_lapic(0)
    pc.serve_all()
    ear = Ear(pc.vm, 0)
    pc.vm.set_lapic(0, saved)
    assert ear.heard() == PENDING


def test_signals_that_bypass_the_request_register_are_reported() -> None:
    pc = Pc(2)
    ear = Ear(pc.vm, 1)
    for low in (0x4200, 0x4400, 0xC500, 0x8500, 0x469A):
        pc.ipi(0, low, destination=1)
    assert ear.heard() == [
        VcpuSignal(1, DeliveryMode.SMI, 0),
        VcpuSignal(1, DeliveryMode.NMI, 0),
        VcpuSignal(1, DeliveryMode.INIT, 0),
        VcpuSignal(1, DeliveryMode.STARTUP, 0x9A),
    ]


def test_each_signal_of_one_operation_is_reported() -> None:
    pc = Pc(3)
    ear = Ear(pc.vm, 0, 1, 2)
    pc.program(16, to(0xFF) | 0x400)
    pc.line(16, 1)
    assert ear.heard() == [VcpuSignal(vcpu, DeliveryMode.NMI, 0) for vcpu in range(3)]


def test_a_vcpu_can_be_listened_to_before_it_is_created() -> None:
    vm = X86Vm("early")
    vm.create_irqchip()
    ear = Ear(vm, 0)
    vm.create_vcpu(0)
    other = Ear(vm, 0)
    assert ear.heard() == other.heard() == []
    vm.irq_line(1, True)
    assert ear.heard() == other.heard() == PENDING


def test_a_new_vcpu_with_a_pending_interrupt_causes_a_notification() -> None:
    vm = X86Vm("early")
    vm.create_irqchip()
    ear = Ear(vm, 0)
    vm.irq_line(1, True)
    assert ear.heard() == []
    vm.create_vcpu(0)
    assert ear.heard() == PENDING
    assert vm.ack_interrupt(0) == (0x01, True)


def test_a_removed_listener_is_not_notified() -> None:
    pc = Pc()
    left, stays = Ear(pc.vm, 0), Ear(pc.vm, 0)
    pc.vm.unsubscribe([0], left.append)
    pc.vm.signal_msi(MSI, 0x31)
    pc.vm.signal_msi(MSI, 0x400)
    assert (left.heard(), len(stays.heard())) == ([], 2)
    pc.vm.unsubscribe([0], stays.append)
    pc.vm.signal_msi(MSI, 0x400)
    assert stays.heard() == []


def test_a_listener_to_a_missing_vcpu_can_be_removed() -> None:
    pc = Pc()
    ear = Ear(pc.vm, 9)
    pc.vm.unsubscribe([9], ear.append)
    pc.vm.create_vcpu(9)
    pc.vm.signal_msi(0xFEE0_9000, 0x400)
    assert ear.heard() == []


def test_a_listener_may_call_the_vm() -> None:
    pc = Pc()
    taken: list[object] = []
    pc.vm.subscribe([0], lambda _: taken.append(pc.vm.ack_interrupt(0)))
    pc.vm.signal_msi(MSI, 0x31)
    assert taken == [(0x31, False)]


def test_a_deleted_vm_can_still_be_unsubscribed_from() -> None:
    pc = Pc()
    ear = Ear(pc.vm, 0)
    pc.vm.delete()
    pc.vm.unsubscribe([0], ear.append)
    assert ear.heard() == []


def test_a_failing_listener_does_not_silence_others() -> None:
    pc = Pc(2)
    ear = Ear(pc.vm, 1)

    def fail(_: Event) -> None:
        raise RuntimeError("on purpose")

    pc.vm.subscribe([0], fail)
    assert pc.vm.signal_msi(0xFEEF_F000, 0x31) == 2  # to all
    assert ear.heard() == [InterruptPending(1)]
