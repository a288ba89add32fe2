"""irqfds: eventfds, sent to the daemon over its AF_UNIX port, whose writes interrupt. KVM: virt/kvm/eventfd.c."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

import irqchip_client as irqchip
from irqchip_client import Busy, InvalidArgument, NotReady, Session, Vm
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE, eventually

LAPIC = 0xFEE0_0000
GSI, VECTOR = 20, 0x51
LEVEL = 1 << 15


@pytest.fixture
def vm(irqchip_client: irqchip.Client) -> Vm:
    """A VM whose IOAPIC sends GSI 20 to vCPU 0, edge-triggered."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    redirect(vm, VECTOR)
    return vm


def redirect(vm: Vm, entry: int) -> None:
    for register, value in ((0x10 + 2 * GSI + 1, 0), (0x10 + 2 * GSI, entry)):
        vm.vcpu(0).mmio_write(0xFEC0_0000, register)
        vm.vcpu(0).mmio_write(0xFEC0_0010, value)


@pytest.fixture
def session(vm: Vm) -> Iterator[Session]:
    with vm.session("device") as session:
        yield session


@pytest.fixture
def eventfd() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def taken(vm: Vm) -> int | None:
    """The vector that the vCPU takes; it ends the interrupt."""
    interrupt = vm.vcpu(0).acknowledge()
    if interrupt is None:
        return None
    vm.vcpu(0).mmio_write(LAPIC + 0xB0, 0)
    return interrupt.vector


def drained(eventfd: int) -> bool:
    return not select.select((eventfd,), (), (), 0)[0]


def never(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        assert not condition()


def test_a_write_is_an_edge_whatever_its_value(vm: Vm, session: Session, eventfd: int) -> None:
    session.assign_irqfd(eventfd, GSI)
    os.eventfd_write(eventfd, 3)
    eventually(lambda: taken(vm) == VECTOR)
    assert drained(eventfd)
    never(lambda: taken(vm))
    assert vm.info().sessions[0].asserted_gsis == ()


def test_every_write_wakes_a_vcpu_that_halts(vm: Vm, session: Session) -> None:
    with session.irqfd(GSI) as irqfd, vm.session("vcpu") as vcpu:
        for _ in range(200):
            halting = vcpu.submit([irqchip.ops.halt(0, timeout=PATIENCE)])
            irqfd.trigger()
            assert halting.result(PATIENCE)[0].vector == VECTOR
            vcpu.vcpu(0).mmio_write(LAPIC + 0xB0, 0)


def test_an_earlier_write_interrupts_and_is_not_drained(vm: Vm, session: Session, eventfd: int) -> None:
    """KVM does not drain a counter that is set at assignment; the next write drains all of it."""
    os.eventfd_write(eventfd, 7)
    session.assign_irqfd(eventfd, GSI)
    assert taken(vm) == VECTOR
    never(lambda: taken(vm))
    assert os.eventfd_read(eventfd) == 7
    os.eventfd_write(eventfd, 1)
    eventually(lambda: taken(vm) == VECTOR)
    assert drained(eventfd)


def test_a_write_after_an_earlier_one_drains_both(vm: Vm, session: Session, eventfd: int) -> None:
    os.eventfd_write(eventfd, 7)
    session.assign_irqfd(eventfd, GSI)
    assert taken(vm) == VECTOR
    os.eventfd_write(eventfd, 1)
    eventually(lambda: taken(vm) == VECTOR)
    assert drained(eventfd)


def test_an_eventfd_is_an_irqfd_once_over_all_gsis_and_vms(
    irqchip_client: irqchip.Client, session: Session, eventfd: int
) -> None:
    session.assign_irqfd(eventfd, GSI)
    other = irqchip_client.create_vm()
    other.create_irqchip()
    copy = os.dup(eventfd)
    with other.session() as elsewhere:
        for where, gsi in ((session, GSI), (session, GSI + 1), (elsewhere, 3)):
            with pytest.raises(Busy, match="irqfd already"):
                where.assign_irqfd(copy, gsi)
        session.deassign_irqfd(copy, GSI)
        elsewhere.assign_irqfd(copy, 3)
    os.close(copy)
    other.delete()


def test_several_eventfds_interrupt_one_gsi(vm: Vm, session: Session) -> None:
    with session.irqfd(GSI) as first, session.irqfd(GSI) as second:
        for irqfd in (first, second):
            irqfd.trigger()
            eventually(lambda: taken(vm) == VECTOR)


def test_deassigning_ends_an_irqfd_and_never_fails(vm: Vm, session: Session, eventfd: int) -> None:
    session.deassign_irqfd(eventfd, GSI)
    session.assign_irqfd(eventfd, GSI)
    session.deassign_irqfd(eventfd, GSI + 1)
    os.eventfd_write(eventfd, 1)
    eventually(lambda: taken(vm) == VECTOR)
    session.deassign_irqfd(eventfd, GSI)
    os.eventfd_write(eventfd, 1)
    never(lambda: taken(vm))
    assert os.eventfd_read(eventfd) == 1


def test_a_gsi_that_leads_nowhere_is_allowed(session: Session, eventfd: int) -> None:
    session.assign_irqfd(eventfd, 4096)
    os.eventfd_write(eventfd, 1)
    eventually(lambda: drained(eventfd))


def test_it_ends_with_its_session(vm: Vm, eventfd: int) -> None:
    with vm.session() as session:
        session.assign_irqfd(eventfd, GSI)
    os.eventfd_write(eventfd, 1)
    never(lambda: taken(vm))
    with vm.session() as session:
        session.assign_irqfd(eventfd, GSI)
        assert taken(vm) == VECTOR


def test_a_resampled_line_is_held_until_its_acknowledgement_notifies_all(vm: Vm, session: Session) -> None:
    redirect(vm, LEVEL | VECTOR)
    with session.irqfd(GSI, resample=True) as first, session.irqfd(GSI, resample=True) as second:
        first.trigger()
        eventually(lambda: taken(vm) == VECTOR)
        assert first.wait_resampled(PATIENCE)
        assert second.wait_resampled(PATIENCE)
        never(lambda: taken(vm))
        assert not first.wait_resampled(0)
        second.trigger()
        eventually(lambda: taken(vm) == VECTOR)
        second.trigger()
    never(lambda: taken(vm) and taken(vm))


def test_a_plain_irqfd_on_a_level_pin_is_a_pulse(vm: Vm, session: Session) -> None:
    redirect(vm, LEVEL | VECTOR)
    with session.irqfd(GSI) as irqfd:
        irqfd.trigger()
        eventually(lambda: taken(vm) == VECTOR)
        never(lambda: taken(vm))


def test_a_full_resamplefd_does_not_block(vm: Vm, session: Session) -> None:
    with session.irqfd(GSI, resample=True) as irqfd:
        assert irqfd.resamplefd is not None
        os.eventfd_write(irqfd.resamplefd, (1 << 64) - 2)
        irqfd.trigger()
        eventually(lambda: taken(vm) == VECTOR)
        assert session.vcpu(0).pio_read(0x21).claimed


def test_invalid_irqfds_are_refused(irqchip_client: irqchip.Client, session: Session, eventfd: int) -> None:
    reader, writer = os.pipe()
    with pytest.raises(InvalidArgument, match="not an eventfd"):
        session.assign_irqfd(reader, GSI)
    with pytest.raises(InvalidArgument, match="not an eventfd"):
        session.assign_irqfd(eventfd, GSI, reader)
    with pytest.raises(InvalidArgument) as bad:
        session.assign_irqfd(-1, GSI)
    assert bad.value.errno == errno.EBADF
    os.close(reader)
    os.close(writer)
    without = irqchip_client.create_vm()
    with without.session() as bare, pytest.raises(NotReady) as early:
        bare.assign_irqfd(eventfd, GSI)
    assert early.value.errno == errno.EAGAIN
    without.delete()
    session.assign_irqfd(eventfd, GSI)  # the refused attempts left nothing behind


def test_a_split_irqchip_resamples_nothing(irqchip_client: irqchip.Client, eventfd: int) -> None:
    split = irqchip_client.create_vm()
    split.enable_split_irqchip(24)
    with split.session() as session:
        with pytest.raises(InvalidArgument, match="resampled"):
            session.irqfd(GSI, resample=True)
        session.assign_irqfd(eventfd, GSI)
    split.delete()


def test_grpc_carries_no_irqfds(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with vm.session() as session, pytest.raises(irqchip.IrqchipError) as refused:
        session.irqfd(GSI)
    assert refused.value.errno == errno.EOPNOTSUPP


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_the_limit_holds_and_no_descriptor_is_left() -> None:
    with start_daemon(arguments=["--max-irqfds", "3"]) as daemon, daemon.connect() as client:
        vm = client.create_vm()
        vm.create_irqchip()
        with vm.session() as session:
            session.vcpu(0)
        before = descriptors(daemon)
        for _ in range(3):
            with vm.session() as session:
                made = [session.irqfd(gsi, resample=True) for gsi in range(3)]
                with pytest.raises(irqchip.LimitReached, match="3 eventfds"):
                    session.irqfd(4, resample=True)
                with pytest.raises(InvalidArgument):
                    session.assign_irqfd(0, 4)
                made[0].close()
                session.irqfd(4)
        eventually(lambda: descriptors(daemon) <= before)
