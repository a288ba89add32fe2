"""What the vCPUs of KVM and of Unicorn have in common: everything but the execution of guest code."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from irqchip_client._errors import Busy, SessionClosed
from irqchip_client._events import Event, InterruptPending, VcpuSignal
from irqchip_client._model import Interrupt, MpState, Signal, SignalKind, Wake

from .local_apic import share_local_apic
from .start import Start

if TYPE_CHECKING:
    from irqchip_client import Halt, Vm

_WAITS_FOR_STARTUP = (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)


class Adapter:
    """A vCPU that executes a guest, on one thread at a time. Close it, or use a with statement."""

    def __init__(self, vm: Vm, vcpu: int, made: ExitStack) -> None:
        """`made` closes what the adapter is made of. The adapter keeps it as `_made` when it is complete."""
        self.id = vcpu
        self._session = made.enter_context(vm.session(f"vcpu {vcpu}"))
        self._vcpu = self._session.vcpu(vcpu)
        self._local_apic = share_local_apic(self._session, vcpu)
        made.callback(self._local_apic.close)
        self._made = ExitStack()
        self._halt: Halt | None = None  # under way
        # The vCPU executes nothing: it is in HLT, or waits for INIT or SIPI.
        self._idle = False
        # The daemon may have an interrupt to acknowledge; a signal to take.
        self._interrupted = False
        self._signalled = False
        # An interrupt that is acknowledged, and not yet delivered to the guest.
        self._vector: int | None = None
        self._stop = threading.Event()
        self._closed = False
        self._running = threading.Lock()

    def start(self, start: Start) -> None:
        """Sets where the vCPU starts, even if it waits for INIT and SIPI. Busy while it runs."""
        with self._not_running():
            self._start_at(start)
            self._forget()
            self._vcpu.set_mp_state(MpState.RUNNABLE)

    def run(self) -> None:
        """Executes guest code until stop(). A later run() continues there.

        Raises GuestError if the guest cannot continue; the exception of a local device in an access; SessionClosed if
        the daemon has ended; SessionClosed or NotFound if the VM is deleted; Busy if the vCPU runs already.
        """
        with self._not_running():
            self._idle = self._idle or self._vcpu.mp_state() in _WAITS_FOR_STARTUP
            self._interrupted = self._signalled = True  # Events that came while it did not run were not heard.
            self._execute()
            self._stop.clear()

    def stop(self) -> None:
        """Ends run(), or the next run() if none is under way. From any thread, local device or signal handler."""
        self._stop.set()
        self._interrupt_guest()
        if (halt := self._halt) is not None:
            halt.end()

    def close(self) -> None:
        """Ends run(), and closes the vCPU. Do not call it from a local device."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        with self._running:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Each adapter has its own of these.

    def _execute(self) -> None:
        """Executes guest code until _stop is set."""
        raise NotImplementedError

    def _interrupt_guest(self) -> None:
        """Makes the thread in _execute() look at _stop soon. From any thread."""
        raise NotImplementedError

    def _start_at(self, start: Start) -> None:
        """Sets the registers for a guest's start."""
        raise NotImplementedError

    def _reset(self) -> None:
        """INIT: the registers are as after RESET."""
        raise NotImplementedError

    def _start_up(self, page: int) -> None:
        """SIPI: the vCPU begins in real mode, at the first byte of a page."""
        raise NotImplementedError

    def _is_boot_cpu(self) -> bool:
        """Whether IA32_APIC_BASE says so."""
        raise NotImplementedError

    def _take_nmi(self) -> None:
        raise NotImplementedError

    def _take_smi(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        """Closes what the adapter is made of: no thread runs it."""
        self._made.close()

    # The same in all.

    def _wait(self, interrupts_masked: bool) -> None:
        """Executes nothing until there is something to take, or until stop()."""
        self._halt = halt = self._session.begin_halt(self.id, interrupts_masked=interrupts_masked)
        try:
            if self._stop.is_set():  # stop() may have come before _halt was set.
                halt.end()
            wake = halt.wait()
        finally:
            self._halt = None
        if wake is not None:
            self._accept(wake)

    def _take_signals(self) -> None:
        self._signalled = False
        while (signal := self._vcpu.take_signal()) is not None:
            self._accept(signal)

    def _accept(self, wake: Wake) -> None:
        """The vCPU has taken an interrupt or a signal."""
        self._idle = False
        match wake:
            case Interrupt(vector):
                self._vector = vector
            case Signal(SignalKind.NMI):
                self._take_nmi()
            case Signal(SignalKind.SMI):
                self._take_smi()
            case Signal(SignalKind.INIT):
                self._reset()
                self._forget()
                self._idle = not self._is_boot_cpu()  # The others wait for SIPI.
            case Signal(SignalKind.SIPI, page):
                self._start_up(page)
                self._forget()
            case Signal(SignalKind.UNHALT):
                pass  # It goes on behind its HLT.

    def _forget(self) -> None:
        """The vCPU begins anew: nothing waits to be delivered."""
        self._idle = False
        self._vector = None

    @contextmanager
    def _not_running(self) -> Iterator[None]:
        """Keeps the vCPU from running meanwhile. Busy, SessionClosed."""
        if not self._running.acquire(blocking=False):
            raise Busy(errno.EBUSY, f"vCPU {self.id} runs already")
        try:
            if self._closed:
                raise SessionClosed(errno.EPIPE, f"vCPU {self.id} is closed")
            yield
        finally:
            self._running.release()


def announced_by(events: Iterable[Event]) -> tuple[bool, bool]:
    """Whether events announce an interrupt, and whether a signal; a dropped event may have been either."""
    interrupt = signal = False
    for event in events:
        interrupt |= not isinstance(event, VcpuSignal)
        signal |= not isinstance(event, InterruptPending)
    return interrupt, signal
