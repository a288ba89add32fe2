"""The daemon's address: `unix:///absolute/path`, `tcp://host:port`, or `embedded:` for a daemon in this process."""

import errno
import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from irqchip.place import default_socket, is_own, is_private
from irqchip.port import POLL_NS, SUFFIX
from irqchip.ring import OFFERED

from ._errors import InvalidArgument, make_error, not_running

_SOCKET_PATH_BYTES = 107  # sizeof sun_path, less its end
_EMBEDDED = "embedded:"
_MESSAGE_BYTES = 16 << 20  # A whole routing table is a tenth of it.


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon's address."""

    uri: str  # In the user's form.
    address: str  # In gRPC's form.
    local: bool  # A socket of this host.
    listen: tuple[str, ...] | None = None  # The addresses of a daemon in this process; None for any other daemon.
    folder: str | None = (
        None  # This folder must belong to this user alone, because the address is the default: check().
    )

    def check(self) -> None:
        """Makes sure, before each call, that no other user can have made the socket.

        Raises IrqchipError(EACCES) if the default socket's folder belongs to another user, or is open to others;
        Unavailable if the folder is missing: another user could make it before gRPC connects.
        """
        if self.folder is None:
            return
        try:
            if not is_own(self.folder):
                fault = "is not a directory of yours"
            elif not is_private(self.folder):
                fault = "can be entered by others"
            else:
                return
        except OSError as error:
            raise not_running(self.uri, error.strerror or str(error)) from None
        raise make_error(
            errno.EACCES,
            f"{self.folder} {fault}, so another user's process may answer there: set XDG_RUNTIME_DIR to a directory of "
            "yours, or name the daemon with --target or IRQCHIP_TARGET",
        )

    @property
    def port(self) -> str | None:
        """The path of the daemon's AF_UNIX port, which may be missing; None for a daemon over TCP."""
        return self.uri.removeprefix("unix://") + SUFFIX if self.uri.startswith("unix://") else None

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        options = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            # Finds a daemon that has just been started: by default gRPC waits up to two minutes before another attempt,
            # on all channels of the process.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if self.local:
            options.append(("grpc.enable_http_proxy", 0))
        else:
            # Without these options, Sessions with a host that vanished would never end; with them they end within 15 s.
            options += [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
            options.append(("grpc.http2.max_pings_without_data", 0))
        return options


def port_poll_ns() -> int | None:
    """Nanoseconds to poll the port before blocking. IRQCHIP_PORT gives microseconds, or "off": None.

    Raises InvalidArgument for anything else.
    """
    text = os.environ.get("IRQCHIP_PORT", "")
    if text == "off":
        return None
    if text and not (text.isascii() and text.isdigit() and int(text) <= 1_000_000):
        raise InvalidArgument(
            errno.EINVAL, f"IRQCHIP_PORT is {text!r:.200}: write off, or 0 to 1000000 microseconds to poll"
        )
    return int(text) * 1000 if text else POLL_NS


def rings_are_wanted() -> bool:
    """Whether Sessions over the port use rings: not if IRQCHIP_RINGS is "off", or if the processor can't have them."""
    return OFFERED and os.environ.get("IRQCHIP_RINGS", "") != "off"


def resolve_target(target: str | None = None) -> Target:
    """The target given, else that of the environment variable IRQCHIP_TARGET, else the default socket.

    Raises InvalidArgument for a malformed target.
    """
    if target is not None and not isinstance(target, str):
        raise InvalidArgument(
            errno.EINVAL, f"target is {target!r:.200}, of type {type(target).__name__}; write 'unix:///absolute/path'"
        )
    named = target or os.environ.get("IRQCHIP_TARGET")
    uri = named or f"unix://{default_socket()}"
    if uri.startswith(_EMBEDDED):
        return Target(uri, "", local=True, listen=_listen_of(uri))
    if uri.startswith("unix:///"):
        if len(os.fsencode(uri.removeprefix("unix://"))) > _SOCKET_PATH_BYTES or not uri.isprintable():
            raise InvalidArgument(
                errno.EINVAL, f"{uri!r:.200} is no path of a socket: at most {_SOCKET_PATH_BYTES} bytes"
            )
        folder = None if named else os.path.dirname(uri.removeprefix("unix://"))
        return Target(uri, uri, local=True, folder=folder)
    try:
        parts = urlsplit(uri)
        if parts.scheme == "tcp" and parts.hostname and parts.port and parts.netloc == uri.removeprefix("tcp://"):
            return Target(uri, parts.netloc, local=_is_loopback(parts.hostname))
    except ValueError:  # urlsplit's, for a port or an IPv6 address.
        pass
    raise InvalidArgument(
        errno.EINVAL, f"{uri!r:.200} is no target: write unix:///absolute/path or tcp://host:port, or embedded:"
    )


def embedded_target(listen: str | None) -> str:
    """The target for a daemon in this process."""
    return _EMBEDDED if listen is None else f"{_EMBEDDED}?listen={quote(listen)}"


def _listen_of(uri: str) -> tuple[str, ...]:
    """The addresses at which the daemon of an embedded: target listens. InvalidArgument."""
    query = uri.removeprefix(_EMBEDDED)
    try:
        settings = parse_qsl(query.removeprefix("?"), keep_blank_values=True, strict_parsing=query != "")
    except ValueError:
        settings = [("", "")]
    if query[:1] not in ("", "?") or any(name != "listen" or not value for name, value in settings):
        raise InvalidArgument(
            errno.EINVAL, f"{uri!r:.200} is no target: write embedded: or embedded:?listen=/path/of/a/socket"
        )
    return tuple(value for _, value in settings)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
