"""A VM's state in parts, each a JSON text: the page is sent those that have changed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from irqchipd.page import arm64, s390, x86
from irqchipd.page.part import Part
from irqchipd.vm.architectures import ARCHITECTURES
from irqchipd.vm.routing import MsiRoute, PinRoute, Route, S390Route
from irqchipd.vm.snapshot import CLOCK_VIRTUAL, IRQCHIP_FULL, VmState

_MODES: Final = ("", "none", "full", "split")  # IrqchipMode
_ARCHITECTURES: Final[dict[str, Callable[[VmState], Iterator[Part]]]] = {
    "x86": x86.parts,
    "arm64": arm64.parts,
    "s390": s390.parts,
}
_MOST_ROUTES: Final = 512  # that are shown
_REMEMBERED: Final = 4  # texts of a part: a guest in a loop comes to the same states again


def parts(state: VmState) -> Iterator[Part]:
    """The parts of any VM, and then those of its architecture."""
    name = ARCHITECTURES[state.architecture].name
    mode = IRQCHIP_FULL if state.s390 is not None and state.s390.irqchip else state.irqchip_mode
    yield "vm", (name, mode, state.clock, state.tsc_khz), _vm
    yield "routes", state.routing, _routes
    yield from _ARCHITECTURES[name](state)


def _vm(raw: Any) -> Any:
    name, mode, clock, tsc_khz = raw
    return {"architecture": name, "irqchip": _MODES[mode], "virtual": clock == CLOCK_VIRTUAL, "tscKhz": tsc_khz}


def _routes(routes: tuple[Route, ...]) -> Any:
    return {"shown": [_route(route) for route in routes[:_MOST_ROUTES]], "count": len(routes)}


def _route(route: Route) -> Any:
    match route:
        case PinRoute():
            return {"gsi": route.gsi, "to": "pin", "chip": route.chip, "pin": route.pin}
        case MsiRoute():
            message = x86.message(route.address, route.data)
            return {"gsi": route.gsi, "to": "msi", "address": hex(route.address), "data": route.data, **message}
        case S390Route():
            return {"gsi": route.gsi, "to": "adapter", "adapter": route.adapter, "bit": route.indicator_offset}


class Encoder:
    """Makes the texts of states, of which most parts are as they were one of the last times."""

    def __init__(self) -> None:
        self._known: dict[str, deque[tuple[object, str]]] = {}

    def encode(self, state: VmState) -> dict[str, str]:
        """The text of each part."""
        now: dict[str, deque[tuple[object, str]]] = {}
        texts: dict[str, str] = {}
        for name, raw, decode in parts(state):
            known = now[name] = self._known.get(name) or deque(maxlen=_REMEMBERED)
            for before, text in known:
                if before == raw:
                    texts[name] = text
                    break
            else:
                texts[name] = json.dumps(decode(raw), separators=(",", ":"))
                known.appendleft((raw, texts[name]))
        self._known = now
        return texts


def changed(before: dict[str, str], now: dict[str, str]) -> str:
    """A JSON object with the parts that are new or have changed; those that are gone are null."""
    texts = [f'"{name}":{text}' for name, text in now.items() if before.get(name) != text]
    texts += [f'"{name}":null' for name in before if name not in now]
    return "{" + ",".join(texts) + "}"
