"""irqchipd --metrics: what is counted is what clients did, and the server of the metrics is bounded."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import Architecture, Client, GicHost, IrqchipError, Space, Vm, ops
from irqchip_client._daemon import Daemon, start_daemon
from irqchip_client.arm64 import FIRST_SPI, Address, spi
from tests.service.test_port import Peer
from tests.waiting import PATIENCE

LABELLED = 2
APIC, SVR, EOI = 0xFEE0_0000, 0xF0, 0xB0
VECTOR = 0x41
GICD, GICC, INTID = 0x0800_0000, 0x0801_0000, 40

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def daemon(*arguments: str) -> Iterator[Daemon]:
    with start_daemon(arguments=["--metrics", "tcp://127.0.0.1:0", *arguments]) as running:
        yield running


def place(running: Daemon) -> str:
    """What the daemon prints of its metrics, just after it is ready for clients."""
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(r"^metrics at (.*)\n", running.stdout, re.M)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[1]


def connection(running: Daemon) -> http.client.HTTPConnection:
    line = place(running)
    return http.client.HTTPConnection(line.partition("http://")[2].partition("/")[0], timeout=PATIENCE)


def get(running: Daemon, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    asking = connection(running)
    asking.request(method, path)
    answer = asking.getresponse()
    body = answer.read().decode()
    asking.close()
    return answer.status, body


def scrape(running: Daemon) -> Samples:
    status, body = get(running)
    assert status == 200
    return {
        (sample.name.removeprefix("irqchipd_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def pc(client: Client, name: str) -> Vm:
    """A VM whose GSI 16 leads to vector 41h of its vCPU."""
    vm = client.create_vm(name)
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    vcpu.mmio_write(APIC + SVR, 0x1FF)
    for register, value in ((0x10 + 2 * 16, VECTOR), (0x11 + 2 * 16, 0)):
        vcpu.mmio_write(0xFEC0_0000, register)
        vcpu.mmio_write(0xFEC0_0010, value)
    return vm


def interrupt(vm: Vm, count: int) -> None:
    """Interrupts from the line to the EOI, in a Session; each rises twice, of which the second adds nothing."""
    with vm.session() as session:
        vcpu = session.vcpu(0)
        for _ in range(count):
            session.run([ops.irq_lines([(16, True), (16, True), (16, False)])])
            taken = vcpu.halt()
            assert taken is not None
            vcpu.mmio_write(APIC + EOI, 0)


def scrape_under_load(running: Daemon, vms: list[Vm], interrupt: Callable[[Vm, int], None], count: int) -> Samples:
    """Metrics after so many interrupts of each VM, whose threads work at once; they are asked for meanwhile, too."""
    threads = [threading.Thread(target=interrupt, args=(vm, count)) for vm in vms]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert of(scrape(running), "interrupts_delivered_total") <= len(vms) * count
        threads[0].join(0.05)
    return scrape(running)


def test_metrics_agree_with_what_clients_counted_under_load() -> None:
    """Several VMs, each with a thread, over Sessions."""
    count, names = 50, ("a", "b", "c")
    with daemon("--metrics-vms", str(LABELLED)) as running, ExitStack() as stack:
        vms = [pc(stack.enter_context(running.connect()), name) for name in names]
        samples = scrape_under_load(running, vms, interrupt, count)
        total = len(names) * count
        assert of(samples, "lines_raised_total") == 2 * total
        assert of(samples, "lines_lowered_total") == total
        assert of(samples, "interrupts_delivered_total") == total
        assert of(samples, "interrupts_coalesced_total") == total
        assert of(samples, "eois_total", chip="lapic") == total
        assert of(samples, "halt_seconds_count") == total
        assert of(samples, "operations_total", operation="irq_lines") == total
        assert of(samples, "operation_seconds_count", operation="irq_lines") == total
        assert of(samples, "operation_seconds_count", operation="mmio_write") == -(-(total + len(names) * 5) // 16)
        assert of(samples, "operations_total", operation="mmio_write") == total + len(names) * 5
        assert of(samples, "operations_total", operation="create_vm") == len(names)
        assert of(samples, "operation_seconds_bucket", operation="irq_lines", le="+Inf") == total
        assert 0 < of(samples, "operation_seconds_sum", operation="irq_lines") < 60
        assert of(samples, "sessions_peak") <= len(names)
        # Labels: as many VMs as allowed, with their own share.
        assert of(samples, "vm_interrupts_delivered_total", vm="a") == count
        assert ("vm_interrupts_delivered_total", (("vm", "c"),)) not in samples
        # A deleted VM's counts stay in the sum, and its label goes.
        vms[0].delete()
        samples = scrape(running)
        assert of(samples, "interrupts_delivered_total") == total
        assert ("vm_interrupts_delivered_total", (("vm", "a"),)) not in samples
        assert of(samples, "vms") == len(names) - 1


def arm(client: Client, name: str) -> Vm:
    """An arm64 VM with a GICv2, whose SPI is edge-triggered, and its vCPU's."""
    vm = client.create_vm(name, architecture=Architecture.ARM64, gic=GicHost(2))
    vcpu = vm.create_vcpu(0)
    vcpu.init()
    vm.create_irqchip()
    vm.set_device_addr(Address.V2_DIST, GICD)
    vm.set_device_addr(Address.V2_CPU, GICC)
    for address, value, size in (
        *((GICD, 1, 4), (GICC + 4, 0xF8, 4), (GICC, 1, 4)),
        *((GICD + 0x400 + INTID, 0x80, 1), (GICD + 0x800 + INTID, 1, 1)),
        *((GICD + 0xC00 + 4 * (INTID // 16), 2 << 2 * (INTID % 16), 4), (GICD + 0x104, 1 << INTID % 32, 4)),
    ):
        assert vcpu.mmio_write(address, value, size)
    return vm


def interrupt_by_spi(vm: Vm, count: int) -> None:
    """Interrupts from the line to the end; each rises twice, of which the second adds nothing, and one more is none."""
    line, masked = spi(INTID - FIRST_SPI), spi(INTID + 1 - FIRST_SPI)
    with vm.session() as session:
        vcpu = session.vcpu(0)
        for _ in range(count):
            session.run([ops.irq_lines([(line, True), (line, False), (line, True), (masked, True)])])
            vcpu.halt()
            assert vcpu.mmio_read(GICC + 0xC).data == INTID
            vcpu.mmio_write(GICC + 0x10, INTID)
            assert vcpu.mmio_read(GICC + 0xC).data == 1023


def test_metrics_agree_with_what_clients_of_arm64_vms_counted_under_load() -> None:
    count, names = 20, ("a", "b")
    with daemon("--metrics-vms", str(LABELLED)) as running, ExitStack() as stack:
        vms = [arm(stack.enter_context(running.connect()), name) for name in names]
        samples = scrape_under_load(running, vms, interrupt_by_spi, count)
        total = len(names) * count
        assert of(samples, "lines_raised_total") == 3 * total
        assert of(samples, "lines_lowered_total") == total
        assert of(samples, "interrupts_delivered_total") == total
        assert of(samples, "interrupts_coalesced_total") == total
        assert of(samples, "interrupts_masked_total") == total
        assert of(samples, "interrupts_spurious_total") == total
        assert of(samples, "eois_total", chip="gic") == total
        assert of(samples, "eois_total", chip="pic") == 0
        assert of(samples, "halt_seconds_count") == total
        assert of(samples, "vm_interrupts_delivered_total", vm="b") == count


def test_masked_lines_refused_operations_sessions_and_regions() -> None:
    with daemon() as running, running.connect() as client:
        vm = client.create_vm("vm")
        vm.create_irqchip()
        vm.create_vcpu(0)
        vm.line(16).raise_()
        with pytest.raises(IrqchipError):
            vm.create_vcpu(0)
        with vm.session() as session:
            session.register_region(Space.PIO, 0x300, 8)
            samples = scrape(running)
            assert of(samples, "sessions") == 1
            assert of(samples, "regions") == 1
        assert of(samples, "interrupts_masked_total") == 1
        assert of(samples, "operation_errors_total", operation="create_vcpu") == 1
        assert of(samples, "operations_total", operation="create_vcpu") == 2
        assert not any(name.startswith("vm_") for name, _ in samples)
        assert of(samples, "limit", limit="sessions") == 4096


def test_queued_and_dropped_events_and_their_peak() -> None:
    with daemon("--max-events", "4") as running, running.connect() as client:
        vm = client.create_vm("vm")
        vm.create_irqchip()
        vcpu = vm.create_vcpu(0)
        with vm.session() as session:
            session.register_region(Space.PIO, 0x300, 1, doorbell=True)
            for value in range(3):
                vcpu.pio_write(0x300, value, size=1)
        samples = scrape(running)
        assert 1 <= of(samples, "queued_events_peak") <= 3
        assert of(samples, "queued_events") == 0  # the Session took its queue with it


def test_dropped_events_are_those_that_the_session_lost() -> None:
    limit, rings = 4, 2500
    with daemon("--max-events", str(limit)) as running, running.connect() as client:
        vm = client.create_vm("vm")
        vm.create_irqchip()
        vm.create_vcpu(0)
        reader = Peer(running, vm="vm")  # that does not read
        region = pb.RegisterRegionRequest(space=pb.ADDRESS_SPACE_PIO, address=0x300, length=1, doorbell=True)
        assert reader.run(pb.Operation(register_region=region))
        with vm.session() as session:
            session.run([ops.pio_write(0, 0x300, value & 0xFF, 1) for value in range(rings)])
        samples = scrape(running)
        lost = vm.info().sessions[0].dropped_events
        assert lost > 0
        assert of(samples, "dropped_events_total") == lost
        # Beside as many events as allowed, one that says how many were lost.
        assert of(samples, "queued_events") == of(samples, "queued_events_peak") == limit + 1
        got = [reader.receive().event for _ in range(rings - lost + 1)]  # one says how many were lost
        reader.close()
        assert [event.events_dropped.count for event in got if event.HasField("events_dropped")] == [lost]


def test_timers_are_measured_where_they_ring() -> None:
    with daemon() as running, running.connect() as client:
        vm = pc(client, "vm")
        vcpu = vm.vcpu(0)
        vcpu.mmio_write(APIC + 0x3E0, 0xB)  # divide by 1
        vcpu.mmio_write(APIC + 0x320, 0x51)
        vcpu.mmio_write(APIC + 0x380, 200_000_000)  # 0.2 s: it is to ring while the vCPU halts
        assert vcpu.halt() is not None
        samples = scrape(running)
        assert of(samples, "timer_lateness_seconds_count") >= 1
        assert of(samples, "halt_seconds_count") == 1
        assert 0 < of(samples, "halt_seconds_sum") < 10


def test_the_dashboard_and_the_alerts_use_metrics_that_there_are() -> None:
    examples = Path(__file__).parents[2] / "examples/metrics"
    with daemon("--metrics-vms", "1") as running, running.connect() as client:
        pc(client, "vm")
        there = {f"irqchipd_{name}" for name, _ in scrape(running)}
    for file in ("alerts.yml", "grafana/irqchipd.json"):
        used = set(re.findall(r"\birqchipd_\w+", (examples / file).read_text()))
        assert used
        assert used <= there


def test_without_the_flag_nothing_is_served_or_hooked() -> None:
    with start_daemon() as running, running.connect() as client:
        client.create_vm("vm")
        assert "metrics" not in running.stdout


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)])
def test_another_request_is_refused(method: str, path: str, status: int) -> None:
    with daemon() as running:
        assert get(running, path, method)[0] == status


def ended(connected: socket.socket) -> bool:
    """Whether the other end closes a connection, and says nothing."""
    connected.settimeout(PATIENCE)
    try:
        return connected.recv(1) == b""
    except ConnectionError:
        return True


def test_clients_that_say_nothing_do_not_keep_others_from_metrics() -> None:
    with daemon() as running:
        where = connection(running)
        idle = [socket.create_connection((where.host, where.port)) for _ in range(15)]
        assert get(running)[0] == 200
        idle += [socket.create_connection((where.host, where.port)) for _ in range(5)]
        assert ended(idle[0])  # there are too many: the oldest is closed
        assert get(running)[0] == 200
        for one in idle:
            one.close()


def test_an_endless_request_is_ended() -> None:
    with daemon() as running:
        where = connection(running)
        with socket.create_connection((where.host, where.port), timeout=PATIENCE) as flooding:
            flooding.sendall(b"x" * (64 << 10))
            assert flooding.recv(1 << 10).startswith(b"HTTP/1.1 431 ")
        assert get(running)[0] == 200


def test_metrics_on_a_unix_socket_that_goes_with_the_daemon(tmp_path: Path) -> None:
    path = Path(f"/tmp/{tmp_path.name}-metrics")
    with start_daemon(arguments=["--metrics", f"unix://{path}"]) as running:
        assert place(running) == f"unix://{path}, path /metrics"
        assert path.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(path))
            asking.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"irqchipd_vms 0.0" in b"".join(iter(lambda: asking.recv(1 << 16), b""))
    assert not path.exists()


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://127.0.0.1", "http://127.0.0.1:1"])
def test_an_address_that_metrics_are_not_served_on(address: str) -> None:
    with pytest.raises(IrqchipError, match="ended with status 1"), start_daemon(arguments=["--metrics", address]):
        pass
