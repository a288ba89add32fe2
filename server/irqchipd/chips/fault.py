"""The answer of the chips of every architecture when the guest's instruction raises an exception."""

from __future__ import annotations

from typing import Final

# x86: RDMSR or WRMSR raises a general protection fault. arm64: MRS or MSR is undefined.
FAULT: Final = -1
