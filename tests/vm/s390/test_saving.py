"""A restored s390 VM equals the saved one, and no other state is taken."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from irqchipd.chips.s390.floating import SavedFloating
from irqchipd.chips.s390.irq import External, Irq, Kind, pack
from irqchipd.chips.s390.local import SavedLocal
from irqchipd.chips.s390.pending import PSW_IO, Masks
from irqchipd.vm.routing import PinRoute
from irqchipd.vm.s390.cpu import SavedS390Vcpu
from irqchipd.vm.s390.machine import S390Vm
from irqchipd.vm.snapshot import VmState
from irqchipd.vm.vcpu_state import MpState
from tests.vm.s390.machine import ALL, ROUTE, WOKEN, Machine, io, refused


def saved() -> VmState:
    machine = Machine(ais=True)
    machine.register()
    machine.share()
    machine.vm.set_routing([ROUTE])
    machine.add_vcpus(ALL, Masks(psw=PSW_IO, cr6=0x10 << 24))
    machine.enqueue(io(3))
    assert machine.halt(0) == [WOKEN]
    machine.enqueue(io(3, 2), io(0, 3), Irq(Kind.SERVICE, External(0x1001)))
    machine.vm.s390_irq(1, pack(Irq(Kind.EMERGENCY, 0)))
    machine.vm.set_mp_state(1, MpState.OPERATING)
    return machine.vm.save()


def restored(state: VmState) -> S390Vm:
    return S390Vm.restored("restored", 255, state)


def test_a_restored_vm_saves_the_same() -> None:
    state = saved()
    vm = restored(state)
    assert vm.save() == state
    assert [vm.take_irq(0) for _ in range(3)] == [
        io(3),
        Irq(Kind.SERVICE, External(3)),
        Irq(Kind.SERVICE, External(0x1000)),
    ]
    assert vm.take_irq(1) == io(3, 2)
    assert len(vm.get_irq_state(1, 4096)) == 72
    assert vm.routing() == (ROUTE,)


def of_s390(**changes: Any) -> VmState:
    state = saved()
    assert state.s390 is not None
    return replace(state, s390=replace(state.s390, **changes))


VCPU = SavedS390Vcpu(vcpu=0, local=SavedLocal())
WRONG = [
    {"can_create_irqchip": False},
    {"vcpus": (VCPU, VCPU)},
    {"vcpus": (replace(VCPU, vcpu=255),)},
    {"vcpus": (replace(VCPU, psw_mask=1 << 64),)},
    {"vcpus": (replace(VCPU, accepted=(pack(Irq(Kind.SIGP_STOP, 0)),)),)},
    {"vcpus": (replace(VCPU, accepted=(b"\xff" * 72,)),)},
    {"vcpus": (replace(VCPU, accepted=(b"",)),)},
    {"vcpus": (replace(VCPU, accepted=(pack(io(1)),) * 2),)},
    {"vcpus": (replace(VCPU, local=SavedLocal(pending=1 << 40)),)},
]


@pytest.mark.parametrize("changes", WRONG)
def test_what_no_vm_can_be_is_refused(changes: dict[str, Any]) -> None:
    state = of_s390(**changes)
    assert refused(lambda: restored(state)) == errno.EINVAL


def test_other_states_that_no_vm_can_be() -> None:
    state = saved()
    assert state.s390 is not None
    floating = SavedFloating(interrupts=(b"\0" * 19,))
    for wrong in (
        replace(state, s390=None),
        replace(state, routing=(PinRoute(0, 0, 0),)),
        replace(state, routing=(ROUTE, ROUTE)),
        replace(state, routing=(replace(ROUTE, flags=1),)),
        replace(state, routing=(replace(ROUTE, indicator_offset=4096 * 8),)),
        replace(state, s390=replace(state.s390, flic=replace(state.s390.flic, floating=floating))),
    ):
        assert refused(lambda wrong=wrong: restored(wrong)) == errno.EINVAL  # type: ignore[misc]
