"""Eventfds that interrupt."""

import os
import select
from collections.abc import Callable
from typing import Self


class Irqfd:
    """An eventfd that interrupts a GSI: KVM_IRQFD. Made by Session.irqfd(); it ends with its Session.

    Whoever has its descriptor interrupts by writing to it, without a message: another process, or a device in C.

    gsi         the GSI
    resamplefd  of a resampled one the eventfd that is written when its interrupt was acknowledged, else None
    """

    def __init__(self, gsi: int, eventfd: int, resamplefd: int | None, close: Callable[[], None]) -> None:
        self.gsi = gsi
        self.resamplefd = resamplefd
        self._eventfd = eventfd
        self._close = close

    def __repr__(self) -> str:
        return f"<Irqfd of GSI {self.gsi}, {'closed' if self._eventfd < 0 else f'descriptor {self._eventfd}'}>"

    def fileno(self) -> int:
        """The eventfd, to be written, or given to another process; -1 once it is closed."""
        return self._eventfd

    def trigger(self) -> None:
        """An edge; of a resampled one a level, which stays until it is acknowledged."""
        os.eventfd_write(self._eventfd, 1)

    def wait_resampled(self, timeout: float | None = None) -> bool:
        """Waits until its interrupt was acknowledged since this last said so; False after so many seconds.

        Whose device still asks triggers it again. ValueError where it is not resampled.
        """
        if self.resamplefd is None:
            raise ValueError(f"the irqfd of GSI {self.gsi} is not resampled: make it with resample=True")
        if not select.select((self.resamplefd,), (), (), timeout)[0]:
            return False
        os.eventfd_read(self.resamplefd)
        return True

    def close(self) -> None:
        """It interrupts no more."""
        if self._eventfd >= 0:
            eventfd, self._eventfd = self._eventfd, -1
            try:
                self._close()
            finally:
                os.close(eventfd)
                if self.resamplefd is not None:
                    os.close(self.resamplefd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
