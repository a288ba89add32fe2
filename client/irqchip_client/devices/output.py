"""The output of a device."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

# Takes some bytes; returns False if it can't take them now.
Output = Callable[[bytes], bool | None]


def output_to(descriptor: int) -> Output:
    """Output to a descriptor. It never blocks, and takes nothing while the descriptor is full or has no reader."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)

    def output(data: bytes) -> bool:
        try:
            return bool(poll.poll(0)) and os.write(descriptor, data) == len(data)
        except OSError:  # A reader may come later: that of a pipe, say.
            return False

    return output
