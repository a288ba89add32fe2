"""Rows 3 and 4: descriptors whose closing waits, and descriptors that are kept."""

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
MOST = 253  # descriptors of a packet
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _sticky(foe: Foe) -> int:
    """A TCP connection whose last close() waits for data that nobody reads."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or it would all be taken after all
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
    """The daemon has the only reference, once it has received."""
    with suppress(OSError):
        socket.send_fds(connection, [data], [descriptor])
    # Not closed before it is under way: whoever closes the last reference waits.
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
                if how == "no batch":  # or it is kept until then
                    connection.close()
            foe.kept.append(connection)
        time.sleep(0.2)

    return act


def _hoard(foe: Foe, opened: bool) -> Act:
    """Packets full of descriptors without a batch, and then silence."""
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
    """irqfds up to the limit, and beyond it, in many Sessions."""
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
