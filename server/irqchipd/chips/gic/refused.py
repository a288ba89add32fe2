"""A GIC's refusal of an access of user space."""

from __future__ import annotations


class AccessRefused(ValueError):  # noqa: N818 - not an error of this program, but an answer
    """An access to a register was refused; number is the errno that KVM returns."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
