import os

import pytest

from irqchip_client import InvalidArgument, default_socket
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
def test_what_grpc_is_given(uri: str, address: str, local: bool) -> None:
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
