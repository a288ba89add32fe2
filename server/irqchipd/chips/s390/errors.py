"""The error with which these chips refuse an operation."""

from __future__ import annotations

import errno


class RefusedError(Exception):
    """The chip refused an operation and has changed nothing; number is the errno that KVM returns."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.message = message


def invalid(message: str) -> RefusedError:
    """A value that is not allowed: EINVAL."""
    return RefusedError(errno.EINVAL, message)
