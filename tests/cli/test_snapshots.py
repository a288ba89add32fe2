"""save, restore."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from irqchip_client import Client, Vm, VmSnapshot
from tests.cli.conftest import Run, Start

Fails = Callable[[Result], str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vm.snapshot"


def test_a_vm_that_was_saved_comes_back(run: Run, vm: Vm, irqchip_client: Client, file: Path) -> None:
    vm.vcpu(0).pio_write(0x21, 0xFB)
    result = run("save", vm.name, file)
    assert (result.exit_code, result.output) == (0, "")
    assert VmSnapshot.from_bytes(file.read_bytes())
    assert run("restore", file, "again").stdout == "again\n"
    again = irqchip_client.vm("again")
    assert again.vcpu(0).pio_read(0x21).data == 0xFB
    assert again.info().vcpus == (0, 1)


def test_restore_without_a_name_prints_the_one_that_the_daemon_picked(run: Run, vm: Vm, file: Path) -> None:
    run("save", vm.name, file)
    name = run("restore", file).stdout.strip()
    assert name
    assert name != vm.name
    assert run("show", name).exit_code == 0


def test_a_session_that_does_not_exist_any_more_is_shown_as_detached(run: Run, vm: Vm, file: Path) -> None:
    with vm.session("uart") as session:
        session.line(4).raise_()
        run("save", vm.name, file)
    run("restore", file, "moved")
    assert run("show", "moved").stdout.splitlines()[-1] == (
        "  source 1: uart; asserted GSIs 4; dropped events 0; detached"
    )


def test_through_a_pipe(start: Start, vm: Vm, irqchip_client: Client) -> None:
    with start("save", vm.name, "-") as saving:
        assert saving.stdout is not None
        with start("restore", "-", "piped", stdin=saving.stdout) as restoring:
            out, errors = restoring.communicate(timeout=30)
    assert (out, errors) == ("piped\n", "")
    assert irqchip_client.vm("piped").info().vcpus == (0, 1)


def test_what_is_refused(run: Run, fails: Fails, vm: Vm, file: Path) -> None:
    run("save", vm.name, file)
    assert fails(run("restore", file, vm.name)).endswith("(EEXIST)")
    file.write_bytes(b"nonsense")
    assert fails(run("restore", file)) == f"{file}: these 8 bytes are no snapshot of a VM (EINVAL)"
    assert run("restore", file.with_name("missing")).exit_code == 2


def test_a_save_that_fails_leaves_the_file_as_it_was(run: Run, fails: Fails, file: Path) -> None:
    file.write_bytes(b"of another VM")
    assert fails(run("save", "missing", file)).endswith("(ENOENT)")
    assert file.read_bytes() == b"of another VM"


def test_a_full_disk(start: Start, vm: Vm) -> None:
    with start("save", vm.name, "/dev/full", stdout=subprocess.DEVNULL) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "Error: [Errno 28] No space left on device\n"
