"""The families of random programs, by the names that the golden traces have, and some more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random

from tests.conformance.arm import chaos, corners, creation, interrupts, registers, routing, saving, translation
from tests.conformance.arm.program import Program
from tests.conformance.arm.script import Script

Generator = Callable[[Random, int], Script]

_BOTH: dict[str, Generator] = {
    "creation": creation.creation,
    "order": creation.order,
    "cpuif": interrupts.cpu_interface,
    "sgi": interrupts.sgis,
    "level": interrupts.levels,
    "overflow": interrupts.overflow,
    "nested": interrupts.nested,
    "state": saving.save_and_restore,
    "routing": routing.routing,
    "caps": creation.capabilities,
    "anything": corners.anything,
    "crowd": corners.crowd,
    "numbers": corners.numbers,
    "timer": corners.timer_interrupts,
}
FAMILIES: dict[str, Generator] = {
    **{f"v2-{name}": generator for name, generator in _BOTH.items()},
    "v2-dist": registers.v2_distributor,
    **{f"v3-{name}": generator for name, generator in _BOTH.items()},
    "v3-regions": creation.regions,
    "v3-dist": registers.v3_distributor,
    "v3-redist": registers.v3_redistributor,
    "v3-sysregs": registers.sysregs,
    "v3-its": translation.translation,
    "v2-chaos": chaos.v2_chaos,
    "v3-chaos": chaos.v3_chaos,
}
SELDOM = {"v2-caps": 10, "v3-caps": 10}  # families with little to say: one seed of so many


def gic_of(family: str) -> int:
    """The GIC of a family's host."""
    return int(family[1])


def program(family: str, seed: int) -> Program:
    """The program of a seed."""
    gic = gic_of(family)
    script = FAMILIES[family](Random(f"{family}/{seed}"), gic)
    return Program(family, seed, gic, len(script.vcpus), script.ops)


def programs(families: Iterable[str], seeds: Iterable[int]) -> Iterator[Program]:
    """The programs of some seeds, seed after seed."""
    names = list(families)
    for seed in seeds:
        for family in names:
            if seed % SELDOM.get(family, 1) == 0:
                yield program(family, seed)
