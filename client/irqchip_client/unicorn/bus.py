"""The part of an adapter that the emulator calls: accesses outside of RAM."""

from __future__ import annotations

from irqchip_client.vmm.accesses import Accesses

from .breaker import Breaker


class Bus:
    """An adapter's accesses. No exception may cross the emulator's C code, so run() raises it later."""

    _accesses: Accesses
    _breaker: Breaker
    _interrupted: bool
    _failure: BaseException | None = None

    def mmio_read(self, address: int, size: int) -> int:
        try:
            return self._accesses.mmio_read(address, size)
        except BaseException as error:
            return self._fail(error, size)
        finally:
            self._breaker.spent()

    def mmio_write(self, address: int, value: int, size: int) -> None:
        try:
            self._accesses.mmio_write(address, value, size)
        except BaseException as error:
            self._fail(error, size)
        self._wrote()

    def _fail(self, error: BaseException, size: int) -> int:
        """Makes run() raise the error, at the end of this block of guest code. Returns all ones."""
        self._failure = self._failure or error
        self._breaker.stop()
        return (1 << 8 * size) - 1

    def _raise_failure(self) -> None:
        """Raises the error that an access had."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _wrote(self) -> None:
        """After a write, which may interrupt the guest itself, soon: an event would come too late."""
        self._interrupted = True
        self._breaker.stop_at_window()
        self._breaker.spent()
