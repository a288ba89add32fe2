"""A device's page in memory that outlives its process: data for its next process, and for others to read."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any, Final

from irqchip_client.devices.ram import INTERRUPT_STATUS, IS_CURRENT, OWNER, PUBLISHED

HEAD: Final = struct.Struct("<3I")  # the state's number, its length in bytes, and their CRC


class Notes:
    """The newest of the states that were written. It is complete, even if the process was killed during a write."""

    def __init__(self, page: memoryview) -> None:
        memory = page[:PUBLISHED]
        half = len(memory) // 2
        self._halves = (memory[:half], memory[half:])

    def read(self) -> Any:
        """The newest state, as plain data; None if there is no state."""
        written = [found for found in map(_content, self._halves) if found is not None]
        if not written:
            return None
        return max(written, key=lambda found: found[0])[1]

    def write(self, state: Any) -> None:
        """Writes a state. ValueError if it is too long."""
        data = json.dumps(state, separators=(",", ":")).encode()
        numbers = [found[0] if (found := _content(half)) is not None else 0 for half in self._halves]
        number = max(numbers) + 1
        half = self._halves[number % 2]
        if HEAD.size + len(data) > len(half):
            raise ValueError(f"a state of {len(data)} bytes, and there is room for {len(half) - HEAD.size}")
        half[HEAD.size : HEAD.size + len(data)] = data
        half[: HEAD.size] = HEAD.pack(number, len(data), _check(number, data))

    def erase(self) -> None:
        """Forgets all states."""
        for half in self._halves:
            half[: HEAD.size] = bytes(HEAD.size)


class Published:
    """The words of a page that other processes read. The constructor makes this process the device."""

    def __init__(self, page: memoryview) -> None:
        self._words = page[PUBLISHED:].cast("I")
        self._token = random.randrange(1, 1 << 32)
        self._words[OWNER] = self._token

    def put(self, interrupt_status: int, *, at_slot: bool) -> None:
        """Publishes the register. `at_slot`: the device is at its slot's place."""
        words = self._words
        words[INTERRUPT_STATUS] = interrupt_status
        words[IS_CURRENT] = at_slot
        words[OWNER] = words[OWNER] or self._token  # the VM's reset erases the page

    @property
    def is_replaced(self) -> bool:
        """Whether another process is the device: this one was stopped for so long that it lost its regions."""
        return self._words[OWNER] not in (0, self._token)


def _content(half: memoryview) -> tuple[int, Any] | None:
    """The number of a state, and the state; None for no state, or an incomplete one."""
    number, length, check = HEAD.unpack_from(half)
    data = bytes(half[HEAD.size : HEAD.size + length])
    if not number or len(data) != length or check != _check(number, data):
        return None
    try:
        return number, json.loads(data)
    except (ValueError, RecursionError):
        return None


def _check(number: int, data: bytes) -> int:
    return zlib.crc32(data, number)
