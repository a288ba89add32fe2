"""The probes that a logic analyser would show of a VM, and those that an operation has changed."""

from __future__ import annotations

from typing import Protocol

from irqchipd.vm.board import Probes, RawProbes


class Probed(Protocol):
    """Has probes in parts, one for each chip. Raw values are quick to get and to compare; names are made from them."""

    def raw_probes(self) -> list[RawProbes]:
        """The raw values of each part."""

    def named_probes(self, part: int, raw: RawProbes) -> Probes:
        """The probes of a part that has these raw values."""


class Probing:
    """The probes at the last look(); under the VM's lock."""

    def __init__(self, probed: Probed) -> None:
        self._probed = probed
        self._seen: list[RawProbes] = []  # as of the last look
        self._named: list[RawProbes] = []  # whose names _parts has
        self._parts: list[Probes] = []
        self.look()

    def look(self) -> bool:
        """Read the probes. Returns whether any may have changed since the last look."""
        raw = self._probed.raw_probes()
        if raw == self._seen:
            return False
        self._seen = raw
        return True

    def everything(self) -> Probes:
        """All probes, as of the last look; only those lines that are high, with a bit for each source."""
        self.changes()
        return {name: probe for part in self._parts for name, probe in part.items()}

    def changes(self) -> Probes:
        """The probes that changed between the last call and the last look. A line that has gone is 0."""
        raw, before = self._seen, self._named
        self._named = raw
        changed: Probes = {}
        for number in range(max(len(raw), len(before))):
            if number < len(raw) and number < len(before) and raw[number] == before[number]:
                continue
            old = self._parts[number] if number < len(before) else {}
            new = self._probed.named_probes(number, raw[number]) if number < len(raw) else {}
            for name, probe in new.items():
                if old.get(name) != probe:
                    changed[name] = probe
            for name, (width, _) in old.items():
                if name not in new:
                    changed[name] = width, 0
            self._parts[number : number + 1] = [new]
        del self._parts[len(raw) :]
        return changed
