"""What a compiled build of the server cannot be asked."""

from __future__ import annotations

import pytest

from irqchip.builds import is_compiled

COMPILED = is_compiled("irqchipd.vm.machine")
WHY = "the test replaces what a compiled build has built in"

needs_sources = pytest.mark.skipif(COMPILED, reason=WHY)
