"""The common part of both ends of the AF_UNIX port: its path, the size of packets, and the wait for a packet."""

from __future__ import annotations

from os import sched_yield
from time import perf_counter_ns

SUFFIX = ".port"  # appended to the path of the daemon's other socket
MESSAGE_BYTES = 1 << 16  # of a packet; a socket's limit is not much higher
POLL_NS = 50_000  # how long to poll by default

_FIRST_POLL_NS = 10_000
# Most answers come within this time. A thread that polls longer lets other threads run on its processor, perhaps the
# vCPU that the thread's own assert has woken.
_EXPECTED_NS = 10_000
_PREEMPTED_NS = 300_000
_BLOCKS_AFTER_PREEMPTION = 2  # times


class AdaptivePoll:
    """How long a thread polls before it blocks.

    Waking a blocked thread takes several times as long as sending a packet. So a thread polls first, for a time that
    grows while packets come within it, and shrinks to 0 while they do not. KVM: kvm_main.c grow_halt_poll_ns. A thread
    that is preempted while it polls takes processor time from others: the next few times it blocks at once.
    """

    def __init__(self, most_ns: int) -> None:
        self.most_ns = most_ns
        self.poll_ns = 0  # how long it polls now
        self.begun = 0  # the time at which the thread began to wait
        self._last = 0
        self._blocks_left = 0  # the number of times to block at once

    def begin(self) -> bool:
        """The thread is about to wait. Returns whether to poll first."""
        if not self.most_ns:
            return False
        self.begun = self._last = perf_counter_ns()
        return self.poll_ns > 0

    def again(self) -> bool:
        """Nothing came. Returns whether to poll again."""
        now = perf_counter_ns()
        if now - self._last > _PREEMPTED_NS:
            self.poll_ns = 0
            self._blocks_left = _BLOCKS_AFTER_PREEMPTION
            return False
        self._last = now
        waited = now - self.begun
        if waited > _EXPECTED_NS:
            sched_yield()
        return waited < self.poll_ns

    def polled(self) -> None:
        """A packet came while the thread polled."""
        if self.poll_ns < self.most_ns:
            self.poll_ns = min(2 * self.poll_ns, self.most_ns)

    def blocked(self) -> None:
        """A packet came after the thread had blocked."""
        if not self.most_ns:
            return
        if self._blocks_left:
            self._blocks_left -= 1
        elif perf_counter_ns() - self.begun > 2 * self.most_ns:  # the time to wake up counts, too
            self.poll_ns = 0
        else:
            self.poll_ns = min(max(2 * self.poll_ns, _FIRST_POLL_NS), self.most_ns)
