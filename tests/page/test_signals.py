"""The timing diagram and the latencies: what the page makes of events and states."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from irqchip_client import Client, S390Irq, S390IrqType, Vm
from irqchip_client.arm64 import CPU_INTERFACE, ppi, spi
from tests.page.browser import Browser, needs_chromium
from tests.page.guests import DISK, SERIAL, VECTORS, arm64_vm, eoi, s390_vm, x86_vm
from tests.page.pages import Page

pytestmark = needs_chromium

TIMES = 5
IAR, EOIR = CPU_INTERFACE + 0xC, CPU_INTERFACE + 0x10

# What the page knows of a VM while it is paused.
_PAST = """(async () => {
  const {Past} = await import("/feed.js");
  const past = await Past.load(VM, await (await fetch("/api/tracepoints")).json());
  return {rows: Object.fromEntries(past.signals.all), latencies: past.signals.latencies, states: past.states.length};
})()"""


@pytest.fixture(scope="module")
def client(served: Page) -> Iterator[Client]:
    with served.daemon.connect() as client:
        yield client


@pytest.fixture(scope="module")
def chromium_there(served: Page, chromium: Browser) -> Browser:
    """A Chromium at the page's origin."""
    chromium.call("Page.navigate", url=f"{served.url}icon.svg")
    chromium.wait("location.pathname === '/icon.svg'")
    return chromium


def past(chromium: Browser, served: Page, vm: Vm, play: Callable[[Vm], None]) -> tuple[Any, dict[str, Any]]:
    """The rows of the timing diagram, and the latencies by name, of what happens while somebody looks."""
    with served.live(vm.name) as messages:
        next(messages)
        play(vm)
        found = chromium.evaluate(_PAST.replace("VM", json.dumps(vm.name)))
    assert found["states"] > 1
    return found["rows"], {one["name"]: one for one in found["latencies"]}


def kinds(row: list[list[Any]]) -> list[str]:
    """The kinds of a row's segments, each of which begins when the one before it ends, or later."""
    for before, after in pairwise(row):
        assert before[1] is not None
        assert before[0] <= before[1] <= after[0]
    return [kind for _, _, kind in row]


def counted(served: Page, vm: Vm) -> dict[int, Any]:
    """The same times as the daemon counts them, by the interrupt's number."""
    return {one["number"]: one for one in served.json(f"/api/vms/{vm.name}/interrupts")["interrupts"]}


def test_x86(chromium_there: Browser, served: Page, client: Client) -> None:
    def play(vm: Vm) -> None:
        cpu = vm.vcpu(0)
        for _ in range(TIMES):
            vm.line(SERIAL).pulse()
            cpu.acknowledge()
            vm.line(SERIAL).pulse()  # one is in service, and the next is pending
            eoi(vm, 0)
            cpu.acknowledge()
            eoi(vm, 0)
        vm.line(DISK).raise_()

    vm = x86_vm(client)
    counted(served, vm)
    rows, latencies = past(chromium_there, served, vm, play)
    name = f"vCPU 0 {VECTORS[SERIAL]:#x}"
    assert kinds(rows[name]) == ["wait", "serve"] * 2 * TIMES
    assert kinds(rows[f"GSI {SERIAL}"]) == ["high"] * 2 * TIMES
    assert rows[f"GSI {DISK}"][-1][1] is None
    assert kinds(rows[f"vCPU 1 {VECTORS[DISK]:#x}"]) == ["wait"]
    ours, daemons = latencies[name], counted(served, vm)[VECTORS[SERIAL]]
    assert ours["wait"]["count"] == ours["serve"]["count"] == daemons["accept"]["count"] == 2 * TIMES
    assert ours["serve"]["mean"] == pytest.approx(daemons["eoi"]["mean"], rel=0.5)


def test_an_interrupt_of_the_pics_ends(chromium_there: Browser, served: Page, client: Client) -> None:
    def play(vm: Vm) -> None:
        vm.line(0).pulse()
        assert vm.vcpu(0).acknowledge() is not None
        vm.vcpu(0).pio_write(0x20, 0x20)

    vm = client.vm("pc")
    rows, latencies = past(chromium_there, served, vm, play)
    (name,) = (name for name in rows if name.endswith(" 0x30"))
    assert kinds(rows[name]) == ["serve"]
    assert latencies[name]["serve"]["count"] == 1


def test_arm64(chromium_there: Browser, served: Page, client: Client) -> None:
    def play(vm: Vm) -> None:
        cpu = vm.vcpu(0)
        for _ in range(TIMES):
            for line in (spi(4), ppi(0, 20)):
                vm.line(line).raise_()
                interrupt = cpu.mmio_read(IAR).data
                vm.line(line).lower()
                cpu.mmio_write(EOIR, interrupt)

    vm = arm64_vm(client)
    counted(served, vm)
    rows, latencies = past(chromium_there, served, vm, play)
    daemons = counted(served, vm)
    for line, name, intid in (("spi:4", "INTID 36", 36), ("ppi:0:20", "vCPU 0 INTID 20", 20)):
        assert kinds(rows[line]) == ["high"] * TIMES
        assert kinds(rows[name]) == ["wait", "serve"] * TIMES
        ours = latencies[name]
        assert ours["wait"]["count"] == ours["serve"]["count"] == daemons[intid]["accept"]["count"] == TIMES
        assert ours["wait"]["mean"] == pytest.approx(daemons[intid]["accept"]["mean"], rel=0.5)
        assert ours["serve"]["mean"] == pytest.approx(daemons[intid]["eoi"]["mean"], rel=0.5)


def test_s390(chromium_there: Browser, served: Page, client: Client) -> None:
    def play(vm: Vm) -> None:
        for _ in range(TIMES):
            vm.s390_interrupt(S390IrqType.VIRTIO, 0x2603, 0x77)
            vm.s390_interrupt(S390IrqType.VIRTIO, 0x2603, 0x78)  # two wait behind each other
            vm.vcpu(0).s390_irq(S390Irq.make(S390IrqType.EMERGENCY, code=0))
            while vm.vcpu(0).take_irq() is not None:
                pass
        vm.s390_interrupt(S390IrqType.SERVICE, 0x1000)

    rows, latencies = past(chromium_there, served, s390_vm(client), play)
    assert kinds(rows["floating virtio"]) == ["wait"] * TIMES
    assert kinds(rows["vCPU 0 signal"]) == ["wait"] * TIMES
    assert rows["floating service"][-1][1] is None
    assert latencies["floating virtio"]["wait"]["count"] == 2 * TIMES
    assert latencies["vCPU 0 signal"]["wait"]["count"] == TIMES
    assert all(one["serve"] is None for one in latencies.values())


def test_a_state_corrects_what_lost_events_would_have_told(chromium_there: Browser) -> None:
    """The end of an interrupt falls into a gap: the row ends with the next state, and no time is measured."""
    events = [[1, 100, "kvm_apic_accept_irq", [0, 0, False, 0x34]], [2, 200, "kvm_inj_virq", [0, 0x34]]]
    again = [[4, 500, "kvm_apic_accept_irq", [0, 0, False, 0x34]], [6, 700, "kvm_inj_virq", [0, 0x34]]]
    idle = {"vcpus": [0], "lapic0": {"irr": [], "isr": []}}
    found = chromium_there.evaluate(
        f"""(async () => {{
          const {{Signals}} = await import("/signals.js");
          const signals = new Signals(await (await fetch("/api/tracepoints")).json());
          {json.dumps(events)}.forEach((event) => signals.event(event));
          signals.state({json.dumps(idle)}, 300);
          {json.dumps(again)}.forEach((event) => signals.event(event));
          return {{rows: Object.fromEntries(signals.all), latencies: signals.latencies}};
        }})()"""
    )
    row = [[100, 200, "wait"], [200, 300, "serve"], [500, 700, "wait"], [700, None, "serve"]]
    assert found["rows"] == {"vCPU 0 0x34": row}
    assert found["latencies"] == [
        {"name": "vCPU 0 0x34", "wait": {"count": 1, "mean": 100, "most": 100}, "serve": None}
    ]
