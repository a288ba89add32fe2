"""What a compiled build of the server cannot be asked."""

from __future__ import annotations

import gc

import pytest

from irqchip.builds import is_compiled

COMPILED = is_compiled("irqchipd.vm.machine")
WHY = "the test replaces what a compiled build has built in"

needs_sources = pytest.mark.skipif(COMPILED, reason=WHY)


def exists(kind: type, identity: int) -> bool:
    """Whether an object is still there. An object of a compiled class has no weak references."""
    return any(id(thing) == identity and isinstance(thing, kind) for thing in gc.get_objects())
