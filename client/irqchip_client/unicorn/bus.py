"""The part of an adapter that the emulator calls: accesses outside of RAM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from irqchip_client.vmm.accesses import Accesses, LocalDevices
from irqchip_client.vmm.exit_stats import CountedAccesses, CountedDevices, Recorder

from .breaker import Breaker


class Bus:
    """An adapter's accesses. No exception may cross the emulator's C code, so run() raises it later."""

    _accesses: Accesses | CountedAccesses
    _breaker: Breaker
    _interrupted: bool
    _recorder: Recorder | None
    _failure: BaseException | None = None

    def _make_accesses(
        self, make: Callable[[LocalDevices | None], Accesses], local: LocalDevices | None
    ) -> Accesses | CountedAccesses:
        """The accesses, which a Recorder counts if there is one."""
        if self._recorder is None:
            return make(local)
        devices = None if local is None else CountedDevices(local, self._recorder)
        return CountedAccesses(make(devices), self._recorder)

    def _counted(self, kind: str) -> AbstractContextManager[None]:
        """Counts the body as an exit, if there is a Recorder."""
        return nullcontext() if self._recorder is None else self._recorder.exit(kind)

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
        """Raises the error of an access, if there was one."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _wrote(self) -> None:
        """After a write that may soon interrupt the guest itself: an event would come too late."""
        self._interrupted = True
        self._breaker.stop_at_window()
        self._breaker.spent()
