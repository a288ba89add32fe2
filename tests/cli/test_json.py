"""--json: docs/irqchipctl.md promises its shape."""

import json
import signal
import threading
from typing import Any

import pytest

from irqchip_client import Chip, MsiRoute, PinRoute, Space, Vm
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE

VM = {
    "irqchip": True,
    "vcpus": [0, 1],
    "sessions": [],
    "asserted_gsis": [],
    "irqchip_mode": "full",
    "pit": False,
    "asynchronous_interrupts": True,
    "halt_in_kernel": True,
    "virtual": False,
    "next_timer_ns": None,
    "tsc_khz": 1_000_000,
    "architecture": "x86",
    "lateness_ns": 0,
    "gic": None,
    "devices": [],
}


def said(run: Run, *arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_list_and_show(run: Run, vm: Vm) -> None:
    with vm.session("uart") as uart:
        uart.line(4).raise_()
        uart.register_region(Space.PIO, 0x3F8, 8)
        session = {
            "client": "uart",
            "source": 1,
            "asserted_gsis": [4],
            "dropped_events": 0,
            "detached": False,
            "resampled_gsis": [],
            "regions": [{"space": "pio", "address": 0x3F8, "length": 8, "doorbell": False, "datamatch": None}],
        }
        (listed,), shown = said(run, "list"), said(run, "show", vm.name)
    for info in (listed, shown):
        assert info.pop("now_ns") > 0
        assert info == VM | {"name": vm.name, "sessions": [session]}


def test_routes(run: Run, vm: Vm) -> None:
    vm.set_routing([PinRoute(4, Chip.IOAPIC, 20), MsiRoute(24, 0xFEE0_1000, 0x45)])
    assert said(run, "routes", vm.name) == [
        {"gsi": 4, "chip": "ioapic", "pin": 20, "flags": 0},
        {"gsi": 24, "address": 0xFEE0_1000, "data": 0x45, "flags": 0},
    ]


def test_accesses(run: Run, vm: Vm) -> None:
    vm.vcpu(0).pio_write(0x21, 0x5A)
    assert said(run, "in", vm.name, "0x21") == {"claimed": True, "data": 0x5A, "unanswered": False}
    assert said(run, "in", vm.name, "0x80") == {"claimed": False, "data": 0, "unanswered": False}
    assert said(run, "read", vm.name, "0xfee00020") == {"claimed": True, "data": 0, "unanswered": False}
    assert said(run, "out", vm.name, "0x21", "0") == {"claimed": True, "unanswered": False}
    assert said(run, "write", vm.name, "0x1000", "0") == {"claimed": False, "unanswered": False}
    assert said(run, "msr-read", vm.name, "0x1b") == {"claimed": True, "fault": False, "data": 0xFEE0_0900}
    assert said(run, "msr-write", vm.name, "0x808", "1") == {"claimed": True, "fault": True}


def test_ack(run: Run, vm: Vm) -> None:
    assert said(run, "ack", vm.name) is None
    vm.line(4).pulse()
    assert said(run, "ack", vm.name) == {"vector": 4, "source": "pic"}


def test_lines(run: Run, vm: Vm) -> None:
    assert said(run, "pulse", vm.name, 4) == {"status": 1, "meaning": "delivered"}
    assert said(run, "pulse", vm.name, 4, "--count", 2) == [
        {"status": 0, "meaning": "coalesced with one still pending", "count": 2}
    ]
    assert said(run, "msi", vm.name, "0xfee00000", "0x31") == {"status": 0, "meaning": "not accepted"}


def test_regs(run: Run, vm: Vm) -> None:
    vm.vcpu(0).mmio_write(0xFEE0_00F0, 0x1FF)
    vm.create_pit()
    regs = said(run, "regs", vm.name)
    assert list(regs) == ["pic0", "pic1", "ioapic0", "lapic0", "lapic1", "pit0"]
    assert regs["pic0"]["imr"] == 0
    assert regs["ioapic0"]["entries"][3] == {
        "vector": 0,
        "delivery_mode": "fixed",
        "logical": False,
        "pending": False,
        "active_low": False,
        "remote_irr": False,
        "level_triggered": False,
        "masked": True,
        "reserved": 0,
        "destination": 0,
    }
    assert regs["lapic0"]["svr"] == 0x1FF
    assert regs["lapic0"]["isr"] == []
    assert (regs["lapic0"]["mp_state"], regs["lapic0"]["apic_base"]) == ("runnable", 0xFEE0_0900)
    assert (regs["lapic1"]["mp_state"], regs["lapic1"]["timer_expires_ns"]) == ("uninitialized", None)
    assert len(regs["pit0"]["channels"]) == 3
    assert (regs["pit0"]["expires_ns"], regs["pit0"]["pending"], regs["pit0"]["reinject"]) == (None, 0, True)
    raw = said(run, "regs", vm.name, "--chip", "lapic", "--raw")
    assert bytes.fromhex(raw["lapic0"]) == vm.vcpu(0).lapic().kvm_struct


def test_advance(run: Run, irqchip_client: Any) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    assert said(run, "advance", vm.name, "1ms") == {"now_ns": 1_000_000, "remaining_ns": 0, "next_timer_ns": None}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--gsi", "4"], {"kvm_set_irq", "kvm_pic_set_irq", "kvm_ioapic_set_irq", "kvm_ack_irq"}),
        (["--gsi", "5"], set()),
        (["--vcpu", "0"], {"kvm_inj_virq", "kvm_pio"}),
        (["--vcpu", "1"], set()),
        (["--vcpu", "0", "--gsi", "5"], {"kvm_inj_virq", "kvm_pio"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_watch_reports_only_the_requested_events(start: Start, vm: Vm, options: list[str], seen: set[str]) -> None:
    # The last GSI's events show that all earlier events have been seen.
    with start("watch", vm.name, "--json", *options, "--gsi", "9") as watcher:
        assert watcher.stdout is not None
        lines: list[Any] = []
        done = threading.Event()

        def pulse() -> None:
            while not done.wait(0.05):
                vm.line(4).pulse()
                vm.vcpu(0).acknowledge()
                vm.vcpu(0).pio_write(0x20, 0x20)
                vm.line(9).pulse()

        pulsing = threading.Thread(target=pulse)
        pulsing.start()
        try:
            while sum(event.get("fields", {}).get("gsi") == 9 for event in lines) < 6:
                lines.append(json.loads(watcher.stdout.readline()))
        finally:
            done.set()
            pulsing.join()
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=PATIENCE)
    assert all(set(event) == {"time_ns", "tracepoint", "fields"} for event in lines)
    ours = [event for event in lines if event["fields"].get("gsi") != 9 and event["fields"].get("pin") not in (1, 9)]
    assert {event["tracepoint"] for event in ours} == seen
