"""A client leaves, or its VM is deleted, in any state of the client's Session over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1 import irqchip_pb2_grpc as pb_grpc
from irqchip_client import Client, TimedOut, Vm
from irqchip_client._daemon import Daemon, start_daemon
from tests.service.test_port import Peer
from tests.waiting import eventually

PORT = 0x300
READ_LAPIC = pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))
READ_REGION = pb.Operation(pio_read=pb.PioReadRequest(vcpu=0, port=PORT, size=1))
REGION = pb.Operation(register_region=pb.RegisterRegionRequest(space=pb.ADDRESS_SPACE_PIO, address=PORT, length=1))
HALT = pb.Operation(halt=pb.HaltRequest(vcpu=0, interrupts_masked=True))
LINES = pb.Operation(irq_lines=pb.IrqLinesRequest(changes=[41, 40] * 2000))


class Scene:
    """A VM with a client whose Session is in some state."""

    def __init__(self, daemon: Daemon, client: Client) -> None:
        self.daemon = daemon
        self.client = client
        self.vm: Vm = client.create_vm()
        self.vm.create_irqchip()
        self.vm.create_vcpu(0)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(daemon.target.replace("unix://", "unix:"), options)
        self.requests: SimpleQueue[pb.SessionRequest | None] = SimpleQueue()
        self.stream: Any = pb_grpc.IrqchipServiceStub(self.channel).Session(iter(self.requests.get, None))
        self.owner: Peer | None = None

    def open(self) -> None:
        self.requests.put(pb.SessionRequest(open=pb.SessionOpen(vm=self.vm.name, vcpus=[0])))
        assert next(self.stream).opened.source

    def submit(self, *operations: pb.Operation) -> None:
        self.requests.put(pb.SessionRequest(batch=pb.Batch(serial=1, operations=operations)))

    # States.

    def is_not_opened(self) -> None:
        pass

    def is_idle(self) -> None:
        self.open()
        self.submit(READ_LAPIC)
        next(self.stream)

    def works(self) -> None:
        self.open()
        for _ in range(20):
            self.submit(LINES)

    def does_not_read(self) -> None:
        self.open()
        for _ in range(50):
            self.submit(*[READ_LAPIC] * 200)

    def halts(self) -> None:
        self.open()
        self.submit(HALT)

    def waits_for_an_access(self) -> None:
        self.owner = Peer(self.daemon, vm=self.vm.name, client="owner")
        self.owner.run(REGION)
        self.open()
        self.submit(READ_REGION, READ_REGION)
        assert self.owner.receive().event.HasField("region_access")


every_state = pytest.mark.parametrize(
    "state",
    [
        Scene.is_not_opened,
        Scene.is_idle,
        Scene.works,
        Scene.does_not_read,
        Scene.halts,
        Scene.waits_for_an_access,
    ],
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon(arguments=["--log-level", "warning"]) as daemon:
        yield daemon
        assert daemon.stderr == ""


@pytest.fixture
def scene(daemon: Daemon) -> Iterator[Scene]:
    with daemon.connect() as client:
        scene = Scene(daemon, client)
        yield scene
        scene.requests.put(None)
        scene.channel.close()
        if scene.owner is not None:
            scene.owner.close()


def serves(daemon: Daemon, client: Client) -> None:
    vm = client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    with closing(Peer(daemon, vm=vm.name)) as peer:
        assert peer.run(READ_LAPIC)[0].HasField("get_lapic")
    client.delete_vm(vm.name)


@every_state
def test_a_client_leaves(daemon: Daemon, scene: Scene, state: Callable[[Scene], None]) -> None:
    state(scene)
    scene.channel.close()
    serves(daemon, scene.client)
    eventually(lambda: [session.client for session in scene.vm.info().sessions] in ([], ["owner"]))
    with pytest.raises(TimedOut):  # not Busy: the client's halt, if any, has ended with it
        scene.vm.vcpu(0).halt(timeout=0.001)
    scene.client.delete_vm(scene.vm.name)


@every_state
def test_its_vm_is_deleted(daemon: Daemon, scene: Scene, state: Callable[[Scene], None]) -> None:
    state(scene)
    scene.client.delete_vm(scene.vm.name)
    serves(daemon, scene.client)
    if state is not Scene.is_not_opened:
        with pytest.raises(grpc.RpcError) as ended:
            for _ in scene.stream:
                pass
        assert ended.value.code() is grpc.StatusCode.NOT_FOUND
