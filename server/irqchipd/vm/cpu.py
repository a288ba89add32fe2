"""A vCPU of any architecture: its listeners and its halt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda, Touchable
from irqchipd.vm.clock import Alarm
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import Event, InterruptPending, Listener
from irqchipd.vm.vcpu_state import Outcome, Signal, Taken


class Halt:
    """A HLT under way, or one that has ended."""

    __slots__ = (
        "begun",
        "cpu",
        "done",
        "finished",
        "interrupts_masked",
        "observer",
        "outcome",
        "reset_count",
        "timeout",
    )

    def __init__(
        self, cpu: Vcpu, done: Callable[[Outcome], None], interrupts_masked: bool, observer: Observer | None
    ) -> None:
        self.cpu = cpu
        self.done = done
        self.interrupts_masked = interrupts_masked
        # The observer that is told how long this halt took, and when the halt began.
        self.observer = observer
        self.begun = 0 if observer is None else cpu.agenda.deadlines.now()
        self.timeout: Alarm | None = None  # of the host's time
        self.finished = False
        self.outcome: Outcome = None
        # The vCPU's reset count when this halt ended; give_back() does nothing after a later INIT or RESET.
        self.reset_count = 0


class Vcpu(Touchable):
    """A vCPU. An architecture decides what the vCPU takes."""

    def __init__(self, agenda: Agenda, vcpu_id: int, index: int) -> None:
        super().__init__(agenda, index)
        self.id = vcpu_id
        # The listeners for this vCPU, and whether they know that it has something to take.
        self.listeners: Sequence[Listener] = ()
        self.ready = False
        self.halt: Halt | None = None
        self.reset_count = 0  # INITs and RESETs
        self.is_copied = False  # whether stores call wrote()

    # For an architecture to define.

    def has_interrupt(self) -> bool:
        """Whether there is an interrupt to take."""
        raise NotImplementedError

    def wake(self, interrupts_masked: bool) -> Outcome:
        """Take what ends a halt, and be runnable; None if nothing ends it."""
        raise NotImplementedError

    def sleep(self) -> None:
        """A halt begins."""

    def give_back(self, outcome: Taken | Signal, reset_count: int) -> None:
        """Take back what a halt took for a caller that has left: it is taken next, unless the vCPU was reset since."""

    def wrote(self, device: object, address: int) -> None:
        """This vCPU has stored something in a device."""

    def forget_copy(self) -> None:
        """The VM is deleted: stop copying."""

    # Listeners.

    def listen(self, listeners: Sequence[Listener]) -> None:
        """Replace the listeners. The tuple is replaced, not changed: an earlier notification keeps its listeners."""
        self.listeners = listeners
        self.ready = self.has_interrupt()

    def notify(self, event: Event) -> None:
        """Notify the listeners."""
        if self.listeners:
            self.agenda.notify(self.listeners, event)

    def priorities_changed(self) -> None:
        """What this vCPU would take has changed: look when the turn ends, if a halt or a listener waits."""
        if not self.touched and (self.halt is not None or self.listeners):
            self.touched = True
            self.agenda.touched.append(self)
            self.agenda.unsettled = True

    # HLT.

    def start_halt(
        self,
        done: Callable[[Outcome], None],
        interrupts_masked: bool,
        timeout_ns: int,
        observer: Observer | None = None,
    ) -> Halt:
        """HLT: take what is pending at once, or wait; timeout_ns is in the host's time, and 0 waits for ever."""
        halt = self.halt = Halt(self, done, interrupts_masked, observer)
        self.sleep()
        self.look()
        if timeout_ns and not halt.finished:
            halt.timeout = Alarm(0, lambda: self._time_out(halt), self.agenda.share, timeout=True)
            self.agenda.deadlines.set(halt.timeout, self.agenda.deadlines.now() + timeout_ns)
        return halt

    def _time_out(self, halt: Halt) -> None:
        with suppress(VmError), self.agenda:
            if not halt.finished:
                self.end_halt(halt, None)

    def look(self) -> None:
        """End the HLT under way if there is something to take, and report a new interrupt. KVM: x86.c vcpu_block."""
        halt = self.halt
        if halt is not None:
            outcome = self.wake(halt.interrupts_masked)
            if outcome is not None:
                self.end_halt(halt, outcome)
        if self.listeners:
            was_ready, self.ready = self.ready, self.has_interrupt()
            if self.ready and not was_ready:
                self.agenda.notify(self.listeners, InterruptPending(self.id))

    def end_halt(self, halt: Halt, outcome: Outcome, *, report: bool = True) -> None:
        """End a HLT, and report its outcome."""
        self.halt = None
        halt.finished = True
        halt.outcome = outcome
        halt.reset_count = self.reset_count
        if halt.observer is not None:
            halt.observer.halt_ended(self.id, self.agenda.deadlines.now() - halt.begun)
        if report:
            self.agenda.notify((halt.done,), outcome)
        if halt.timeout is not None:
            self.agenda.deadlines.set(halt.timeout, None)
            halt.timeout.forget()
