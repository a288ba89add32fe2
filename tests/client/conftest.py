"""A VM with all its parts, and a server that breaks the protocol."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, Vm, connect
from irqchip_client._daemon import Daemon
from irqchipd.embedded import Embedded
from tests.waiting import PATIENCE

# What the server's Session does, given the requests.
Script = Callable[[Iterator[pb.SessionRequest], grpc.ServicerContext], Iterator[pb.SessionResponse]]
Serve = Callable[[Script], str]
Stub = Callable[..., str]

# Their tests are also made of a daemon in this process, but for those that are marked only_daemon.
EMBEDDED_TOO = frozenset(
    f"tests.client.test_{name}"
    for name in (
        *("aio", "calls", "halt", "lifetimes", "model", "pages", "public", "service", "session", "snapshots"),
        *("state", "time", "vmm_calls", "without_waiting", "names", "arguments"),
    )
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (
        metafunc.module.__name__ in EMBEDDED_TOO
        and "irqchip_server" in metafunc.fixturenames
        and metafunc.definition.get_closest_marker("only_daemon") is None
    ):
        metafunc.parametrize("kind", ["daemon", "embedded"], indirect=True)


class _Shared(Embedded):
    """A daemon in this process, which all its Clients share and none ends."""

    def stop(self) -> None:
        pass

    def end(self) -> None:
        super().stop()


class _InThisProcess:
    """What a test uses of a Daemon."""

    target = "embedded:"

    def connect(self, *, timeout: float = PATIENCE) -> Client:
        return connect(self.target, timeout=timeout)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Which daemon it is."""
    return getattr(request, "param", "daemon")


@pytest.fixture
def irqchip_server(
    irqchip_server: Daemon, kind: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemon | _InThisProcess]:
    """A daemon's process, one for the whole run; or a daemon in this process, one a test."""
    if kind == "daemon":
        yield irqchip_server
        return
    shared = _Shared()
    monkeypatch.setattr("irqchip_client._embedded.daemon.Embedded", lambda _: shared)
    yield _InThisProcess()
    shared.end()


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with an irqchip and vCPU 0, deleted after the test."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture
def stub() -> Iterator[Stub]:
    """Start a server that has these methods, by name; returns its target."""
    servers = []

    def start(threads: int = 16, /, **methods: Callable[..., Any]) -> str:
        service = pb.DESCRIPTOR.services_by_name["IrqchipService"]
        handlers = {}
        for name, method in methods.items():
            described = service.methods_by_name[name]
            kinds = {
                (False, False): grpc.unary_unary_rpc_method_handler,
                (False, True): grpc.unary_stream_rpc_method_handler,
                (True, True): grpc.stream_stream_rpc_method_handler,
            }
            handlers[name] = kinds[described.client_streaming, described.server_streaming](
                method,
                request_deserializer=getattr(pb, described.input_type.name).FromString,
                response_serializer=getattr(pb, described.output_type.name).SerializeToString,
            )
        # The limit of calls per connection is irqchipd's.
        server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.max_concurrent_streams", 100)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"tcp://127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def serve(stub: Stub) -> Serve:
    """Start a server whose Sessions follow a script; returns its target."""
    return lambda script: stub(Session=script)
