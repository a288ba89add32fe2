"""Rows 3 and 4: descriptors whose close() blocks, and descriptors the daemon has to keep."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress

from bench.attacks.common import Act, Attack, Foe, batch
from bench.attacks.work import FOLLOW
from irqchip.v1 import irqchip_pb2 as pb

LINGER = 20  # seconds
MOST = 253  # descriptors in one packet
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _sticky(foe: Foe) -> int:
    """A TCP connection whose last close() blocks, because its peer does not read."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # otherwise the socket buffer takes all the data
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    client.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.send(bytes(1 << 16))
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
    foe.kept += [listener, peer]
    return client.detach()


def _give_away(connection: socket.socket, data: bytes, descriptor: int) -> None:
    """Send a descriptor and close it here: the daemon then holds the only reference."""
    with suppress(OSError):
        socket.send_fds(connection, [data], [descriptor])
    # Wait until the packet is received: the process that closes the last reference blocks.
    os.close(descriptor)


def _lingering(foe: Foe, how: str, each: int) -> Act:
    foe.make()
    irqfd = batch(pb.Operation(irqfd=pb.IrqfdRequest(gsi=5)))

    def act() -> None:
        for _ in range(each):
            descriptor = _sticky(foe)
            if how == "gRPC":
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(foe.path)
                _give_away(connection, PREFACE, descriptor)
            elif how == "unopened":
                connection = foe.connection()
                _give_away(connection, b"x", descriptor)
            else:
                connection = foe.port()
                connection.send(FOLLOW)
                data = {"irqfd": irqfd, "no batch": FOLLOW, "record": bytes([0]) * 40}[how]
                _give_away(connection, data, descriptor)
                if how == "no batch":  # otherwise the daemon keeps the descriptor until the batch
                    connection.close()
            foe.kept.append(connection)
        time.sleep(0.2)

    return act


def _hoard(foe: Foe, opened: bool) -> Act:
    """Send packets full of descriptors without a batch, then nothing."""
    foe.make()
    null = os.open("/dev/null", os.O_RDONLY)

    def act() -> None:
        connection = foe.port() if opened else foe.connection()
        connection.settimeout(1)
        connection.send(FOLLOW)
        socket.send_fds(connection, [FOLLOW], [null] * MOST)
        foe.kept.append(connection)
        time.sleep(0.05)

    return act


def _filled(foe: Foe) -> Act:
    """Assign irqfds up to the limit and beyond, in many Sessions."""
    foe.make()
    operations = [pb.Operation(irqfd=pb.IrqfdRequest(gsi=gsi % 24)) for gsi in range(MOST)]

    def act() -> None:
        connection = foe.port()
        connection.settimeout(2)
        eventfds = [os.eventfd(0) for _ in range(MOST)]
        connection.send(FOLLOW)
        socket.send_fds(connection, [batch(*operations)], eventfds)
        connection.recv(1 << 17)
        for eventfd in eventfds:
            os.close(eventfd)
        foe.kept.append(connection)
        if len(foe.kept) > 8:
            foe.kept.pop(0).close()

    return act


ATTACKS = (
    Attack(3, "lingering sockets with a batch", lambda foe: _lingering(foe, "irqfd", 2)),
    Attack(3, "lingering sockets with `descriptors`", lambda foe: _lingering(foe, "no batch", 2)),
    Attack(3, "lingering sockets with a record", lambda foe: _lingering(foe, "record", 2)),
    Attack(3, "lingering sockets before a Session is opened", lambda foe: _lingering(foe, "unopened", 2)),
    Attack(3, "lingering sockets on the gRPC socket", lambda foe: _lingering(foe, "gRPC", 4)),
    Attack(4, "packets of 253 descriptors without a batch", lambda foe: _hoard(foe, True)),
    Attack(4, "the same, before a Session is opened", lambda foe: _hoard(foe, False)),
    Attack(4, "irqfds up to the limit, and new ones", _filled),
)
