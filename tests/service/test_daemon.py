"""The daemon's process: where it listens, what it refuses, and how it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import LimitReached, SessionClosed, Unavailable, connect, ops
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE


def refused(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The error message of a daemon that refuses to start."""
    done = subprocess.run(
        [sys.executable, "-m", "irqchipd", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_only_its_user_can_connect_to_its_socket(irqchip_server: Daemon) -> None:
    path = Path(irqchip_server.target.removeprefix("unix://"))
    assert path.stat().st_mode & 0o077 == 0


def test_by_default_it_listens_where_clients_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("IRQCHIP_TARGET", raising=False)
    with subprocess.Popen([sys.executable, "-m", "irqchipd"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on unix://{tmp_path}/irqchipd/irqchipd.sock\n"
        assert (tmp_path / "irqchipd").stat().st_mode & 0o777 == 0o700
        with connect() as client:
            assert client.vms() == []
        process.terminate()
    assert process.returncode == 0


def test_it_refuses_a_default_folder_that_is_not_its_users(tmp_path: Path) -> None:
    (tmp_path / "irqchipd").symlink_to("/tmp")
    assert "is not a directory of yours" in refused(environment={"XDG_RUNTIME_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("tcp://0.0.0.0:0", "--allow-insecure"),
        ("tcp://[::]:0", "--allow-insecure"),
        ("tcp://192.0.2.1:0", "--allow-insecure"),
        ("tcp://127.0.0.1:65536", "0 to 65535"),
        ("tcp://127.0.0.1", "tcp://HOST:PORT"),
        ("unix://relative", "unix:///PATH"),
        ("unix:///nowhere/at/all.sock", "does not exist"),
        ("unix:///tmp/" + "x" * 110, "102 bytes"),
        ("http://127.0.0.1:80", "unix:///PATH or tcp://HOST:PORT"),
    ],
)
def test_it_refuses_to_listen(address: str, hint: str) -> None:
    assert hint in refused("--listen", address)


def test_it_serves_tcp_on_request() -> None:
    with start_daemon(listen=["tcp://127.0.0.1:0"]) as daemon:
        assert daemon.targets[1].startswith("tcp://127.0.0.1:")
        assert not daemon.targets[1].endswith(":0")
        with connect(daemon.targets[1]) as client:
            client.create_vm("over-tcp")
        with daemon.connect() as client:
            assert [vm.name for vm in client.vms()] == ["over-tcp"]
        assert "in use" in refused("--listen", daemon.targets[1])


def test_it_leaves_an_address_in_use_alone_and_takes_a_dead_one_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        assert "in use" in refused("--listen", f"unix://{path}")
    with start_daemon(listen=[f"unix://{path}"]):
        assert "in use" in refused("--listen", f"unix://{path}")
        with connect(f"unix://{path}") as client:
            client.create_vm("reached")
    assert not path.exists()
    path.write_text("a file")
    assert "not a socket" in refused("--listen", f"unix://{path}")
    assert path.read_text() == "a file"


def test_sigterm_ends_streams_with_a_status_and_removes_the_socket() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm("busy")
        vm.create_irqchip()
        session = vm.session("device")
        watch = vm.watch()
        started = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(SessionClosed, match="irqchipd is stopping"):
            session.next_event(timeout=PATIENCE)
        with pytest.raises(Unavailable, match="stopping") as caught:
            next(iter(watch))
        assert caught.value.reason == "ESHUTDOWN"
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - started < 20
        assert not Path(daemon.target.removeprefix("unix://")).exists()
        with pytest.raises(Unavailable, match="start it"):
            client.vms()


def test_sigterm_under_load_applies_batches_whole_or_not_at_all() -> None:
    with start_daemon() as daemon, daemon.connect() as client:
        vm = client.create_vm("busy")
        vm.create_irqchip()
        with vm.session("device") as session:
            pulse = [ops.irq_line(20, True), ops.irq_line(20, False)] * 500
            futures = [session.submit(pulse) for _ in range(8)]
            daemon.process.send_signal(signal.SIGTERM)
            for future in futures:
                with suppress(SessionClosed):
                    assert len(future.result(PATIENCE)) == 1000
        assert daemon.process.wait(PATIENCE) == 0


def test_garbage_on_the_socket_does_not_end_it(irqchip_server: Daemon) -> None:
    for garbage in (b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(irqchip_server.target.removeprefix("unix://"))
            client.sendall(garbage)
    with irqchip_server.connect() as good:
        good.vms()
    assert irqchip_server.process.poll() is None


def test_health_and_reflection_answer(irqchip_server: Daemon) -> None:
    with grpc.insecure_channel(irqchip_server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "irqchip.v1.IrqchipService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "irqchip.v1.IrqchipService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_a_silent_stream_does_not_count_as_a_session_and_ends_with_the_daemon() -> None:
    with start_daemon(arguments=["--max-sessions", "1"]) as daemon, daemon.connect() as client:
        vm = client.create_vm("quiet")
        silent = threading.Event()
        with grpc.insecure_channel(daemon.target) as channel:

            def nothing() -> Iterator[pb.SessionRequest]:
                silent.wait()
                yield from ()

            call = IrqchipServiceStub(channel).Session(nothing())
            time.sleep(0.3)  # until the stream has arrived
            with vm.session(), pytest.raises(LimitReached, match="1 Sessions"):
                vm.session()
            started = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert daemon.process.wait(PATIENCE) == 0
            assert time.monotonic() - started < 20
            silent.set()


def test_a_closed_session_makes_room_for_another() -> None:
    with start_daemon(arguments=["--max-sessions", "1"]) as daemon, daemon.connect() as client:
        vm = client.create_vm("vm")
        for _ in range(200):
            vm.session().close()


def test_its_limits_are_enforced() -> None:
    arguments = ["--max-vms", "2", "--max-vcpus", "1", "--max-sessions", "2", "--max-batch", "3"]
    with start_daemon(arguments=arguments) as daemon, daemon.connect() as client:
        vm = client.create_vm("one")
        client.create_vm("two")
        with pytest.raises(LimitReached, match="2 VMs"):
            client.create_vm("three")
        client.delete_vm("two")
        client.create_vm("three")

        vm.create_vcpu(0)
        with pytest.raises(Exception, match="1 vCPUs"):
            vm.create_vcpu(1)

        first, second = vm.session(), vm.session()
        assert first.max_operations == 3
        with pytest.raises(LimitReached, match="2 Sessions"):
            vm.session()
        second.close()
        vm.session().close()
        first.close()
