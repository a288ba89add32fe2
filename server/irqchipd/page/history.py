"""What the page shows of a VM: its last events, and its states between them, while somebody looks.

An observer works under the VM's lock, so what it may do is rationed: a look hands out the next ration. When
the ration is used up the VM reports nothing to it, which costs the VM nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from irqchipd.observe.observer import FIELDS, Observer
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm
from irqchipd.vm.snapshot import VmState

log = logging.getLogger(__name__)

EVENTS: Final = 2048  # that are kept
STATES: Final = 512  # that are kept, of a VM that is not too large for that
STATES_BYTES: Final = 16 << 20
# What an observer may do from one look to the next, while the daemon has time to spare.
EVENTS_RATION: Final = 400
STATES_RATION_NS: Final = 2_000_000
# A daemon that has had more than a fifth of a processor may have to share it: of its time, events and states get a
# hundredth each then. What looks cost is measured: tests/page/test_cost.py.
_BUSY: Final = 5
_EVENTS_SHARE: Final = 100
_STATES_SHARE: Final = 100
_MEASURABLE_NS: Final = 50_000_000  # a shorter time tells nothing
_EVENT_NS: Final = 2_000  # that an event takes, with its place in a message
_AFTER_STATE_NS: Final = 30_000  # operations take this much longer after a state: it took their place in the caches
# About what a state takes: a vCPU's part, an interrupt's of a GIC, and a line source's beside its bitmap.
_VCPU_BYTES: Final = 2_500
_INTERRUPT_BYTES: Final = 200
_SOURCE_BYTES: Final = 400

# What events there are, with their fields: the tracepoints, and what a guest does at its GIC, which has none.
EVENT_FIELDS: Final = {**FIELDS, "gic_acknowledged": ("vcpu", "intid"), "gic_ended": ("vcpu", "intid")}

# The number of an event, from 1; its time in nanoseconds since the history began; its name and values.
Event = tuple[int, int, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Moment:
    """A state, the number of the last event before it, and its time since the history began."""

    number: int
    time: int
    state: VmState


class History(Observer):
    """The last events and states of a VM, as many as the limits."""

    sees_everything = False  # what changes nothing is not worth a vCPU's time

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._began = time.monotonic_ns()
        self._number = 0  # of the last event; a number is left out for each time of which nothing is known
        self._rests = False  # the ration is used up
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._moments: deque[Moment] = deque(maxlen=STATES)
        self._events_left = EVENTS_RATION
        self._nanoseconds_left = STATES_RATION_NS
        self._state_ns = 0  # that the last state has cost
        # Where the ration is too small for a state after each event: how many events there are from one to the next.
        self._step = 1
        self._next = self._refilled = 0  # numbers of events: for the next state, and when the ration was handed out
        self._looked = self._began, time.process_time_ns()
        self._asked = False  # for a state at the end of the turn
        self.busy = False  # whether the daemon had to work much before the last look
        for name in EVENT_FIELDS:
            setattr(self, name, partial(self._record, name))

    # Under the VM's lock.

    def _record(self, name: str, *values: int) -> None:
        if self._events_left <= 0:  # the turn goes on after the last event of the ration
            return
        self._number += 1
        self._events_left -= 1
        self._events.append((self._number, time.monotonic_ns() - self._began, name, values))
        if self._nanoseconds_left > self._state_ns and self._number >= self._next and not self._asked:
            self._asked = True
            self._vm.at_the_end(self._keep_state)
        if not self._events_left:
            self._vm.at_the_end(self._rest)

    def _rest(self) -> None:
        """See nothing until the next look."""
        self._rests = True
        self._vm.rest(self, True)

    def _keep_state(self) -> None:
        """Keep the state that an operation, or a step of it, has left."""
        self._asked = False
        try:
            self._moments.append(self._moment())
        except VmError:  # too much for a snapshot: E2BIG
            pass
        except Exception:  # the operation, which is a client's, must not suffer
            log.exception("the page failed to keep a state")
            self._nanoseconds_left = 0
        self._nanoseconds_left -= self._state_ns
        self._next = self._number + self._step

    def _moment(self) -> Moment:
        began = time.thread_time_ns()
        state = self._vm.saved()
        self._state_ns = time.thread_time_ns() - began + _AFTER_STATE_NS
        return Moment(self._number, time.monotonic_ns() - self._began, state)

    # From the page's thread.

    def look(self, after: int) -> tuple[Moment, list[Event]]:
        """The state now, and the kept events behind a number. VmError where the VM is gone, or can't be saved."""
        with self._vm.agenda:
            moment = self._keep_now()
            if self._rests:
                self._rests = False
                self._vm.rest(self, False)
            before, self._looked = self._looked, (time.monotonic_ns(), time.process_time_ns())
            elapsed, busy = (now - then for now, then in zip(self._looked, before, strict=True))
            self.busy = is_busy(elapsed, busy)
            self._refill(*rations(busy if self.busy else None))
            events: list[Event] = []
            for event in reversed(self._events):
                if event[0] <= after:
                    break
                events.append(event)
        self._bound(moment.state)
        return moment, events[::-1]

    def _refill(self, events: int, nanoseconds: int) -> None:
        """Hand out the next ration. States are spread over as many events as there were since the last one."""
        seen = min(self._number - self._refilled, events)
        self._step = max(seen * self._state_ns // nanoseconds, 1)
        self._next = self._refilled = self._number
        self._events_left, self._nanoseconds_left = events, nanoseconds

    def _keep_now(self) -> Moment:
        """The state now, which is kept."""
        self._number += self._rests
        moment = self._moment()
        if not self._moments or moment.number != self._moments[-1].number:
            self._moments.append(moment)
        return moment

    def all(self) -> tuple[list[Moment], list[Event]]:
        """All that is kept, and the state now, if there is one."""
        with suppress(VmError), self._vm.agenda:
            self._keep_now()
        with self._vm.agenda.lock:
            return list(self._moments), list(self._events)

    def _bound(self, state: VmState) -> None:
        """Keep fewer states of a large VM."""
        most = most_states(state)
        if most < (self._moments.maxlen or 0):
            with self._vm.agenda.lock:
                self._moments = deque(self._moments, maxlen=most)


def is_busy(elapsed: int, busy: int) -> bool:
    """Whether a daemon that worked for `busy` of `elapsed` nanoseconds has no time to spare."""
    return elapsed >= _MEASURABLE_NS and busy * _BUSY >= elapsed


def rations(busy: int | None) -> tuple[int, int]:
    """How many events, and nanoseconds of states, until the next look; busy is how long a busy daemon has worked."""
    if busy is None:
        return EVENTS_RATION, STATES_RATION_NS
    return min(busy // _EVENTS_SHARE // _EVENT_NS, EVENTS_RATION), min(busy // _STATES_SHARE, STATES_RATION_NS)


def most_states(state: VmState) -> int:
    """How many states like this one may be kept."""
    size = 8_000 + _VCPU_BYTES * len(state.vcpus) + 64 * len(state.routing)
    size += sum(_SOURCE_BYTES + len(one.asserted) + 100 * len(one.resampled_gsis) for one in state.sources)
    if state.chips is not None:
        size += sum(map(len, state.chips.sources))
    if state.arm64 is not None:
        size += (_VCPU_BYTES + 32 * _INTERRUPT_BYTES) * len(state.arm64.vcpus)
        size += _INTERRUPT_BYTES * state.arm64.interrupts
    if state.s390 is not None:
        size += _VCPU_BYTES * len(state.s390.vcpus) + 100 * len(state.s390.flic.floating.interrupts)
    return max(min(STATES, STATES_BYTES // size), 2)
