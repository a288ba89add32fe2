"""Clients that receive nothing, and whose processes end: the daemon has to find that out by something else."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
import termios
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from tests.builds import needs_sources
from tests.service.inprocess import Served, served
from tests.service.ring_peer import RingPeer
from tests.service.test_port import PIO_READ, Peer, needs_rings
from tests.waiting import eventually

pytestmark = needs_sources
STALLED = 0.5
EMPTY = pb.SessionRequest(batch=pb.Batch(serial=3)).SerializeToString()
BATCH = pb.SessionRequest(
    batch=pb.Batch(serial=1, operations=[pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))] * 60)
).SerializeToString()
_CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr("irqchipd.edge.port.STALLED", STALLED)
    with served(tmp_path) as here:
        here.vm()
        yield here


class At:
    """What a Peer takes for a daemon, in another process."""

    def __init__(self, target: str) -> None:
        self.target = target


def fill(peer: Peer) -> None:
    """Send until the daemon receives no more, because it can't send the answers."""
    while not _unreceived(peer.socket):
        peer.socket.send(BATCH)
        until = time.monotonic() + 1
        while _unreceived(peer.socket) and time.monotonic() < until:
            time.sleep(0.005)


def _unreceived(sender: socket.socket) -> int:
    count = array("i", [0])
    fcntl.ioctl(sender, termios.TIOCOUTQ, count)
    return count[0]


def _die_on_the_way(target: str) -> None:
    peer = Peer(At(target), vm="vm")  # type: ignore[arg-type]
    fill(peer)
    socket.send_fds(peer.socket, [EMPTY], [peer.socket.fileno()])
    os._exit(0)


def _die_on_the_way_with_rings(target: str) -> None:
    peer = RingPeer(At(target), vm="vm")  # type: ignore[arg-type]
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if peer.has_room:
            peer.put(1, (PIO_READ, 1, 0, 0x21, 0))
            until = time.monotonic() + 1
    socket.send_fds(peer.socket, [EMPTY], [peer.socket.fileno()])
    os._exit(0)


def _hand_over(target: str, heir: socket.socket) -> None:
    peer = Peer(At(target), vm="vm")  # type: ignore[arg-type]
    fill(peer)
    socket.send_fds(heir, [b"x"], [peer.socket.fileno()])


@pytest.mark.parametrize("die", [_die_on_the_way, pytest.param(_die_on_the_way_with_rings, marks=needs_rings)])
def test_a_client_that_received_nothing_and_left_its_socket_on_the_way_is_gone(here: Served, die: object) -> None:
    client = _CONTEXT.Process(target=die, args=(here.target,))  # type: ignore[arg-type]
    client.start()
    client.join()
    assert client.exitcode == 0
    eventually(lambda: here.connections == 0)
    assert not any("pidfd" in os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    assert not here.port._suspects


def test_a_process_that_was_given_the_socket_keeps_the_session_while_it_receives(here: Served) -> None:
    mine, others = socket.socketpair()
    client = _CONTEXT.Process(target=_hand_over, args=(here.target, others))
    client.start()
    _, (descriptor,), _, _ = socket.recv_fds(mine, 1, 1)
    client.join()
    with closing(socket.socket(fileno=descriptor)) as heir, mine, others:
        eventually(lambda: here.port._suspects)  # its process has ended
        until = time.monotonic() + 4 * STALLED
        while time.monotonic() < until:  # one answer now and then
            assert pb.SessionResponse.FromString(heir.recv(1 << 17)).HasField("batch_result")
            heir.send(BATCH)
            time.sleep(STALLED / 4)
        assert here.connections == 1
        eventually(lambda: here.connections == 0)  # and now none
        assert heir.recv(1 << 17)  # what was sent before the end is there
