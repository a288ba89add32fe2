"""Rings in shared memory: what a client can rely on, and what no client can do."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import pytest

from irqchip import ring as layout
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, RegionAccess, Space, Vm
from irqchip_client._daemon import Daemon, start_daemon
from irqchipd.edge.ring import Rings
from tests.builds import needs_sources
from tests.client.test_halt import wait_until_halted
from tests.service.inprocess import Served, served
from tests.service.ring_peer import (
    CLIENT_WAITS,
    DAEMON_WAITS,
    MEMORY_BYTES,
    ON_THE_SOCKET,
    SLOT_BYTES,
    SLOTS,
    TO_CLIENT,
    TO_DAEMON,
    RingPeer,
)
from tests.service.test_port import (
    HALT,
    HEADER,
    IRQ_LINE,
    LAPIC,
    PIO_READ,
    PIO_WRITE,
    SIGNAL_MSI,
    Peer,
    line,
    needs_rings,
)
from tests.waiting import PATIENCE, eventually

pytestmark = needs_rings

MASK = (PIO_READ, 1, 0, 0x21, 0)
MSI = (SIGNAL_MSI, 0, 0, LAPIC, 0x51)


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


@pytest.fixture
def peer(irqchip_server: Daemon, vm: Vm) -> Iterator[RingPeer]:
    with closing(RingPeer(irqchip_server, vm=vm.name, client="peer")) as peer:
        yield peer


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as here:
        here.vm()
        yield here


# What a client can rely on.


def test_the_memory_says_what_it_is_and_keeps_its_size(peer: RingPeer) -> None:
    assert [int.from_bytes(peer.memory[at : at + 4], "little") for at in (0, 4, 8)] == [1, SLOTS, SLOT_BYTES]
    memory = peer.descriptors[0]
    assert os.fstat(memory).st_size == MEMORY_BYTES == layout.MEMORY_BYTES
    for size in (0, MEMORY_BYTES - 4096, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_records_are_answered_in_the_ring(peer: RingPeer) -> None:
    for serial in range(3 * SLOTS):
        peer.put(serial, MASK)
        assert peer.take_results() == (serial, [(PIO_READ, 1, 0, 0)], b"")
    peer.put(9, (PIO_WRITE, 1, 0, 0x21, 0xFB), MASK)
    assert peer.take_results(2) == (9, [(PIO_WRITE, 1, 0, 0), (PIO_READ, 1, 0, 0xFB)], b"")


def test_an_error_that_finds_no_place_in_a_slot_comes_over_the_socket_in_its_order(peer: RingPeer) -> None:
    missing = (PIO_READ, 1, 9, 0x21, 0)
    peer.put(1, MASK)
    peer.put(2, missing, missing, missing)
    peer.put(3, MASK)
    assert peer.take_results()[0] == 1
    serial, results, texts = peer.take_results(3)
    assert (serial, [result[2] for result in results]) == (2, [errno.ENOENT] * 3)
    assert len(texts) > 3 * 24
    assert peer.take_results()[0] == 3


def test_packets_in_the_ring_and_on_the_socket_keep_their_order(peer: RingPeer) -> None:
    for serial in range(1, 400):
        if serial % 3:
            peer.put(serial, (IRQ_LINE, 0, 20, 0, serial % 2))
        else:
            peer.send_on_socket(batch=pb.Batch(serial=serial, operations=[line(20, bool(serial % 2))] * (serial % 9)))
        if serial % 50 == 0:
            for expected in range(serial - 49, serial + 1):
                packet = peer.take()
                if packet[0]:
                    assert pb.SessionResponse.FromString(packet).batch_result.serial == expected
                else:
                    assert HEADER.unpack_from(packet)[1] == expected


def test_the_bell_wakes_the_daemon_which_wakes_the_client(peer: RingPeer) -> None:
    for serial in range(3):
        peer.until_the_daemon_waits()
        peer.set_word(CLIENT_WAITS, 1)
        peer.put(serial, MASK)
        assert peer.wakes()
        peer.set_word(CLIENT_WAITS, 0)
        assert peer.take_results()[0] == serial


def test_a_client_that_does_not_wait_is_not_woken(peer: RingPeer) -> None:
    peer.put(1, MASK)
    assert peer.take_results()[0] == 1
    assert not peer.wakes(0.01)


def test_a_halt_that_another_thread_ends_wakes_the_client(peer: RingPeer, vm: Vm) -> None:
    peer.put(1, (HALT, 0, 0, 0, 0))
    peer.set_word(CLIENT_WAITS, 1)
    peer.until_the_daemon_waits()
    vm.signal_msi(LAPIC, 0x51)  # over gRPC
    assert peer.wakes()
    assert peer.take_results() == (1, [(HALT, 1, 2, 0x51)], b"")


def test_descriptors_come_over_the_socket(peer: RingPeer) -> None:
    eventfd = os.eventfd(0)
    peer.send_on_socket(descriptors=pb.DescriptorsFollow())
    batch = pb.Batch(serial=4, operations=[pb.Operation(irqfd=pb.IrqfdRequest(gsi=20))])
    peer.fill(b"", ON_THE_SOCKET)
    socket.send_fds(peer.socket, [pb.SessionRequest(batch=batch).SerializeToString()], [eventfd])
    assert pb.SessionResponse.FromString(peer.take()).batch_result.results[0].HasField("irqfd")
    peer.put(5, MASK)
    assert peer.take_results()[0] == 5
    os.close(eventfd)


def test_what_was_sent_before_the_end_is_executed(peer: RingPeer, vm: Vm) -> None:
    with vm.session(vcpus=[0]) as session:
        for _ in range(40):
            peer.put(1, (PIO_READ, 1, 0, 0x21, 0))
        peer.put(1, MSI)
        peer.close()
        assert session.vcpu(0).halt(timeout=PATIENCE).vector == 0x51


def test_a_session_on_the_socket_has_no_rings(irqchip_server: Daemon, vm: Vm) -> None:
    with closing(Peer(irqchip_server, vm=vm.name)) as peer:
        assert not peer.opened.rings


def test_the_limit_of_rings_holds_and_what_exceeds_it_has_the_socket() -> None:
    with start_daemon(arguments=["--max-rings", "2"]) as daemon, daemon.connect() as client, ExitStack() as stack:
        name = client.create_vm().name
        peers = [stack.enter_context(closing(RingPeer(daemon, vm=name))) for _ in range(3)]
        assert [peer.has_rings for peer in peers] == [True, True, False]
        peers[2].send_records(1, (IRQ_LINE, 0, 20, 0, 1))
        assert peers[2].receive_results(1)[0] == 1
        peers[0].close()

        def may_have_rings() -> bool:
            with closing(RingPeer(daemon, vm=name)) as peer:
                return peer.has_rings

        eventually(may_have_rings)


@needs_sources
def test_they_are_not_offered_where_stores_are_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irqchipd.edge.ring.OFFERED", False)
    assert Rings(9).make() is None


def test_a_session_gives_everything_back(here: Served) -> None:
    with closing(here.peer(vm="vm")):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with closing(RingPeer(here, vm="vm")) as peer:  # type: ignore[arg-type]
                peer.put(1, MASK)
                assert peer.take_results()[0] == 1
                peer.memory.close()
            eventually(lambda: here.connections == 1)
        eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert here.port.rings._count == 0
        assert not here.port.rings.polled


# What no client can do.


@pytest.mark.parametrize("length", [121, 128, ON_THE_SOCKET - 1, ON_THE_SOCKET + 1, 1 << 63, (1 << 64) - 1])
def test_a_length_that_no_packet_has_ends_the_session(peer: RingPeer, vm: Vm, length: int) -> None:
    peer.fill(bytes(120), length)
    assert peer.end() == "EBADMSG"
    eventually(lambda: not vm.info().sessions)


@pytest.mark.parametrize("length", [1, 8, 15, 16, 17, 39, 41, 63, 119])
def test_a_packet_that_is_no_batch_ends_the_session(peer: RingPeer, length: int) -> None:
    peer.fill(bytes(120), length)
    assert peer.end() == "EBADMSG"


def test_a_message_in_a_slot_ends_the_session(peer: RingPeer) -> None:
    peer.fill(pb.SessionRequest(batch=pb.Batch(serial=3, operations=[line(20, True)])).SerializeToString())
    assert peer.end() == "EBADMSG"


def test_a_packet_without_a_place_in_the_ring_ends_the_session(peer: RingPeer) -> None:
    peer.put(1, MASK)
    assert peer.take_results()[0] == 1
    peer.send(batch=pb.Batch(serial=3))
    assert peer.end() == "EBADMSG"


def test_a_place_in_the_ring_waits_for_its_packet(peer: RingPeer) -> None:
    peer.fill(b"", ON_THE_SOCKET)
    peer.put(4, MASK)
    time.sleep(0.05)
    assert peer.word(peer.next_answer) == 0
    peer.send(batch=pb.Batch(serial=3))
    assert pb.SessionResponse.FromString(peer.take()).batch_result.serial == 3
    assert peer.take_results()[0] == 4


def test_a_client_that_dies_before_its_packet_is_gone(peer: RingPeer, vm: Vm) -> None:
    peer.fill(b"", ON_THE_SOCKET)
    peer.put(4, MSI)
    peer.close()
    eventually(lambda: not vm.info().sessions)


def test_a_client_that_leaves_its_own_socket_on_the_way_is_gone(peer: RingPeer, vm: Vm) -> None:
    """As long as nobody receives the socket from itself, nothing closes it."""
    socket.send_fds(
        peer.socket, [pb.SessionRequest(batch=pb.Batch(serial=3)).SerializeToString()], [peer.socket.fileno()]
    )
    peer.close()
    eventually(lambda: not vm.info().sessions)


def test_a_slot_before_its_turn_is_not_looked_at(peer: RingPeer) -> None:
    ahead = peer.next_slot + SLOT_BYTES
    peer.memory[ahead + 8 : ahead + 48] = HEADER.pack(0, 2) + bytes(24)
    peer.set_word(ahead, 40)
    peer.put(1, MASK)
    assert peer.take_results()[0] == 1
    assert peer.take_results()[0] == 2


def test_a_record_without_its_length_is_never_executed(peer: RingPeer, vm: Vm) -> None:
    slot = peer.next_slot
    peer.memory[slot + 8 : slot + 48] = HEADER.pack(0, 1) + bytes([IRQ_LINE]) + bytes(23)
    os.eventfd_write(peer.descriptors[1], 1)
    time.sleep(0.05)
    assert peer.word(peer.next_answer) == 0
    peer.close()
    eventually(lambda: not vm.info().sessions)


def test_a_client_that_goes_on_writing_its_packet_changes_nothing(peer: RingPeer) -> None:
    """Its thread changes the port and the length of a packet that the daemon has or will have read."""
    done = threading.Event()
    random = Random(1)

    def tear() -> None:
        while not done.is_set():
            slot = peer.next_slot
            peer.memory[slot + 32 : slot + 40] = random.choice((0x21, 0xA1, 0x4D0)).to_bytes(8, "little")

    tearing = threading.Thread(target=tear)
    tearing.start()
    try:
        for serial in range(2000):
            peer.put(serial, MASK)
            assert peer.take_results()[0] == serial
    finally:
        done.set()
        tearing.join()


def test_what_a_client_writes_to_the_daemons_half_hurts_itself_alone(peer: RingPeer, irqchip_server: Daemon) -> None:
    random = Random(2)
    for offset in (0, DAEMON_WAITS, CLIENT_WAITS, TO_CLIENT, TO_CLIENT + SLOT_BYTES, MEMORY_BYTES - SLOT_BYTES):
        peer.set_word(offset, random.getrandbits(64))
    for at in range(TO_CLIENT, MEMORY_BYTES, SLOT_BYTES):
        peer.set_word(at, 0)
    peer.put(1, MASK)
    assert peer.take_results()[0] == 1
    for at in range(TO_CLIENT, MEMORY_BYTES, SLOT_BYTES):
        peer.set_word(at, 1)  # no room, the client says
    for serial in range(3):
        peer.put(serial, MASK)
    with irqchip_server.connect() as client, closing(RingPeer(irqchip_server, vm=client.create_vm().name)) as other:
        other.put(7, (IRQ_LINE, 0, 20, 0, 1))
        assert other.take_results()[0] == 7


def test_a_client_that_takes_no_answers_is_not_read(peer: RingPeer, irqchip_server: Daemon, vm: Vm) -> None:
    sent = 0
    while sent < 2 * SLOTS:
        eventually(lambda: peer.has_room)
        peer.put(sent, MASK)
        sent += 1
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        if peer.has_room:
            peer.put(sent, MASK)
            sent += 1
        time.sleep(0.001)
    assert sent <= 2 * SLOTS + 2
    with closing(RingPeer(irqchip_server, vm=vm.name)) as other:  # the daemon serves others, and may sleep
        other.put(7, MASK)
        assert other.take_results()[0] == 7
        other.until_the_daemon_waits()
        peer.until_the_daemon_waits()
    assert peer.word(DAEMON_WAITS) == 2
    assert [peer.take_results()[0] for _ in range(sent)] == list(range(sent))


def test_a_client_that_dies_with_a_full_ring_is_gone(peer: RingPeer, vm: Vm) -> None:
    """Its last answer comes when the daemon has seen its end: an access that nobody answers."""
    with vm.session() as owner:
        owner.register_region(Space.PIO, 0x300, 1)
        for serial in range(SLOTS):
            peer.put(serial, MASK)
        eventually(lambda: peer.word(TO_CLIENT + SLOT_BYTES * (SLOTS - 1)) != 0)
        peer.put(SLOTS, (PIO_READ, 1, 0, 0x300, 0))
        access = owner.next_event(timeout=PATIENCE)
        assert isinstance(access, RegionAccess)
        peer.put(SLOTS + 1, MASK)  # the daemon looks, and sees that it has to wait
        time.sleep(0.05)
        peer.close()
        time.sleep(0.05)
        owner.complete_access(access.access, 1)
    eventually(lambda: not vm.info().sessions)


def test_a_client_that_waits_for_room_is_woken(peer: RingPeer) -> None:
    """Halts of another vCPU's have no answers yet, and take slots."""
    peer.set_word(CLIENT_WAITS, 2)
    peer.put(1, (HALT, 0, 0, 0, 0))
    assert peer.wakes()


def test_a_client_that_lies_about_its_waiting_is_served_like_others(peer: RingPeer) -> None:
    for waits in (1, 2, 3, 1 << 63):
        peer.set_word(CLIENT_WAITS, waits)
        peer.set_word(DAEMON_WAITS, 0)
        for serial in range(100):
            peer.put(serial, MASK)
            os.eventfd_write(peer.descriptors[1], 1)
            assert peer.take_results()[0] == serial


def test_a_full_eventfd_stops_nobody(peer: RingPeer) -> None:
    os.eventfd_write(peer.descriptors[2], (1 << 64) - 2)
    os.set_blocking(peer.descriptors[2], True)
    peer.set_word(CLIENT_WAITS, 1)
    for serial in range(100):
        peer.put(serial, MASK)
        assert peer.take_results()[0] == serial


def test_a_client_that_unmaps_the_memory_hurts_itself_alone(peer: RingPeer, irqchip_server: Daemon, vm: Vm) -> None:
    with vm.session() as other:
        peer.put(1, (HALT, 0, 0, 0, 0))
        wait_until_halted(vm)
        peer.memory.close()
        other.signal_msi(LAPIC, 0x51)  # ends the halt, whose answer nobody can read
        with closing(RingPeer(irqchip_server, vm=vm.name)) as another:
            another.put(7, MASK)
            assert another.take_results()[0] == 7
        peer.send(batch=pb.Batch(serial=3))  # there is no way any more to say where its place is
        eventually(lambda: len(vm.info().sessions) == 1)


def test_holes_in_the_memory_are_zeros(peer: RingPeer) -> None:
    peer.put(1, MASK)
    assert peer.take_results()[0] == 1
    libc = ctypes.CDLL(None, use_errno=True)
    punch, keep_size = 2, 1
    assert libc.fallocate(peer.descriptors[0], punch | keep_size, ctypes.c_long(0), ctypes.c_long(MEMORY_BYTES)) == 0
    peer.put(2, MASK)
    os.eventfd_write(peer.descriptors[1], 1)
    assert peer.take_results()[0] == 2


def test_the_socket_and_other_rings_have_their_turn_beside_a_flood(irqchip_server: Daemon, vm: Vm) -> None:
    stop = threading.Event()

    def flood(name: str) -> None:
        with closing(RingPeer(irqchip_server, vm=name)) as flooder:
            batch = HEADER.pack(0, 1) + bytes([IRQ_LINE, *bytes(23)]) * 4
            while not stop.is_set():
                if flooder.has_room:
                    flooder.fill(batch)
                while flooder.word(flooder.next_answer):
                    flooder.take()

    with irqchip_server.connect() as client, ExitStack() as stack:
        busy = client.create_vm()
        busy.create_irqchip()
        flooders = [threading.Thread(target=flood, args=(busy.name,)) for _ in range(2)]
        for flooder in flooders:
            flooder.start()
        try:
            quiet = stack.enter_context(closing(Peer(irqchip_server, vm=vm.name)))
            ringing = stack.enter_context(closing(RingPeer(irqchip_server, vm=vm.name)))
            for serial in range(50):
                quiet.send_records(serial, MASK)
                assert quiet.receive_results(1)[0] == serial
                ringing.put(serial, MASK)
                assert ringing.take_results()[0] == serial
                assert vm.info().name == vm.name  # over gRPC
        finally:
            stop.set()
            for flooder in flooders:
                flooder.join()


def test_the_deletion_of_the_vm_is_said_on_the_socket(peer: RingPeer, vm: Vm) -> None:
    vm.delete()
    assert peer.end() == "ENOENT"


def test_garbage_everywhere_ends_no_more_than_its_session(irqchip_server: Daemon, vm: Vm) -> None:
    random = Random(3)
    for _ in range(60):
        with closing(RingPeer(irqchip_server, vm=vm.name)) as peer:
            for _ in range(random.randrange(1, 40)):
                at = random.choice((0, TO_DAEMON, TO_DAEMON, TO_CLIENT)) + 8 * random.randrange(1024)
                peer.set_word(at, random.choice((0, 1, 16, 40, 64, 120, ON_THE_SOCKET, random.getrandbits(64))))
                os.eventfd_write(peer.descriptors[1], 1)
    with closing(RingPeer(irqchip_server, vm=vm.name)) as peer:
        peer.put(1, MASK)
        assert peer.take_results()[0] == 1
