"""The operations of a vCPU of any architecture besides its accesses: its halts, and its listeners."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress

from irqchipd.vm.agenda import Agenda
from irqchipd.vm.board import Board
from irqchipd.vm.cpu import Halt
from irqchipd.vm.errors import VmError
from irqchipd.vm.events import InterruptPending, Listener
from irqchipd.vm.lines import Lines
from irqchipd.vm.sources import bits_of
from irqchipd.vm.vcpu_state import Outcome, Signal


class Vcpus(Lines):
    """The halts of a VM's vCPUs, and their listeners."""

    def __init__(self, agenda: Agenda, board: Board) -> None:
        super().__init__(agenda, board)
        # By vCPU id, also of vCPUs that do not exist yet.
        self._listeners: dict[int, tuple[Listener, ...]] = {}

    def halt(
        self, vcpu: int, done: Callable[[Outcome], None], interrupts_masked: bool = False, timeout_ns: int = 0
    ) -> Halt:
        """HLT: done is called once, from any thread and maybe before this returns, with what the vCPU takes.

        done gets None after timeout_ns of the host's time, or an error when the VM is deleted. ENXIO where the vCPU has
        no interrupt controller, EBUSY while it halts.
        """
        with self._turn:
            cpu = self._cpu(vcpu)
            self._check_halt(vcpu)
            if cpu.halt is not None:
                raise VmError(errno.EBUSY, f"vCPU {vcpu} of VM {self.name!r} halts already")
            return cpu.start_halt(done, interrupts_masked, timeout_ns, self._board.observer)

    def _check_halt(self, vcpu: int) -> None:
        """Refuse the halt of a vCPU that nothing can wake: ENXIO."""

    def abandon(self, halt: Halt) -> bool:
        """Cancel a HLT that its caller has given up, without a call of done; or take back what an ended HLT took.

        Returns whether the HLT was cancelled.
        """
        with suppress(VmError), self._turn:
            outcome, halt.outcome = halt.outcome, None
            if not halt.finished:
                halt.cpu.end_halt(halt, None, report=False)
                return True
            if isinstance(outcome, Signal | tuple):
                halt.cpu.give_back(outcome, halt.reset_count)
        return False

    def subscribe(self, vcpus: Sequence[int], listener: Listener, gsis: Sequence[int] = ()) -> None:
        """Notify a listener, from any thread, of events of some vCPUs, and at once of interrupts that are pending.

        Also notify it of acknowledgements and masks of some GSIs. A vCPU may be created later.
        """
        with self._turn:
            for vcpu in vcpus:
                listeners = self._listeners[vcpu] = (*self._listeners.get(vcpu, ()), listener)
                cpu = self._cpus.get(vcpu)
                if cpu is not None:
                    cpu.listen(listeners)
                    if cpu.ready:
                        self.agenda.notify((listener,), InterruptPending(vcpu))
            if gsis:
                self._board.notices.subscribe(bits_of(gsis), listener)

    def unsubscribe(self, vcpus: Sequence[int], listener: Listener, gsis: Sequence[int] = ()) -> None:
        """Undo subscribe, of a deleted VM, too."""
        with self.agenda.lock:
            for vcpu in vcpus:
                listeners = self._listeners.pop(vcpu)
                place = listeners.index(listener)
                if left := listeners[:place] + listeners[place + 1 :]:
                    self._listeners[vcpu] = left
                if (cpu := self._cpus.get(vcpu)) is not None:
                    cpu.listen(left)
            if gsis:
                self._board.notices.unsubscribe(bits_of(gsis), listener)
