"""replay: its report and its exit status. tests/conformance checks that the daemon answers as the kernel did."""

import importlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from irqchip_client import Client
from irqchip_client._daemon import start_daemon
from irqchip_client.replay.x86 import PIT_FIELDS
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE, eventually

WAYS = pytest.mark.parametrize("way", [["--in-process"], ["--jobs", "2"]], ids=["in-process", "daemon"])


def trace(*ops: Any, family: str = "pic", seed: int = 1, vcpus: int = 2) -> str:
    return json.dumps({"family": family, "seed": seed, "vcpus": vcpus, "ops": ops}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """file(line, ...) writes a file of traces."""

    def write(*lines: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(lines))
        return path

    return write


@WAYS
def test_a_trace_runs_on_after_a_mismatch_and_all_are_counted(
    run: Run, file: Callable[..., Path], way: list[str]
) -> None:
    path = file(
        trace(["irq_line", 4, 1, 7], ["take_extint", 0, 4], ["get_irqchip", 9, "-EINVAL"], family="a"),
        trace(["ack_lapic", 5, None], ["pio_read", 0, 32, 3, 0], ["take_extint", 0, None], family="b", seed=3),
    )
    result = run("replay", *way, path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[:10] == [
        "Not answered as the kernel did (operations are numbered from 0):",
        'family a, seed 1, operation 0: ["irq_line",4,1]',
        "  expected 7",
        "  actual   1",
        'family b, seed 3, operation 0: ["ack_lapic",5]',
        "  expected null",
        '  actual   "-ENOENT"',
        'family b, seed 3, operation 1: ["pio_read",0,32,3]',
        "  expected 0",
        '  actual   "-EINVAL"',
    ]
    rows = [line.split()[:4] for line in lines[10:]]
    assert ["a", "1", "3", "1"] in rows
    assert ["b", "1", "3", "2"] in rows
    assert ["all", "2", "6", "3"] in rows
    assert lines[-1] == "2 traces, 6 operations, 3 mismatches"


@WAYS
def test_every_operation(run: Run, file: Callable[..., Path], way: list[str]) -> None:
    """Each operation with the answer of a new VM, in one batch, which is cut where ack_lapic needs an answer."""
    path = file(
        trace(
            ["pio_write", 0, 0x21, 1, 0xEF, None],
            ["pio_read", 0, 0x21, 1, 0xEF],
            ["pio_read", 0, 0x80, 1, 0],  # Unclaimed.
            ["signal_msi", 0xFEEFF004, 0x131, 0, "-EPERM"],  # Lowest priority: all local APICs are disabled.
            ["mmio_write", 0, 0xFEE000F0, 4, 0x1FF, None],
            ["mmio_read", 0, 0xFEE000F0, 4, 0x1FF],
            ["irq_line", 4, 1, 1],
            ["take_extint", 0, 4],
            ["take_extint", 0, None],
            ["signal_msi", 0xFEE00000, 0x31, 0, 1],
            ["signal_msi", 0xFEE00000, 0x45, 0, 1],
            ["signal_msi", 0xFEE00000, 0x51, 0, 1],
            ["ack_lapic", 0, 0x51],
            ["ack_lapic", 0, None],
            ["mmio_write", 0, 0xFEE000B0, 4, 0, None],
            ["ack_lapic", 0, 0x45],
            ["mmio_write", 0, 0xFEE00080, 4, 0x3F, None],
            ["mmio_write", 0, 0xFEE000B0, 4, 0, None],
            ["ack_lapic", 0, None],  # TPR blocks its class.
            ["signal_msi", 0xFEE00000, 0x31, 2, "-EINVAL"],
            ["set_gsi_routing", [[4, "irqchip", 2, 9], [5, "msi", 0xFEE00000, 0x61]], 0],
            ["set_gsi_routing", [[4, "irqchip", 3, 9]], "-EINVAL"],
            ["irq_line", 5, 1, 1],
            ["get_irqchip", 0, "1000ef100000000000000000000000f8"],
            ["set_irqchip", 0, "00000000000000000000000000000000", 0],
            ["get_irqchip", 0, "00000000000000000000000000000000"],
            ["set_irqchip", 0, "00", "-EINVAL"],
            [
                "get_lapic",
                0,
                {"id": 0, "version": 0x50014, "tpr": 0x3F, "ldr": 0, "dfr": 0xFFFFFFFF, "svr": 0x1FF, "esr": 0}
                | {"icr": 0, "icr2": 0, "lvtt": 0x10000, "lvtthmr": 0x10000, "lvtpc": 0x10000, "lvt0": 0x700}
                | {"lvt1": 0x10000, "lvterr": 0x10000, "isr": [], "tmr": [], "irr": [0x31, 0x61]},
            ],
        )
    )
    result = run("replay", *way, path)
    assert result.stdout.splitlines()[-1] == "1 traces, 28 operations, 0 mismatches", result.stdout
    assert result.exit_code == 0


CHANNEL = dict.fromkeys(PIT_FIELDS, 0) | {"count": 65536, "mode": 255, "gate": 1}
PROGRAMMED = CHANNEL | {"status_latched": 1, "status": 0x34, "read_state": 4, "write_state": 3, "rw_mode": 3, "mode": 2}


@WAYS
def test_the_operations_of_the_pit_and_of_x2apic(run: Run, file: Callable[..., Path], way: list[str]) -> None:
    path = file(
        trace(
            ["create_pit", 1, 0],  # The first operation, and again in the middle of a batch.
            ["pio_write", 0, 0x43, 1, 0x34, None],
            ["create_pit", 0, "-EEXIST"],
            ["pio_read", 0, 0x40, 1, "time"],
            ["pio_read", 0, 0x61, 1, "time"],
            ["pio_write", 0, 0x43, 1, 0xE2, None],  # Read-back: latches status, whose OUT depends on time.
            ["get_pit", [PROGRAMMED, CHANNEL, CHANNEL | {"gate": 0}, 0]],
            ["msr_read", 0, 0x1B, 0xFEE00900],
            ["msr_read", 1, 0x802, "GP"],
            ["msr_write", 1, 0x1B, 0xFEE00C00, None],
            ["msr_read", 1, 0x802, 1],
            ["msr_write", 1, 0x802, 1, "GP"],
            ["msr_write", 1, 0x80F, 0x1FF, None],
            ["msr_write", 1, 0x83F, 0x31, None],  # Self-IPI.
            ["msr_write", 1, 0x80F, 0xFF, None],
            ["ack_lapic", 1, None],  # Software has disabled it.
            ["msr_write", 1, 0x80F, 0x1FF, None],
            ["ack_lapic", 1, 0x31],
            ["msr_read", 0, 0xC0000080, "unclaimed"],
        )
    )
    result = run("replay", *way, path)
    assert result.stdout.splitlines()[-1] == "1 traces, 19 operations, 0 mismatches", result.stdout


@WAYS
def test_what_is_printed_is_bounded(run: Run, file: Callable[..., Path], way: list[str]) -> None:
    result = run("replay", *way, file(trace(*[["irq_line", 4, 0, 9]] * 50)))
    lines = result.stdout.splitlines()
    assert len([line for line in lines if line.startswith("family pic, seed 1, operation ")]) == 20
    assert "and 30 more" in lines
    assert lines[-1] == "1 traces, 50 operations, 50 mismatches"


def test_several_files_and_families(run: Run, file: Callable[..., Path]) -> None:
    one, other = file(trace(family="a"), trace(family="b")), file(trace(family="c"), trace(family="a"))
    result = run("replay", "--in-process", "--family", "a", "--family", "c", one, other)
    assert result.stdout.splitlines()[-1] == "3 traces, 0 operations, 0 mismatches"
    assert "b" not in [line.split()[0] for line in result.stdout.splitlines() if line.strip()]


def test_more_operations_than_the_daemon_takes_in_a_batch(start: Start, file: Callable[..., Path]) -> None:
    path = file(trace(*[["irq_line", 4, 0, 2]] * 25, ["ack_lapic", 0, None], *[["irq_line", 4, 0, 2]] * 10))
    with (
        start_daemon(arguments=["--max-batch", "10"]) as daemon,
        start("--target", daemon.target, "replay", str(path)) as process,
    ):
        out, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    assert out.splitlines()[-1] == "1 traces, 36 operations, 0 mismatches"


def test_more_bytes_than_the_daemon_takes_in_a_message(run: Run, file: Callable[..., Path]) -> None:
    table = [[gsi, "msi", 0xFEE00000, 0x31] for gsi in range(4000)]
    result = run("replay", file(trace(*[["set_gsi_routing", table, 0]] * 30)))
    assert result.stdout.splitlines()[-1] == "1 traces, 30 operations, 0 mismatches", result.output


def test_no_vm_is_left_in_the_daemon(run: Run, irqchip_client: Client, file: Callable[..., Path]) -> None:
    assert run("replay", file(*[trace(["irq_line", 4, 1, 2], seed=seed) for seed in range(20)])).exit_code == 1
    eventually(lambda: not any(vm.name.startswith("replay-") for vm in irqchip_client.vms()))


def test_ctrl_c_leaves_no_vm_in_the_daemon(start: Start, irqchip_client: Client, file: Callable[..., Path]) -> None:
    path = file(*[trace(*[["ack_lapic", 0, None]] * 50, seed=seed) for seed in range(2000)])
    with start("replay", str(path)) as process:
        while not any(vm.name.startswith("replay-") for vm in irqchip_client.vms()):
            pass
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors.strip()) == (1, "", "Aborted!")
    eventually(lambda: not any(vm.name.startswith("replay-") for vm in irqchip_client.vms()))


def test_a_file_that_can_t_be_used_names_its_line_and_nothing_is_run(run: Run, file: Callable[..., Path]) -> None:
    good, bad = file(trace()), file(trace(), trace(["irq_line", 4]))
    result = run("replay", "--in-process", good, bad)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {bad}:2: operation 0: irq_line takes gsi, level and the answer, not 1 values\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--in-process", "/nonexistent.jsonl"], "Error: /nonexistent.jsonl: can't be read: "),
        (["--in-process"], "FILE... is missing: `replay` takes FILE..."),
        (["--in-process", "--jobs", "2", "{file}"], "--jobs is for a daemon"),
        (["--in-process", "--family", "lapic", "{file}"], "no trace is of family lapic; there are pic"),
    ],
)
def test_a_wrong_command_line(run: Run, file: Callable[..., Path], arguments: list[str], complaint: str) -> None:
    path = file(trace())
    result = run("replay", *(argument.format(file=path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


def test_without_irqchipd_the_error_says_what_is_missing(
    run: Run, fails: Callable[[Result], str], file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "irqchip_client.replay.in_process", raising=False)
    monkeypatch.setitem(sys.modules, "irqchipd.vm.x86.machine", None)
    line = fails(run("replay", "--in-process", file(trace())))
    assert line.startswith("--in-process needs the package irqchipd beside irqchip_client: ")


def test_no_daemon(start: Start, file: Callable[..., Path]) -> None:
    with start("--target", "unix:///nonexistent/socket", "replay", str(file(trace()))) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith(
        "Error: no irqchipd answers at unix:///nonexistent/socket (No such file or directory): start it with"
    )
    assert errors.count("\n") == 1


def test_a_daemon_that_dies_is_one_line(start: Start, file: Callable[..., Path]) -> None:
    path = file(*[trace(*[["ack_lapic", 0, None]] * 2000, seed=seed) for seed in range(50)])
    with start_daemon() as daemon, start("--target", daemon.target, "replay", str(path)) as process:
        with daemon.connect() as client:
            while not client.vms():
                pass
        daemon.process.kill()
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1


def test_in_a_pipe_it_reports_progress_now_and_then(
    run: Run, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(trace(["ack_lapic", 5, None]), trace(["ack_lapic", 5, "-ENOENT"], seed=2))
    assert run("replay", "--in-process", path).stderr == ""
    monkeypatch.setattr(importlib.import_module("irqchip_client.cli.replay"), "PROGRESS_EVERY", 0)
    told = run("replay", "--in-process", path).stderr
    assert told == "1 of 2 traces, 1 mismatches\n2 of 2 traces, 1 mismatches\n"


def test_in_a_pipe_the_table_is_columns_with_tabs(run: Run, file: Callable[..., Path]) -> None:
    path = file(trace(["ack_lapic", 5, "-ENOENT"], family="a"), trace(["ack_lapic", 5, "-ENOENT"], family="b"))
    lines = run("replay", "--in-process", path).stdout.splitlines()
    assert [line.split("\t")[:4] for line in lines[:3]] == [
        ["a", "1", "1", "0"],
        ["b", "1", "1", "0"],
        ["all", "2", "2", "0"],
    ]
    assert lines[3:] == ["2 traces, 2 operations, 0 mismatches"]
