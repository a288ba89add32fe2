"""Where the daemon listens: which addresses it accepts, and how it sees to it that they are its own."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from irqchip.place import default_socket, is_own

MAX_SOCKET_PATH = 107  # bytes, sizeof sun_path less its end


class ListenError(Exception):
    """An address that can't, or must not, be listened on; its message says what to do."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket's path."""

    path: Path

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, in numbers, and a port; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.bind}"

    @property
    def bind(self) -> str:
        """host:port, with the brackets of IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def default_address() -> UnixAddress:
    """The default socket, its directory made and checked."""
    path = Path(default_socket())
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ListenError(f"{directory} can't be made: {error.strerror}; say --listen unix:///PATH") from error
    if not is_own(directory):
        raise ListenError(f"{directory} is not a directory of yours; remove it, or say --listen unix:///PATH")
    directory.chmod(0o700)
    return UnixAddress(path)


def parse_address(text: str, allow_insecure: bool) -> Address:
    """unix:///PATH or tcp://HOST:PORT. Traffic is in clear, so a host that is not loopback must be allowed."""
    scheme, _, rest = text.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        if len(os.fsencode(rest)) > MAX_SOCKET_PATH:
            raise ListenError(f"{text}: the path is longer than {MAX_SOCKET_PATH} bytes, the most of a unix socket")
        return UnixAddress(Path(rest))
    if scheme == "tcp":
        return _parse_tcp(text, rest, allow_insecure)
    raise ListenError(f"{text!r} is no address to listen on: use unix:///PATH or tcp://HOST:PORT")


def _parse_tcp(text: str, rest: str, allow_insecure: bool) -> TcpAddress:
    host, _, port = rest.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"{text!r} is no address to listen on: use tcp://HOST:PORT, with a port of 0 to 65535")
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"{text}: {host} is not known: {error.strerror}") from error
    number = str(found[0][4][0])
    if not allow_insecure and not ipaddress.ip_address(number).is_loopback:
        raise ListenError(
            f"{text}: {number} can be reached from other machines, and irqchipd neither encrypts nor authenticates; "
            "listen on loopback, or say --allow-insecure if the network is yours alone"
        )
    return TcpAddress(number, int(port))


@contextmanager
def claimed_socket(path: Path) -> Iterator[None]:
    """Make way for a socket, which is for its user alone, wherever it is, if it is bound within."""
    _make_way(path)
    umask = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(umask)


def _make_way(path: Path) -> None:
    """Make way for a socket: remove one that nobody listens on; refuse one that somebody does, and any other file."""
    if not path.parent.is_dir():
        raise ListenError(f"{path}: the directory {path.parent} does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise ListenError(f"{path} is in use, perhaps by another irqchipd")
    path.unlink()
