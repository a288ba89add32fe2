"""A local APIC's registers in memory that a client shares, over a daemon's port: in order with all operations."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

import irqchip_client as irqchip
from irqchip.lapic_page import PAGE_SIZE
from irqchip_client import Busy, InvalidArgument, LimitReached, NotFound, NotReady, Session, Vm
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client.vmm.local_apic import LocalApic, share_local_apic
from tests.waiting import eventually

PAGE = 0xFEE0_0000
ID, TPR = PAGE + 0x20, PAGE + 0x80
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.fixture
def vm(irqchip_client: irqchip.Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture
def session(vm: Vm) -> Iterator[Session]:
    with vm.session("vcpu 0") as session:
        yield session


@pytest.fixture
def apic(session: Session) -> Iterator[LocalApic]:
    apic = share_local_apic(session, 0)
    yield apic
    apic.close()


def test_the_next_read_sees_the_changes_of_others(
    irqchip_client: irqchip.Client, vm: Vm, session: Session, apic: LocalApic
) -> None:
    lapic = vm.vcpu(0).lapic()
    with vm.session("other") as other:
        ways: list[Callable[[int], object]] = [
            lambda tpr: vm.vcpu(0).mmio_write(TPR, tpr),  # gRPC
            lambda tpr: vm.vcpu(0).cr8_write(tpr >> 4),
            lambda tpr: vm.vcpu(0).set_lapic(replace(lapic, tpr=tpr)),
            lambda tpr: other.vcpu(0).mmio_write(TPR, tpr),  # the port
            lambda tpr: session.vcpu(0).mmio_write(TPR, tpr),  # its own
        ]
        for round_ in range(300):
            tpr = round_ % 15 + 1 << 4
            ways[round_ % len(ways)](tpr)
            assert apic.read(TPR, 4) == tpr
            assert apic.read_cr8() == tpr >> 4
        vm.reset()
        assert apic.read(TPR, 4) == 0
    irqchip_client.delete_vm(vm.name)
    assert apic.read(TPR, 4) is None


def test_a_read_during_a_change_gives_the_old_or_the_new_value(vm: Vm, apic: LocalApic) -> None:
    """The daemon's process writes while this one reads."""
    done = threading.Event()
    values = 0x1100_0000, 0xEE00_0000

    def change() -> None:
        with vm.session("other") as other:
            for number in range(3000):
                other.vcpu(0).mmio_write(ID, values[number % 2])
        done.set()

    vm.vcpu(0).mmio_write(ID, values[1])
    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(apic.read(ID, 4))
    thread.join()
    assert set(values) <= seen <= {*values, None}


@contextmanager
def memfd(size: int = PAGE_SIZE, seals: int = SEALS, flags: int = os.MFD_ALLOW_SEALING) -> Iterator[int]:
    descriptor = os.memfd_create("test", flags)
    try:
        os.ftruncate(descriptor, size)
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, SEALS | fcntl.F_SEAL_WRITE])
def test_memory_that_could_fail_the_daemon_is_refused(session: Session, seals: int) -> None:
    with memfd(seals=seals) as descriptor, pytest.raises(InvalidArgument, match="memfd"):
        session.share_lapic(0, descriptor)
    with memfd() as good:
        session.share_lapic(0, good)


@pytest.mark.parametrize("size", [0, 1, 1024, PAGE_SIZE - 1, PAGE_SIZE + 1, 2 * PAGE_SIZE])
def test_memory_of_another_size_is_refused(session: Session, size: int) -> None:
    with memfd(size) as descriptor, pytest.raises(InvalidArgument, match="4096 bytes"):
        session.share_lapic(0, descriptor)


def test_huge_pages_are_refused(session: Session) -> None:
    try:
        descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    try:
        with suppress(OSError):
            os.ftruncate(descriptor, 2 << 20)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        with pytest.raises(InvalidArgument, match="4096 bytes"):
            session.share_lapic(0, descriptor)
    finally:
        os.close(descriptor)


def test_other_descriptors_are_refused(session: Session) -> None:
    readable, writable = os.pipe()
    eventfd = os.eventfd(0)
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_SIZE)
        for descriptor in (readable, writable, eventfd, file.fileno()):
            with pytest.raises(InvalidArgument, match="memfd"):
                session.share_lapic(0, descriptor)
    for descriptor in (readable, writable, eventfd):
        os.close(descriptor)


def test_a_client_can_do_nothing_to_the_memory_that_fails_the_daemon(vm: Vm, session: Session) -> None:
    with memfd() as descriptor:
        session.share_lapic(0, descriptor)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"\xff" * PAGE_SIZE, 0)
        vm.vcpu(0).mmio_write(TPR, 0x40)
        assert os.pread(descriptor, 1, 0x80) == b"\x40"
    vm.vcpu(0).mmio_write(TPR, 0x50)  # the client has unmapped and closed all of it
    assert vm.vcpu(0).mmio_read(TPR).data == 0x50


def test_it_is_shared_once_and_free_again_when_the_session_ends(vm: Vm, session: Session) -> None:
    with memfd() as one, memfd() as two:
        session.share_lapic(0, one)
        with vm.session("second") as second:
            with pytest.raises(Busy, match="shared already"):
                second.share_lapic(0, two)
            session.close()
            assert os.pread(one, 1, 0)[0] & 1  # there is no copy
            second.share_lapic(0, two)
            assert not os.pread(two, 1, 0)[0] & 1


def test_a_missing_local_apic_cannot_be_shared(irqchip_client: irqchip.Client, session: Session) -> None:
    with memfd() as descriptor:
        with pytest.raises(NotFound, match="no vCPU 7"):
            session.share_lapic(7, descriptor)
        bare = irqchip_client.create_vm()
        bare.create_vcpu(0)
        with bare.session() as without, pytest.raises(NotReady):
            without.share_lapic(0, descriptor)


def test_shared_pages_are_limited_and_leave_no_descriptor() -> None:
    with start_daemon(arguments=["--max-irqfds", "3"]) as daemon, daemon.connect() as client, memfd() as descriptor:
        vm = client.create_vm()
        vm.create_irqchip()
        for vcpu in range(4):
            vm.create_vcpu(vcpu)
        before = descriptors(daemon)
        for _ in range(3):
            with vm.session() as session:
                for vcpu in range(3):
                    session.share_lapic(vcpu, descriptor)
                with pytest.raises(LimitReached, match="eventfds"):
                    session.share_lapic(3, descriptor)
        eventually(lambda: descriptors(daemon) <= before)


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_over_grpc_the_daemon_answers_every_read(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with vm.session() as session, memfd() as descriptor:
        with pytest.raises(irqchip.IrqchipError, match="port"):
            session.share_lapic(0, descriptor)
        apic = share_local_apic(session, 0)
        assert apic.read(ID, 4) is apic.read_msr(0x1B) is apic.read_cr8() is None
        apic.close()
