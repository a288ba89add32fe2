"""trace and record, as processes."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from irqchip_client import Vm
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE


def lines_until(process: "subprocess.Popen[str]", last: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if last in line:
            break
    return lines


def test_a_trace_is_in_ftraces_format(start: Start, vm: Vm) -> None:
    with start("trace", vm.name) as tracer:
        header = lines_until(tracer, "| |         |")
        vm.vcpu(1).pio_write(0x20, 0x20)
        vm.line(16).raise_()
        vm.vcpu(0).mmio_write(0xFEE0_00B0, 0)
        events = lines_until(tracer, "kvm_eoi")
        tracer.send_signal(signal.SIGINT)
        _, errors = tracer.communicate(timeout=PATIENCE)
    assert (tracer.returncode, errors) == (0, "")
    assert header[0] == "# tracer: nop"
    assert header[2].endswith("#P:2")
    assert header[-2] == "#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION"
    seen = [re.fullmatch(r" *(\S+)-\d+ +\[(\d+)\] \.{5} +\d+\.\d{6}: (.*)", line) for line in events]
    assert [found.groups() if found else None for found in seen] == [
        ("vcpu1", "001", "kvm_pio: pio_write at 0x20 size 1 count 1 val 0x20 "),
        ("irqchipd", "000", "kvm_set_irq: gsi 16 level 1 source 0"),
        ("irqchipd", "000", "kvm_ioapic_set_irq: pin 16 dst 0 vec 0 (Fixed|physical|edge|masked)"),
        ("vcpu0", "000", "kvm_mmio: mmio write len 4 gpa 0xfee000b0 val 0x0"),
        ("vcpu0", "000", "kvm_eoi: apicid 0 vector -1"),
    ]
    # The columns stand where the kernel's do.
    assert events[1].index("-") == 16
    assert events[1].index("[") == 25


def test_the_daemon_selects_events(start: Start, vm: Vm) -> None:
    with start("trace", vm.name, "--gsi", "16", "--vcpu", "1") as tracer:
        lines_until(tracer, "| |         |")
        vm.line(4).pulse()
        vm.vcpu(0).pio_write(0x20, 0x20)
        vm.vcpu(1).pio_write(0x20, 0x20)
        vm.line(16).raise_()
        events = lines_until(tracer, "kvm_ioapic_set_irq")
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=PATIENCE)
    assert [line.split(": ")[1] for line in events] == ["kvm_pio", "kvm_set_irq", "kvm_ioapic_set_irq"]


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "deletion", "seconds"])
def test_a_recording_is_written_when_it_ends(start: Start, vm: Vm, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("vcd", reason="pyvcd is not installed")
    vcd, perfetto = tmp_path / "irqs.vcd", tmp_path / "irqs.json"
    arguments = ["record", vm.name, "--vcd", str(vcd), "--perfetto", str(perfetto)]
    with start(*arguments, *(["--seconds", "3"] if ending == "seconds" else [])) as recorder:
        assert recorder.stderr is not None
        limit = " for 3 seconds" if ending == "seconds" else ""
        assert recorder.stderr.readline() == f"recording{limit}: Ctrl-C ends it\n"
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            vm.line(4).pulse()
            time.sleep(0.05)
        if ending == "deletion":
            vm.delete()
        elif ending.startswith("SIG"):
            recorder.send_signal(signal.Signals[ending])
        out, errors = recorder.communicate(timeout=PATIENCE)
    assert (recorder.returncode, errors) == (0, "")
    files = [vcd, vcd.with_suffix(".gtkw"), vcd.with_suffix(".sucl"), perfetto]
    assert re.fullmatch(r"\d+ events: (.*)\n", out)[1] == ", ".join(map(str, files))  # type: ignore[index]
    assert "gsi4" in vcd.read_text()
    assert f"{vm.name.replace('-', '_')}.lines.gsi4" in files[1].read_text()
    assert {"gsi4"} <= {event["name"] for event in json.loads(perfetto.read_text())["traceEvents"]}


def test_a_recording_needs_a_file_that_can_be_written(run: Run, vm: Vm, tmp_path: Path) -> None:
    nothing = run("record", vm.name)
    assert (nothing.exit_code, "give --vcd FILE, --perfetto FILE" in nothing.stderr) == (2, True)
    missing = run("record", vm.name, "--perfetto", tmp_path / "no" / "irqs.json")
    assert (missing.exit_code, "No such file or directory" in missing.stderr) == (1, True)
