"""Counts a guest's exits, as `perf kvm stat` does: the number of each kind, their times and their answerers.

An adapter that is given ExitStats notes each exit in a Recorder of its own. A device of this process, the local APIC's
shared registers or the daemon answers the exit, through a class that notes the answerer. Without ExitStats, none of
this is called.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

from irqchip_client._call import Call
from irqchip_client._sync.session import Halt, Session

from .accesses import Accesses, LocalDevices, LocalStrings
from .local_apic import LocalApic

T = TypeVar("T")

# The kinds of exits that have a port, an address or the number of a register.
IO_READ, IO_WRITE, MMIO_READ, MMIO_WRITE = "io read", "io write", "mmio read", "mmio write"
MSR_READ, MSR_WRITE = "msr read", "msr write"
HALT = "halt"
_OF_A_REGISTER = {"sysreg_read", "sysreg_write"}  # operations
MAX_ROWS: Final = 1000  # of a vCPU: bounded, because a guest chooses the addresses


class Answerer(Enum):
    """The part that answered an exit."""

    NOBODY = "the vCPU"
    DEVICE = "a device here"
    LOCAL_APIC = "local APIC page"
    DAEMON = "the daemon"


@dataclass(frozen=True, slots=True)
class ExitCount:
    """The exits of one kind.

    at          the port, the address or the number of the register; None for an exit without one, and for those beyond
                the first MAX_ROWS
    operations  the batches of operations that the daemon executed for these exits
    """

    kind: str
    at: int | None
    by: Answerer
    count: int
    total_ns: int
    min_ns: int
    max_ns: int
    operations: int


_Key = tuple[str, int | None, Answerer]


class Recorder:
    """The exits of one vCPU. For the thread that runs the vCPU.

    by  the answerer of the current exit, as far as known
    """

    def __init__(self) -> None:
        self.by: Answerer | None = None
        self._what: tuple[str, int | None] | None = None  # the current exit
        self._began = 0
        self._operations = 0
        self.counts: dict[_Key, list[int]] = {}  # number, total, shortest, longest, operations

    def begin(self, kind: str, at: int | None = None) -> None:
        """The guest has left."""
        self.by = None
        self._what = kind, at
        self._operations = 0
        self._began = time.perf_counter_ns()

    def end(self) -> None:
        """The guest goes on, or an exit is over. Without a begin() before, does nothing."""
        if self._what is None:
            return
        took = time.perf_counter_ns() - self._began
        by = self.by or (Answerer.DAEMON if self._operations else Answerer.NOBODY)
        key: _Key = (*self._what, by)
        counts = self.counts
        if key not in counts:
            if len(counts) >= MAX_ROWS:
                key = self._what[0], None, by
            counts.setdefault(key, [0, 0, took, took, 0])
        row = counts[key]
        row[0] += 1
        row[1] += took
        row[2] = min(row[2], took)
        row[3] = max(row[3], took)
        row[4] += self._operations
        self._what = None

    @contextmanager
    def exit(self, kind: str, at: int | None = None) -> Iterator[None]:
        """An exit that the body handles."""
        self.begin(kind, at)
        try:
            yield
        finally:
            self.end()

    def operation(self, name: str, at: int | None, execute: Callable[[], T]) -> T:
        """Executes a batch of operations at the daemon.

        Between two exits, the batch counts as an exit of its own, with this name. Before the first exit it does not.
        """
        if self._what is not None or not self._began:
            self._operations += 1
            return execute()
        with self.exit(name.replace("_", " "), at):
            self._operations = 1
            return execute()


class ExitStats:
    """The exits of a machine's vCPUs. Any thread may read them."""

    def __init__(self) -> None:
        self._recorders: list[Recorder] = []

    def recorder(self) -> Recorder:
        """For one more vCPU."""
        self._recorders.append(Recorder())
        return self._recorders[-1]

    def counts(self) -> list[ExitCount]:
        """The exits up to now, the most frequent first."""
        merged: dict[_Key, list[int]] = {}
        for recorder in self._recorders:
            for key, row in recorder.counts.copy().items():
                count, total, shortest, longest, operations = row
                if (into := merged.get(key)) is None:
                    merged[key] = list(row)
                else:
                    into[:] = (
                        *(into[0] + count, into[1] + total),
                        *(min(into[2], shortest), max(into[3], longest), into[4] + operations),
                    )
        rows = [ExitCount(kind, at, by, *row) for (kind, at, by), row in merged.items()]
        return sorted(rows, key=lambda row: (-row.count, row.kind, row.at or 0))


# The adapters use these with a Recorder, and the classes without Counted in their names otherwise.


class CountedSession(Session):
    """A vCPU's Session."""

    def __init__(self, session: Session, recorder: Recorder) -> None:
        super().__init__(session._core, session._transport)
        self._recorder = recorder

    def run(
        self, calls: Iterable[Call[Any]], *, return_errors: bool = False, timeout: float | None = None
    ) -> list[Any]:
        run = super().run
        return self._recorder.operation("batch", None, lambda: run(calls, return_errors=return_errors, timeout=timeout))

    def begin_halt(self, vcpu: int, *, interrupts_masked: bool = False, timeout: float | None = None) -> Halt:
        begin = super().begin_halt
        return self._recorder.operation(
            HALT, None, lambda: begin(vcpu, interrupts_masked=interrupts_masked, timeout=timeout)
        )

    def _call(self, call: Call[T]) -> T:
        execute = super()._call
        register = call.fields[2] if call.fields and call.operation in _OF_A_REGISTER else None
        return self._recorder.operation(call.operation, register, lambda: execute(call))


class CountedDevices:
    """The LocalDevices of a vCPU's process, with their LocalStrings if they have them."""

    def __init__(self, devices: LocalDevices, recorder: Recorder) -> None:
        self._devices = devices
        self._strings = devices if isinstance(devices, LocalStrings) else None
        self._recorder = recorder

    def pio_read(self, port: int, size: int) -> int | None:
        return self._noted(self._devices.pio_read(port, size))

    def pio_write(self, port: int, value: int, size: int) -> bool:
        return bool(self._noted(self._devices.pio_write(port, value, size) or None))

    def mmio_read(self, address: int, size: int) -> int | None:
        return self._noted(self._devices.mmio_read(address, size))

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        return bool(self._noted(self._devices.mmio_write(address, value, size) or None))

    def pio_read_string(self, port: int, size: int, count: int) -> list[int] | None:
        return None if self._strings is None else self._noted(self._strings.pio_read_string(port, size, count))

    def pio_write_string(self, port: int, values: Sequence[int], size: int) -> bool:
        return self._strings is not None and bool(
            self._noted(self._strings.pio_write_string(port, values, size) or None)
        )

    def _noted(self, answer: T | None) -> T | None:
        if answer is not None:
            self._recorder.by = Answerer.DEVICE
        return answer


class CountedLocalApic(LocalApic):
    """The shared registers of a vCPU's local APIC."""

    def __init__(self, page: mmap.mmap, recorder: Recorder) -> None:
        super().__init__(page)
        self._recorder = recorder

    def read(self, address: int, size: int) -> int | None:
        return self._noted(super().read(address, size))

    def read_msr(self, msr: int) -> int | None:
        return self._noted(super().read_msr(msr))

    def read_cr8(self) -> int | None:
        return self._noted(super().read_cr8())

    def _noted(self, answer: int | None) -> int | None:
        if answer is not None:
            self._recorder.by = Answerer.LOCAL_APIC
        return answer


class CountedAccesses(Accesses):
    """The accesses of a vCPU. Each is counted as an exit of its own."""

    def __init__(self, accesses: Accesses, recorder: Recorder) -> None:
        self._accesses = accesses
        self._recorder = recorder

    def pio_read(self, port: int, size: int) -> int:
        with self._recorder.exit(IO_READ, port):
            return self._accesses.pio_read(port, size)

    def pio_write(self, port: int, value: int, size: int) -> None:
        with self._recorder.exit(IO_WRITE, port):
            self._accesses.pio_write(port, value, size)

    def mmio_read(self, address: int, size: int) -> int:
        with self._recorder.exit(MMIO_READ, address):
            return self._accesses.mmio_read(address, size)

    def mmio_write(self, address: int, value: int, size: int) -> None:
        with self._recorder.exit(MMIO_WRITE, address):
            self._accesses.mmio_write(address, value, size)
