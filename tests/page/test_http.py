"""The page over HTTP: what it says of a VM, its headers and limits, and what becomes of requests that are hostile."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from irqchip_client import Chip, Client, NotFound, ops
from irqchip_client._daemon import start_daemon
from irqchip_client._errors import IrqchipError
from tests.page.guests import DISK, SERIAL, VECTORS, arm64_vm, eoi, play, s390_vm, x86_vm
from tests.page.pages import Page, page, parse, read_all
from tests.waiting import PATIENCE, eventually

VIEWERS = 3


@pytest.fixture(scope="module")
def served() -> Iterator[Page]:
    with page(["--max-viewers", str(VIEWERS)]) as found:
        yield found


@pytest.fixture
def client(served: Page) -> Iterator[Client]:
    """A client; its VMs are gone afterwards, and so are those who looked at them."""
    with served.daemon.connect() as client:
        yield client
        for name in ("pc", "arm", "mainframe"):
            with suppress(NotFound):
                client.delete_vm(name)


def test_the_values_are_those_of_get_irqchip(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    vm.line(DISK).raise_()
    vm.vcpu(1).acknowledge()
    vm.line(SERIAL).pulse()
    parts = served.json("/api/vms/pc/state")["parts"]
    for name, chip in (("pic0", Chip.PIC_PRIMARY), ("pic1", Chip.PIC_SECONDARY)):
        state = vm.get_irqchip(chip)
        assert [parts[name][register] for register in ("irr", "imr", "isr", "elcr", "base")] == [
            getattr(state, register) for register in ("irr", "imr", "isr", "elcr", "irq_base")
        ]
    ioapic = vm.get_irqchip(Chip.IOAPIC)
    assert [int(entry["raw"], 16) for entry in parts["ioapic"]["entries"]] == [entry.raw for entry in ioapic.entries]
    assert parts["ioapic"]["irr"] == ioapic.irr == 1 << DISK
    assert parts["ioapic"]["entries"][DISK] == {
        "raw": "010000000000c055",
        "vector": VECTORS[DISK],
        "mode": "fixed",
        "destination": 1,
        "logical": False,
        "level": True,
        "masked": False,
        "remoteIrr": True,
        "pending": False,
        "activeLow": False,
    }
    for vcpu in range(2):
        lapic, shown = vm.vcpu(vcpu).lapic(), parts[f"lapic{vcpu}"]
        assert (shown["irr"], shown["isr"]) == (list(lapic.irr), list(lapic.isr))
        assert (shown["tpr"], shown["ppr"]) == (lapic.tpr, lapic.ppr)
    assert parts["lapic1"]["isr"] == [VECTORS[DISK]]
    high = [line for line in parts["lines"]["lines"] if line["sources"]]
    assert high == [{"line": DISK, "name": f"GSI {DISK}", "sources": [0]}]


def test_a_line_has_the_session_that_drives_it(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    with vm.session("a serial port") as session:
        session.line(SERIAL).raise_()
        lines = served.json("/api/vms/pc/state")["parts"]["lines"]
        (source,) = lines["sources"]
        assert source["client"] == "a serial port"
        assert [line["sources"] for line in lines["lines"] if line["line"] == SERIAL] == [[source["source"]]]


def test_arm64(served: Page, client: Client) -> None:
    arm64_vm(client)
    play(client, "arm")
    parts = served.json("/api/vms/arm/state")["parts"]
    assert parts["vm"]["architecture"] == "arm64"
    assert (parts["gic"]["version"], parts["gic"]["enabled"]) == (2, True)
    spis = {spi["intid"]: spi for spi in parts["spis"]}
    assert (spis[36]["active"], spis[36]["pending"]) == (True, False)
    assert (spis[37]["active"], spis[37]["pending"], spis[37]["vcpu"]) == (False, True, 0)
    assert parts["cpu0"]["private"][0]["intid"] == 20
    assert parts["cpu0"]["interface"]["pmr"] == 0xF0
    assert {line["name"] for line in parts["lines"]["lines"] if line["sources"]} == {"spi:5 (INTID 37)", "ppi:0:20"}


def test_s390(served: Page, client: Client) -> None:
    s390_vm(client)
    play(client, "mainframe")
    parts = served.json("/api/vms/mainframe/state")["parts"]
    assert [irq["type"] for irq in parts["flic"]["interrupts"]] == ["virtio"]
    assert [irq["type"] for irq in parts["cpu0"]["pending"]] == ["emergency signal"]
    assert parts["cpu0"]["iscs"] == list(range(8))
    assert parts["adapters"] == [{"id": 1, "isc": 3, "maskable": False, "masked": False}]


def test_what_happens_is_sent_within_250_ms(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    with served.live("pc") as messages:
        first = next(messages)
        assert first["whole"]
        assert first["parts"]["lapic0"]["irr"] == []
        began = time.monotonic()
        vm.line(SERIAL).raise_()
        message = next(message for message in messages if "lapic0" in message["parts"])
        took = time.monotonic() - began
        assert message["parts"]["lapic0"]["irr"] == [VECTORS[SERIAL]]
        assert not message["whole"]
        assert "lapic1" not in message["parts"]
        assert [event[2:] for event in message["events"] if event[2] == "kvm_set_irq"] == [
            ["kvm_set_irq", [SERIAL, 1, 0]]
        ]
        for level in (0, 1) * 20:
            if took < 0.25:  # a busy machine may take longer, but not each time
                break
            began = time.monotonic()
            vm.line(SERIAL).raise_() if level else vm.line(SERIAL).lower()
            while not any(event[2:] == ["kvm_set_irq", [SERIAL, level, 0]] for event in next(messages)["events"]):
                pass
            took = time.monotonic() - began
        assert took < 0.25
        client.delete_vm("pc")
        last = list(messages)[-1]
        assert "is deleted" in last["error"] or "deleted" in last["error"]


def test_history_has_the_state_after_each_event(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    with served.live("pc") as messages:
        next(messages)
        vm.line(SERIAL).pulse()
        vm.vcpu(0).acknowledge()
        eoi(vm, 0)
        history = served.json("/api/vms/pc/history")
    parts: dict[str, object] = {}
    after: dict[int, tuple[list[int], list[int]]] = {}
    for state in history["states"]:
        parts |= state["parts"]
        lapic = parts["lapic0"]
        assert isinstance(lapic, dict)
        after[state["number"]] = lapic["irr"], lapic["isr"]

    def state_after(tracepoint: str) -> tuple[list[int], list[int]]:
        number = next(event[0] for event in history["events"] if event[2] == tracepoint)
        return after[min(state for state in after if state >= number)]

    vector = VECTORS[SERIAL]
    assert state_after("kvm_apic_accept_irq") == ([vector], [])
    assert state_after("kvm_inj_virq") == ([], [vector])
    assert state_after("kvm_eoi") == ([], [])


def test_counts_and_times(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    assert served.json("/api/vms/pc/interrupts") == {"vcpus": [0, 1], "interrupts": []}
    for _ in range(5):
        vm.line(SERIAL).pulse()
        vm.vcpu(0).acknowledge()
        eoi(vm, 0)
    (serial,) = served.json("/api/vms/pc/interrupts")["interrupts"]
    assert (serial["kind"], serial["gsi"], serial["number"]) == ("IOAPIC", SERIAL, VECTORS[SERIAL])
    assert serial["counts"] == [5, 0]
    assert serial["accept"]["count"] == serial["eoi"]["count"] == 5
    assert 0 < serial["eoi"]["mean"] <= serial["eoi"]["most"]


def test_nothing_is_observed_while_nobody_looks(served: Page, client: Client) -> None:
    """Who comes later finds no event of before: there was no observer."""
    vm = x86_vm(client)
    vm.line(SERIAL).pulse()
    first = served.json("/api/vms/pc/state")
    assert (first["number"], first["events"]) == (0, [])


def test_headers(served: Page) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/main.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/api/vms", ""),
    ):
        status, headers, body = served.get(path)
        assert status == 200
        assert body
        assert kind in headers["content-type"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert int(headers["content-length"]) == len(body)
    status, headers, body = served.get("/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_the_page_has_nothing_from_outside(served: Page) -> None:
    _, _, body = served.get("/")
    assert b"http" not in body
    assert b"<script>" not in body
    assert b"style=" not in body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /api/vms HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /..%2fserver.py HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /api/vms/nobody/live HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
        (b"GET /api/vms HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n", 431),
    ],
)
def test_a_strange_request_is_refused(served: Page, request_bytes: bytes, status: int) -> None:
    answered, headers, body = served.ask(request_bytes)
    assert answered == status
    assert body
    assert "content-security-policy" in headers
    assert headers.get("allow") == ("GET, HEAD" if status == 405 else None)
    assert served.get("/api/vms")[0] == 200


def test_localhost_and_numbers_are_hosts(served: Page) -> None:
    for host in ("localhost", f"localhost:{served.port}", "127.0.0.1", "[::1]:80"):
        assert served.get("/api/vms", Host=host)[0] == 200


def test_who_sends_no_request_is_cut_off(served: Page) -> None:
    began = time.monotonic()
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert parse(read_all(connection))[0] == 408
    assert 4 < time.monotonic() - began < PATIENCE


def test_many_connections_that_say_nothing_keep_nobody_out(served: Page) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(served.connect())
        assert served.get("/api/vms")[0] == 200


def test_there_are_as_many_viewers_as_the_limit(served: Page, client: Client) -> None:
    x86_vm(client)
    with ExitStack() as stack:
        for _ in range(VIEWERS):
            next(stack.enter_context(served.live("pc")))
        status, _, body = served.get("/api/vms/pc/live")
        assert (status, b"--max-viewers" in body) == (503, True)
        assert served.get("/")[0] == 200
    eventually(lambda: served.get("/api/vms/pc/state")[0] == 200)  # they have left


def test_a_viewer_who_does_not_read_holds_up_nobody(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    with served.connect() as slow, served.live("pc") as messages:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.sendall(b"GET /api/vms/pc/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        next(messages)
        stop = threading.Event()

        def drive() -> None:
            with vm.session("busy") as session:
                while not stop.is_set():
                    session.line(SERIAL).pulse()
                    time.sleep(0.001)

        driver = threading.Thread(target=drive)
        driver.start()
        try:
            # What other processes do may come into a gap, but not in each of some rounds.
            latest = next((gap for _ in range(5) if (gap := max(_gaps(messages, 3.0))) < 1.0), None)
        finally:
            stop.set()
            driver.join()
        assert latest is not None


def _gaps(messages: Iterator[object], seconds: float) -> Iterator[float]:
    """The times between messages."""
    began = last = time.monotonic()
    for _ in messages:
        now = time.monotonic()
        yield now - last
        last = now
        if now - began > seconds:
            return


def test_a_message_is_bounded_while_much_happens(served: Page, client: Client) -> None:
    vm = x86_vm(client)
    with served.live("pc") as messages, vm.session("busy") as session:
        next(messages)
        numbers: list[int] = []
        number = 0
        for _ in range(20):
            session.run([ops.irq_line(SERIAL, level) for level in (True, False)] * 1000)
            for message in messages:
                assert len(json.dumps(message)) < 200_000
                assert len(message["events"]) <= 800
                numbers += [event[0] for event in message["events"]]
                if message["number"] == number > 0 and not message["events"]:
                    break
                number = message["number"]
            assert numbers == sorted(set(numbers))
            if len(numbers) < number:  # a busy machine may do so little at a time that all are kept
                break
        assert len(numbers) < number  # not all were kept, and the numbers say where some are missing
        session.line(SERIAL).raise_()  # the VM reports again
        assert any(event[2:] == ["kvm_set_irq", [SERIAL, 1, event[3][2]]] for event in next(_with_events(messages)))


def _with_events(messages: Iterator[Any]) -> Iterator[Any]:
    """The events of messages that have some."""
    return (message["events"] for message in messages if message["events"])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0:0", "--allow-insecure"),
        ("ftp://127.0.0.1:0", "http://HOST:PORT"),
        ("127.0.0.1", "http://HOST:PORT"),
        ("127.0.0.1:99999", "65535"),
    ],
)
def test_an_address_is_refused(address: str, words: str) -> None:
    with pytest.raises(IrqchipError) as error, start_daemon(arguments=["--http", address]):
        pass
    assert words in str(error.value)


def test_a_port_in_use_is_refused(served: Page) -> None:
    with pytest.raises(IrqchipError, match="can't be listened on"), start_daemon(arguments=["--http", served.url]):
        pass
