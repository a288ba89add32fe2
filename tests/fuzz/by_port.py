"""The worker that sends packets to the port: messages, records, malformed ones, and descriptors of all kinds."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from random import Random

from irqchip.port import MESSAGE_BYTES, SUFFIX
from irqchip.v1 import irqchip_pb2 as pb
from tests.fuzz.findings import Report, check_message
from tests.fuzz.machines import PATIENCE, Machines
from tests.fuzz.messages import Messages
from tests.fuzz.mutation import mutate
from tests.fuzz.packets import Descriptors, packet

EPISODE = 5000  # messages
CONNECTIONS = 8  # at once
A_CONNECTION = 60  # messages per connection
LINGERING = 0.02  # seconds to wait for answers before closing
FOLLOW = pb.SessionRequest(descriptors=pb.DescriptorsFollow()).SerializeToString()


class Packet:
    """Data and descriptors for one send."""

    __slots__ = ("data", "descriptors")

    def __init__(self, data: bytes, descriptors: list[int] | None = None) -> None:
        self.data = data
        self.descriptors = descriptors or []


class PortFuzzer:
    """Keeps several connections at a time, one episode at a time."""

    def __init__(self, target: str, prefix: str) -> None:
        self._path = target.removeprefix("unix://") + SUFFIX
        self._machines = Machines(target, prefix)
        self._descriptors = Descriptors()

    def close(self) -> None:
        """Close the connections."""
        self._machines.close()
        self._descriptors.close()

    def run(self, seed: str, count: int, report: Report) -> None:
        """Send `count` packets, which the seed determines."""
        begun, episode = report.sent, 0
        while report.sent - begun < count:
            size = min(EPISODE, count - (report.sent - begun))
            self._episode(f"{seed}/{episode}", size, report)
            episode += 1

    def _episode(self, name: str, count: int, report: Report) -> None:
        self._machines.make(name)
        random = Random(name)
        messages = Messages(random, self._machines.names)
        end = report.sent + count
        open_: list[_Connection] = []
        try:
            while report.sent < end or open_:
                while len(open_) < CONNECTIONS and report.sent < end:
                    made = _Connection(self._path, self._descriptors)
                    packets = self._packets(
                        random, messages, made.socket.fileno(), min(A_CONNECTION, end - report.sent)
                    )
                    report.sent += len(packets)
                    made.begin(packets, random.random() < 0.7)
                    open_.append(made)
                if random.random() < 0.3:
                    self._descriptors.ring(random)
                going_on = []
                for connection in open_:
                    if connection.go_on(report):
                        going_on.append(connection)
                    else:
                        connection.socket.close()
                if len(going_on) == len(open_):  # no connection is done: let the daemon work
                    select.select([connection.socket for connection in open_], [], [], 0.002)
                open_ = going_on
        finally:
            for connection in open_:
                connection.socket.close()
            self._machines.delete()

    def _packets(self, random: Random, messages: Messages, own: int, count: int) -> list[Packet]:
        """The packets of one connection."""
        packets: list[Packet] = []
        if random.random() < 0.95:
            packets.append(Packet(messages.opening().SerializeToString()))
        # Packets that end the connection mostly come last.
        spoilt = random.choice((0.0, 0.0, 0.02, 0.2))
        while len(packets) < count:
            choice = random.random()
            data = self._data(random, messages, choice)
            if random.random() < spoilt:
                data = mutate(random, data)[: MESSAGE_BYTES + 1]
            if choice < 0.12 and len(packets) + 1 < count:
                if random.random() < 0.9:
                    packets.append(Packet(FOLLOW))
                packets.append(Packet(data, self._descriptors.some(random, own)))
            else:
                packets.append(Packet(data))
            if random.random() < 0.02:
                break
        return packets

    def _data(self, random: Random, messages: Messages, choice: float) -> bytes:
        if choice < 0.08:
            return irqfds(random, messages)
        if choice < 0.6:
            return packet(random)
        message = messages.batch(8) if choice < 0.97 else messages.make(pb.SessionRequest.DESCRIPTOR)
        return message.SerializeToString()


def irqfds(random: Random, messages: Messages) -> bytes:
    """A batch of operations with descriptors."""
    batch = pb.Batch(serial=1)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        operation = batch.operations.add()
        if random.random() < 0.8:
            operation.irqfd.gsi = random.randrange(26)
            operation.irqfd.flags = random.choice((0, 0, 0, 1, 2, 2, 3, 4))
        elif random.random() < 0.5:
            operation.share_lapic.vcpu = random.randrange(4)
        elif random.random() < 0.3:
            operation.get_memory.address = random.choice((0, 0x1000, 1 << 63))
        elif random.random() < 0.5:
            region = operation.register_region
            region.space, region.address, region.length = pb.ADDRESS_SPACE_PIO, random.randrange(0x500, 0x520), 1
            region.doorbell = region.eventfd = True
        else:
            operation.CopyFrom(messages.operation())
    return pb.SessionRequest(batch=batch).SerializeToString()


class _Connection:
    """Sends as much as possible without waiting, and reads the available answers."""

    def __init__(self, path: str, descriptors: Descriptors) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self._descriptors = descriptors
        self._packets: deque[Packet] = deque()
        self._last: deque[bytes] = deque(maxlen=4)
        self._patient = True
        self._until = 0.0

    def begin(self, packets: list[Packet], patient: bool) -> None:
        """Start sending packets; a patient connection waits for some answers afterwards."""
        self._packets.extend(packets)
        self._patient = patient

    def go_on(self, report: Report) -> bool:
        """Continue; returns whether there is more to do."""
        if not self._receive(report):
            return False
        for _ in range(8):
            if not self._packets:
                break
            if not self._send(self._packets[0]):
                return self._receive(report)
            self._last.append(self._packets.popleft().data)
        if self._packets:
            return True
        if self._patient and not self._until:
            self._until = time.monotonic() + LINGERING
        return self._patient and time.monotonic() < self._until

    def _send(self, packet: Packet) -> bool:
        """Whether the packet was sent; also true if the connection has ended."""
        try:
            if packet.descriptors:
                socket.send_fds(self.socket, [packet.data or b"\0"], packet.descriptors)
            else:
                self.socket.send(packet.data)
        except BlockingIOError:
            return False
        except OSError:  # ended by the daemon, too long, or too many descriptors under way
            pass
        return True

    def _receive(self, report: Report) -> bool:
        """Whether the connection is still open."""
        while True:
            try:
                received = self.socket.recv(MESSAGE_BYTES + 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not received:
                return False
            if len(received) > MESSAGE_BYTES:
                report.found("an-answer-too-long", b"|".join(self._last), "port")
            else:
                check_message(report, received, b"|".join(self._last), "port")
