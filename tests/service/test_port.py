"""The AF_UNIX port, used with plain sockets: the behaviour that any client can rely on."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from irqchip.ring import OFFERED
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, Vm
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE, eventually

needs_rings = pytest.mark.skipif(not OFFERED, reason="rings need a processor that keeps stores in order")
LAPIC = 0xFEE0_0000
HEADER, OPERATION, RESULT = struct.Struct("<B7xQ"), struct.Struct("<BB2xIQQ"), struct.Struct("<BB2xiQ")
IRQ_LINE, SIGNAL_MSI, PIO_READ, PIO_WRITE, ACK, MSR_READ, HALT, COMPLETE = 2, 4, 8, 9, 19, 12, 21, 18
MSI = pb.Operation(signal_msi=pb.SignalMsiRequest(address=LAPIC, data=0x51))


class Peer:
    """A client of the port."""

    def __init__(self, daemon: Daemon, **opening: Any) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path(daemon))
        if opening:
            self.send(open=pb.SessionOpen(**opening))
            self.opened = self.receive().opened
            assert self.opened.source

    def close(self) -> None:
        self.socket.close()

    def send(self, **message: Any) -> None:
        self.socket.send(pb.SessionRequest(**message).SerializeToString())

    def submit(self, serial: int, *operations: pb.Operation) -> None:
        self.send(batch=pb.Batch(serial=serial, operations=operations))

    def receive(self) -> pb.SessionResponse:
        data = self.socket.recv(1 << 17)
        assert data, "the connection has ended"
        return pb.SessionResponse.FromString(data)

    def send_records(self, serial: int, *records: tuple[int, int, int, int, int]) -> None:
        self.socket.send(HEADER.pack(0, serial) + b"".join(OPERATION.pack(*record) for record in records))

    def receive_results(self, count: int) -> tuple[int, list[tuple[int, ...]], bytes]:
        """The serial, the fields of the results, and the texts of errors."""
        data = self.socket.recv(1 << 17)
        zero, serial = HEADER.unpack_from(data)
        assert zero == 0
        end = HEADER.size + count * RESULT.size
        return serial, [*RESULT.iter_unpack(data[HEADER.size : end])], data[end:]

    def run(self, *operations: pb.Operation) -> list[pb.OperationResult]:
        self.submit(7, *operations)
        result = self.receive().batch_result
        assert result.serial == 7
        return list(result.results)

    def end(self) -> str:
        """The reason of the error with which the Session ends; nothing may follow."""
        while (message := self.receive()).WhichOneof("message") != "ended":
            pass
        assert self.socket.recv(1) == b""
        return message.ended.reason


def path(daemon: Daemon) -> str:
    return daemon.target.removeprefix("unix://") + ".port"


def line(gsi: int, level: bool) -> pb.Operation:
    return pb.Operation(irq_line=pb.IrqLineRequest(gsi=gsi, level=level))


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


@pytest.fixture
def peer(irqchip_server: Daemon, vm: Vm) -> Iterator[Peer]:
    with closing(Peer(irqchip_server, vm=vm.name, client="peer", vcpus=[0])) as peer:
        yield peer


def test_a_batch_is_answered_as_over_grpc(peer: Peer, vm: Vm) -> None:
    raised, masks, refused = peer.run(
        line(20, True),
        pb.Operation(pio_read=pb.PioReadRequest(vcpu=0, port=0x21, size=1)),
        pb.Operation(pio_read=pb.PioReadRequest(vcpu=9, port=0x21, size=1)),
    )
    assert (raised.irq_line.status, masks.pio_read.claimed, refused.error.reason) == (-1, True, "ENOENT")
    assert vm.info().sessions[0].asserted_gsis == (20,)


def test_its_levels_drop_when_the_connection_closes(peer: Peer, vm: Vm) -> None:
    peer.run(line(20, True))
    peer.close()
    eventually(lambda: not vm.info().sessions)
    assert not vm.info().asserted_gsis


def test_many_changes_in_one_operation(peer: Peer) -> None:
    changes = [20 << 1 | 1, 20 << 1 | 1, 20 << 1, 5000 << 1 | 1]
    (result,) = peer.run(pb.Operation(irq_lines=pb.IrqLinesRequest(changes=changes)))
    assert list(result.irq_lines.statuses) == [-1, 0, 1, -1]


def test_a_vcpus_events_arrive_at_once(peer: Peer, vm: Vm) -> None:
    vm.signal_msi(LAPIC, 0x51)
    assert peer.receive().event.interrupt_pending.vcpu == 0


def test_a_halt_is_answered_when_it_ends_and_others_before(irqchip_server: Daemon, peer: Peer, vm: Vm) -> None:
    with closing(Peer(irqchip_server, vm=vm.name)) as device:
        peer.submit(1, pb.Operation(halt=pb.HaltRequest(vcpu=0)))
        peer.submit(2, line(20, True))
        assert peer.receive().batch_result.serial == 2
        assert device.run(MSI)[0].signal_msi.status == 1
        woken = peer.receive().batch_result
        assert (woken.serial, woken.results[0].halt.interrupt.vector) == (1, 0x51)


def test_a_halt_is_cancelled_when_the_connection_closes(irqchip_server: Daemon, vm: Vm) -> None:
    with closing(Peer(irqchip_server, vm=vm.name)) as peer:
        peer.submit(1, pb.Operation(halt=pb.HaltRequest(vcpu=0)))
        assert peer.run(line(20, True))
    eventually(lambda: not vm.info().sessions)
    vm.signal_msi(LAPIC, 0x51)
    interrupt = vm.vcpu(0).acknowledge()
    assert interrupt is not None
    assert interrupt.vector == 0x51


def test_a_halt_that_is_given_up_is_answered_and_takes_nothing(peer: Peer, vm: Vm) -> None:
    peer.submit(1, pb.Operation(halt=pb.HaltRequest(vcpu=0)))
    peer.send(halt_given_up=pb.HaltGivenUp(serial=1))
    assert peer.receive().batch_result.results[0].halt.HasField("timeout")
    vm.signal_msi(LAPIC, 0x51)
    assert vm.vcpu(0).acknowledge() is not None


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        ({"vm": "nobody"}, "ENOENT"),
        ({"vm": "x", "client": "\n"}, "EINVAL"),
        ({"vm": "x", "vcpus": [4096]}, "EINVAL"),
        ({"vm": "x", "gsis": [4096]}, "EINVAL"),
    ],
)
def test_a_refused_session_is_given_the_reason(irqchip_server: Daemon, opening: dict[str, Any], reason: str) -> None:
    with closing(Peer(irqchip_server)) as peer:
        peer.send(open=pb.SessionOpen(**opening))
        assert peer.end() == reason


def test_a_session_begins_with_open(irqchip_server: Daemon) -> None:
    with closing(Peer(irqchip_server)) as peer:
        peer.submit(1)
        assert peer.end() == "EINVAL"


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\xff\xff", "EBADMSG"), (pb.SessionRequest(open=pb.SessionOpen()).SerializeToString(), "EINVAL")],
)
def test_a_malformed_batch_ends_the_session(peer: Peer, data: bytes, reason: str) -> None:
    peer.socket.send(data)
    assert peer.end() == reason


def test_a_message_that_is_too_long_ends_the_session(peer: Peer) -> None:
    assert peer.opened.max_message_bytes == 1 << 16
    peer.socket.send(bytes(peer.opened.max_message_bytes + 1))
    assert peer.end() == "E2BIG"


def test_a_batch_of_nothing_but_errors_can_be_answered(peer: Peer) -> None:
    read = pb.Operation(pio_read=pb.PioReadRequest(vcpu=99, port=0x21, size=1))
    results = peer.run(*[read] * peer.opened.max_operations)
    assert {result.error.reason for result in results} == {"ENOENT"}


def test_a_deleted_vm_ends_the_session(peer: Peer, vm: Vm) -> None:
    vm.delete()
    assert peer.end() == "ENOENT"


def test_a_daemon_that_stops_says_so_and_removes_the_socket() -> None:
    with start_daemon() as daemon:
        with daemon.connect() as client:
            name = client.create_vm().name
        peer = Peer(daemon, vm=name)
        daemon.process.terminate()
        assert peer.end() == "ESHUTDOWN"
        assert daemon.process.wait(PATIENCE) == 0
        assert not Path(path(daemon)).exists()


def test_a_client_that_does_not_read_delays_no_other(irqchip_server: Daemon, peer: Peer, vm: Vm) -> None:
    """It is not served while it does not read; others are. When it reads again, nothing is missing."""
    batches = 0
    peer.socket.settimeout(0.2)
    try:
        while batches < 10_000:
            peer.submit(batches, *[line(20, True)] * 500)
            batches += 1
    except TimeoutError:
        pass
    assert batches < 10_000, "the daemon read on and on"
    with closing(Peer(irqchip_server, vm=vm.name)) as other:
        for _ in range(200):
            assert other.run(MSI)[0].signal_msi.status == 1
            assert vm.vcpu(0).acknowledge() is not None
            vm.vcpu(0).mmio_write(LAPIC + 0xB0, 0)
    peer.socket.settimeout(PATIENCE)
    serials: list[int] = []
    while len(serials) < batches:
        message = peer.receive()
        if message.WhichOneof("message") == "batch_result":
            serials.append(message.batch_result.serial)
    assert serials == list(range(batches))


def test_the_limit_of_sessions_holds() -> None:
    with start_daemon(arguments=["--max-sessions", "2"]) as daemon, daemon.connect() as client:
        name = client.create_vm().name
        peers = [Peer(daemon, vm=name) for _ in range(2)]
        with closing(Peer(daemon)) as third:
            assert third.end() == "ENOSPC"
        for peer in peers:
            peer.close()
        eventually(lambda: not client.vms()[0].sessions)
        Peer(daemon, vm=name).close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("edge", ["GSI 4 raised: 1 delivered", "GSI 4 lowered: 2 lowered"]),
        pytest.param("ring", ["ring: GSI 4 raised: 1", "ring: GSI 4 lowered: 2"], marks=needs_rings),
    ],
)
def test_a_program_of_the_documentation_compiles_and_runs(
    irqchip_server: Daemon, tmp_path: Path, name: str, said: list[str]
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to compile docs/port.md's program with")
    text = (Path(__file__).parents[2] / "docs" / "port.md").read_text()
    program = re.findall(r"```c\n(.*?)```", text, re.DOTALL)[("edge", "ring").index(name)]
    (build,) = re.findall(rf"^    (cc .* {name}\.c)$", text, re.MULTILINE)
    (tmp_path / f"{name}.c").write_text(program)
    subprocess.run([*build.split(), "-Wextra", "-Werror", "-Wno-missing-field-initializers"], cwd=tmp_path, check=True)
    with irqchip_server.connect() as client:
        client.create_vm("vm1").create_irqchip()
        done = subprocess.run([tmp_path / name, path(irqchip_server)], capture_output=True, text=True, check=True)
        client.delete_vm("vm1")
    assert done.stdout.splitlines() == said
    assert all(f'"{line}"' in text for line in said)


# Records.


def test_records_are_answered_with_records(peer: Peer) -> None:
    peer.send_records(
        1 << 63,
        (IRQ_LINE, 0, 20, 0, 1),
        (PIO_WRITE, 1, 0, 0x21, 0xFB),
        (PIO_READ, 1, 0, 0x21, 0),
        (PIO_READ, 1, 0, 0x99, 0),
        (SIGNAL_MSI, 0, 0, LAPIC, 0x51),
        (ACK, 0, 0, 0, 0),
        (MSR_READ, 0, 0, 0x10, 0),
        (MSR_READ, 0, 0, 0x802, 0),
    )
    while (first := peer.socket.recv(1 << 17, socket.MSG_PEEK))[0]:
        assert pb.SessionResponse.FromString(first).HasField("event")
        peer.receive()
    serial, results, texts = peer.receive_results(8)
    assert (serial, texts) == (1 << 63, b"")
    assert results[:6] == [
        (IRQ_LINE, 0, -1, 0),
        (PIO_WRITE, 1, 0, 0),
        (PIO_READ, 1, 0, 0xFB),
        (PIO_READ, 0, 0, 0),
        (SIGNAL_MSI, 0, 1, 0),
        (ACK, 1, 2, 0x51),
    ]
    assert results[6][:2] == (MSR_READ, 1)
    assert results[7] == (MSR_READ, 3, 0, 0)  # #GP: the APIC is not in x2APIC mode


def test_a_record_that_fails_says_why_and_the_next_is_executed(peer: Peer) -> None:
    missing = (PIO_READ, 1, 9, 0x21, 0)
    for records in ([missing], [missing, (PIO_READ, 1, 0, 0x21, 0), (PIO_READ, 3, 0, 0x21, 0), (99, 0, 0, 0, 0)]):
        peer.send_records(5, *records)
        _, results, texts = peer.receive_results(len(records))
        lengths = [result[3] for result in results if not result[0]]
        numbers = [result[2] for result in results if not result[0]]
        assert numbers == [errno.ENOENT, errno.EINVAL, errno.EINVAL][: len(numbers)]
        assert texts.decode().startswith("VM")
        assert sum(lengths) == len(texts)
        assert all(result == (PIO_READ, 1, 0, 0) for result in results if result[0])


def test_an_accesss_record_says_whether_it_was_claimed(peer: Peer) -> None:
    peer.send_records(5, (COMPLETE, 0, 0, 1, 2), (COMPLETE, 1, 0, 1, 0), (COMPLETE, 2, 0, 1, 0), (COMPLETE, 1, 0, 1, 2))
    _, results, texts = peer.receive_results(4)
    assert results[:2] == [(COMPLETE, 0, 0, 0)] * 2, "no vCPU waits for these accesses"
    assert [result[2] for result in results[2:]] == [errno.EINVAL] * 2
    assert b"unanswered" in texts


def test_records_end_in_a_halt(irqchip_server: Daemon, peer: Peer, vm: Vm) -> None:
    with closing(Peer(irqchip_server, vm=vm.name)) as vcpu:
        vcpu.send_records(1, (PIO_READ, 1, 0, 0x21, 0), (HALT, 0, 0, 0, 0))
        vcpu.send_records(2, (PIO_READ, 1, 0, 0x21, 0))
        assert vcpu.receive_results(1)[0] == 2
        vcpu.send_records(3, (HALT, 0, 0, 0, 0))
        serial, [(kind, _, number, length)], text = vcpu.receive_results(1)
        assert (serial, kind, number, length) == (3, 0, errno.EBUSY, len(text))
        assert peer.run(MSI)[0].signal_msi.status == 1
        assert vcpu.receive_results(2) == (1, [(PIO_READ, 1, 0, 0), (HALT, 1, 2, 0x51)], b"")
        vm.vcpu(0).mmio_write(LAPIC + 0xB0, 0)
        vcpu.send_records(4, (HALT, 0, 0, 0, 1000))
        assert vcpu.receive_results(1)[1] == [(HALT, 3, 0, 0)]
        vm.vcpu(0).nmi()
        vcpu.send_records(5, (HALT, 0, 0, 0, 0), (PIO_READ, 1, 0, 0x21, 0))
        assert vcpu.receive_results(2)[1][0][2] == errno.EINVAL
        vcpu.send_records(6, (HALT, 1, 0, 0, 0))
        assert vcpu.receive_results(1)[1] == [(HALT, 2, pb.SIGNAL_KIND_NMI, 0)]


@pytest.mark.parametrize("data", [b"\0", bytes(16), bytes(39), bytes(41)])
def test_a_malformed_batch_of_records_ends_the_session(peer: Peer, data: bytes) -> None:
    peer.socket.send(data)
    assert peer.end() == "EBADMSG"


def test_too_many_records_are_refused() -> None:
    with start_daemon(arguments=["--max-batch", "4"]) as daemon, daemon.connect() as client:
        name = client.create_vm().name
        with closing(Peer(daemon, vm=name)) as small:
            small.send_records(1, *[(PIO_READ, 1, 0, 0x21, 0)] * 5)
            assert small.end() == "E2BIG"


def test_a_long_batch_delays_no_other_client(irqchip_server: Daemon, peer: Peer, vm: Vm) -> None:
    """A batch is executed in slices: another client's request in between is answered first."""
    with closing(Peer(irqchip_server, vm=vm.name)) as other:
        changes = pb.Operation(irq_lines=pb.IrqLinesRequest(changes=[20 << 1 | 1, 20 << 1] * 2048))
        first = rounds = 0
        while first < 5:  # a busy machine may delay this client for as long as the batch takes, but not always
            rounds += 1
            assert rounds < 200
            peer.submit(1, changes)
            other.send_records(2, (PIO_READ, 1, 0, 0x21, 0))
            other.receive_results(1)
            first += not select.select((peer.socket,), (), (), 0)[0]
            assert len(peer.receive().batch_result.results[0].irq_lines.statuses) == 4096


def test_unused_descriptors_are_closed(irqchip_server: Daemon, peer: Peer) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{irqchip_server.pid}/fd").iterdir()))

    before = descriptors()
    for announced in (False, True):
        for _ in range(20):
            if announced:
                peer.send(descriptors=pb.DescriptorsFollow())
            request = pb.SessionRequest(batch=pb.Batch(serial=7, operations=[line(20, True)]))
            socket.send_fds(peer.socket, [request.SerializeToString()], [0, 1, 2])
            assert peer.receive().batch_result.serial == 7
    for _ in range(20):
        peer.send(descriptors=pb.DescriptorsFollow())
        record = HEADER.pack(0, 1) + OPERATION.pack(PIO_READ, 1, 0, 0x21, 0)
        socket.send_fds(peer.socket, [record], [0, 1, 2])
        peer.receive_results(1)
    eventually(lambda: descriptors() == before)  # the answer comes first


def test_unused_descriptors_are_not_kept_for_the_next_batch(peer: Peer) -> None:
    peer.send(descriptors=pb.DescriptorsFollow())
    record = HEADER.pack(0, 1) + OPERATION.pack(PIO_READ, 1, 0, 0x21, 0)
    eventfd = os.eventfd(0)
    socket.send_fds(peer.socket, [record], [eventfd])
    os.close(eventfd)
    peer.receive_results(1)
    (result,) = peer.run(pb.Operation(irqfd=pb.IrqfdRequest(gsi=5)))
    assert result.error.reason == "EBADF"


def test_results_too_large_for_a_packet_are_refused_one_by_one(peer: Peer) -> None:
    states = [pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))] * 100
    changes = pb.Operation(irq_lines=pb.IrqLinesRequest(changes=[20 << 1] * 4000))
    first, *others = peer.run(changes, *states)
    assert len(first.irq_lines.statuses) == 4000
    assert {other.WhichOneof("result") for other in others} == {"get_lapic", "error"}
    assert {other.error.reason for other in others if other.HasField("error")} == {"E2BIG"}


def test_no_event_is_lost_while_the_socket_is_full(irqchip_server: Daemon, vm: Vm) -> None:
    """Events fill the socket between the slices of a batch; the batch's answer comes after them."""
    peer, other = Peer(irqchip_server, vm=vm.name, vcpus=[0]), Peer(irqchip_server, vm=vm.name)
    with closing(peer), closing(other):
        batches = 0
        while batches < 200:  # whose answers soon fill the socket
            peer.submit(batches, pb.Operation(irq_lines=pb.IrqLinesRequest(changes=[20 << 1] * 4000)))
            batches += 1
            other.run(pb.Operation(nmi=pb.NmiRequest(vcpu=0)))
            if not select.select((), (peer.socket,), (), 0)[1]:
                break
        signals = answers = 0
        while answers < batches or signals < batches:
            message = peer.receive()
            if message.WhichOneof("message") == "batch_result":
                assert message.batch_result.serial == answers
                answers += 1
            elif message.event.HasField("vcpu_signal"):
                signals += 1
        assert (answers, signals) == (batches, batches)
