"""What an s390 VM's calls do, and in which order they may come. Source: kvm-s390.c, interrupt.c, Documentation."""

from __future__ import annotations

import errno

import pytest

from irqchipd.chips.s390.flic import Group
from irqchipd.chips.s390.irq import IRQ_SIZE, External, Io, Irq, Kind, MachineCheck, pack, unpack_all
from irqchipd.chips.s390.pending import CR0_EMERGENCY, CR0_INITIAL, CR14_INITIAL, PSW_EXTERNAL, PSW_IO, Masks
from irqchipd.vm.architectures import Gic, check_extension
from irqchipd.vm.events import InterruptPending
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.s390.capabilities import Cap
from irqchipd.vm.s390.machine import Reset, S390Vm
from irqchipd.vm.snapshot import S390
from irqchipd.vm.vcpu_state import MpState
from tests.vm.s390.machine import ALL, WOKEN, Machine, io, refused

RESTART, EMERGENCY = pack(Irq(Kind.RESTART)), pack(Irq(Kind.EMERGENCY, 0))
STOP = pack(Irq(Kind.SIGP_STOP, 0))


@pytest.fixture
def machine() -> Machine:
    return Machine()


# Creation.


def test_an_irqchip_needs_the_capability_and_may_be_made_again() -> None:
    # KVM_CREATE_IRQCHIP, KVM_CAP_S390_IRQCHIP.
    vm = S390Vm("s390")
    assert refused(vm.create_irqchip) == errno.EINVAL
    assert vm.describe().irqchip_mode == "none"
    vm.enable_cap(Cap.S390_IRQCHIP)
    vm.create_irqchip()
    vm.create_irqchip()
    assert (vm.describe().irqchip_mode, vm.routing()) == ("full", ())


def test_the_capabilities_that_can_be_enabled() -> None:
    vm = S390Vm("s390")
    assert refused(lambda: vm.enable_cap(121)) == errno.EINVAL  # KVM_CAP_SPLIT_IRQCHIP
    assert refused(lambda: vm.enable_cap(Cap.S390_IRQCHIP, flags=1)) == errno.EINVAL
    vm.enable_cap(Cap.S390_AIS)
    vm.create_vcpu(0)
    assert refused(lambda: vm.enable_cap(Cap.S390_AIS)) == errno.EBUSY
    vm.enable_cap(Cap.S390_IRQCHIP)


@pytest.mark.parametrize(
    ("capability", "value"),
    [
        (99, 1),
        (0, 0),
        (77, 0),
        (25, 4096),
        (32, 1),
        (82, 1),
        (113, 1),
        (114, 1),
        (141, 1),
        (150, 1),
        (26, 0),
        (66, 255),
    ],
)
def test_what_check_extension_answers(capability: int, value: int) -> None:
    # There are no KVM_CAP_IRQCHIP, KVM_CAP_SIGNAL_MSI and KVM_CAP_IRQ_INJECT_STATUS.
    assert check_extension(S390, Gic(), capability) == value
    assert S390Vm("s390").check_extension(capability) == value


def test_one_flic_is_made() -> None:
    vm = S390Vm("s390")
    assert refused(lambda: vm.create_device(5, 0)) == errno.ENODEV  # KVM_DEV_TYPE_ARM_VGIC_V2
    assert refused(lambda: vm.get_device_attr(0, None, Group.GET_ALL_IRQS, 4096, b"")) == errno.EBADF
    assert vm.create_device(6, 1) == 0  # KVM_CREATE_DEVICE_TEST
    assert vm.create_device(6, 0) == 0
    assert refused(lambda: vm.create_device(6, 0)) == errno.EINVAL
    vm.create_device(6, 1)
    assert vm.get_device_attr(0, None, Group.GET_ALL_IRQS, 4096, b"") == b""
    assert refused(lambda: vm.has_device_attr(0, None, 12, 0)) == errno.ENXIO
    assert refused(lambda: vm.set_device_attr(0, None, 12, 0, b"")) == errno.EINVAL
    assert refused(lambda: vm.has_device_attr(1, None, Group.AISM_ALL, 0)) == errno.EBADF
    assert refused(lambda: vm.has_device_attr(None, 0, Group.AISM_ALL, 0)) == errno.ENOENT
    vm.create_vcpu(0)
    assert refused(lambda: vm.has_device_attr(None, 0, Group.AISM_ALL, 0)) == errno.ENOTTY
    vm.has_device_attr(0, None, Group.AISM_ALL, 0)


@pytest.mark.parametrize(("vcpu", "number"), [(255, errno.EINVAL), (-1, errno.EINVAL), (3, errno.EEXIST)])
def test_the_vcpus_that_cannot_be_made(machine: Machine, vcpu: int, number: int) -> None:
    machine.vm.create_vcpu(3)
    assert refused(lambda: machine.vm.create_vcpu(vcpu)) == number


def test_calls_of_other_architectures_are_enotty(machine: Machine) -> None:
    assert refused(lambda: machine.vm.signal_msi(0xFEE0_0000, 0)) == errno.ENOTTY
    assert machine.vm.unsupported("msr_read").number == errno.ENOTTY


def test_only_adapters_are_routed_to(machine: Machine) -> None:
    for route in (PinRoute(0, 0, 0), MsiRoute(0, 0xFEE0_0000, 0)):
        assert refused(lambda route=route: machine.vm.set_routing([route])) == errno.EINVAL  # type: ignore[misc]
    assert machine.vm.irq_line(0, True) == -1


# Floating interrupts.


def test_a_floating_interrupt_wakes_the_vcpu_whose_masks_allow_it(machine: Machine) -> None:
    machine.add_vcpus(Masks(psw=PSW_IO, cr6=0x80 << 24), Masks(psw=PSW_IO, cr6=0x10 << 24))
    first, second = machine.halt(0), machine.halt(1)
    machine.enqueue(io(3))
    assert (first, second) == ([], [WOKEN])
    assert machine.vm.take_irq(1) == io(3)
    assert machine.vm.take_irq(1) is None


def test_one_interrupt_wakes_one_vcpu(machine: Machine) -> None:
    machine.add_vcpus(ALL, ALL, ALL)
    halts = [machine.halt(vcpu) for vcpu in range(3)]
    machine.enqueue(io(3))
    assert halts == [[WOKEN], [], []]
    machine.enqueue(io(3, 2), io(0, 3))
    assert halts == [[WOKEN], [WOKEN], [WOKEN]]
    assert [machine.vm.take_irq(vcpu) for vcpu in range(3)] == [io(3), io(0, 3), io(3, 2)]


def test_a_running_vcpu_takes_by_priority(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.enqueue(io(7, 1), io(2, 2), Irq(Kind.VIRTIO, External(1)))
    taken = [machine.vm.take_irq(0) for _ in range(4)]
    assert taken == [Irq(Kind.VIRTIO, External(1)), io(2, 2), io(7, 1), None]


def test_masks_that_open_end_a_halt(machine: Machine) -> None:
    machine.add_vcpus(Masks(psw=PSW_IO))
    machine.enqueue(io(3))
    ended = machine.halt(0)
    assert ended == []
    machine.vm.set_masks(0, ALL)
    assert ended == [WOKEN]


def test_what_a_halt_took_is_not_given_to_another(machine: Machine) -> None:
    machine.add_vcpus(ALL, ALL)
    machine.enqueue(io(3))
    assert machine.halt(0) == [WOKEN]
    assert machine.pending() == b""
    assert machine.vm.take_irq(1) is None
    assert machine.vm.take_irq(0) == io(3)


def test_a_cleared_interrupt_wakes_nobody(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.enqueue(io(3))
    machine.set_attr(Group.CLEAR_IRQS, 0, b"")
    assert machine.halt(0) == []


def test_listeners_hear_of_each_new_interrupt(machine: Machine) -> None:
    machine.add_vcpus(ALL, ALL)
    heard: list[object] = []
    machine.vm.subscribe([0, 1], heard.append)
    machine.enqueue(io(3))
    assert heard == [InterruptPending(0), InterruptPending(1)]
    assert machine.vm.take_irq(1) == io(3)
    machine.enqueue(io(3))
    assert len(heard) == 4


def test_a_vms_interrupt_by_two_parameters(machine: Machine) -> None:
    # KVM_S390_INTERRUPT on a VM.
    machine.vm.s390_interrupt(0, 0x0001_0005, 0x7_9800_0000)
    (irq,) = unpack_all(machine.pending())
    assert irq == Irq(0, Io(1, 5, 7, 0x9800_0000))
    assert refused(lambda: machine.vm.s390_interrupt(Kind.RESTART, 0, 0)) == errno.EINVAL
    machine.vm.s390_interrupt(Kind.MACHINE_CHECK, 1 << 28, 5)
    assert unpack_all(machine.pending())[1] == Irq(Kind.MACHINE_CHECK, MachineCheck(1 << 28, 5))


def test_more_interrupts_than_a_message_has_are_not_read(machine: Machine) -> None:
    most = (1 << 20) // IRQ_SIZE
    machine.enqueue(*[io(3)] * most)
    assert len(machine.pending()) == most * IRQ_SIZE
    machine.enqueue(io(3))
    assert refused(lambda: machine.vm.get_device_attr(0, None, Group.GET_ALL_IRQS, 1 << 25, b"")) == errno.E2BIG
    assert refused(lambda: machine.vm.get_device_attr(0, None, Group.GET_ALL_IRQS, 72, b"")) == errno.ENOMEM


# A vCPU's own interrupts.


def test_a_vcpus_interrupt_ends_its_halt_alone(machine: Machine) -> None:
    machine.add_vcpus(ALL, ALL)
    first, second = machine.halt(0), machine.halt(1)
    machine.vm.s390_irq(1, EMERGENCY)
    assert (first, second) == ([], [WOKEN])
    assert machine.vm.take_irq(1) == Irq(Kind.EMERGENCY, 0)


def test_a_vcpus_interrupt_by_two_parameters(machine: Machine) -> None:
    machine.add_vcpus(Masks(psw=PSW_EXTERNAL, cr0=CR0_EMERGENCY))
    machine.vm.s390_interrupt(Kind.EMERGENCY, 0, 0, vcpu=0)
    assert machine.vm.take_irq(0) == Irq(Kind.EMERGENCY, 0)
    assert refused(lambda: machine.vm.s390_interrupt(Kind.EMERGENCY, 7, 0, vcpu=0)) == errno.EINVAL
    assert refused(lambda: machine.vm.s390_interrupt(Kind.SERVICE, 0, 0, vcpu=0)) == errno.EINVAL
    assert refused(lambda: machine.vm.s390_interrupt(Kind.EMERGENCY, 0, 0, vcpu=7)) == errno.ENOENT


@pytest.mark.parametrize("irq", [b"", EMERGENCY[:71], EMERGENCY + b"\0", b"\xff" * IRQ_SIZE, pack(io(3))])
def test_a_wrong_interrupt_is_refused(machine: Machine, irq: bytes) -> None:
    machine.add_vcpus(ALL)
    assert refused(lambda: machine.vm.s390_irq(0, irq)) == errno.EINVAL
    assert machine.vm.get_irq_state(0, 4096) == b""


def test_the_irq_state_is_read_and_written(machine: Machine) -> None:
    machine.add_vcpus(ALL, ALL)
    machine.vm.s390_irq(0, EMERGENCY)
    machine.vm.s390_irq(0, RESTART)
    state = machine.vm.get_irq_state(0, 4096)
    assert state == RESTART + EMERGENCY
    machine.vm.set_irq_state(1, state)
    assert machine.vm.get_irq_state(1, 4096) == state
    assert refused(lambda: machine.vm.set_irq_state(1, state)) == errno.EBUSY
    assert refused(lambda: machine.vm.get_irq_state(0, IRQ_SIZE)) == errno.ENOBUFS


@pytest.mark.parametrize("kind", [Reset.NORMAL, Reset.INITIAL, Reset.CLEAR])
def test_a_reset_clears_a_vcpus_interrupts(machine: Machine, kind: int) -> None:
    # Selftest resets.c: CR0 is E0h and CR14 C2000000h after an initial reset, and the masks stay at a normal one.
    machine.add_vcpus(ALL)
    machine.vm.set_irq_state(0, EMERGENCY)
    machine.vm.reset_vcpu(0, kind)
    assert machine.vm.get_irq_state(0, 4096) == b""
    initial = Masks(0, CR0_INITIAL, 0, CR14_INITIAL)
    assert (CR0_INITIAL, CR14_INITIAL) == (0xE0, 0xC200_0000)
    assert machine.vm.get_masks(0) == (ALL if kind == Reset.NORMAL else initial)


def test_the_resets_that_there_are_not(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    for kind in (0, 4):
        assert refused(lambda kind=kind: machine.vm.reset_vcpu(0, kind)) == errno.EINVAL  # type: ignore[misc]


# Run states.


def test_a_vcpu_runs_by_itself_until_run_states_are_controlled(machine: Machine) -> None:
    # KVM: kvm_arch_vcpu_ioctl_run, user_cpu_state_ctrl.
    machine.add_vcpus(ALL, ALL)
    machine.vm.s390_irq(0, RESTART)
    assert machine.vm.take_irq(0) == Irq(Kind.RESTART)
    assert machine.vm.get_mp_state(0) is MpState.OPERATING
    assert machine.vm.get_mp_state(1) is MpState.STOPPED
    assert refused(lambda: machine.vm.take_irq(1)) == errno.EINVAL
    assert refused(lambda: machine.halt(1)) == errno.EINVAL
    machine.vm.set_mp_state(1, MpState.OPERATING)
    assert machine.vm.take_irq(1) is None


@pytest.mark.parametrize("state", [0, 1, 3, 6, 8, 9, 100])
def test_the_run_states_that_kvm_does_not_support(machine: Machine, state: int) -> None:
    machine.add_vcpus(ALL)
    assert refused(lambda: machine.vm.set_mp_state(0, state)) == errno.ENXIO


def test_a_stop_stops(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.vm.take_irq(0)
    ended = machine.halt(0)
    machine.vm.s390_irq(0, STOP)
    assert ended == [WOKEN]
    assert machine.vm.take_irq(0) == Irq(Kind.SIGP_STOP, 0)
    assert machine.vm.get_mp_state(0) is MpState.STOPPED


def test_a_controlled_stop_pends_until_the_run_state_is_set(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.vm.set_mp_state(0, MpState.OPERATING)
    machine.vm.s390_irq(0, STOP)
    assert [machine.vm.take_irq(0), machine.vm.take_irq(0)] == [Irq(Kind.SIGP_STOP, 0)] * 2
    assert refused(lambda: machine.vm.s390_irq(0, STOP)) == errno.EBUSY
    machine.vm.set_mp_state(0, MpState.STOPPED)
    assert machine.vm.get_irq_state(0, 4096) == b""


def test_a_prefix_is_for_a_stopped_vcpu(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.vm.s390_irq(0, pack(Irq(Kind.SET_PREFIX, 0x4000)))
    assert machine.vm.take_irq(0) == Irq(Kind.SET_PREFIX, 0x4000)
    assert refused(lambda: machine.vm.s390_irq(0, pack(Irq(Kind.SET_PREFIX, 0x4000)))) == errno.EBUSY


def test_a_disabled_wait_is_refused(machine: Machine) -> None:
    # KVM: kvm_s390_handle_wait, -EOPNOTSUPP.
    machine.add_vcpus(Masks())
    assert refused(lambda: machine.halt(0)) == errno.EOPNOTSUPP
    machine.vm.s390_irq(0, RESTART)
    assert machine.halt(0) == [WOKEN]


def test_masks_have_64_bits(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    assert refused(lambda: machine.vm.set_masks(0, Masks(psw=1 << 64))) == errno.EINVAL
    assert machine.vm.get_masks(0) == ALL


def test_a_halt_that_is_given_up_keeps_what_it_took(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.enqueue(io(3))
    halt = machine.vm.halt(0, print)
    assert not machine.vm.abandon(halt)
    assert machine.vm.take_irq(0) == io(3)


def test_reset_makes_all_as_new(machine: Machine) -> None:
    machine.add_vcpus(ALL)
    machine.register()
    machine.enqueue(io(3))
    machine.halt(0)
    machine.enqueue(io(3))
    machine.vm.s390_irq(0, EMERGENCY)
    machine.vm.reset()
    assert machine.pending() == b""
    assert machine.vm.get_masks(0) == Masks()
    assert machine.vm.take_irq(0) is None
    machine.set_attr(Group.AIRQ_INJECT, 1, b"")
    assert len(machine.pending()) == IRQ_SIZE
