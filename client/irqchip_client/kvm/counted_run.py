"""KVM_RUN with each exit counted: from the return to the next entry, as `perf kvm stat` measures it."""

from __future__ import annotations

import mmap
from fcntl import ioctl

from irqchip_client.vmm.exit_stats import HALT, IO_READ, IO_WRITE, MMIO_READ, MMIO_WRITE, MSR_READ, MSR_WRITE, Recorder

from .ioctls import Exit, Request, Run

_READ = 0  # kvm_run.io.direction
_NAMES = {reason.value: reason.name.lower().replace("_", " ") for reason in Exit} | {Exit.HLT: HALT}
SIGNAL = "signal"


class CountedRun:
    """Takes the place of Entry.enter(). Every exit returns to Python, and is counted."""

    def __init__(self, fd: int, run: mmap.mmap, recorder: Recorder) -> None:
        self._fd = fd
        self._run = run
        self._recorder = recorder

    def __call__(self) -> None:
        """KVM_RUN. InterruptedError, OSError."""
        recorder = self._recorder
        recorder.end()
        try:
            ioctl(self._fd, Request.RUN)
        except OSError:
            recorder.begin(SIGNAL)
            raise
        recorder.begin(*self._what())

    def _what(self) -> tuple[str, int | None]:
        """The kind of the exit, and its port, address or register."""
        run = self._run
        match run[Run.EXIT_REASON]:
            case Exit.IO:
                direction, _, port, _, _ = Run.IO.unpack_from(run, Run.UNION)
                return IO_READ if direction == _READ else IO_WRITE, port
            case Exit.MMIO:
                address, _, _, is_write = Run.MMIO.unpack_from(run, Run.UNION)
                return MMIO_WRITE if is_write else MMIO_READ, address
            case Exit.X86_RDMSR:
                return MSR_READ, Run.MSR.unpack_from(run, Run.MSR_AT)[0]
            case Exit.X86_WRMSR:
                return MSR_WRITE, Run.MSR.unpack_from(run, Run.MSR_AT)[0]
            case reason:
                return _NAMES.get(reason, f"exit {reason}"), None
