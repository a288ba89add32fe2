"""While one client does its worst, the daemon serves others and stays small. The limits are generous: the failures
they exclude took seconds, minutes or gigabytes.
"""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1 import irqchip_pb2_grpc as pb_grpc
from irqchip_client import Client
from irqchip_client._daemon import Daemon, start_daemon
from tests.service.test_closing import lingering
from tests.service.test_port import HALT, LAPIC, PIO_READ, Peer
from tests.service.test_sessions import resident
from tests.waiting import PATIENCE, eventually

Stub = pb_grpc.IrqchipServiceStub
MS = 1_000_000
MIB = 1 << 20
NOISY_VCPUS = 32
SVR, LVT_TIMER, TIMER_COUNT, TIMER_DIVIDE = 0xF0, 0x320, 0x380, 0x3E0
PERIODIC_NMI, BY_1 = 0x2_0400, 0xB
BROADCAST = pb.Msi(address=LAPIC | 0xFF << 12, data=0x400)  # an NMI to every vCPU
GSI = 24


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of the test's own, which must obey SIGTERM at the end."""
    with start_daemon() as daemon:
        yield daemon
        assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(PATIENCE)
        assert "Traceback" not in daemon.stderr, daemon.stderr


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect(timeout=60) as client:
        make(client, "quiet", 1)
        yield client


@pytest.fixture
def stub(daemon: Daemon) -> Iterator[Stub]:
    # A connection of its own: by default a process's channels share one, where a client's calls wait for each other.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(daemon.target.replace("unix://", "unix:"), options) as channel:
        yield pb_grpc.IrqchipServiceStub(channel)


@pytest.fixture
def quiet(daemon: Daemon, client: Client) -> Iterator[Peer]:
    client.vm("quiet").info()
    with closing(Peer(daemon, vm="quiet")) as quiet:
        yield quiet


def make(client: Client, name: str, vcpus: int) -> None:
    vm = client.create_vm(name)
    vm.create_irqchip()
    for vcpu in range(vcpus):
        vm.create_vcpu(vcpu)


def route_broadcast(daemon: Daemon, name: str) -> None:
    """Route GSI to an NMI for every vCPU."""
    with closing(Peer(daemon, vm=name)) as peer:
        route = pb.RoutingEntry(gsi=GSI, msi=BROADCAST)
        (result,) = peer.run(pb.Operation(set_gsi_routing=pb.SetGsiRoutingRequest(entries=[route])))
        assert not result.HasField("error")


def start_timers(daemon: Daemon, name: str) -> None:
    """Start a 200 us timer on every vCPU, delivered as an NMI: more than the daemon has time for."""
    with closing(Peer(daemon, vm=name)) as peer:
        for vcpu in range(NOISY_VCPUS):
            (got,) = peer.run(pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=vcpu)))
            state = bytearray(got.get_lapic.kvm_struct)
            for register, value in (
                (SVR, 0x1FF),
                (TIMER_DIVIDE, BY_1),
                (LVT_TIMER, PERIODIC_NMI),
                (TIMER_COUNT, 200_000),
            ):
                struct.pack_into("<I", state, register, value)
            (result,) = peer.run(pb.Operation(set_lapic=pb.SetLapicRequest(vcpu=vcpu, kvm_struct=bytes(state))))
            assert not result.HasField("error")


def longest(times: int, work: Callable[[], object]) -> float:
    """The longest of several runs, in seconds."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        work()
        took.append(time.monotonic() - begun)
    return max(took)


def halt_for_10_ms(peer: Peer) -> None:
    peer.send_records(1, (HALT, 1, 0, 0, 10 * MS))
    assert peer.receive_results(1)[1] == [(HALT, 3, 0, 0)]


def read_port(peer: Peer) -> None:
    peer.send_records(1, (PIO_READ, 1, 0, 0x21, 0))
    peer.receive_results(1)


@pytest.mark.parametrize("watched", [False, True])
def test_a_halts_timeout_does_not_wait_for_another_vms_timers(
    daemon: Daemon, client: Client, quiet: Peer, watched: bool
) -> None:
    make(client, "noisy", NOISY_VCPUS)
    with ExitStack() as stack:
        if watched:
            stack.enter_context(client.vm("noisy").watch())
        start_timers(daemon, "noisy")
        # What other processes do may delay a call, but not in each of many rounds.
        eventually(lambda: longest(10, lambda: halt_for_10_ms(quiet)) < 1)
        eventually(lambda: longest(50, lambda: read_port(quiet)) < 1)
        eventually(lambda: longest(5, client.vm("quiet").info) < 2)
        begun = time.monotonic()
        client.delete_vm("noisy")
        assert time.monotonic() - begun < 20


def test_a_late_vm_reports_its_lateness(daemon: Daemon, client: Client, stub: Stub) -> None:
    make(client, "noisy", NOISY_VCPUS)
    start_timers(daemon, "noisy")
    eventually(lambda: stub.GetVm(pb.GetVmRequest(vm="noisy")).vm.lateness_ns > 0)
    assert stub.GetVm(pb.GetVmRequest(vm="quiet")).vm.lateness_ns == 0


def test_a_broadcast_to_many_listeners_neither_fills_the_memory_nor_holds_up_others(
    daemon: Daemon, client: Client, quiet: Peer
) -> None:
    vcpus, sessions = 16, 16
    make(client, "noisy", vcpus)
    route_broadcast(daemon, "noisy")
    with ExitStack() as stack:
        for _ in range(sessions):  # whose clients read nothing
            stack.enter_context(closing(Peer(daemon, vm="noisy", vcpus=range(vcpus))))
        sender = stack.enter_context(closing(Peer(daemon, vm="noisy")))
        sender.socket.settimeout(60)
        before = resident(daemon)
        sender.submit(1, pb.Operation(irq_lines=pb.IrqLinesRequest(changes=[GSI << 1 | 1] * 4096)))
        begun, worst, largest, done = time.monotonic(), 0.0, before, threading.Event()

        def receive() -> None:
            (result,) = sender.receive().batch_result.results
            assert list(result.irq_lines.statuses) == [vcpus] * 4096
            done.set()

        receiving = threading.Thread(target=receive)
        receiving.start()
        while not done.wait(0.02) and receiving.is_alive():
            worst = max(worst, longest(1, lambda: read_port(quiet)))
            largest = max(largest, resident(daemon))
        assert done.is_set()
        assert worst < max(1, (time.monotonic() - begun) / 4)
        assert largest - before < 64 * MIB


def test_descriptors_whose_close_blocks_do_not_delay_others(daemon: Daemon, quiet: Peer) -> None:
    with ExitStack() as stack:
        for announced in (False, True) * 6:
            sender, peer = lingering()
            stack.enter_context(closing(peer))
            client = stack.enter_context(closing(Peer(daemon, **({"vm": "quiet"} if announced else {}))))
            if announced:
                client.send(descriptors=pb.DescriptorsFollow())
            socket.send_fds(client.socket, [pb.SessionRequest().SerializeToString() or b"x"], [sender.fileno()])
            sender.close()
            assert longest(3, lambda: read_port(quiet)) < 2


def test_thousands_of_calls_of_one_vm_do_not_hold_up_those_of_another(
    daemon: Daemon, client: Client, stub: Stub
) -> None:
    make(client, "noisy", 1)
    work = pb.IrqLinesRequest(vm="noisy", changes=[20 << 1 | 1, 20 << 1] * 500)
    with grpc.insecure_channel(daemon.target.replace("unix://", "unix:")) as channel:
        calls = [pb_grpc.IrqchipServiceStub(channel).IrqLines.future(work) for _ in range(2000)]
        assert longest(10, lambda: stub.IrqLine(pb.IrqLineRequest(vm="quiet", gsi=5, level=True))) < 1
        assert longest(10, lambda: stub.GetVm(pb.GetVmRequest(vm="quiet"))) < 1
        assert not calls[-1].done(), "the noisy ones were too few"
        for call in calls:
            call.cancel()


def test_connecting_and_leaving_keeps_no_memory(daemon: Daemon, quiet: Peer) -> None:
    with closing(Peer(daemon)):  # never opened
        for _ in range(500):
            Peer(daemon).close()
        before = resident(daemon)
        for _ in range(3000):
            Peer(daemon).close()
        read_port(quiet)
        assert resident(daemon) - before < 8 * MIB
