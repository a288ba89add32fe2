"""save, restore."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from irqchip_client import Client, Vm, VmSnapshot
from tests.cli.conftest import Run, Start
from tests.waiting import PATIENCE

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
        "  source 1: uart; asserted GSIs 4; resampled GSIs (none); dropped events 0; detached"
    )


def test_through_a_pipe(start: Start, vm: Vm, irqchip_client: Client) -> None:
    with start("save", vm.name, "-") as saving:
        assert saving.stdout is not None
        with start("restore", "-", "piped", stdin=saving.stdout) as restoring:
            out, errors = restoring.communicate(timeout=PATIENCE)
    assert (out, errors) == ("piped\n", "")
    assert irqchip_client.vm("piped").info().vcpus == (0, 1)


def test_unusable_files_are_refused(run: Run, fails: Fails, vm: Vm, file: Path) -> None:
    run("save", vm.name, file)
    assert fails(run("restore", file, vm.name)).endswith("(EEXIST)")
    file.write_bytes(b"nonsense")
    assert (
        fails(run("restore", file))
        == f"{file}: these 8 bytes are no snapshot of a VM: give what `irqchipctl save` or Vm.snapshot() made (EINVAL)"
    )
    assert run("restore", file.with_name("missing")).exit_code == 2


def test_a_save_that_fails_leaves_the_file_as_it_was(run: Run, fails: Fails, file: Path) -> None:
    file.write_bytes(b"of another VM")
    assert fails(run("save", "missing", file)).endswith("(ENOENT)")
    assert file.read_bytes() == b"of another VM"


@pytest.mark.parametrize(("to", "name"), [("/dev/full", "/dev/full"), ("-", "standard output")])
def test_a_full_disk(start: Start, vm: Vm, to: str, name: str) -> None:
    with Path("/dev/full").open("w") as full, start("save", vm.name, to, stdout=full) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == f"Error: {name}: No space left on device\n"


def only(file: Path) -> bool:
    """Whether the file's folder has no other file, such as a temporary one."""
    return list(file.parent.iterdir()) == [file]


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(run: Run, fails: Fails, vm: Vm, file: Path) -> None:
    file.write_bytes(b"of another VM")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        result = run("save", vm.name, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fails(result) == f"{file}: File too large"
    assert file.read_bytes() == b"of another VM"
    assert only(file)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_any_failure_leaves_the_file_as_it_was(
    run: Run, fails: Fails, vm: Vm, file: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file.write_bytes(b"of another VM")
    monkeypatch.setattr(os, failing, fail)
    assert fails(run("save", vm.name, file)) == f"{file}: No space left on device"
    assert file.read_bytes() == b"of another VM"
    assert only(file)


def test_a_file_that_is_replaced_keeps_its_mode(run: Run, vm: Vm, file: Path) -> None:
    file.touch()
    for mode in (0o600, 0o640, 0o666):
        file.chmod(mode)
        run("save", vm.name, file)
        assert file.stat().st_mode & 0o777 == mode
        assert VmSnapshot.from_bytes(file.read_bytes())
    assert only(file)


def test_a_new_file_has_the_mode_of_any_other(run: Run, vm: Vm, file: Path) -> None:
    umask = os.umask(0o027)
    try:
        run("save", vm.name, file)
    finally:
        os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(run: Run, vm: Vm, file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file.symlink_to("elsewhere/x")
    for _ in range(2):  # First the link's target is created, then it is replaced.
        assert run("save", vm.name, file).exit_code == 0
        assert file.is_symlink()
        assert VmSnapshot.from_bytes((tmp_path / "elsewhere/x").read_bytes())


def test_a_loop_of_links_is_an_error(run: Run, fails: Fails, vm: Vm, file: Path) -> None:
    file.symlink_to(file)
    assert "links" in fails(run("save", vm.name, file))


def test_a_read_only_file_is_not_replaced(
    run: Run, fails: Fails, vm: Vm, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.touch()
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # Root may write anything.
    assert fails(run("save", vm.name, file)) == f"{file}: Permission denied"


def test_a_device_or_pipe_is_written_in_place(start: Start, vm: Vm, file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with start("save", vm.name, str(pipe)) as process:
        assert VmSnapshot.from_bytes(pipe.read_bytes())
        assert process.wait(PATIENCE) == 0
    assert pipe.is_fifo()
    with file.open("w") as output, start("save", vm.name, "/dev/stdout", stdout=output) as process:
        assert process.wait(PATIENCE) == 0
        assert VmSnapshot.from_bytes(file.read_bytes())
        assert os.path.samestat(os.fstat(output.fileno()), file.stat())


def test_a_file_that_cannot_be_created_is_named(run: Run, fails: Fails, vm: Vm, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "vm.snapshot"
    assert fails(run("save", vm.name, file)) == f"{file}: the folder {file.parent} does not exist: make it first"
    assert run("save", vm.name, tmp_path).exit_code == 2


def test_a_reader_that_leaves_is_no_error(start: Start, vm: Vm) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, start("save", vm.name, "-", stdout=pipe) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (1, "")


def test_a_snapshot_is_not_written_to_a_terminal(start: Start, vm: Vm) -> None:
    master, terminal = os.openpty()
    try:
        with open(terminal, "w") as tty, start("save", vm.name, "-", stdout=tty) as process:
            _, errors = process.communicate(timeout=PATIENCE)
    finally:
        os.close(master)
    assert process.returncode == 2
    assert "not for a terminal" in errors
