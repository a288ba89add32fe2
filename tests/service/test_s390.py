"""An s390 VM in a daemon: by unary calls, in Sessions over the port, and as a snapshot."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import (
    AdapterRoute,
    AlreadyExists,
    Architecture,
    Busy,
    InterruptMasks,
    InterruptSource,
    InvalidArgument,
    IrqchipError,
    MpState,
    MsiRoute,
    RegionAccess,
    S390Irq,
    S390IrqType,
    Space,
    VcpuReset,
    Vm,
)
from irqchip_client.s390 import KVM_CAP_S390_IRQCHIP, FlicGroup, adapter_registration, irqs_of
from tests.waiting import PATIENCE

PAGE = 4096
ROUTE = AdapterRoute(5, 0x1000, 0x2000, 3, 1, 1)
EMERGENCY = S390Irq.make(S390IrqType.EMERGENCY, code=0)


@pytest.fixture
def vm(irqchip_client: irqchip.Client) -> Vm:
    """A VM with a FLIC, adapter 1 of subclass 3, and a vCPU that takes everything."""
    vm = irqchip_client.create_vm(architecture=Architecture.S390, virtual_clock=True)
    vm.enable_cap(KVM_CAP_S390_IRQCHIP)
    vm.create_irqchip()
    flic = vm.create_device(irqchip.DeviceType.FLIC)
    flic.set(FlicGroup.ADAPTER_REGISTER, 0, adapter_registration(1, 3, swap=True))
    vm.create_vcpu(0).set_interrupt_masks(InterruptMasks.all())
    return vm


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 4 * PAGE)
    yield descriptor
    os.close(descriptor)


def reason(error: pytest.ExceptionInfo[IrqchipError]) -> str:
    return error.value.reason


def test_an_irqchip_needs_the_capability(irqchip_client: irqchip.Client) -> None:
    vm = irqchip_client.create_vm(architecture=Architecture.S390)
    with pytest.raises(InvalidArgument, match="KVM_CAP_S390_IRQCHIP"):
        vm.create_irqchip()
    vm.enable_cap(KVM_CAP_S390_IRQCHIP)
    vm.create_irqchip()
    vm.create_irqchip()
    assert vm.routing() == []
    assert vm.info().architecture is Architecture.S390


def test_operations_of_x86_are_refused(vm: Vm) -> None:
    calls: list[Callable[[], object]] = [
        lambda: vm.vcpu(0).msr_read(0x1B),
        lambda: vm.create_pit(),
        lambda: vm.signal_msi(0xFEE00000, 1),
    ]
    for call in calls:
        with pytest.raises(IrqchipError) as error:
            call()
        assert reason(error) == "ENOTTY"
    with pytest.raises(InvalidArgument, match="no MSIs"):
        vm.set_routing([MsiRoute(5, 0xFEE00000, 1)])


def test_operations_of_s390_are_refused_elsewhere(irqchip_client: irqchip.Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    calls: list[Callable[[], object]] = [
        lambda: vm.vcpu(0).take_irq(),
        lambda: vm.s390_interrupt(S390IrqType.SERVICE, 1),
    ]
    for call in calls:
        with pytest.raises(IrqchipError) as error:
            call()
        assert reason(error) == "ENOTTY"
    with vm.session("memory") as session, pytest.raises(InvalidArgument, match="share it as a memfd"):
        session.register_region(Space.MEMORY, 0, PAGE)
    with pytest.raises(InvalidArgument, match="s390 adapter"):
        vm.set_routing([ROUTE])


def test_a_halt_ends_and_take_irq_says_with_what(vm: Vm) -> None:
    with vm.session("vcpu 0", vcpus=[0]) as session:
        ended: list[object] = []
        waiting = threading.Thread(target=lambda: ended.append(session.vcpu(0).halt(timeout=PATIENCE)))
        waiting.start()
        vm.s390_interrupt(S390IrqType.SERVICE, 0x1000)
        waiting.join()
        assert ended == [irqchip.Interrupt(0, InterruptSource.FLIC)]
        assert session.vcpu(0).take_irq() == S390Irq.make(S390IrqType.SERVICE, ext_params=0x1000)
        assert session.vcpu(0).take_irq() is None


def test_a_disabled_wait_is_refused(vm: Vm) -> None:
    vm.vcpu(0).reset(VcpuReset.CLEAR)
    assert vm.vcpu(0).interrupt_masks() == InterruptMasks()
    with pytest.raises(IrqchipError, match="disabled wait") as error:
        vm.vcpu(0).halt(timeout=1)
    assert reason(error) == "EOPNOTSUPP"


def test_a_vcpus_own_interrupts(vm: Vm) -> None:
    vcpu = vm.vcpu(0)
    vcpu.s390_irq(EMERGENCY)
    assert vcpu.irq_state() == [EMERGENCY]
    with pytest.raises(Busy):
        vcpu.set_irq_state([EMERGENCY])
    assert vcpu.take_irq() == EMERGENCY
    vcpu.set_irq_state([EMERGENCY, S390Irq.make(S390IrqType.RESTART)])
    vcpu.reset(VcpuReset.NORMAL)
    assert vcpu.irq_state() == []
    with pytest.raises(InvalidArgument, match="72"):
        vcpu.s390_irq(b"short")


def test_run_states(vm: Vm) -> None:
    vcpu = vm.vcpu(0)
    assert vcpu.mp_state() is MpState.STOPPED
    vcpu.set_mp_state(MpState.OPERATING)
    for state in (MpState.RUNNABLE, MpState.CHECK_STOP, MpState.LOAD):
        with pytest.raises(IrqchipError) as error:
            vcpu.set_mp_state(state)
        assert reason(error) == "ENXIO"
    assert vcpu.mp_state() is MpState.OPERATING


def test_the_device_is_read_and_written(vm: Vm) -> None:
    flic = vm.device(0)
    flic.set(FlicGroup.ENQUEUE, 72, S390Irq.adapter(3).kvm_struct)
    assert irqs_of(flic.get_bytes(FlicGroup.GET_ALL_IRQS, 4096, b"")) == [S390Irq.adapter(3)]
    for call, expected in (
        (lambda: flic.set(12, 0, b""), "EINVAL"),
        (lambda: flic.get_bytes(2, 0, b""), "EINVAL"),
        (lambda: flic.get_bytes(FlicGroup.GET_ALL_IRQS, 1, b""), "ENOMEM"),
        (lambda: flic.set(FlicGroup.ADAPTER_REGISTER, 0, b""), "EFAULT"),
        (lambda: flic.get_bytes(FlicGroup.AISM_ALL, 2, b""), "EOPNOTSUPP"),
        (lambda: vm.create_device(irqchip.DeviceType.FLIC), "EINVAL"),
        (lambda: vm.create_device(irqchip.DeviceType.ARM_VGIC_V2), "ENODEV"),
    ):
        with pytest.raises(IrqchipError) as error:
            call()
        assert reason(error) == expected
    assert (flic.has(FlicGroup.AISM, 0), flic.has(12, 0)) == (True, False)
    flic.set(FlicGroup.CLEAR_IRQS, 0, b"")
    assert flic.get_bytes(FlicGroup.GET_ALL_IRQS, 4096, b"") == b""


# Guest memory. Only the port carries a memfd, and only a daemon of its own has a port.


@pytest.mark.only_daemon
def test_a_shared_memfd_gets_the_indicators(vm: Vm, memfd: int) -> None:
    with vm.session("vmm") as session:
        with pytest.raises(IrqchipError) as error:
            session.set_routing([ROUTE])
        assert reason(error) == "EFAULT"
        session.share_memory(memfd, 0, 4 * PAGE)
        session.set_routing([ROUTE])
        with session.irqfd(5) as irqfd:
            assert session.line(5).pulse() == 1
            assert (os.pread(memfd, 1, 0x1000), os.pread(memfd, 1, 0x2000)) == (b"\x10", b"\x40")
            assert session.vcpu(0).take_irq() == S390Irq.adapter(3)
            assert session.line(5).pulse() == 0
            os.pwrite(memfd, b"\0", 0x2000)
            irqfd.trigger()
            assert session.vcpu(0).halt(timeout=PATIENCE).source is InterruptSource.FLIC  # type: ignore[union-attr]
            assert session.vcpu(0).take_irq() == S390Irq.adapter(3)
        with pytest.raises(AlreadyExists):
            session.share_memory(memfd, PAGE, PAGE)
        session.unregister_region(Space.MEMORY, 0)
        assert session.line(5).pulse() == -1


@pytest.mark.only_daemon
def test_the_memory_that_the_daemon_maps_is_limited(vm: Vm, memfd: int) -> None:
    """A sparse memfd costs nothing, and the daemon's address space has an end."""
    os.ftruncate(memfd, 1 << 43)
    with vm.session("vmm") as session:
        for part in range(2):
            session.share_memory(memfd, part << 43, 1 << 43)
        with pytest.raises(irqchip.LimitReached, match="bytes of memory"):
            session.share_memory(memfd, 2 << 43, 1 << 43)
        session.unregister_region(Space.MEMORY, 0)
        session.share_memory(memfd, 2 << 43, 1 << 43)


@pytest.mark.only_daemon
def test_memory_that_cannot_be_shared(vm: Vm, memfd: int) -> None:
    eventfd = os.eventfd(0)
    with vm.session("vmm") as session:
        calls: list[Callable[[], object]] = [
            lambda: session.share_memory(memfd, 0, 5 * PAGE),
            lambda: session.share_memory(memfd, 0, PAGE, offset=1),
            lambda: session.share_memory(eventfd, 0, PAGE),
        ]
        for call in calls:
            with pytest.raises(InvalidArgument):
                call()
        session.share_memory(memfd, 0, 4 * PAGE)  # nothing is left of what was refused
    os.close(eventfd)


@pytest.mark.only_daemon
def test_the_memory_of_a_session_that_ends_is_gone(vm: Vm, memfd: int) -> None:
    with vm.session("vmm") as session:
        session.share_memory(memfd, 0, 4 * PAGE)
        vm.set_routing([ROUTE])
    assert vm.line(5).raise_() == -1
    assert os.pread(memfd, 4 * PAGE, 0) == bytes(4 * PAGE)


def test_a_session_answers_for_memory(vm: Vm) -> None:
    memory = bytearray(4 * PAGE)
    with vm.session("memory") as owner:
        owner.register_region(Space.MEMORY, 0, len(memory))
        vm.set_routing([ROUTE])
        assert vm.line(5).raise_() == 1
        for address, bit in ((0x1000, 0x10), (0x2000, 0x40)):
            event = owner.next_event(PATIENCE)
            assert isinstance(event, RegionAccess)
            assert (event.space, event.address, event.data) == (Space.MEMORY, address, bit)
            assert vm.vcpu(0).take_irq() is None
            assert owner.complete_access(event.access, memory[event.address])
        assert vm.vcpu(0).take_irq() == S390Irq.adapter(3)


# Snapshots.


def test_a_vm_moves(irqchip_client: irqchip.Client, vm: Vm) -> None:
    with vm.session("memory") as owner:
        owner.register_region(Space.MEMORY, 0, 4 * PAGE)
        vm.set_routing([ROUTE])
    vm.s390_interrupt(S390IrqType.VIRTIO, 1, 2)
    vm.vcpu(0).s390_irq(EMERGENCY)
    snapshot = vm.snapshot()
    copy = irqchip_client.restore_vm(snapshot)
    assert copy.snapshot().to_bytes() == snapshot.to_bytes()
    assert copy.routing() == [ROUTE]
    assert copy.vcpu(0).take_irq() == EMERGENCY
    assert copy.vcpu(0).take_irq() == S390Irq.make(S390IrqType.VIRTIO, ext_params=1, ext_params2=2)
    assert copy.device(0).get_bytes(FlicGroup.GET_ALL_IRQS, 4096, b"") == b""


# docs/s390.md.

DOC = (Path(__file__).parents[2] / "docs" / "s390.md").read_text()


@pytest.mark.only_daemon
def test_the_examples_of_the_page_run(
    irqchip_client: irqchip.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IRQCHIP_TARGET", irqchip_client.target)
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet, names)
    assert capsys.readouterr().out == "adapter, ISC 3, io_int_word 0x98000000\n"
    assert os.pread(names["ram"], 1, 0x1000) == b"\x10"
    os.close(names["ram"])
    names["vmm"].close()
    names["client"].close()


def test_the_page_has_the_order_in_which_interrupts_are_taken() -> None:
    order = re.findall(r"The order of several interrupts is: (.*?) A stop", DOC, re.DOTALL)[0]
    words = ["exigent", "program", "repressible", "emergency", "external call", "clock comparator", "CPU timer"]
    words += ["service", "start of a page fault", "its end", "virtio", "I/O", "restart"]
    places = [order.index(word) for word in words]
    assert places == sorted(places)
