"""The one way in which these chips refuse something."""

from __future__ import annotations

import errno


class RefusedError(Exception):
    """The chip refused it and has changed nothing; number is the errno that KVM returns."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.message = message


def invalid(message: str) -> RefusedError:
    """A value that is not allowed: EINVAL."""
    return RefusedError(errno.EINVAL, message)
