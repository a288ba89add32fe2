"""A halt that another thread can end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from irqchip_client import ops
from irqchip_client._errors import TimedOut

if TYPE_CHECKING:
    from irqchip_client import Session, Wake


class Halting:
    """The halts of a vCPU over a Session, one at a time."""

    def __init__(self, session: Session, vcpu: int) -> None:
        self._session = session
        self._vcpu = vcpu
        self._lock = threading.RLock()
        self._serial: int | None = None
        self._given_up = False

    def wait(self, interrupts_masked: bool, stopped: threading.Event) -> Wake | None:
        """Waits for what the vCPU takes; None where end() has been called, and then nothing is taken.

        end() is called after `stopped` has been set; this looks at that when it can be ended.
        """
        session = self._session
        answer = session._new_answer()
        call = ops.halt(self._vcpu, interrupts_masked=interrupts_masked)
        with self._lock:
            self._serial, self._given_up = session._submit([call], answer, False), False
            if stopped.is_set():
                self.end()
        wake: Wake | None = None
        try:
            wake = session._wait_for(answer, None)[0]
        except TimedOut:  # It was given up: nothing else times out here.
            pass
        finally:
            with self._lock:
                # Ctrl-C, say. Nothing is taken by a halt that nobody waits for.
                if not answer.done():
                    self.end()
                self._serial = None
                # Given up, but answered before: the daemon takes that back, and it will be the next to be taken.
                if self._given_up:
                    wake = None
        return wake

    def end(self) -> None:
        """Ends the wait, if there is one. From any thread."""
        with self._lock:
            if self._serial is not None and not self._given_up:
                self._given_up = True
                self._session._give_up(self._serial)
