"""The encoding of a Watch's messages. Events repeat their values, so that often only the times are new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.observe.observer import FIELDS
from irqchipd.vm.board import Probes

MAX_KEPT: Final = 1024  # events whose encoding is kept
_LONG: Final = 0xFFFF_FFFF_FFFF_FFFF
_CONTINUED: Final = [bytes((low | 0x80,)) for low in range(0x80)]  # a varint's 7 bits, with more to follow
# Tags: a field's number, and 0 for a varint or 2 for bytes with their length before them.
_TIME: Final = bytes((pb.TraceEvent.TIME_NS_FIELD_NUMBER << 3,))
_EVENT: Final = bytes((pb.WatchResponse.EVENT_FIELD_NUMBER << 3 | 2,))
_MORE: Final = bytes((pb.WatchResponse.MORE_FIELD_NUMBER << 3 | 2,))

# A position, the number of events lost before, a time, and a tracepoint with its values, or None with changed probes.
Event = tuple[int, int, int, str | None, tuple[int, ...] | Probes]


class TraceEncoder:
    """Encodes WatchResponses."""

    def __init__(self) -> None:
        # For an event: the bytes before its time in the first message, and in later ones, and the bytes after the time.
        self._kept: dict[tuple[str, tuple[int, ...]], tuple[bytes, bytes, bytes]] = {}
        self._length = 0  # of the last event's time
        self._high = -1, b""  # the last time's bits from 14 on, and their varint

    def batch(self, events: Sequence[Event]) -> bytes:
        """One or more events, as a message that has the second and later ones in `more`."""
        parts: list[bytes] = []
        late = 0  # from the second on
        upper, high = self._high
        for _, _, time_ns, name, values in events:
            if name is None or isinstance(values, dict):
                message = probes_message(time_ns, cast(Probes, values))
                parts += (_MORE, _varint(len(message)), message) if late else (message,)
                late = 1
                continue
            if time_ns >> 14 != upper:
                upper, high = self._high = time_ns >> 14, _varint(time_ns >> 14)
                if len(high) + 2 != self._length:
                    self._length = len(high) + 2
                    self._kept.clear()
            kept = self._kept.get((name, values))
            if kept is None:
                kept = self._keep(name, values)
            parts += kept[late], _CONTINUED[time_ns & 0x7F], _CONTINUED[time_ns >> 7 & 0x7F], high, kept[2]
            late = 1
        return b"".join(parts)

    def _keep(self, name: str, values: tuple[int, ...]) -> tuple[bytes, bytes, bytes]:
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        fields = [
            pb.TraceField(name=field, value=int(value) & _LONG)
            for field, value in zip(FIELDS[name], values, strict=True)
        ]
        rest = pb.TraceEvent(tracepoint=name, fields=fields).SerializeToString()
        length = len(_TIME) + self._length + len(rest)
        first = _EVENT + _varint(length) + _TIME
        later = _MORE + _varint(len(first) - len(_TIME) + length) + first
        self._kept[name, values] = kept = first, later, rest
        return kept


def probes_message(time_ns: int, probes: Probes, everything: bool = False) -> bytes:
    """A WatchResponse with probes."""
    message = pb.WatchResponse()
    changed = message.probes
    changed.time_ns, changed.all = time_ns, everything
    for name, (width, value) in probes.items():
        changed.probes.add(name=name, width=width, value=value.to_bytes((width + 7) // 8, "little"))
    return message.SerializeToString()


def _varint(value: int) -> bytes:
    """Protocol Buffers' encoding of a number."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
