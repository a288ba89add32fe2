"""The one way in which an operation on a VM fails."""

from __future__ import annotations

import errno
from typing import Final

_MESSAGE: Final = 500  # characters of a message; gRPC sends it twice, as metadata, of which clients take 8 KiB
_QUOTED: Final = 64
# Linux's names of errnos for which Python has another: EDEADLOCK and ENOTSUP.
_REASONS: Final = {errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP"}


class VmError(Exception):
    """An operation was refused and has changed nothing; number is the errno KVM would have returned."""

    def __init__(self, number: int, message: str) -> None:
        # What a client has said may be in it: no form in which it leaves the daemon need look at its length.
        self.message = message if len(message) <= _MESSAGE else message[: _MESSAGE - 3] + "..."
        super().__init__(self.message)
        self.number = number

    @property
    def reason(self) -> str:
        """The errno's name, for example EINVAL."""
        return _REASONS.get(self.number) or errno.errorcode[self.number]


def quoted(text: str) -> str:
    """What a client said, as part of a message: its beginning, with nothing that could act on a terminal."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}..."


def deleted(vm: str) -> VmError:
    """Of a VM that its holder can do nothing with any more: ENOENT."""
    return VmError(errno.ENOENT, f"VM {quoted(vm)} has been deleted")


def invalid(message: str) -> VmError:
    """A value out of range: EINVAL."""
    return VmError(errno.EINVAL, message)
