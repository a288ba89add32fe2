"""Vectors of exceptions: the SDM vol. 3 table 6-1."""

from __future__ import annotations

from enum import IntEnum


class Vector(IntEnum):
    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    UD = 6
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14


# Exceptions that push an error code.
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21))

# Exceptions that are no faults: they push RFLAGS with RF as it was (17.3.1.1).
TRAPS_AND_ABORTS = frozenset((1, 3, 4, 8, 18))

# Table 6-4: whether one exception on delivering another makes a double fault.
CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))


class Fault(Exception):  # noqa: N818 - the SDM's name
    """An exception of the guest, for the guest's handler.

    address  of a page fault: what CR2 gets
    """

    def __init__(self, vector: int, error_code: int, address: int | None = None) -> None:
        super().__init__(f"vector {vector}, error code {error_code:#x}")
        self.vector = vector
        self.error_code = error_code
        self.address = address


class TripleFault(Exception):  # noqa: N818 - the SDM's name
    """A fault on delivering a double fault: a processor shuts down."""
