import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from irqchip_client import InvalidArgument, IrqchipError, Unavailable, aio, connect, default_socket
from irqchip_client._daemon import start_daemon
from irqchip_client._target import resolve_target


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IRQCHIP_TARGET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_an_explicit_target_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_TARGET", "tcp://far:1")
    assert resolve_target("unix:///run/a").uri == "unix:///run/a"
    assert resolve_target().uri == "tcp://far:1"


def test_the_default_is_the_users_own_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_target().address == f"unix:///tmp/irqchipd-{os.getuid()}/irqchipd.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket() == "/run/user/7/irqchipd/irqchipd.sock"
    assert resolve_target().address == "unix:///run/user/7/irqchipd/irqchipd.sock"


@pytest.mark.parametrize(
    ("uri", "address", "local"),
    [
        ("unix:///run/irqchipd.sock", "unix:///run/irqchipd.sock", True),
        ("tcp://localhost:5000", "localhost:5000", True),
        ("tcp://127.0.0.2:5000", "127.0.0.2:5000", True),
        ("tcp://[::1]:5000", "[::1]:5000", True),
        ("tcp://host.example:5000", "host.example:5000", False),
        ("tcp://192.0.2.1:5000", "192.0.2.1:5000", False),
    ],
)
def test_the_address_for_grpc(uri: str, address: str, local: bool) -> None:
    target = resolve_target(uri)
    assert (target.address, target.local) == (address, local)
    assert (("grpc.enable_http_proxy", 0) in target.channel_options) == local


@pytest.mark.parametrize(
    "uri",
    [
        "/run/irqchipd.sock",
        "unix:irqchipd.sock",
        "unix://relative/path",
        "localhost:5000",
        "tcp://localhost",
        "tcp://:5000",
        "tcp://localhost:0",
        "tcp://localhost:70000",
        "tcp://localhost:port",
        "tcp://localhost:5000/path",
        "tcp://[::1:5000",
        "http://localhost:5000",
    ],
)
def test_a_malformed_target_says_which_forms_there_are(uri: str) -> None:
    with pytest.raises(InvalidArgument, match=r"unix:///absolute/path or tcp://host:port"):
        resolve_target(uri)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR, with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def refused() -> str:
    """Why a call to the default target is refused."""
    with connect() as client:
        calls: list[Callable[[], object]] = [
            client.vms,
            client.vm("a").session,
            client.vm("a").watch,
            client.vm("a").vcpu(0).halt,
        ]
        said = set()
        for call in calls:
            with pytest.raises(IrqchipError) as caught:
                call()
            assert caught.value.reason == "EACCES"
            said.add(caught.value.message)
    (message,) = said
    for words in ("XDG_RUNTIME_DIR", "--target", "IRQCHIP_TARGET", "another user"):
        assert words in message
    return message


def test_a_default_folder_that_others_can_enter_is_refused(runtime: Path) -> None:
    folder = runtime / "irqchipd"
    folder.mkdir()
    for mode in (0o777, 0o755, 0o710, 0o701, 0o1777):
        folder.chmod(mode)
        assert f"{folder} can be entered by others" in refused()


def test_a_default_folder_that_is_a_link_or_a_file_is_refused(runtime: Path) -> None:
    folder = runtime / "irqchipd"
    (runtime / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(runtime / "elsewhere")
    assert f"{folder} is not a directory of yours" in refused()
    folder.unlink()
    folder.touch(mode=0o700)
    assert f"{folder} is not a directory of yours" in refused()


def test_a_strangers_default_folder_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runtime / "irqchipd").mkdir(mode=0o700)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert "is not a directory of yours" in refused()


def test_without_xdg_runtime_dir_the_rule_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # A user ID that no user has, so that only this test uses the folder in /tmp.
    nobody = 3_000_000_000 + os.getpid()
    monkeypatch.setattr(os, "getuid", lambda: nobody)
    folder = Path(f"/tmp/irqchipd-{nobody}")
    folder.mkdir(mode=0o777)
    try:
        assert f"{folder} is not a directory of yours" in refused()
    finally:
        folder.rmdir()


def test_asyncio_refuses_it_too(runtime: Path) -> None:
    (runtime / "irqchipd").mkdir()
    (runtime / "irqchipd").chmod(0o777)

    async def main() -> None:
        async with aio.connect() as client:
            vm = client.vm("a")
            for call in (client.vms, vm.session, vm.watch, vm.vcpu(0).halt):
                with pytest.raises(IrqchipError, match="can be entered by others"):
                    await call()

    asyncio.run(main())


def test_a_missing_folder_is_not_waited_for(runtime: Path) -> None:
    with connect() as client:
        with pytest.raises(Unavailable, match=r"No such file or directory.*start it with `irqchipd`"):
            client.vms()
        (runtime / "irqchipd").mkdir(mode=0o700)  # The folder may be created later, by the daemon.
        with pytest.raises(Unavailable, match="start it with `irqchipd`"):
            client.vms()


def test_a_folder_named_by_the_user_is_not_checked(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runtime / "irqchipd"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("IRQCHIP_TARGET", f"unix://{folder}/irqchipd.sock")
    for target in (None, f"unix://{folder}/irqchipd.sock"):
        with connect(target) as client, pytest.raises(Unavailable, match="start it with `irqchipd`"):
            client.vms()


def test_a_daemon_at_the_default_is_found(runtime: Path) -> None:
    (runtime / "irqchipd").mkdir(mode=0o700)
    with start_daemon(listen=[f"unix://{default_socket()}"]), connect() as client:
        vm = client.create_vm()
        with vm.session() as session:
            assert session.transport == "port"


@pytest.mark.parametrize("uri", ["unix:///" + "a" * 9000, "http://" + "a" * 9000])
def test_an_error_does_not_repeat_a_long_target_whole(uri: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve_target(uri)
    assert len(str(caught.value)) < 500
