"""The one way in which an operation on a VM fails."""

from __future__ import annotations

import errno
from typing import Final

_MESSAGE: Final = 500  # characters of a message; gRPC sends it twice as metadata, and clients accept 8 KiB of metadata
_QUOTED: Final = 64
# Linux's names of errnos for which Python has another: EDEADLOCK and ENOTSUP.
_REASONS: Final = {errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP"}


class VmError(Exception):
    """An operation was refused and has changed nothing; number is the errno KVM would have returned."""

    def __init__(self, number: int, message: str) -> None:
        # The message may quote a client. It is cut here, so that no edge has to check its length.
        self.message = message if len(message) <= _MESSAGE else message[: _MESSAGE - 3] + "..."
        super().__init__(self.message)
        self.number = number

    @property
    def reason(self) -> str:
        """The errno's name, for example EINVAL."""
        return _REASONS.get(self.number) or errno.errorcode[self.number]


def quoted(text: str) -> str:
    """The start of a client's text, for a message, without characters that could control a terminal."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}..."


def deleted(vm: str) -> VmError:
    """The error of an operation on a deleted VM: ENOENT."""
    return VmError(errno.ENOENT, f"VM {quoted(vm)} has been deleted")


def invalid(message: str) -> VmError:
    """A value out of range: EINVAL."""
    return VmError(errno.EINVAL, message)
