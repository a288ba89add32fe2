"""The guest's memory as a memfd that one Session shares and others get, over a daemon's port."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import irqchip_client as irqchip
from irqchip_client import AlreadyExists, Architecture, InvalidArgument, NotFound, Session, Space, Vm, _calls
from irqchip_client._daemon import start_daemon
from tests.service.test_shared_lapic import descriptors
from tests.waiting import PATIENCE, eventually

PAGE = 4096
SIZE = 8 * PAGE
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextmanager
def memfd(seals: int = SEALS) -> Iterator[int]:
    descriptor = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def vm(irqchip_client: irqchip.Client) -> Vm:
    return irqchip_client.create_vm()


@pytest.fixture
def vmm(vm: Vm) -> Iterator[Session]:
    with vm.session("vmm") as session:
        yield session


@pytest.fixture
def device(vm: Vm) -> Iterator[Session]:
    with vm.session("device") as session:
        yield session


def part(session: Session, address: int = 0) -> tuple[int, int, int]:
    """Where a part of the memory is."""
    got = session.guest_memory(address)
    os.close(got.memfd)
    return got.address, got.length, got.offset


@pytest.mark.parametrize("architecture", [Architecture.X86, Architecture.ARM64])
def test_a_device_maps_what_the_vmm_shares(irqchip_client: irqchip.Client, architecture: Architecture) -> None:
    vm = irqchip_client.create_vm(architecture=architecture)
    with memfd() as memory, vm.session("vmm") as vmm, vm.session("device") as device:
        vmm.share_memory(memory, 0x10_0000, SIZE - PAGE, offset=PAGE)
        got = device.guest_memory()
        try:
            assert (got.address, got.length, got.offset) == (0x10_0000, SIZE - PAGE, PAGE)
            with mmap.mmap(got.memfd, got.length, offset=got.offset) as mapped:
                mapped[5] = 0xAB
                assert os.pread(memory, 1, PAGE + 5) == b"\xab"
            with pytest.raises(PermissionError):  # nobody takes the memory from under another
                os.ftruncate(got.memfd, 0)
        finally:
            os.close(got.memfd)


def test_a_device_of_another_process_maps_it(irqchip_client: irqchip.Client, vm: Vm, vmm: Session) -> None:
    program = (
        "import mmap, sys, irqchip_client\n"
        "with irqchip_client.connect(sys.argv[1]) as client, client.vm(sys.argv[2]).session() as session:\n"
        "    part = session.guest_memory()\n"
        "    mmap.mmap(part.memfd, part.length)[0:5] = b'hello'\n"
    )
    with memfd() as memory:
        vmm.share_memory(memory, 0, SIZE)
        subprocess.run([sys.executable, "-c", program, irqchip_client.target, vm.name], check=True, timeout=PATIENCE)
        assert os.pread(memory, 5, 0) == b"hello"


def test_the_first_part_that_ends_behind_an_address_is_given(vmm: Session, device: Session) -> None:
    with memfd() as low, memfd() as high:
        vmm.share_memory(high, 0x8000_0000, PAGE, offset=PAGE)
        vmm.share_memory(low, 0, SIZE)
        assert [part(device, address)[0] for address in (0, SIZE - 1, SIZE, 0x8000_0000)] == [0, 0, *[0x8000_0000] * 2]
        with pytest.raises(NotFound, match="0x80001000"):
            device.guest_memory(0x8000_1000)


def test_memory_is_no_longer_given_when_its_session_has_ended(vm: Vm, device: Session) -> None:
    with memfd() as memory:
        with vm.session("vmm") as vmm:
            vmm.share_memory(memory, 0, SIZE)
            with pytest.raises(AlreadyExists):
                device.share_memory(memory, PAGE, PAGE)
            vmm.unregister_region(Space.MEMORY, 0)
            with pytest.raises(NotFound):
                device.guest_memory()
            vmm.share_memory(memory, 0, SIZE)
        with pytest.raises(NotFound):
            device.guest_memory()


def test_only_memfds_that_keep_their_size_are_shared(vmm: Session) -> None:
    with memfd(seals=fcntl.F_SEAL_GROW) as memory, pytest.raises(InvalidArgument, match="F_SEAL_SHRINK"):
        vmm.share_memory(memory, 0, SIZE)
    with memfd() as memory, pytest.raises(InvalidArgument, match="longer"):
        vmm.share_memory(memory, 0, SIZE + PAGE)
    with pytest.raises(InvalidArgument, match="share it as a memfd"):
        vmm.register_region(Space.MEMORY, 0, SIZE)


def test_it_is_no_region_of_a_vcpus_bus(vm: Vm, vmm: Session, device: Session) -> None:
    vm.create_vcpu(0)
    with memfd() as memory:
        vmm.share_memory(memory, 0xD000_0000, SIZE)
        assert not device.vcpu(0).mmio_read(0xD000_0000).claimed
        device.register_region(Space.MMIO, 0xD000_0000, SIZE)  # nor in the way of one


def test_memory_of_s390_is_given_if_it_is_sealed(irqchip_client: irqchip.Client) -> None:
    vm = irqchip_client.create_vm(architecture=Architecture.S390)
    with vm.session() as session, memfd(seals=0) as memory:
        session.share_memory(memory, 0, SIZE)
        with pytest.raises(InvalidArgument, match="F_SEAL_SHRINK"):
            session.guest_memory()
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        assert part(session) == (0, SIZE, 0)


def test_the_memfd_goes_through_a_unix_socket_with_room(vmm: Session) -> None:
    call = _calls.get_memory(0)
    transport = vmm._transport
    ours, full = socket.socketpair()
    full.setblocking(False)
    with memfd() as memory, ours, full, socket.socket() as tcp:
        vmm.share_memory(memory, 0, SIZE)
        with pytest.raises(InvalidArgument, match="not a socket"):
            transport.run_with_descriptors(call, [memory])
        with pytest.raises(InvalidArgument, match="not a unix socket"):
            transport.run_with_descriptors(call, [tcp.fileno()])
        with suppress(BlockingIOError):
            while True:
                full.send(b"0")
        with pytest.raises(InvalidArgument, match="can't be sent"):
            transport.run_with_descriptors(call, [full.fileno()])
        assert part(vmm) == (0, SIZE, 0)


def test_the_daemon_keeps_no_descriptor_of_what_it_gave() -> None:
    with start_daemon() as daemon, daemon.connect() as client, memfd() as memory:
        vm = client.create_vm()
        with vm.session() as vmm, vm.session() as device:
            vmm.share_memory(memory, 0, SIZE)
            before = descriptors(daemon)
            for _ in range(20):
                part(device)
            eventually(lambda: descriptors(daemon) <= before)  # the daemon closes what it got in a thread of its own


def test_an_embedded_daemon_gives_memory_too() -> None:
    with irqchip.embedded() as client, memfd() as memory:
        vm = client.create_vm()
        with vm.session() as vmm, vm.session() as device:
            vmm.share_memory(memory, 0, SIZE)
            assert part(device) == (0, SIZE, 0)
