"""What both ends of the AF_UNIX port share: where it is, how long a packet is, and how one waits for the other."""

from __future__ import annotations

from os import sched_yield
from time import perf_counter_ns

SUFFIX = ".port"  # behind the path of the daemon's other socket
MESSAGE_BYTES = 1 << 16  # of a packet; sockets do not take much more as one
POLL_NS = 50_000  # how long to poll at the most, unless told otherwise

_FIRST_POLL_NS = 10_000
_EXPECTED_NS = 15_000  # within this most answers come; who polls on lets others run, perhaps who is to answer
_PREEMPTED_NS = 300_000
_RELUCTANCE = 2


class Patience:
    """How long to poll before blocking.

    A thread that blocks costs its waking up again, several times what it takes to send a packet. So it polls first, for
    a time that grows while packets come that soon, and shrinks to nothing when they do not. KVM: kvm_main.c
    grow_halt_poll_ns. A thread that is preempted while it polls is in others' way: it blocks the next so many times.
    """

    def __init__(self, most_ns: int) -> None:
        self.most_ns = most_ns
        # For how long it polls now.
        self.poll_ns = 0
        self._begun = 0
        self._last = 0
        self._reluctant = 0

    def begin(self) -> bool:
        """It is going to wait; whether to poll first."""
        if not self.most_ns:
            return False
        self._begun = self._last = perf_counter_ns()
        return self.poll_ns > 0

    def goes_on(self) -> bool:
        """Nothing came; whether to poll again."""
        now = perf_counter_ns()
        if now - self._last > _PREEMPTED_NS:
            self.poll_ns = 0
            self._reluctant = _RELUCTANCE
            return False
        self._last = now
        waited = now - self._begun
        if waited > _EXPECTED_NS:
            sched_yield()
        return waited < self.poll_ns

    def met(self) -> None:
        """Something came while it polled."""
        if self.poll_ns < self.most_ns:
            self.poll_ns = min(2 * self.poll_ns, self.most_ns)

    def woken(self) -> None:
        """Something came when it had blocked."""
        if not self.most_ns:
            return
        if self._reluctant:
            self._reluctant -= 1
        elif perf_counter_ns() - self._begun > 2 * self.most_ns:  # it is what waking up took, too
            self.poll_ns = 0
        else:
            self.poll_ns = min(max(2 * self.poll_ns, _FIRST_POLL_NS), self.most_ns)
