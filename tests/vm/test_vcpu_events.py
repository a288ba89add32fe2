"""A vCPU's pending events, as a VMM reads and sets them; and what wakes a vCPU without an interrupt to take."""

from __future__ import annotations

from typing import Any

import pytest

from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.vcpu_state import MpState, Outcome, Signal
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.vcpu_state import VcpuEvents
from tests.vm.pc import MSI, Pc, refused

NMI = Signal(DeliveryMode.NMI)
UNHALT = Signal(DeliveryMode.REMOTE_READ)


def moved(vm: X86Vm) -> X86Vm:
    return X86Vm.restored("moved", 255, vm.save())


def test_at_first_nothing_is_pending() -> None:
    assert Pc().vm.get_events(0) == VcpuEvents(False, 0, False, False, False, 0, None)


@pytest.mark.parametrize("events", [VcpuEvents(nmi_masked=True), VcpuEvents(nmi_injected=True)], ids=str)
def test_one_nmi_is_kept_while_one_is_handled_otherwise_two(events: VcpuEvents) -> None:
    pc = Pc()
    for limit in (2, 1):
        for _ in range(3):
            pc.vm.nmi(0)
        assert pc.vm.get_events(0).nmi_pending == limit
        pc.vm.set_events(0, events)
        assert pc.vm.get_events(0).nmi_pending == 1
        pc.vm.set_events(0, VcpuEvents(nmi_pending=255))
        assert pc.vm.get_events(0).nmi_pending == 1
    assert moved(pc.vm).get_events(0) == pc.vm.get_events(0)


def test_a_masked_nmi_is_taken_once_unmasked() -> None:
    pc = Pc()
    pc.vm.set_events(0, VcpuEvents(nmi_masked=True))
    pc.vm.nmi(0)
    assert pc.vm.take_signal(0) is None
    ended: list[Outcome] = []
    pc.vm.halt(0, ended.append)
    assert not ended
    pc.vm.set_events(0, VcpuEvents(nmi_masked=False))
    assert ended == [NMI]


def test_an_nmi_on_its_way_is_taken_first_though_one_is_masked() -> None:
    pc = Pc()
    pc.vm.set_events(0, VcpuEvents(nmi_injected=True, nmi_masked=True, smi_pending=True, nmi_pending=1))
    vm = moved(pc.vm)
    assert [vm.take_signal(0) for _ in range(3)] == [NMI, Signal(DeliveryMode.SMI), None]


def test_init_clears_pending_events() -> None:
    pc = Pc()
    everything = VcpuEvents(True, 1, True, True, True, 0x41)
    pc.vm.set_events(0, everything)
    assert pc.vm.get_events(0) == everything
    pc.vm.signal_msi(MSI, 0x500)
    assert pc.vm.get_events(0) == VcpuEvents(False, 0, False, False, False, 0)


def test_an_interrupt_on_its_way_is_the_next_to_be_acknowledged() -> None:
    pc = Pc()
    pc.vm.signal_msi(MSI, 0x81)
    pc.vm.set_events(0, VcpuEvents(interrupt_injected=True, interrupt_vector=0x41))
    vm = moved(pc.vm)
    assert vm.get_events(0).interrupt_vector == 0x41
    assert vm.ack_interrupt(0) == (0x41, False)
    assert vm.ack_interrupt(0) == (0x81, False)
    vm.set_events(0, VcpuEvents(interrupt_injected=True, interrupt_vector=0x42))
    vm.set_events(0, VcpuEvents(interrupt_injected=False))
    assert vm.ack_interrupt(0) is None


def test_absent_fields_stay_unchanged() -> None:
    pc = Pc()
    everything = VcpuEvents(False, 2, False, True, True, 0x41)
    pc.vm.set_events(0, everything)
    pc.vm.set_events(0, VcpuEvents())
    assert pc.vm.get_events(0) == everything


@pytest.mark.parametrize("name", ["nmi_pending", "interrupt_vector", "sipi_vector"])
def test_numbers_have_8_bits(name: str) -> None:
    pc = Pc()
    values: dict[str, Any] = {name: 256}
    with refused("EINVAL"):
        pc.vm.set_events(0, VcpuEvents(**values))


def test_a_start_up_that_is_set_has_the_last_start_ups_vector() -> None:
    pc = Pc(2)
    pc.vm.signal_msi(MSI | 1 << 12, 0x612)  # ignored: without an INIT before it
    for vm in (pc.vm, moved(pc.vm)):
        vm.set_mp_state(1, MpState.SIPI_RECEIVED)
        assert vm.take_signal(1) == Signal(DeliveryMode.STARTUP, 0x12)
        vm.set_events(1, VcpuEvents(sipi_vector=0x34))
        vm.set_mp_state(1, MpState.SIPI_RECEIVED)
        assert vm.take_signal(1) == Signal(DeliveryMode.STARTUP, 0x34)


def test_a_vcpu_without_a_local_apic_has_no_events() -> None:
    vm = X86Vm("bare")
    vm.create_vcpu(0)
    with refused("ENXIO"):
        vm.get_events(0)
    with refused("ENXIO"):
        vm.set_events(0, VcpuEvents())


# Remote reads.


def remote_read(vm: X86Vm) -> None:
    assert vm.signal_msi(MSI, 0x300) == 1


def test_a_remote_read_ends_a_halt_and_brings_nothing() -> None:
    pc = Pc()
    ended: list[Outcome] = []
    pc.vm.halt(0, ended.append, interrupts_masked=True)
    assert not ended
    remote_read(pc.vm)
    assert ended == [UNHALT]
    assert pc.vm.get_mp_state(0) is MpState.RUNNABLE
    pc.vm.halt(0, ended.append)
    assert len(ended) == 1


def test_an_earlier_remote_read_ends_the_next_halt() -> None:
    pc = Pc()
    remote_read(pc.vm)
    vm, ended = moved(pc.vm), list[Outcome]()
    assert vm.take_signal(0) is None
    vm.halt(0, ended.append)
    assert ended == [UNHALT]


def test_a_remote_read_whose_halt_was_abandoned_ends_the_next() -> None:
    pc = Pc()
    ended: list[Outcome] = []
    remote_read(pc.vm)
    pc.vm.abandon(pc.vm.halt(0, ended.append))
    pc.vm.halt(0, ended.append)
    assert ended == [UNHALT, UNHALT]


@pytest.mark.parametrize("state", [MpState.HALTED, MpState.AP_RESET_HOLD])
def test_anything_ends_a_halted_state_that_was_set(state: MpState) -> None:
    pc = Pc()
    pc.vm.set_mp_state(0, state)
    vm, ended = moved(pc.vm), list[Outcome]()
    assert vm.get_mp_state(0) is state
    vm.halt(0, ended.append)
    assert vm.get_mp_state(0) is state
    vm.signal_msi(MSI, 0x41)
    assert ended == [(0x41, False)]
    assert vm.get_mp_state(0) is MpState.RUNNABLE


# INIT and start-ups that one operation sends.


def test_init_discards_a_start_up_of_the_same_operation_before_it() -> None:
    pc = Pc(2)
    for pin, mode in ((1, 0x500), (2, 0x612), (3, 0x500)):
        pc.program(pin, 1 << 56 | mode)
    state = pc.vm.get_irqchip(2).pack()
    pc.vm.set_irqchip(2, state[:16] + (0b1110).to_bytes(4, "little") + state[20:])
    assert pc.vm.get_mp_state(1) is MpState.INIT_RECEIVED


def test_of_start_ups_in_one_operation_the_last_is_kept() -> None:
    pc = Pc(2)
    for pin, mode in ((1, 0x500), (2, 0x612), (3, 0x634)):
        pc.program(pin, 1 << 56 | mode)
    state = pc.vm.get_irqchip(2).pack()
    pc.vm.set_irqchip(2, state[:16] + (0b1110).to_bytes(4, "little") + state[20:])
    assert [pc.vm.take_signal(1) for _ in range(2)] == [
        Signal(DeliveryMode.INIT),
        Signal(DeliveryMode.STARTUP, 0x34),
    ]
