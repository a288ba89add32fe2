"""The reads of a local APIC that a vCPU's process answers itself, against those that the daemon answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip.lapic_page import COPIED, ICR_HIGH, TPR
from irqchip_client.replay.in_process import new_vm
from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic import Features, Msr
from irqchipd.chips.lapic_registers import LapicRegisters
from irqchipd.observe.observer import Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.x86.machine import X86Vm
from tests.builds import needs_sources
from tests.vmm.sharing import shared

PAGE, ELSEWHERE = 0xFEE0_0000, 0xD000_0000
BOOT, X2APIC, ENABLED = 1 << 8, 1 << 10, 1 << 11
ID, DFR, SVR, ISR, IRR, PPR, ICR, ICR2, LVT_TIMER, INITIAL, CURRENT = (
    *(0x20, 0xE0, 0xF0, 0x100, 0x200, 0xA0, 0x300, 0x310, 0x320, 0x380, 0x390),
)
READABLE = [offset for offset in COPIED if offset != ICR_HIGH]
VCPUS = 2


def test_only_registers_that_can_be_shared_are_answered_here() -> None:
    vm = new_vm(VCPUS)
    apic = shared(vm, 1)
    assert apic.read(PAGE + ID, 4) == 0x0100_0000
    assert apic.read(PAGE + ID + 3, 1) == 1
    assert {offset for offset in range(0, 0x1000, 4) if apic.read(PAGE + offset, 4) is not None} == set(READABLE)
    assert apic.read(PAGE + ID + 2, 4) is apic.read(PAGE + ID, 8) is apic.read(PAGE + ID + 4, 1) is None
    assert apic.read(PAGE - 0x1000 + ID, 4) is apic.read(PAGE + 0x1000 + ID, 4) is apic.read(0, 4) is None
    assert apic.read_msr(Msr.APIC_BASE) == PAGE | ENABLED
    assert apic.read_msr(Msr.X2APIC + 2) is apic.read_msr(Msr.TSC) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda vm: vm.mmio_write(1, PAGE + TPR, 4, 0x40),
        lambda vm: vm.cr8_write(1, 4),
        lambda vm: vm.set_lapic(1, LapicRegisters(tpr=0x40)),
        lambda vm: vm.msr_write(1, Msr.APIC_BASE, ELSEWHERE | ENABLED),
        lambda vm: vm.msr_write(1, Msr.APIC_BASE, PAGE | ENABLED | X2APIC),
        lambda vm: vm.msr_write(1, Msr.APIC_BASE, PAGE, host=True),
        lambda vm: vm.set_cpuid(1, Features(x2apic=False)),
        lambda vm: vm.reset(),
        lambda vm: vm.mmio_write(0, PAGE + ICR, 4, 0xC4500),  # INIT to all others
        lambda vm: vm.signal_msi(PAGE | 1 << 12, 0x4500),  # INIT from a device
    ],
)
def test_a_change_by_others_is_seen_as_soon_as_it_is_done(change: Callable[[X86Vm], Any]) -> None:
    vm = new_vm(VCPUS)
    vm.mmio_write(1, PAGE + TPR, 4, 0x20)
    vm.mmio_write(1, PAGE + SVR, 4, 0x1FF)
    apic = shared(vm, 1)
    assert apic.read(PAGE + TPR, 4) == 0x20
    change(vm)
    check(vm, 1, apic)


def check(vm: X86Vm, vcpu: int, apic: Any, size: int = 4) -> int:
    """Check that the answers given here are the daemon's; returns their number."""
    base = vm.msr_read(vcpu, Msr.APIC_BASE) or 0
    answers = 0
    for page in {base & ~0xFFF, PAGE, ELSEWHERE}:
        for offset in (*COPIED, ISR, IRR, PPR, CURRENT, ID + 4, 0):
            for shift in range(4):
                here = apic.read(page + offset + shift, size)
                if here is not None:
                    answers += 1
                    assert here == vm.mmio_read(vcpu, page + offset + shift, size), hex(offset)
    for msr in (*range(Msr.X2APIC, Msr.X2APIC + 0x40), Msr.APIC_BASE, Msr.TSC, Msr.TSC_DEADLINE, Msr.TSC_ADJUST):
        here = apic.read_msr(msr)
        if here is not None:
            answers += 1
            daemon = vm.msr_read(vcpu, msr)
            assert here == daemon != FAULT, hex(msr)
    cr8 = apic.read_cr8()
    if cr8 is not None:
        answers += 1
        assert cr8 == vm.cr8_read(vcpu)
    return answers


vcpus = st.integers(0, VCPUS - 1)
words = st.one_of(
    st.sampled_from((0, 0xFF, 0x1FF, 0xFFFF_FFFF, 0x20050, 0x40031, 0x4500, 0xC4500, 0x44500, 0xC0500, 0x4607)),
    st.integers(0, 0xFFFF_FFFF),
)
bases = st.sampled_from(
    [page | bits for page in (PAGE, ELSEWHERE) for bits in (0, ENABLED, ENABLED | X2APIC, ENABLED | BOOT, 0x2FF)]
)
offsets = st.sampled_from([*COPIED, 0xB0, 0x3F0, ISR, 0x24])
operations = st.one_of(
    st.tuples(st.just("mmio_write"), vcpus, st.builds(int.__add__, st.just(PAGE), offsets), st.just(4), words),
    st.tuples(st.just("mmio_write"), vcpus, st.builds(int.__add__, st.just(PAGE), offsets), st.just(1), st.just(7)),
    st.tuples(st.just("msr_write"), vcpus, st.builds(lambda o: Msr.X2APIC + (o >> 4), offsets), words),
    st.tuples(st.just("msr_write"), vcpus, st.just(Msr.APIC_BASE), bases),
    st.tuples(st.just("base"), vcpus, bases),
    st.tuples(st.just("cr8_write"), vcpus, st.integers(0, 15)),
    st.tuples(st.just("set_lapic"), vcpus, st.binary(min_size=1024, max_size=1024)),
    st.tuples(st.just("set_lapic"), vcpus, st.builds(LapicRegisters, id=words, svr=words, tpr=words, lvt_timer=words)),
    st.tuples(st.just("set_cpuid"), vcpus, st.builds(Features, x2apic=st.booleans(), tsc_deadline=st.booleans())),
    st.tuples(st.just("signal_msi"), st.just(PAGE), words),
    st.tuples(st.just("ack_interrupt"), vcpus),
    st.tuples(st.just("take_signal"), vcpus),
    st.tuples(st.just("set_mp_state"), vcpus, st.integers(0, 4)),
    st.tuples(st.just("advance"), st.integers(0, 10_000_000)),
    st.tuples(st.just("nmi"), vcpus),
    st.tuples(st.just("irq_line"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("reset")),
    st.tuples(st.just("watch")),
)


@settings(max_examples=150)
@given(st.lists(operations, max_size=25), st.sampled_from((1, 2, 4)))
def test_after_any_operations_the_answer_is_the_daemons(script: list[tuple[Any, ...]], size: int) -> None:
    vm, observer = new_vm(VCPUS), Observer()
    observed = False
    apics = [shared(vm, vcpu) for vcpu in range(VCPUS)]
    for name, *arguments in script:
        with suppress(VmError):
            match name:
                case "base":
                    vm.msr_write(arguments[0], Msr.APIC_BASE, arguments[1], host=True)
                case "watch":
                    (vm.detach if observed else vm.attach)(observer)
                    observed = not observed
                case _:
                    getattr(vm, name)(*arguments)
        for vcpu, apic in enumerate(apics):
            answers = check(vm, vcpu, apic, size)
            base = vm.msr_read(vcpu, Msr.APIC_BASE) or 0
            in_memory = not observed and base & (ENABLED | X2APIC) == ENABLED
            assert bool(answers) is not observed
            assert answers >= len(READABLE) + 2 or not in_memory


def test_while_an_observer_is_attached_the_daemon_answers_every_read() -> None:
    vm, observer = new_vm(VCPUS), Observer()
    apic = shared(vm, 0)
    vm.attach(observer)
    assert apic.read(PAGE + ID, 4) is apic.read_msr(Msr.APIC_BASE) is apic.read_cr8() is None
    vm.mmio_write(0, PAGE + TPR, 4, 0x30)
    assert apic.read(PAGE + TPR, 4) is None
    vm.detach(observer)
    assert apic.read(PAGE + TPR, 4) == 0x30


def test_after_the_vm_nothing_is_answered_here() -> None:
    vm = new_vm(VCPUS)
    apic = shared(vm, 0)
    assert apic.read(PAGE + ID, 4) == 0
    vm.delete()
    assert apic.read(PAGE + ID, 4) is None


@needs_sources
def test_where_stores_are_not_seen_in_order_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irqchipd.edge.lapic_page.CAN_BE_SHARED", False)
    with pytest.raises(VmError, match="x86-64"):
        shared(new_vm(VCPUS), 0)
    monkeypatch.setattr("irqchip_client.vmm.local_apic.CAN_BE_SHARED", False)
    apic = shared(new_vm(VCPUS), 0)
    assert apic.read(PAGE + ID, 4) is apic.read_msr(Msr.APIC_BASE) is apic.read_cr8() is None


def test_a_local_apic_is_shared_once() -> None:
    vm = new_vm(VCPUS)
    apic = shared(vm, 0)
    with pytest.raises(VmError, match="shared already"):
        shared(vm, 0)
    assert apic.read(PAGE + ID, 4) == 0
