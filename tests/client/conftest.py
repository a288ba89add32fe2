"""A VM with all its parts, and a server that breaks the rules."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Client, Vm

# What a Session of such a server does, given the requests.
Script = Callable[[Iterator[pb.SessionRequest], grpc.ServicerContext], Iterator[pb.SessionResponse]]
Serve = Callable[[Script], str]


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM with an irqchip and vCPU 0, deleted after the test."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server whose Sessions follow a script, and gives its target."""
    servers = []

    def start(script: Script) -> str:
        session = grpc.stream_stream_rpc_method_handler(
            script,
            request_deserializer=pb.SessionRequest.FromString,
            response_serializer=pb.SessionResponse.SerializeToString,
        )
        server = grpc.server(ThreadPoolExecutor())
        service = pb.DESCRIPTOR.services_by_name["IrqchipService"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Session": session}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"tcp://127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()
