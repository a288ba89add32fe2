"""What a vCPU's own accesses cause, known when they are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchip_client._events import InterruptPending, VcpuSignal

if TYPE_CHECKING:
    from irqchip_client import Vm


class Causes:
    """A Session of the vCPU's events which only the thread that runs it reads, and without waiting.

    known  whether what an access causes is here before the access is answered: over the daemon's AF_UNIX port it is,
           as the daemon tells all others before it answers; else nothing is ever here
    """

    def __init__(self, vm: Vm, vcpu: int) -> None:
        self._session = vm.session(f"vcpu {vcpu} causes", vcpus=[vcpu])
        self.known = self._session.transport == "port"

    def look(self) -> tuple[bool, bool]:
        """Whether there is an interrupt since the last time, and a signal."""
        interrupt = signal = False
        session = self._session
        if not session.closed:  # which also takes what has come; its end is the other Sessions' to tell
            while session._core.events:
                event = session._core.take_event()
                interrupt |= not isinstance(event, VcpuSignal)
                signal |= not isinstance(event, InterruptPending)
        return interrupt, signal

    def close(self) -> None:
        """It hears no more."""
        self._session.close()
