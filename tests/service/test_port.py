"""The AF_UNIX port, by bare sockets: what any client can rely on."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, Vm
from irqchip_client._daemon import Daemon, start_daemon

LAPIC = 0xFEE0_0000
MSI = pb.Operation(signal_msi=pb.SignalMsiRequest(address=LAPIC, data=0x51))


class Peer:
    """A client of the port."""

    def __init__(self, daemon: Daemon, **opening: Any) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
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

    def run(self, *operations: pb.Operation) -> list[pb.OperationResult]:
        self.submit(7, *operations)
        result = self.receive().batch_result
        assert result.serial == 7
        return list(result.results)

    def end(self) -> str:
        """The reason of the error with which the Session ends, and nothing comes behind."""
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
    deadline = time.monotonic() + 5
    while vm.info().sessions:
        assert time.monotonic() < deadline
    assert not vm.info().asserted_gsis


def test_many_changes_in_one_operation(peer: Peer) -> None:
    changes = [20 << 1 | 1, 20 << 1 | 1, 20 << 1, 5000 << 1 | 1]
    (result,) = peer.run(pb.Operation(irq_lines=pb.IrqLinesRequest(changes=changes)))
    assert list(result.irq_lines.statuses) == [-1, 0, 1, -1]


def test_what_happens_to_a_vcpu_is_told_at_once(peer: Peer, vm: Vm) -> None:
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
    deadline = time.monotonic() + 5
    while vm.info().sessions:
        assert time.monotonic() < deadline
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
        ({"vm": "x", "vcpus": [255]}, "EINVAL"),
        ({"vm": "x", "gsis": [4096]}, "EINVAL"),
    ],
)
def test_why_a_session_is_not_opened_is_told(irqchip_server: Daemon, opening: dict[str, Any], reason: str) -> None:
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
def test_what_is_no_batch_ends_the_session(peer: Peer, data: bytes, reason: str) -> None:
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


def test_a_daemon_that_stops_says_so_and_takes_the_socket_away() -> None:
    with start_daemon() as daemon:
        with daemon.connect() as client:
            name = client.create_vm().name
        peer = Peer(daemon, vm=name)
        daemon.process.terminate()
        assert peer.end() == "ESHUTDOWN"
        assert daemon.process.wait(10) == 0
        assert not Path(path(daemon)).exists()


def test_a_client_that_does_not_read_holds_up_nobody(irqchip_server: Daemon, peer: Peer, vm: Vm) -> None:
    """It stops being served while it does not read; others are, and when it reads again, nothing is missing."""
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
    peer.socket.settimeout(10)
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
        deadline = time.monotonic() + 5
        while client.vms()[0].sessions:
            assert time.monotonic() < deadline
        Peer(daemon, vm=name).close()


def test_the_program_of_the_documentation_compiles_and_runs(irqchip_server: Daemon, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to compile docs/port.md's program with")
    text = (Path(__file__).parents[2] / "docs" / "port.md").read_text()
    (program,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    (tmp_path / "edge.c").write_text(program)
    subprocess.run([compiler, "-Wall", "-Werror", "-o", tmp_path / "edge", tmp_path / "edge.c"], check=True)
    with irqchip_server.connect() as client:
        client.create_vm("vm1").create_irqchip()
        done = subprocess.run([tmp_path / "edge", path(irqchip_server)], capture_output=True, text=True, check=True)
        client.delete_vm("vm1")
    result = pb.SessionResponse.FromString(bytes.fromhex(done.stdout)).batch_result
    assert (result.serial, list(result.results[0].irq_lines.statuses)) == (1, [1, 2])
