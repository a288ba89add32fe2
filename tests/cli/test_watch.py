"""watch, and the kernel's trace format."""

import re
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
from click.testing import Result

from irqchip_client import Architecture, EventsDropped, TraceEvent, Vm
from irqchip_client.cli.ftrace import Ftrace
from irqchip_client.cli.watch import trace_line
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE

X86 = Ftrace(Architecture.X86)


@pytest.mark.parametrize(
    ("tracepoint", "fields", "body"),
    [
        ("kvm_pio", {"write": 1, "port": 0x20, "size": 1, "value": 0x11}, "pio_write at 0x20 size 1 count 1 val 0x11"),
        ("kvm_pio", {"write": 0, "port": 0x4D0, "size": 1, "value": 0}, "pio_read at 0x4d0 size 1 count 1 val 0x0"),
        (
            "kvm_mmio",
            {"write": 1, "address": 0xFEE000B0, "size": 4, "value": 0},
            "mmio write len 4 gpa 0xfee000b0 val 0x0",
        ),
        (
            "kvm_mmio",
            {"write": 0, "address": 0xFFFFFFFFFFFFF000, "size": 8, "value": 0xFFFFFFFFFFFFFFFF},
            "mmio read len 8 gpa 0xfffffffffffff000 val 0xffffffffffffffff",
        ),
        ("kvm_set_irq", {"gsi": 4, "level": 1, "source": 2}, "gsi 4 level 1 source 2"),
        (
            "kvm_pic_set_irq",
            {"chip": 1, "pin": 3, "elcr": 8, "imr": 8, "coalesced": 1},
            "chip 1 pin 3 (level|masked) (coalesced)",
        ),
        ("kvm_pic_set_irq", {"chip": 0, "pin": 4, "elcr": 0, "imr": 0, "coalesced": 0}, "chip 0 pin 4 (edge)"),
        (
            "kvm_ioapic_set_irq",
            {"entry": 0x0F0000000001_8931, "pin": 20, "coalesced": 0},
            "pin 20 dst f vec 49 (LowPrio|logical|level|masked)",
        ),
        (
            "kvm_ioapic_set_irq",
            {"entry": 0xFF00000000000031, "pin": 2, "coalesced": 1},
            "pin 2 dst ff vec 49 (Fixed|physical|edge) (coalesced)",
        ),
        ("kvm_msi_set_irq", {"address": 0xFEE0F00C, "data": 0x4031}, "dst f vec 49 (Fixed|logical|edge|rh)"),
        (
            "kvm_apic_ipi",
            {"icr": 0xC4631, "destination": 0x10},
            "dst 10 vec 49 (SIPI|physical|assert|edge|all-but-self)",
        ),
        (
            "kvm_apic_accept_irq",
            {"vcpu": 10, "delivery_mode": 0, "level_triggered": 1, "vector": 49},
            "apicid a vec 49 (Fixed|level)",
        ),
        ("kvm_inj_virq", {"vcpu": 1, "vector": 0x31}, "IRQ 0x31"),
        ("kvm_eoi", {"vcpu": 1, "vector": 49}, "apicid 1 vector 49"),
        ("kvm_eoi", {"vcpu": 1, "vector": (1 << 64) - 1}, "apicid 1 vector -1"),
        (
            "kvm_msi_set_irq",
            {"address": 0x1234_5600_FEE0_F000, "data": 0x31},
            "dst 1234560f vec 49 (Fixed|physical|edge)",
        ),
        ("kvm_ioapic_delayed_eoi_inj", {"entry": 0x2_0000_0000_8031}, "dst 0 vec 49 (Fixed|physical|level)"),
        ("kvm_msr", {"write": 1, "ecx": 0x83F, "data": 0x31, "exception": 1, "vcpu": 0}, "msr_write 83f = 0x31 (#GP)"),
        ("kvm_cr", {"write": 1, "cr": 8, "val": 3, "vcpu": 0}, "cr_write 8 = 0x3"),
        (
            "kvm_irq_line",
            {"kind": 2, "vcpu": 1, "number": 27, "level": 1},
            "Inject VGIC PPI interrupt (2), vcpu->idx: 1, num: 27, level: 1",
        ),
        ("kvm_timer_update_irq", {"vcpu": 1, "intid": 27, "level": 1}, "VCPU: 1, IRQ 27, level 1"),
        ("vgic_update_irq_pending", {"vcpu": 1, "intid": 27, "level": 1}, "VCPU: 1, IRQ 27, level: 1"),
        ("kvm_ack_irq", {"chip": 2, "pin": 20}, "irqchip IOAPIC pin 20"),
        (
            "kvm_s390_inject_vm",
            {"type": 0xFFFF2401, "parm": 0x1000, "parm64": 0},
            "inject: type:ffff2401 (service) parm:1000 parm64:0",
        ),
        (
            "kvm_s390_inject_vcpu",
            {"vcpu": 3, "type": 0xFFFF1201, "parm": 1, "parm64": 0},
            "inject (vcpu 3): type:ffff1201 (emergency) parm:1 parm64:0",
        ),
        (
            "kvm_s390_deliver_interrupt",
            {"vcpu": 3, "type": 0x4000000, "data0": 0, "data1": 0x98000000},
            "deliver interrupt (vcpu 3): type:4000000 (adapter) data:00000000 0000000098000000",
        ),
        ("kvm_newer", {"some": 1, "thing": -2}, "some=1 thing=-2"),
        ("kvm_eoi", {"other": 1}, "other=1"),
    ],
)
def test_events_read_as_in_the_kernel_s_trace(tracepoint: str, fields: dict[str, int], body: str) -> None:
    assert trace_line(TraceEvent(12_000_345_678, tracepoint, fields), X86) == f"   12.000345: {tracepoint}: {body}"


def test_lost_events_are_reported() -> None:
    assert trace_line(EventsDropped(7), X86) == "[LOST 7 EVENTS]"


def first_line(watcher: "subprocess.Popen[str]", vm: Vm) -> str:
    """The first line a watcher prints; pulses a line until it comes."""
    assert watcher.stdout is not None
    seen = threading.Event()

    def pulse_until_seen() -> None:
        while not seen.wait(0.05):
            vm.line(4).pulse()

    thread = threading.Thread(target=pulse_until_seen)
    thread.start()
    try:
        return watcher.stdout.readline()
    finally:
        seen.set()
        thread.join()


def test_events_are_printed_at_once_and_ctrl_c_ends_it_quietly(start: Start, vm: Vm) -> None:
    with start("watch", vm.name, "set_irq", "kvm_inj_virq") as watcher:
        # It may begin between a pulse's two edges.
        assert re.fullmatch(r"kvm_set_irq: gsi 4 level [01] source 0\n", first_line(watcher, vm).split(": ", 1)[1])
        watcher.send_signal(signal.SIGINT)
        rest, errors = watcher.communicate(timeout=PATIENCE)
    assert {line.split(": ")[1] for line in rest.splitlines()} <= {"kvm_set_irq"}
    assert (watcher.returncode, errors) == (0, "")


def test_it_ends_with_its_vm(start: Start, vm: Vm) -> None:
    with start("watch", vm.name) as watcher:
        first_line(watcher, vm)
        vm.delete()
        _, errors = watcher.communicate(timeout=PATIENCE)
    assert (watcher.returncode, errors) == (1, f"Error: VM '{vm.name}' has been deleted (ENOENT)\n")


def test_a_vcpu_that_does_not_exist_yet_is_reported(start: Start, vm: Vm) -> None:
    with start("watch", vm.name, "--vcpu", "7", "--gsi", "4") as watcher:
        first_line(watcher, vm)
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 0
    assert errors == (
        f"VM '{vm.name}' has no vCPU 7 yet; it has 0, 1: create vCPU 7, or press Ctrl-C and name another\n"
    )


def test_an_invalid_tracepoint_is_refused(run: Run, fails: Callable[[Result], str], vm: Vm) -> None:
    assert fails(run("watch", vm.name, "nonsense")).startswith(
        "'kvm_nonsense' is not a tracepoint: use one of kvm_pio, "
    )
