"""SIGTERM stops the daemon in time, whatever clients do and whatever resource is exhausted."""

from __future__ import annotations

import resource
import signal
import socket
import struct
import time
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import SessionClosed
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE

SOON = 30.0  # seconds; the daemon's own deadline is 1.5, it would be stuck for 60, and test machines are busy


def stop(daemon: Daemon) -> int:
    """The exit status of a daemon that must stop in time and remove its sockets."""
    daemon.process.send_signal(signal.SIGTERM)
    status = daemon.process.wait(SOON)
    path = Path(daemon.target.removeprefix("unix://"))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["stderr", "stdout"]
    return status


def test_it_stops_while_a_client_floods_it() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        client.create_vm("storm").create_irqchip()
        channels = [
            grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(10)
        ]
        for channel in channels:
            stub = IrqchipServiceStub(channel)
            for _ in range(200):
                stub.GetIrqchip.future(pb.GetIrqchipRequest(vm="storm"))
        assert stop(daemon) == 0
        for channel in channels:
            channel.close()


def test_it_stops_without_free_threads_and_descriptors_and_notifies_sessions() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm("vm")
        session = vm.session("device")
        size = next(
            int(line.split()[1]) * 1024
            for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
            if line.startswith("VmSize")
        )
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (size, size))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, 3))
        assert stop(daemon) == 0
        with pytest.raises(SessionClosed, match="irqchipd is stopping"):
            session.next_event(timeout=PATIENCE)
        assert "Traceback" not in daemon.stderr


def test_it_stops_when_its_event_loop_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUCK", "loop")
    with start_daemon(module="tests.service.stuck_daemon") as daemon:
        assert stop(daemon) == 0


def test_it_is_killed_when_its_interpreter_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUCK", "interpreter")
    with start_daemon(module="tests.service.stuck_daemon") as daemon:
        assert stop(daemon) == -signal.SIGALRM


def test_sigint_stops_it_as_well() -> None:
    with start_daemon() as daemon:
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(SOON) == 0


def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP socket whose close() takes an hour, and the other end, which reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sender, receiver


def test_it_stops_while_the_port_closes_a_blocking_descriptor() -> None:
    with start_daemon() as daemon, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(daemon.target.removeprefix("unix://") + ".port")
        sender, receiver = lingering()
        with closing(receiver):
            daemon.process.send_signal(signal.SIGSTOP)
            while ") T " not in Path(f"/proc/{daemon.pid}/stat").read_text():
                time.sleep(0.01)
            socket.send_fds(client, [b"x"], [sender.fileno()])
            sender.close()  # the daemon's copy is the last one
            daemon.process.send_signal(signal.SIGCONT)
            time.sleep(0.2)  # so that the port blocks, if it does
            assert stop(daemon) == 0


def test_grpcs_socket_takes_no_descriptors() -> None:
    option = 83  # SO_PASSRIGHTS
    with start_daemon() as daemon, socket.socket(socket.AF_UNIX) as client:
        try:
            client.getsockopt(socket.SOL_SOCKET, option)
        except OSError:
            pytest.skip("Linux 6.16 can refuse descriptors")
        client.connect(daemon.target.removeprefix("unix://"))
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"x"], [client.fileno()])
