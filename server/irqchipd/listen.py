"""Where the daemon listens: which addresses it accepts, and how it makes sure that a socket's path is its own."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from irqchip.place import default_socket, is_own
from irqchip.port import SUFFIX

log = logging.getLogger(__name__)

MAX_SOCKET_PATH = 107 - len(SUFFIX)  # bytes: sizeof sun_path less its NUL, and less the port's suffix

# How long to wait for another daemon that starts or stops in the same directory, seconds.
CLAIM_PATIENCE = 5.0
REMOVAL_PATIENCE = 0.2

_SO_PASSRIGHTS = 83  # asm-generic/socket.h


class ListenError(Exception):
    """The daemon can't, or must not, listen on an address; the message says what to do."""


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
    raise ListenError(f"{text!r:.200} is not an address to listen on: use unix:///PATH or tcp://HOST:PORT")


def parse_http(text: str, allow_insecure: bool) -> tuple[TcpAddress, str]:
    """Where to serve the page: http://HOST:PORT, or HOST:PORT; and the host as it was written."""
    scheme, separator, rest = text.rpartition("://")
    rest = rest.removesuffix("/")
    if separator and scheme not in ("http", "tcp"):
        raise ListenError(f"{text!r:.200} is not an address for the page: use http://HOST:PORT")
    return _parse_tcp(text, rest, allow_insecure, "http"), rest.rpartition(":")[0].removeprefix("[").removesuffix("]")


def _parse_tcp(text: str, rest: str, allow_insecure: bool, scheme: str = "tcp") -> TcpAddress:
    host, _, port = rest.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"{text!r} is not an address: use {scheme}://HOST:PORT, with a port of 0 to 65535")
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"{text}: {host} is not known: {error.strerror}") from error
    number = str(found[0][4][0])
    if not allow_insecure and not ipaddress.ip_address(number).is_loopback:
        raise ListenError(
            f"{text}: {number} can be reached from other machines, and irqchipd neither encrypts nor authenticates; "
            "listen on loopback, or say --allow-insecure if no one else uses the network"
        )
    return TcpAddress(number, int(port))


class SocketPath:
    """The path of a unix socket that one daemon at a time listens on; only its user can connect.

    A daemon checks the path, and then binds or removes the socket, under one lock on its directory, so that no other
    daemon binds in between. The lock is flock's, on the directory itself: it leaves no file behind, and ends with its
    process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._removing = threading.Lock()
        # The device and the inode of the socket bound here: another daemon may have taken over the path since.
        self._bound: tuple[int, int] | None = None
        try:
            there = path.parent.is_dir()
        except OSError as error:  # a directory above it can't be entered
            raise ListenError(f"{path}: {error.strerror}; choose a directory that this user may write to") from error
        if not there:
            raise ListenError(f"{path}: the directory {path.parent} does not exist; make it, or choose another")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ListenError(f"{path}: this user may not write to the directory {path.parent}; choose another")
        # Held until the end: a stop must not need a new descriptor.
        flags = os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._directory = os.open(path.parent, os.O_RDONLY | flags)
        except PermissionError:  # unreadable, so it can't be locked either; but files in it can be named
            self._directory = os.open(path.parent, os.O_PATH | flags)

    @contextmanager
    def binding(self) -> Iterator[Path]:
        """Give a temporary path to bind a socket to, and rename the socket to this path at the end.

        If the socket listens before the rename, a client that finds this path can always connect. When gRPC stops, it
        removes the path that it bound, whoever's socket is there: with a temporary path it removes nothing.
        """
        # In the same directory, and no longer than the path with SUFFIX, which fits.
        passing = self._path.with_name("." + secrets.token_hex(3)[:5])
        with self._locked(CLAIM_PATIENCE):
            self._make_way()
            umask = os.umask(0o177)
            try:
                yield passing
                status = os.lstat(passing.name, dir_fd=self._directory)
                os.rename(passing.name, self._path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except BaseException:
                with suppress(OSError):
                    os.unlink(passing.name, dir_fd=self._directory)
                raise
            finally:
                os.umask(umask)
            self._bound = status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove the socket that was bound, if it is still there; from any thread, and without a long wait."""
        with self._removing:
            bound, self._bound = self._bound, None
            if bound is None:
                return
            with self._locked(REMOVAL_PATIENCE), suppress(OSError):  # it may be gone already
                status = os.lstat(self._path.name, dir_fd=self._directory)
                if (status.st_dev, status.st_ino) == bound:
                    os.unlink(self._path.name, dir_fd=self._directory)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._directory)

    def _make_way(self) -> None:
        """Refuse a path with a listener or another kind of file; a socket without a listener may be removed."""
        try:
            mode = os.lstat(self._path.name, dir_fd=self._directory).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ListenError(f"{self._path} exists and is not a socket: choose another path, or remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            # A listener with a full backlog answers EAGAIN; a socket of another type, EPROTOTYPE.
            if probe.connect_ex(str(self._path)) not in (errno.ECONNREFUSED, errno.ENOENT):
                raise ListenError(
                    f"{self._path} is in use, perhaps by another irqchipd: stop that, or choose another path"
                )

    @contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        """Hold the directory's lock. A process that holds it for long is no daemon: then go on without the lock."""
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                log.warning("another process has locked the directory %s; continuing without", self._path.parent)
            except OSError as error:
                log.debug("the directory %s can't be locked: %s", self._path.parent, error)
            break
        try:
            yield
        finally:
            with suppress(OSError):  # it was not locked
                fcntl.flock(self._directory, fcntl.LOCK_UN)


def refuse_descriptors(path: Path) -> bool:
    """Make the kernel refuse, with EPERM, descriptors that clients send to this process's socket at a path.

    Closing a client's descriptor can take long: a TCP socket with SO_LINGER waits until its data is acknowledged.
    False on Linux before 6.16, which can't refuse descriptors.
    """
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with suppress(OSError):  # it is closed by now, or the option is unknown
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as found:
                if found.family == socket.AF_UNIX and found.getsockname() == str(path):
                    found.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
                    return True
    return False
