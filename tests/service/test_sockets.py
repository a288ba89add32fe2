"""A socket's path belongs to one daemon at a time, and only that daemon removes it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from irqchip_client import connect
from irqchip_client._daemon import start_daemon
from irqchipd import listen
from irqchipd.listen import ListenError, SocketPath
from tests.waiting import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path that is short enough for a socket."""
    directory = Path(f"/proc/self/fd/{(opened := os.open(tmp_path, os.O_RDONLY))}")
    yield directory / "socket"
    os.close(opened)


def bind(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> tuple[SocketPath, socket.socket]:
    """Create a listening socket at a path through SocketPath."""
    at, listener = SocketPath(path), socket.socket(socket.AF_UNIX, kind)
    try:
        with at.binding() as passing:
            listener.bind(str(passing))
            listener.listen(1)
    except BaseException:
        listener.close()
        at.close()
        raise
    return at, listener


def test_only_its_user_can_connect_and_no_other_file_is_left(path: Path) -> None:
    at, listener = bind(path)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(path.parent) == ["socket"]
        at.remove()
        assert os.listdir(path.parent) == []
        at.remove()
    at.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_dead_socket_is_taken_over_but_not_a_live_one_however_busy(path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))
    at, listener = bind(path, kind)
    with listener, ExitStack() as clients:
        with pytest.raises(ListenError, match="in use"):
            bind(path, kind)
        with suppress(BlockingIOError):
            while True:  # until the backlog is full
                client = clients.enter_context(socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK))
                client.connect(str(path))
        with pytest.raises(ListenError, match="in use"):
            bind(path, kind)
        assert os.listdir(path.parent) == ["socket"]
    at.close()


def test_a_failure_to_bind_leaves_what_was_there(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    at = SocketPath(path)
    with pytest.raises(ZeroDivisionError), at.binding(), socket.socket(socket.AF_UNIX):
        raise ZeroDivisionError
    at.remove()
    assert os.listdir(path.parent) == ["socket"]
    at.close()


def test_a_socket_that_another_daemon_took_over_is_not_removed(path: Path) -> None:
    first, first_listener = bind(path)
    path.unlink()
    second, second_listener = bind(path)
    with first_listener, second_listener:
        first.remove()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        second.remove()
        assert not path.exists()
    first.close()
    second.close()


def test_a_directory_lock_that_is_never_released_does_not_block(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CLAIM_PATIENCE", 0.05)
    stranger = SocketPath(path)
    with stranger._locked(0):
        at, listener = bind(path)
        listener.close()
        at.remove()
        assert not path.exists()
    at.close()
    stranger.close()


def test_the_longest_path_has_room_for_both_sockets() -> None:
    directory = Path("/tmp") / f"irqchipd-{os.getpid()}"
    directory.mkdir()
    longest = directory / ("x" * (listen.MAX_SOCKET_PATH - len(str(directory)) - 1))
    try:
        with start_daemon(listen=[f"unix://{longest}"]), connect(f"unix://{longest}") as client:
            with client.create_vm("vm").session("device"):
                pass
            assert sorted(os.listdir(directory)) == [longest.name, longest.name + ".port"]
        assert os.listdir(directory) == []
    finally:
        directory.rmdir()


def test_a_daemon_that_stops_leaves_the_sockets_of_the_next() -> None:
    with start_daemon() as old:
        path = Path(old.target.removeprefix("unix://"))
        path.unlink()
        path.with_name(path.name + ".port").unlink()
        with start_daemon(listen=[old.target]) as new:
            old.process.terminate()
            assert old.process.wait(PATIENCE) == 0
            with connect(new.targets[1]) as client, client.create_vm("vm").session("device") as session:
                session.submit([]).result(PATIENCE)
        assert not path.exists()


def test_of_daemons_that_start_at_once_on_a_dead_socket_one_survives() -> None:
    directory = Path("/tmp") / f"irqchipd-{os.getpid()}-at-once"
    directory.mkdir()
    path = directory / "socket"
    command = [sys.executable, "-m", "irqchipd", "--listen", f"unix://{path}"]
    try:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            daemons = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
            deadline = time.monotonic() + PATIENCE
            while sum(daemon.poll() is None for daemon in daemons) > 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            (survivor,) = (daemon for daemon in daemons if daemon.poll() is None)
            for daemon in daemons:
                if daemon is not survivor:
                    assert b"in use" in daemon.communicate(timeout=PATIENCE)[1]
            with connect(f"unix://{path}") as client:
                client.create_vm("reached")
            survivor.terminate()
            survivor.communicate(timeout=PATIENCE)
            assert survivor.returncode == 0
            assert os.listdir(directory) == []
    finally:
        directory.rmdir()


def test_a_directory_that_may_not_be_written_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.
    with pytest.raises(ListenError, match=f"this user may not write to the directory {tmp_path}; choose another"):
        SocketPath(tmp_path / "socket")


def test_a_directory_that_can_not_be_entered_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(ListenError, match="Permission denied; choose a directory that this user may write to"):
        SocketPath(tmp_path / "socket")
