"""The one way in which an operation on a VM fails."""

from __future__ import annotations

import errno


class VmError(Exception):
    """An operation was refused and has changed nothing; number is the errno KVM would have returned."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.message = message

    @property
    def reason(self) -> str:
        """The errno's name, for example EINVAL."""
        return "EDEADLK" if self.number == errno.EDEADLK else errno.errorcode[self.number]  # Python says EDEADLOCK


def deleted(vm: str) -> VmError:
    """Of a VM that its holder can do nothing with any more: ENOENT."""
    return VmError(errno.ENOENT, f"VM {vm!r} has been deleted")


def invalid(message: str) -> VmError:
    """A value out of range: EINVAL."""
    return VmError(errno.EINVAL, message)
