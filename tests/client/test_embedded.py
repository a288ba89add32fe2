"""A daemon in this process: its life, its edges, and the threads that share it."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from irqchip_client import (
    Access,
    Client,
    Interrupt,
    InterruptSource,
    InvalidArgument,
    IrqchipError,
    NotFound,
    RegionAccess,
    Session,
    SessionClosed,
    Space,
    Unavailable,
    Vm,
    aio,
    connect,
    embedded,
    ops,
)
from irqchip_client._embedded.blocking import EmbeddedTransport
from irqchip_client.devices import Rtc, run_device
from irqchipd.edge.operations import SessionCaller
from irqchipd.embedded import LocalSession
from tests.client.guest import IRQ_BASE, init_pics
from tests.client.test_halt import MSI, TAKEN, wait_until_halted
from tests.waiting import PATIENCE

SPURIOUS = ops.mmio_write(0, 0xFEE0_00F0, 0x1FF)  # enables the local APIC
PORT = 0x5000


@pytest.fixture
def path() -> Iterator[Path]:
    """A path for a socket; pytest's own directories have names that are too long."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "vmm"


@pytest.fixture
def client() -> Iterator[Client]:
    with embedded() as client:
        yield client


def machine(client: Client) -> Vm:
    vm = client.create_vm("pc")
    vm.create_irqchip()
    vm.create_vcpu(0)
    vm._run([SPURIOUS])
    return vm


BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def other_threads() -> None:
    """Other tests may have left some."""
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def own_threads() -> set[str]:
    """The threads of this test's daemons, without the shared one that closes descriptors."""
    new = {thread.name for thread in threading.enumerate() if thread not in BEFORE}
    return {name for name in new if name.startswith("irqchipd ")} - {"irqchipd closer"}


def soon(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# Targets.


def test_two_clients_have_a_daemon_each(client: Client) -> None:
    machine(client)
    with connect("embedded:") as other:
        assert other.vms() == []
        assert other.create_vm("pc").name == "pc"
    assert [vm.name for vm in client.vms()] == ["pc"]


def test_without_listen_no_thread_is_started(client: Client) -> None:
    before = own_threads()
    vm = machine(client)
    with vm.session() as session:
        session.line(4).pulse()
    assert own_threads() == before
    assert client.target == "embedded:"


@pytest.mark.parametrize("uri", ["embedded:x", "embedded:?listen=", "embedded:?port=1", "embedded://"])
def test_a_malformed_target_says_how_it_is_written(uri: str) -> None:
    with pytest.raises(InvalidArgument, match=r"embedded: or embedded:\?listen=/path"):
        connect(uri)


def test_a_failure_to_listen_is_reported_with_the_reason(path: Path) -> None:
    with embedded(str(path)), pytest.raises(IrqchipError, match="is in use, perhaps by another irqchipd") as caught:
        embedded(str(path))
    assert caught.value.reason == "EADDRINUSE"
    with pytest.raises(IrqchipError, match="does not exist"):
        embedded(str(path / "sub" / "socket"))
    assert soon(lambda: not own_threads())


# The fast way.


def test_single_operations_make_no_packet(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(client).session() as session:
        monkeypatch.setattr(LocalSession, "send", None)
        assert session.vcpu(0).pio_write(0x21, 0xEF)
        assert session.vcpu(0).pio_read(0x21) == Access(True, 0xEF)
        assert session.line(4).raise_() == 1
        assert session.signal_msi(0xFEE0_0000, 0x51) == 1
        assert session.vcpu(0).halt() == Interrupt(4, InterruptSource.PIC)
        with pytest.raises(NotFound, match="no vCPU 9"):
            session.vcpu(9).pio_read(0x21)
        monkeypatch.undo()
        session.line(4).lower()


# Edges.


def test_others_connect_as_to_any_daemon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded(str(path)) as client, connect(f"unix://{path}") as other:
        vm = machine(client)
        init_pics(vm)
        for transport in ("port", "grpc"):
            monkeypatch.setenv("IRQCHIP_PORT", "off" if transport == "grpc" else "")
            with other.vm("pc").session("uart") as uart, ThreadPoolExecutor() as pool:
                assert uart.transport == transport
                halted = pool.submit(vm.vcpu(0).halt)
                wait_until_halted(vm)
                uart.line(4).raise_()
                assert halted.result(PATIENCE) == Interrupt(IRQ_BASE + 4, InterruptSource.PIC)
                vm.vcpu(0).pio_write(0x20, 0x20)
    assert not path.exists()
    assert not path.with_name("vmm.port").exists()
    assert soon(lambda: not own_threads())


def test_a_device_process_answers_the_accesses(path: Path) -> None:
    command = [sys.executable, "-m", "irqchip_client.cli", "--target", f"unix://{path}", "device", "Rtc", "--vm", "pc"]
    with embedded(str(path)) as client, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as device:
        vm = machine(client)
        assert soon(lambda: any(session.regions for session in vm.info().sessions))
        with vm.session() as session:
            session.vcpu(0).pio_write(0x70, 0x0D)
            assert session.vcpu(0).pio_read(0x71).data == 0x80  # the RTC has power
            assert session.run([ops.pio_read(0, 0x71)] * 3) == [Access(True, 0x80)] * 3
        vm.delete()
        assert device.wait(PATIENCE) == 0


def test_a_device_of_a_thread(path: Path) -> None:
    with embedded(str(path)) as client, ThreadPoolExecutor() as pool:
        vm = machine(client)
        device = pool.submit(run_device, Rtc(), "pc", target=f"unix://{path}")
        assert soon(lambda: any(session.regions for session in vm.info().sessions))
        vm.vcpu(0).pio_write(0x70, 0x0D)
        assert vm.vcpu(0).pio_read(0x71).data == 0x80
        vm.delete()
        device.result(PATIENCE)


def test_the_end_of_the_client_ends_the_sessions_of_others(path: Path) -> None:
    client = embedded(str(path))
    machine(client)
    with connect(f"unix://{path}") as other, other.vm("pc").session() as session:
        client.close()
        with pytest.raises(SessionClosed, match="irqchipd is stopping"):
            session.next_event(PATIENCE)
        with pytest.raises(Unavailable):
            other.vms()


# Waiting.


def test_a_halt_does_not_block_other_threads(client: Client) -> None:
    vm = machine(client)
    with vm.session() as session, ThreadPoolExecutor() as pool:
        halted = pool.submit(session.vcpu(0).halt)
        wait_until_halted(vm)
        assert session.vcpu(0).pio_read(0x21).claimed
        assert session.run([ops.pio_read(0, 0x21)])[0].claimed
        vm._run([MSI])
        assert halted.result(PATIENCE) == TAKEN


def test_a_waiting_halt_uses_no_processor(client: Client) -> None:
    vm = machine(client)
    with vm.session() as session, ThreadPoolExecutor() as pool:
        halted = pool.submit(session.run, [ops.halt(0)])
        wait_until_halted(vm)
        begun = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - begun < 0.1
        vm._run([MSI])
        assert halted.result(PATIENCE) == [TAKEN]


HALTS: dict[str, Callable[[Vm, Session], object]] = {
    "of the VM": lambda vm, _: vm.vcpu(0).halt(),
    "of a Session": lambda _, session: session.vcpu(0).halt(),
    "at a batch's end": lambda _, session: session.run([ops.halt(0)]),
    "that is begun": lambda _, session: session.begin_halt(0).wait(),
}


@pytest.mark.parametrize("halt", HALTS)
def test_close_ends_a_halt(halt: str) -> None:
    client = embedded()
    vm = machine(client)
    session = vm.session()
    with ThreadPoolExecutor() as pool:
        halted = pool.submit(HALTS[halt], vm, session)
        wait_until_halted(vm)
        client.close()
        with pytest.raises(Unavailable if halt == "of the VM" else SessionClosed, match="Client is closed"):
            halted.result(PATIENCE)
    with pytest.raises(Unavailable, match="Client is closed"):
        vm.info()


@pytest.mark.parametrize("halt", HALTS)
def test_the_end_of_the_vm_ends_a_halt(client: Client, halt: str) -> None:
    vm = machine(client)
    session = vm.session()
    with ThreadPoolExecutor() as pool:
        halted = pool.submit(HALTS[halt], vm, session)
        wait_until_halted(vm)
        vm.delete()
        with pytest.raises((NotFound, SessionClosed), match="deleted"):
            halted.result(PATIENCE)
    with pytest.raises(SessionClosed, match="deleted"):
        session.line(4).raise_()


def test_the_end_of_the_session_gives_a_halt_up(client: Client) -> None:
    vm = machine(client)
    session = vm.session()
    with ThreadPoolExecutor() as pool:
        halted = pool.submit(session.vcpu(0).halt)
        wait_until_halted(vm)
        session.close()
        with pytest.raises(SessionClosed, match="this client closed it"):
            halted.result(PATIENCE)
    vm._run([MSI])
    assert vm.vcpu(0).halt(timeout=PATIENCE) == TAKEN


def test_a_halt_that_begins_while_its_session_is_closed_ends(client: Client) -> None:
    vm = machine(client)
    session = vm.session()
    transport = session._transport
    assert isinstance(transport, EmbeddedTransport)
    open_caller = transport._local.direct
    patch = pytest.MonkeyPatch()

    def close(_: LocalSession) -> SessionCaller | None:
        """Closes the Session when call() has seen that the Session is open."""
        patch.undo()
        session.close()
        return open_caller

    patch.setattr(LocalSession, "direct", property(close), raising=False)
    with pytest.raises(SessionClosed, match="this client closed it"):
        session.vcpu(0).halt()
    assert transport._local.direct is None
    with pytest.raises(SessionClosed, match="this client closed it"):
        session.line(4).raise_()


def test_close_ends_waits_for_events_and_traces() -> None:
    client = embedded()
    vm = machine(client)
    session, watch = vm.session(), vm.watch()
    with ThreadPoolExecutor() as pool:
        event, trace = pool.submit(session.next_event), pool.submit(next, watch)
        time.sleep(0.1)
        client.close()
        with pytest.raises(SessionClosed, match="Client is closed"):
            event.result(PATIENCE)
        with pytest.raises(Unavailable, match="Client is closed"):
            trace.result(PATIENCE)


def test_a_vcpu_and_devices_at_once(client: Client) -> None:
    """Three devices assert, each by turns with the vCPU that takes what they assert, and none is lost."""
    vm = machine(client)
    vectors, rounds = (0x51, 0x62, 0x73), 300
    taken = dict.fromkeys(vectors, 0)
    free = {vector: threading.Semaphore(1) for vector in vectors}

    def device(vector: int) -> None:
        with vm.session("device") as session:
            for _ in range(rounds):
                assert free[vector].acquire(timeout=PATIENCE)
                session.signal_msi(0xFEE0_0000, vector)

    with vm.session("vcpu 0") as session, ThreadPoolExecutor() as pool:
        devices = [pool.submit(device, vector) for vector in vectors]
        for number in range(rounds * len(vectors)):
            wake = (
                session.vcpu(0).halt(timeout=PATIENCE)
                if number % 2
                else session.run([ops.halt(0, timeout=PATIENCE)])[0]
            )
            assert isinstance(wake, Interrupt)
            taken[wake.vector] += 1
            session.run([ops.mmio_write(0, 0xFEE0_00B0, 0)])
            free[wake.vector].release()
        for one in devices:
            one.result(PATIENCE)
    assert taken == dict.fromkeys(vectors, rounds)


def test_a_posted_batch_goes_on_when_what_it_waits_for_has_come(client: Client) -> None:
    vm = machine(client)
    results: list[object] = []
    with vm.session("device") as device, vm.session("vcpu 0") as session:
        device.register_region(Space.PIO, PORT, 4)
        session.post([ops.pio_read(0, PORT), ops.pio_read(0, 0x21)], results.extend)
        access = device.next_event(PATIENCE)
        assert isinstance(access, RegionAccess)
        assert results == []
        device.complete_access(access.access, 0x42)
        assert soon(lambda: results)
        assert results == [Access(True, 0x42), Access(True, 0)]


def test_calls_stay_behind_a_batch_that_waits(client: Client) -> None:
    vm = machine(client)
    with vm.session("device") as device, vm.session("vcpu 0") as session, ThreadPoolExecutor() as pool:
        device.register_region(Space.PIO, PORT, 4)
        session.post([ops.pio_read(0, PORT), ops.pio_write(0, 0x21, 0x12)])
        read = pool.submit(session.vcpu(0).pio_read, 0x21)
        access = device.next_event(PATIENCE)
        assert isinstance(access, RegionAccess)
        time.sleep(0.05)
        assert not read.done()
        device.complete_access(access.access, 0x42)
        assert read.result(PATIENCE) == Access(True, 0x12)


def test_an_owner_that_dies_leaves_all_ones(client: Client) -> None:
    vm = machine(client)
    with vm.session("vcpu 0") as session, ThreadPoolExecutor() as pool:
        device = vm.session("device")
        device.register_region(Space.PIO, PORT, 4)
        read = pool.submit(session.vcpu(0).pio_read, PORT)
        device.next_event(PATIENCE)
        device.close()
        assert read.result(PATIENCE) == Access(True, 0xFF, unanswered=True)


def test_an_irqfd_interrupts(client: Client) -> None:
    vm = machine(client)
    init_pics(vm)
    with vm.session("device") as device, device.irqfd(4) as irqfd:
        for _ in range(3):
            os.eventfd_write(irqfd.fileno(), 1)
            assert vm.vcpu(0).halt(timeout=PATIENCE) == Interrupt(IRQ_BASE + 4, InterruptSource.PIC)
            vm.vcpu(0).pio_write(0x20, 0x20)
    client.close()
    assert soon(lambda: "irqchipd irqfds" not in own_threads())


def test_a_doorbell_rings_an_eventfd(client: Client) -> None:
    vm = machine(client)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    with vm.session("device") as device, vm.session("vcpu 0") as session:
        device.assign_ioeventfd(eventfd, Space.PIO, PORT, 1)
        assert session.vcpu(0).pio_write(PORT, 1)
        assert soon(lambda: select.select([eventfd], [], [], 0)[0])
        assert os.eventfd_read(eventfd) == 1
    assert not vm.vcpu(0).pio_write(PORT, 1)
    os.close(eventfd)


# The end.


def test_a_client_that_is_collected_ends(path: Path) -> None:
    client = embedded(str(path))
    vm = machine(client)
    vm.create_pit()
    vm._run([ops.pio_write(0, port, data) for port, data in ((0x43, 0x34), (0x40, 0), (0x40, 1))])  # it ticks
    assert "irqchipd timers" in own_threads()
    del client, vm
    gc.collect()
    assert soon(lambda: not own_threads())
    assert not path.exists()


def test_a_session_keeps_the_daemon_and_drops_its_levels_when_it_is_collected(client: Client) -> None:
    vm = machine(client)
    session = vm.session("device")
    session.line(4).raise_()
    assert vm.info().sessions[0].asserted_gsis == (4,)
    del session
    gc.collect()
    assert soon(lambda: not vm.info().sessions)
    other = embedded()
    session = machine(other).session()
    del other
    gc.collect()
    assert session.line(4).raise_() == 1


@pytest.mark.parametrize("closed", [True, False])
def test_the_end_of_the_process_leaves_no_socket(path: Path, closed: bool) -> None:
    program = (
        "import sys\nfrom irqchip_client import embedded\nclient = embedded(sys.argv[1])\n"
        f"vm = client.create_vm(ephemeral=True)\nsession = vm.session()\n{'client.close()' if closed else ''}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], timeout=30, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert list(path.parent.iterdir()) == []


def test_a_child_that_is_forked_off_is_refused_and_ends_nothing(path: Path) -> None:
    client = embedded(str(path))
    vm = machine(client)
    session, watch = vm.session("parent"), vm.watch()
    with ThreadPoolExecutor() as pool:
        halted = pool.submit(session.vcpu(0).halt)
        waiting = pool.submit(session.next_event)
        wait_until_halted(vm)
        child = os.fork()
        if child == 0:
            os._exit(_in_child(client, vm, session))
        assert soon(lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
        assert path.exists()
        vm._run([MSI])
        assert halted.result(PATIENCE) == TAKEN
        client.close()
        with pytest.raises(SessionClosed):
            waiting.result(PATIENCE)
    watch.close()


def _in_child(client: Client, vm: Vm, session: Session) -> int:
    signal.alarm(20)
    try:
        for call, error in (
            (client.vms, Unavailable),
            (vm.vcpu(0).halt, Unavailable),
            (vm.session, Unavailable),
            (vm.watch, Unavailable),
            (session.line(4).raise_, SessionClosed),
            (session.vcpu(0).halt, SessionClosed),
            (session.next_event, SessionClosed),
        ):
            with pytest.raises(error, match="forked this one"):
                call()
        session.close()
        client.close()
        with embedded() as own:
            assert machine(own).session().line(4).raise_() == 1
        gc.collect()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# asyncio.


def test_asyncio_has_a_vcpu_and_a_device_on_one_loop() -> None:
    async def device(session: aio.Session) -> None:
        async for event in session.events():
            assert isinstance(event, RegionAccess)
            await session.complete_access(event.access, event.address & 0xFF)
            await session.signal_msi(0xFEE0_0000, 0x51)

    async def story() -> None:
        async with aio.embedded() as client:
            vm = await client.create_vm("pc")
            await vm.create_irqchip()
            await vm.create_vcpu(0)
            await vm._run([SPURIOUS])
            async with vm.session("device") as owner, vm.session("vcpu 0") as session:
                assert session.transport == "embedded"
                await owner.register_region(Space.PIO, PORT, 4)
                answering = asyncio.create_task(device(owner))
                for offset in range(4):
                    assert await session.vcpu(0).pio_read(PORT + offset) == Access(True, offset)
                    assert await session.vcpu(0).halt(timeout=PATIENCE) == TAKEN
                    await session.vcpu(0).mmio_write(0xFEE0_00B0, 0)
                assert await vm.vcpu(0).pio_read(PORT) == Access(True, 0)
                answering.cancel()

    asyncio.run(story())


def test_asyncio_ends_what_waits_when_its_client_is_closed(path: Path) -> None:
    async def story() -> None:
        client = aio.embedded(str(path))
        vm = await client.create_vm("pc")
        await vm.create_irqchip()
        await vm.create_vcpu(0)
        session, watch = await vm.session(), await vm.watch()
        waiting = [
            asyncio.create_task(vm.vcpu(0).halt()),
            asyncio.create_task(session.next_event()),
            asyncio.create_task(anext(watch)),
        ]
        await asyncio.sleep(0.1)
        await client.close()
        for task, error in zip(waiting, (Unavailable, SessionClosed, Unavailable), strict=True):
            with pytest.raises(error, match="Client is closed"):
                await asyncio.wait_for(task, PATIENCE)

    asyncio.run(story())
    assert soon(lambda: not own_threads())
