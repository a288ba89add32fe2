"""A VM that somebody looks at: its history, and the messages for all of its viewers, each made once."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from irqchipd.page.history import EVENT_FIELDS, EVENTS, Event, History
from irqchipd.page.part import number
from irqchipd.page.parts import Encoder, changed
from irqchipd.vm.errors import VmError
from irqchipd.vm.machine import Vm

log = logging.getLogger(__name__)

PERIOD: Final = 0.1  # from one look at a VM to the next, seconds
BUSY_PERIOD: Final = 0.15  # while the daemon has no time to spare
SHARE: Final = 20  # a look waits this many times as long as the one before it took
STILL: Final = 10  # after so many looks without news a message goes out all the same
_RECENT: Final = 500  # events that a new viewer is sent


class Viewer:
    """Somebody who looks. A message that is not taken by the time of the next is lost, and everything sent anew."""

    def __init__(self) -> None:
        self._message: str | None = None
        self.missed = True  # the viewer needs everything
        self._something = asyncio.Event()

    def offer(self, message: str) -> None:
        """A message for the viewer."""
        if self._message is not None:
            self.missed = True
        self._message = message
        self._something.set()

    async def take(self) -> str | None:
        """The next message; None where everything is to be sent instead."""
        if not self.missed:
            await self._something.wait()
        self._something.clear()
        message, self._message = self._message, None
        missed, self.missed = self.missed, False
        return None if missed else message


class Watched:
    """Looks at a VM again and again, on one event loop, while it has viewers."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.looking = self.left = 0  # who looks now, and how many have left
        self.history = History(vm)
        self.viewers: set[Viewer] = set()
        self.error: str | None = None  # why there is nothing to see
        self._encoder = Encoder()
        self._parts: dict[str, str] = {}
        self._number = 0  # of the last event that was sent
        self._at = self._now_ns = 0
        self._recent: list[Event] = []
        vm.attach(self.history)
        self._look()  # there is something to see from the first moment on
        self._task = asyncio.ensure_future(self._look_on())

    def close(self) -> None:
        """Nobody looks any more."""
        self._task.cancel()
        self.vm.detach(self.history)

    async def _look_on(self) -> None:
        still = 0
        while True:
            began = time.monotonic()
            try:
                message = self._look()
            except Exception:
                log.exception("the page failed to look at a VM")
                message, self.error = None, "the daemon failed to look; its log says more"
            still = 0 if message is not None else still + 1
            if message is None and still % STILL == 0:
                message = self._message("{}", [])
            if message is not None:
                for viewer in self.viewers:
                    viewer.offer(message)
            if self.error is not None and self.vm.agenda.deleted:
                return
            period = BUSY_PERIOD if self.history.busy else PERIOD
            await asyncio.sleep(max(period, SHARE * (time.monotonic() - began)))

    def _look(self) -> str | None:
        """A message with what is new, or None."""
        before = self.error
        try:
            moment, events = self.history.look(self._number)
        except VmError as error:
            self.error = error.message
            return self._message("{}", []) if self.error != before else None
        self.error = None
        parts = self._encoder.encode(moment.state)
        old, self._parts = self._parts, parts
        self._number, self._at, self._now_ns = moment.number, moment.time, moment.state.now_ns
        self._recent = [*self._recent, *events][-_RECENT:]
        if parts == old and not events and before is None:
            return None
        return self._message(changed(old, parts), events)

    def everything(self) -> str:
        """A message with all parts, for who has none."""
        return self._message(changed({}, self._parts), self._recent, whole=True)

    def _message(self, parts: str, events: Iterable[Event], whole: bool = False) -> str:
        error = json.dumps(self.error)
        return (
            f'{{"whole":{json.dumps(whole)},"number":{self._number},"time":{self._at},"now":{self._now_ns},'
            f'"error":{error},"parts":{parts},"events":{event_list(events)}}}'
        )


def event_list(events: Iterable[Event]) -> str:
    """Events as JSON: number, time, name, and values in the order of EVENT_FIELDS."""
    return f"[{','.join([f'[{count},{at},{_what(name, values)}]' for count, at, name, values in events])}]"


@lru_cache(1024)
def _what(name: str, values: tuple[int, ...]) -> str:
    """The name and values of an event, as text. Many events are equal."""
    return f'"{name}",[{",".join(map(_value, values))}]'


def _value(value: int) -> str:
    shown = number(value)
    return f'"{shown}"' if isinstance(shown, str) else str(int(shown))


async def whole_history(history: History) -> bytes:
    """All that is kept, as JSON. This can take long, and others go on meanwhile."""
    moments, events = history.all()
    encoder, before, states = Encoder(), dict[str, str](), list[str]()
    for moment in moments:
        parts = encoder.encode(moment.state)
        states.append(
            f'{{"number":{moment.number},"time":{moment.time},"now":{moment.state.now_ns},'
            f'"parts":{changed(before, parts)}}}'
        )
        before = parts
        await asyncio.sleep(0)
    return f'{{"states":[{",".join(states)}],"events":{event_list(events)},"most":{EVENTS}}}'.encode()


FIELDS_TEXT: Final = json.dumps({name: list(fields) for name, fields in EVENT_FIELDS.items()})
