"""irqchipd that never stops in an orderly way. STUCK says whether its event loop hangs or its whole interpreter."""

from __future__ import annotations

import ctypes
import os
import time

from irqchipd.__main__ import main
from irqchipd.daemon import Daemon


async def _stop_never(self: Daemon) -> None:  # noqa: ARG001
    if os.environ["STUCK"] == "loop":
        time.sleep(60)
    else:
        ctypes.PyDLL(None).sleep(60)


if __name__ == "__main__":
    Daemon.stop = _stop_never  # type: ignore[method-assign]
    main()
